"""Scoring on a folder, in memory and on S3, with and without Ray: each image one row, and nothing done twice."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import load_learner
from faulty import faulty_proxy
from PIL import Image
from servers import S3Server

from drivetrain import Config, score_images
from drivetrain.errors import RunError, SettingError, StoreError, TrustError
from drivetrain.layout import Layout
from drivetrain.manifest import freeze, list_images
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.schema import matrix, row_schema
from drivetrain.shard import ShardScorer
from drivetrain.store import Store

pytestmark = pytest.mark.slow

IMAGES = 150


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    learners.write_digits(folder, 0, IMAGES)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> learners.Exported:
    folder = tmp_path_factory.mktemp("train")
    learners.write_digits(folder, 1000, 1300, by_label=True)
    return learners.exported(learners.digits_learner(folder, epochs=2), folder.parent / "export.pkl")


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Config]:
    """Where the root lies, and how many actors work there."""
    if request.param == "local":
        yield Config(root=str(tmp_path / "root"), actors=2)
    elif request.param == "memory":
        yield Config(root=f"memory://{tmp_path.name}/root", actors=0)
    else:
        server: S3Server = request.getfixturevalue("s3")
        yield Config(root=f"{server.bucket()}/root", actors=2, storage=server.storage)


def config_of(exported: learners.Exported, place: Config, **changes: Any) -> Config:
    known = {"learner": exported.path, "trust": (exported.sha256,), "source": "digits", "name": "first"}
    return Config(**{**place.model_dump(exclude_unset=True), **known, **changes})


def copied(place: Config, folder: Path) -> str:
    """The images as objects of the same store as the root."""
    store, layout = open_root(place)
    if store.is_local(layout.root):
        return str(folder)
    prefix = f"{layout.root.rsplit('/', 1)[0]}/images"
    for path in folder.iterdir():
        store.replace(f"{prefix}/{path.name}", path.read_bytes())
    return prefix


def freeze_images(store: Store, layout: Layout, prefix: str) -> None:
    """The plan of a command that was killed before its first image."""
    listing = list_images(store, prefix)
    freeze(store, layout, listing.images, source="digits", kind="plan", name="first", prefix=prefix, skipped={})


def rows_of(config: Config, run_id: str) -> pd.DataFrame:
    store, layout = open_root(config)
    names = row_schema(1).names
    return Run.find(store, layout, run_id).rows(names).to_pandas()


def test_rows_equal_get_preds_on_every_store(place: Config, exported: learners.Exported, digits: Path) -> None:
    config = config_of(exported, place, images=copied(place, digits))
    result = score_images(config)
    assert (result["rows"], result["failed"], result["too_many_failed"]) == (IMAGES, 0, False)
    rows = rows_of(config, result["run_id"])
    assert list(rows.columns) == row_schema(1).names
    assert rows["uri"].is_unique and len(rows) == IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn = load_learner(exported.path)
    files = [digits / uri.rsplit("/", 1)[-1] for uri in rows["uri"]]
    with learn.no_bar():
        expected, _ = learn.get_preds(dl=learn.dls.test_dl(files, num_workers=0))
    np.testing.assert_allclose(np.stack(rows["probs"]), expected.numpy(), atol=1e-5)
    assert rows["label"].tolist() == [str(learn.dls.vocab[i]) for i in expected.argmax(dim=1)]
    np.testing.assert_allclose(rows["confidence"], expected.max(dim=1).values, atol=1e-5)
    assert {len(embedding) for embedding in rows["embedding"]} == {128}
    assert (rows["width"] == learners.SIZE).all() and rows["content_hash"].str.len().eq(64).all()


def test_md5_is_verified_where_the_store_gives_one(s3: S3Server, exported: learners.Exported, digits: Path) -> None:
    place = Config(root=f"{s3.bucket()}/root", actors=0, storage=s3.storage)
    config = config_of(exported, place, images=copied(place, digits))
    assert rows_of(config, score_images(config)["run_id"])["verified"].all()


def test_no_record_of_a_run_is_read_more_often_than_it_must(
    s3: S3Server, exported: learners.Exported, digits: Path
) -> None:
    with faulty_proxy(s3.endpoint, lambda method, path, nth: None) as proxy:
        storage = {"s3": {"endpoint_url": proxy.endpoint}}
        place = Config(root=f"{s3.bucket()}/root", actors=0, storage=storage)
        for name in ("first", "second"):
            run_id = score_images(config_of(exported, place, images=str(digits), name=name))["run_id"]
    read = {
        path.rsplit("/", 1)[-1]: n for (method, path), n in proxy.asked.items() if run_id in path and method == "GET"
    }
    # By the command, before it begins, and for its result; by what writes the table, before its parts are read.
    assert read["commit.json"] == 5
    # By the actor, and by what writes the table.
    assert read["run.json"] == 3


@pytest.mark.parametrize("gpu", [False, True])
def test_while_a_part_is_written_the_next_images_are_prepared(
    exported: learners.Exported, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """As actors on CPUs do it, and as those with a GPU, which decode in threads."""

    def scorer(*about: Any, **how: Any) -> ShardScorer:
        made = ShardScorer(*about, **how)
        assert made._learner.decodes_in_threads
        made._decoders = ThreadPoolExecutor(2) if gpu else None
        return made

    monkeypatch.setattr("drivetrain.score._scorer", scorer)

    def scored(name: str) -> pd.DataFrame:
        config = config_of(exported, Config(root=str(tmp_path / name), actors=0), images=str(digits), batch_size=16)
        return rows_of(config, score_images(config)["run_id"])

    with monkeypatch.context() as patch:
        patch.setattr(ShardScorer, "_prepare_while", lambda self, saving: None)
        expected = scored("one after the other")
    save, prepare, meanwhile = ShardScorer._save, ShardScorer._prepare, ShardScorer._prepare_while
    writing, prepared = threading.Event(), threading.Event()

    def slow_save(self: ShardScorer, shard: int, rows: Any) -> Any:
        writing.set()
        assert shard == 2 or prepared.wait(60), "no image of the next shard was prepared meanwhile"
        writing.clear()
        prepared.clear()
        return save(self, shard, rows)

    def watched_prepare(self: ShardScorer, image: Any, arriving: Any) -> Any:
        found = prepare(self, image, arriving)
        if writing.is_set():
            prepared.set()
        return found

    def once_they_came(self: ShardScorer, saving: Any) -> None:
        if self._expected is None:
            return
        for _, fetched in self._expected[1].result().first:
            fetched.result()
        assert writing.wait(60)
        meanwhile(self, saving)

    monkeypatch.setattr(ShardScorer, "_save", slow_save)
    monkeypatch.setattr(ShardScorer, "_prepare", watched_prepare)
    monkeypatch.setattr(ShardScorer, "_prepare_while", once_they_came)
    found = scored("meanwhile")
    changing = ["uri", "etag", "mtime"]
    pd.testing.assert_frame_equal(found.drop(columns=changing), expected.drop(columns=changing))
    assert found["uri"].tolist() == expected["uri"].tolist()


@pytest.mark.thorough
def test_an_outage_stops_a_run_that_the_same_command_finishes(
    s3: S3Server, exported: learners.Exported, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails in the middle of a run once made a committed run of failed rows."""
    monkeypatch.setattr("drivetrain.shard.OUTAGE_WAITS", (0.0, 0.0))
    bucket = s3.bucket()
    images = copied(Config(root=f"{bucket}/root", storage=s3.storage), digits)

    with faulty_proxy(s3.endpoint, lambda method, path, nth: None) as proxy:

        def ends_after_120(method: str, path: str, nth: int) -> str | None:
            read = sum(count for (how, which), count in proxy.asked.items() if how == "GET" and "/images/" in which)
            return "403" if "/images/" in path and read > 120 else None

        proxy.rule = ends_after_120
        through = Config(root=f"{bucket}/root", actors=0, storage={"s3": {"endpoint_url": proxy.endpoint}})
        config = config_of(exported, through, images=images)
        store, layout = open_root(config)
        tries: list[int] = []
        tried = ShardScorer._score_shard

        def counted(self: ShardScorer, task: int, upcoming: int | None) -> Any:
            tries.append(task)
            return tried(self, task, upcoming)

        monkeypatch.setattr(ShardScorer, "_score_shard", counted)
        with pytest.raises(StoreError, match="hands out no image any more: PermissionError"):
            score_images(config)
        assert tries == [0, 1, 1, 1], "the shard that can't be read is tried again twice"
        (run_id,) = store.names(layout.runs)
        run = Run.find(store, layout, run_id)
        assert run.committed() is None
        kept = {name: store.about(f"{run.paths.parts}/{name}") for name in store.names(run.paths.parts)}
        assert len(kept) == 1, "what was finished before stays"
        proxy.rule = lambda method, path, nth: None
        result = score_images(config)
        assert kept == {name: store.about(f"{run.paths.parts}/{name}") for name in kept}
    assert (result["rows"], result["failed"]) == (IMAGES, 0)


def test_pandas_reads_the_parts_as_they_lie(exported: learners.Exported, digits: Path, tmp_path: Path) -> None:
    config = config_of(exported, Config(root=str(tmp_path / "root"), actors=0), images=str(digits))
    frame = pd.read_parquet(score_images(config)["parts"])
    assert len(frame) == IMAGES and frame["status"].eq("ok").all()


def test_a_bad_image_is_one_row_and_other_objects_are_counted(exported: learners.Exported, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    learners.write_digits(folder, 0, 40)
    (folder / "broken.jpg").write_bytes(b"<html>404 not found</html>")
    (folder / "empty.png").touch()
    (folder / "no_suffix").write_bytes((folder / "d0000.png").read_bytes())
    for name in ("notes.txt", "labels.csv", ".DS_Store"):
        (folder / name).write_text("no image")
    config = config_of(exported, Config(root=str(tmp_path / "root"), actors=0), images=str(folder))
    result = score_images(config)
    assert (result["rows"], result["failed"]) == (43, 2)
    assert result["reasons"] == {"undecodable": 1, "empty": 1}
    assert result["skipped"] == {"txt": 1, "csv": 1, "hidden": 1}
    assert result["too_many_failed"], "2 of 43 is more than 1 %"
    rows = rows_of(config, result["run_id"]).set_index("uri")
    broken = rows.loc[str(folder / "broken.jpg")]
    assert broken["status"] == "failed" and broken["error"] == "undecodable" and broken["probs"] is None
    assert rows.loc[str(folder / "no_suffix"), "status"] == "ok"


class EndedByImages(ShardScorer):
    """Decoding these ends the process, as a bug in a codec would."""

    def _prepare(self, image: dict[str, Any], arriving: Any) -> Any:
        if image["uri"].endswith("fatal.png"):
            with Path(image["uri"]).with_suffix(".tries").open("a") as tries:
                tries.write("x")
            os.kill(os.getpid(), signal.SIGSEGV)
        return super()._prepare(image, arriving)


@pytest.mark.thorough
def test_an_image_that_ends_its_process_is_one_row_and_the_others_are_what_they_are(
    exported: learners.Exported, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    shutil.copytree(digits, images)
    some = sorted(images.iterdir())
    fatal = [shutil.copy(some[at], some[at].with_suffix(".fatal.png")) for at in (0, 70, 71)]
    place = Config(root=str(tmp_path / "root"), actors=2)
    config = config_of(exported, place, images=str(images), max_failed=0.5)
    monkeypatch.setattr("drivetrain.score._scorer", EndedByImages)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    result = score_images(config)
    assert (result["rows"], result["failed"], result["reasons"]) == (IMAGES + 3, 3, {"crashed": 3})
    rows = rows_of(config, result["run_id"]).set_index("uri")
    assert rows.index.is_unique and set(rows.index[rows["error"] == "crashed"]) == {str(path) for path in fatal}
    assert (rows.loc[rows["error"] == "crashed", "attempts"] == 3).all()
    tried = [len(Path(path).with_suffix(".tries").read_text()) for path in fatal]
    assert max(tried) <= 3, tried
    print(f"3 images that end their process: 3 rows after {tried} attempts, 150 others scored")
    monkeypatch.undo()
    unharmed = config.model_copy(update={"root": str(tmp_path / "unharmed"), "images": str(digits), "actors": 0})
    expected = rows_of(unharmed, score_images(unharmed)["run_id"]).set_index("uri")
    same = rows.drop(index=[str(path) for path in fatal]).rename(index=lambda uri: str(digits / Path(uri).name))
    np.testing.assert_allclose(
        np.stack(same.sort_index()["probs"]), np.stack(expected.sort_index()["probs"]), atol=1e-6
    )


def test_lossy_decodes_are_flagged_and_counted(exported: learners.Exported, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    learners.write_digits(folder, 0, 10)
    Image.open(folder / "d0000.png").convert("RGBA").save(folder / "clear.png")
    Image.open(folder / "d0000.png").convert("RGB").save(folder / "named.jpg", "PNG")
    config = config_of(exported, Config(root=str(tmp_path / "root"), actors=0), images=str(folder))
    result = score_images(config)
    assert result["flags"] == {"alpha": 1, "wrong_suffix": 1}
    assert result["unverified"] == 12, "local files have no MD5"
    flags = rows_of(config, result["run_id"]).set_index("uri")["flags"].map(list)
    assert flags[str(folder / "clear.png")] == ["alpha"]
    assert flags[str(folder / "d0000.png")] == []


def test_what_changes_or_goes_after_the_listing_is_told(exported: learners.Exported, tmp_path: Path) -> None:
    """The manifest is frozen first: plan, then change the bucket, then score."""
    folder = tmp_path / "images"
    paths = learners.write_digits(folder, 0, 10)
    config = config_of(exported, Config(root=str(tmp_path / "root"), actors=0, max_failed=1.0), images=str(folder))
    with pytest.raises(TrustError):
        score_images(config.model_copy(update={"trust": ("0" * 64,)}))
    freeze_images(*open_root(config), str(folder))
    paths[0].unlink()
    paths[1].write_bytes(paths[2].read_bytes() + b"more")
    result = score_images(config)
    assert result["rows"] == 10
    assert result["reasons"] == {"vanished": 1, "changed": 1}


@pytest.mark.thorough
def test_failed_images_are_scored_again_and_only_those(
    s3: S3Server, exported: learners.Exported, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket()
    images = copied(Config(root=f"{bucket}/root", storage=s3.storage), digits)
    vanished, changed, denied = (f"{images}/{path.name}" for path in sorted(digits.iterdir())[3:6])
    refused = {denied}

    def rule(method: str, path: str, nth: int) -> str | None:
        return "403" if method == "GET" and any(path.endswith(uri.rsplit("/", 1)[-1]) for uri in refused) else None

    with faulty_proxy(s3.endpoint, rule) as proxy:
        place = Config(root=f"{bucket}/root", actors=0, storage={"s3": {"endpoint_url": proxy.endpoint}})
        config = config_of(exported, place, images=images, max_failed=0.5)
        again = config.model_copy(update={"retry_failed": True})
        store, layout = open_root(config)
        kept = store.read(vanished)
        freeze_images(store, layout, images)
        store._fs(vanished)[0].rm_file(vanished)
        store.replace(changed, kept)
        with pytest.raises(SettingError, match="not committed yet"):
            score_images(again)
        first = score_images(config)
        assert first["reasons"] == {"vanished": 1, "changed": 1, "denied": 1}
        before = rows_of(config, first["run_id"]).set_index("uri")
        parts = {name: store.read(f"{first['parts']}/{name}") for name in store.names(first["parts"])}

        refused.clear()
        store.replace(vanished, kept)
        fetched: list[str] = []
        fetch = Store.fetch
        monkeypatch.setattr(Store, "fetch", lambda self, uri: (fetched.append(uri), fetch(self, uri))[1])
        second = score_images(again)
        assert sorted(uri for uri in fetched if uri.startswith(images)) == sorted([vanished, changed, denied])
        print(f"{first['failed']} of {first['rows']} failed; 3 scored again, {second['failed']} failed")
        assert (second["rows"], second["failed"]) == (IMAGES, 0) and second["run_id"] == f"{first['run_id']}-retry1"
        assert {name: store.read(f"{first['parts']}/{name}") for name in parts} == parts, (
            "the first run stays as it was"
        )
        after = rows_of(config, second["run_id"]).set_index("uri")
        assert (after.index == before.index).all()
        scored = [vanished, changed, denied]
        assert (after.loc[scored, "attempts"] == 2).all() and (after.loc[scored, "status"] == "ok").all()
        assert after.loc[changed, "content_hash"] == after.loc[vanished, "content_hash"]
        others = before.index.difference(scored)
        columns = [name for name in before.columns if name not in ("run_id", "probs", "embedding", "labels", "flags")]
        pd.testing.assert_frame_equal(before.loc[others, columns], after.loc[others, columns], check_dtype=False)
        np.testing.assert_array_equal(np.stack(before.loc[others, "probs"]), np.stack(after.loc[others, "probs"]))
        assert score_images(config)["run_id"] == second["run_id"], "the newest run counts"
        assert score_images(again)["run_id"] == second["run_id"], "nothing is left to score again"
        assert len(store.names(layout.runs)) == 2


def test_a_committed_run_is_left_alone_and_new_images_are_counted(
    exported: learners.Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    learners.write_digits(folder, 0, 20)
    config = config_of(exported, Config(root=str(tmp_path / "root"), actors=0), images=str(folder))
    first = score_images(config)
    before = {path: path.stat().st_mtime_ns for path in Path(first["parts"]).parent.rglob("*") if path.is_file()}
    learners.write_digits(folder, 20, 25)
    capsys.readouterr()
    assert score_images(config) == first
    assert "5 images are new since" in capsys.readouterr().err
    assert before == {
        path: path.stat().st_mtime_ns for path in Path(first["parts"]).parent.rglob("*") if path.is_file()
    }
    assert score_images(config.model_copy(update={"name": "second"}))["rows"] == 25


def test_a_killed_driver_is_resumed_by_the_same_command(exported: learners.Exported, tmp_path: Path) -> None:
    # Large images, so that a shard takes far longer than noticing that the first one is there.
    folder = tmp_path / "images"
    learners.write_photos(folder, 320)
    root = tmp_path / "root"
    command = [
        sys.executable, "-m", "drivetrain.cli", "score", "--root", str(root), "--learner", exported.path,
        "--trust", exported.sha256, "--images", str(folder), "--source", "digits", "--name", "first", "--actors", "0",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (parts := sorted(root.glob("runs/*/parts/*.parquet"))):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before its first part"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    parts = sorted(root.glob("runs/*/parts/*.parquet"))
    run_folder = next(root.glob("runs/*"))
    assert 0 < len(parts) < 5 and not (run_folder / "commit.json").exists()
    kept = {path.name: path.read_bytes() for path in parts}
    config = config_of(exported, Config(root=str(root), actors=0), images=str(folder))
    store, layout = open_root(config)
    with pytest.raises(RunError, match="not committed"):
        Run.find(store, layout, run_folder.name).rows(["uri"])
    result = score_images(config)
    assert result["run_id"] == run_folder.name
    assert {path.name: path.read_bytes() for path in parts} == kept
    rows = rows_of(config, result["run_id"])
    assert rows["uri"].is_unique and len(rows) == 320


def test_memory_serves_no_actors(exported: learners.Exported, digits: Path) -> None:
    config = config_of(exported, Config(root="memory://alone/root", actors=2), images=str(digits))
    with pytest.raises(SettingError, match="--actors 0"):
        score_images(config)


def test_without_embeddings(exported: learners.Exported, digits: Path, tmp_path: Path) -> None:
    place = Config(root=str(tmp_path / "root"), actors=0)
    with_them = score_images(config_of(exported, place, images=str(digits)))
    without = score_images(config_of(exported, place, images=str(digits), embedding="none", name="none"))
    rows, others = rows_of(place, with_them["run_id"]), rows_of(place, without["run_id"])
    assert others["embedding"].isna().all() and others["label"].tolist() == rows["label"].tolist()


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_multi_label_and_regression_rows(kind: str, tmp_path: Path) -> None:
    photos = learners.write_photos(tmp_path / "photos", 16)
    make = {"multi_label": learners.multi_label_learner, "regression": learners.regression_learner}[kind]
    exported = learners.exported(make(photos), tmp_path / "export.pkl")
    place = Config(root=str(tmp_path / "root"), actors=0)
    config = config_of(exported, place, images=str(tmp_path / "photos"))
    rows = rows_of(config, score_images(config)["run_id"])
    if kind == "regression":
        assert rows["values"].str.len().eq(1).all() and rows[["label", "confidence", "probs"]].isna().all().all()
        return
    store, layout = open_root(config)
    vocab = Run.find(store, layout, score_images(config)["run_id"]).record.vocab
    for _, row in rows.iterrows():
        assert set(row["labels"]) == {word for word, share in zip(vocab, row["probs"], strict=True) if share > 0.4}
    assert rows["energy"].isna().all()


def test_embeddings_come_back_as_a_matrix(exported: learners.Exported, digits: Path, tmp_path: Path) -> None:
    config = config_of(exported, Config(root=str(tmp_path / "root"), actors=0), images=str(digits))
    store, layout = open_root(config)
    run = Run.find(store, layout, score_images(config)["run_id"])
    assert matrix(run.rows(["embedding"])["embedding"]).shape == (IMAGES, 128)


def test_an_empty_prefix_and_a_foreign_root_are_told(exported: learners.Exported, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    config = config_of(exported, Config(root=str(tmp_path / "root"), actors=0), images=str(tmp_path / "nothing"))
    with pytest.raises(SettingError, match="No image below"):
        score_images(config)
    Store().replace(f"{tmp_path}/old/drivetrain.json", b'{"schema": 99}')
    with pytest.raises(SettingError, match="schema 99"):
        score_images(config.model_copy(update={"root": f"{tmp_path}/old"}))


def test_the_driver_of_a_known_learner_loads_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from builders import begun, frozen, images, part_of
from drivetrain import Config, pool
from drivetrain.layout import Layout
from drivetrain.score import finish_run
from drivetrain.store import Store

store, layout = Store(), Layout({str(tmp_path)!r})
run = begun(store, layout, frozen(store, layout, images(200)))
pool.run_tasks = lambda make, tasks, **_: ((task, run.save_part(task, part_of(run, task))) for task in tasks)
print(finish_run(run, Config(actors=0)).rows, {{"torch", "fastai"}} & set(sys.modules))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert done.stdout == "200 set()\n"
