"""The fast engine is chosen once, on real images, is part of the run's key, and is held against torch on each node."""

import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
import zoo

from drivetrain import opened
from drivetrain.admit import admit_learner
from drivetrain.config import Config
from drivetrain.engine import choose_engine, read_network
from drivetrain.errors import LearnerError, SettingError, StoreError, TrustError
from drivetrain.learner import StoredLearner, open_learner, outputs
from drivetrain.reference import build_reference, find_reference
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.score import score_images
from drivetrain.shard import BATCH_BYTES, ShardScorer, cut
from drivetrain.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return learners.write_photos(tmp_path_factory.mktemp("photos") / "all", 140)


@pytest.fixture(scope="module")
def exported(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> learners.Exported:
    return learners.exported(zoo.ZOO["squish"](photos), tmp_path_factory.mktemp("learner") / "export.pkl")


@pytest.fixture()
def config(exported: learners.Exported, photos: list[Path], tmp_path: Path) -> Config:
    return Config(
        root=str(tmp_path / "root"), learner=exported.path, images=str(photos[0].parent.parent), source="photos",
        name="first", actors=0,
    )  # fmt: skip


def run_of(config: Config, result: dict[str, Any]) -> Run:
    store, layout = open_root(config)
    return Run.find(store, layout, result["run_id"])


def test_openvino_scores_after_its_proof_and_torch_scores_the_same(config: Config) -> None:
    fast = run_of(config, score_images(config))
    slow = run_of(config, score_images(config.model_copy(update={"engine": "torch"})))
    assert (fast.record.settings["engine"], fast.record.engine_note) == ("openvino", "")
    assert (slow.record.settings["engine"], slow.record.engine_note) == ("torch", "asked for")
    assert fast.record.run_id != slow.record.run_id
    columns = ["uri", "label", "probs", "embedding"]
    one, other = (run.rows(columns).to_pandas().set_index("uri").sort_index() for run in (fast, slow))
    assert len(one) == 140 and (one["label"] == other["label"]).all()
    np.testing.assert_allclose(np.stack(one["probs"]), np.stack(other["probs"]), atol=1e-4)
    np.testing.assert_allclose(np.stack(one["embedding"]), np.stack(other["embedding"]), rtol=2e-3, atol=1e-4)


def test_a_dry_run_probes_openvino_on_actors_that_get_the_network_with_their_worker(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is nowhere else: a dry run writes nothing."""
    found = score_images(config.model_copy(update={"dry_run": True, "actors": 2}))
    assert found["probed"] > 0 and found["actors"] == 2 and "torch, more slowly" not in capsys.readouterr().err
    assert not Path(str(config.root)).exists()
    assert run_of(config, score_images(config)).record.settings["engine"] == "openvino"


@pytest.mark.parametrize(("embedding", "size"), [("none", 0), ("1.0", 64)])
def test_another_layer_or_none_is_stored_and_scored_for_itself(config: Config, embedding: str, size: int) -> None:
    run = run_of(config, score_images(config.model_copy(update={"embedding": embedding})))
    assert run.record.settings["engine"] == "openvino" and run.record.embedding_size == size
    assert run.store.exists(run.layout.network(run.record.model_id, embedding))
    assert not run.store.exists(run.layout.network(run.record.model_id))
    rows = run.rows(["status", "embedding"]).to_pylist()
    assert {row["status"] for row in rows} == {"ok"} and {len(row["embedding"] or ()) for row in rows} == {size}


def test_the_proof_is_made_once(config: Config) -> None:
    score_images(config)
    store, layout = open_root(config)
    info = admit_learner(store, layout, config)
    record = layout.proof(info.model_id)
    proof = json.loads(store.read(record))
    assert proof["images"] == 32 and proof["same_labels"] and proof["cosine"] >= 0.9999 and not proof["reason"]
    assert choose_engine(store, layout, config, info, lambda: iter([])) == ("openvino", ""), "no image is read again"


def test_too_few_images_prove_nothing_and_decide_nothing(config: Config, photos: list[Path]) -> None:
    store, layout = open_root(config)
    info = admit_learner(store, layout, config)
    engine, why = choose_engine(store, layout, config, info, lambda: iter(str(path) for path in photos[:3]))
    assert engine == "torch" and "only 3 readable images" in why
    assert not store.exists(layout.proof(info.model_id))


def test_what_openvino_cannot_do_is_left_to_torch_and_said(tmp_path: Path) -> None:
    paths = learners.write_digits(tmp_path / "digits", 0, 64, by_label=True)
    exported = learners.exported(learners.digits_learner(tmp_path / "digits", epochs=1), tmp_path / "export.pkl")
    config = Config(
        root=str(tmp_path / "root"), learner=exported.path, images=str(paths[0].parent.parent), source="d", actors=0
    )
    record = run_of(config, score_images(config)).record
    assert record.settings["engine"] == "torch" and "one size" in record.engine_note
    with pytest.raises(SettingError, match=r"one size.*--engine torch"):
        score_images(config.model_copy(update={"engine": "openvino", "name": "second"}))


def test_what_breaks_in_openvino_is_left_to_torch(config: Config, photos: list[Path]) -> None:
    """It converts and then raises: no reason to fail a run."""
    store, layout = open_root(config)
    info = admit_learner(store, layout, config)
    learner = open_learner(store.read(layout.export(info.model_id)), info.sha256)
    item = learner.prepare(photos[0].read_bytes(), 10_000_000)[0]
    fast = StoredLearner(learner.stored([item]), info)
    fast._exact._request = None
    assert "can't compute it" in learner.prove(fast, [item]).reason


def test_half_precision_without_a_gpu_is_refused(config: Config) -> None:
    """Its rows would be float32 under a key that says float16."""
    with pytest.raises(SettingError, match="--gpus-per-actor 1"):
        score_images(config.model_copy(update={"precision": "float16"}))


def test_a_root_of_version_0_1_goes_on(config: Config, exported: learners.Exported) -> None:
    """Its learner.json says neither how the export was read nor what is in it; then all were unpickled."""
    store, layout = open_root(config)
    info = admit_learner(store, layout, config)
    about = layout.learner(info.model_id)
    old = json.loads(store.read(about))
    for key in ("loss", "transforms", "unread", "read"):
        del old[key]
    store.replace(about, json.dumps(old).encode())
    with pytest.raises(TrustError, match="--trust"):
        admit_learner(store, layout, config)
    trusted = config.model_copy(update={"trust": (exported.sha256,)})
    assert admit_learner(store, layout, trusted).vocab == info.vocab
    assert score_images(trusted)["rows"] == 140


def test_a_reference_by_torch_serves_a_run_by_openvino(config: Config) -> None:
    build_reference(config.model_copy(update={"engine": "torch"}))
    run = run_of(config, score_images(config))
    reference = find_reference(run.store, run.layout, run)
    assert reference is not None and reference.settings["engine"] == "torch"
    assert run.record.settings["engine"] == "openvino"


def test_a_node_that_computes_something_else_fails_loudly(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch gave where the network was proved is changed, as if this node's processor gave other numbers."""
    run = run_of(config, score_images(config))
    read = opened.network_if_stored
    for array in ("raw", "embeddings"):
        monkeypatch.setattr(opened, "network_if_stored", lambda *about, array=array: changed(read(*about), array))
        with pytest.raises(LearnerError, match=r"does not give what it gave where it was proved.*--engine torch"):
            ShardScorer(Store(), run.layout.root, run.record.run_id, 16)


def changed(stored: bytes, array: str) -> bytes:
    """A stored learner that kept other answers of torch's, turned round from image to image."""
    whole, sink, arrays = BytesIO(stored), BytesIO(), BytesIO()
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(sink, "w") as new:
        kept = dict(np.load(BytesIO(old.read("kept.npz"))))
        np.savez(arrays, **kept | {array: np.roll(kept[array], 1, axis=1)})
        for name in old.namelist():
            new.writestr(name, arrays.getvalue() if name == "kept.npz" else old.read(name))
    return sink.getvalue()


IMPORTED = """
import sys
from drivetrain.shard import ShardScorer
from drivetrain.store import Store
print(ShardScorer(Store(), sys.argv[1], sys.argv[2], 16).run(0).rows)
print(sorted({"torch", "torchvision", "fastai", "matplotlib"} & set(sys.modules)))
"""


def test_an_actor_on_a_cpu_scores_without_torch_and_fastai(config: Config) -> None:
    """They are most of its memory and of the time that its start takes."""
    run = run_of(config, score_images(config))
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, run.layout.root, run.record.run_id], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(run.counts(0).rows), "[]"]


def said(worker: ShardScorer, photos: list[Path]) -> Any:
    """The probabilities that an actor's learner gives the first photos."""
    learner = worker._learner
    items = [learner.prepare(path.read_bytes(), 10_000_000)[0] for path in photos[:20]]
    return np.concatenate([each.outputs for each in learner.predict(items)])  # type: ignore[union-attr]


def test_a_root_from_before_networks_were_stored_goes_on_and_gets_one(config: Config, photos: list[Path]) -> None:
    """Its engine stays, whatever comes of the new proof: another one would be another run."""
    run = run_of(config, score_images(config))
    store, layout, model = run.store, run.layout, run.record.model_id
    expected = said(ShardScorer(store, layout.root, run.record.run_id, 16), photos)
    os.unlink(layout.network(model))
    np.testing.assert_array_equal(said(ShardScorer(store, layout.root, run.record.run_id, 16), photos), expected)
    info = admit_learner(store, layout, config)
    few, many = (lambda: iter(str(path) for path in photos[:3])), (lambda: iter(str(path) for path in photos))
    assert choose_engine(store, layout, config, info, few) == ("openvino", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "TOLERANCE", -1.0)
        assert choose_engine(store, layout, config, info, many) == ("openvino", "")
    assert not store.exists(layout.network(model))
    assert choose_engine(store, layout, config, info, many) == ("openvino", "")
    assert store.exists(layout.network(model))
    assert run_of(config, score_images(config)).record.run_id == run.record.run_id


def test_a_damaged_network_is_not_opened(config: Config) -> None:
    run = run_of(config, score_images(config))
    record = run.layout.network(run.record.model_id)
    where = Path(run.layout.stored_network(run.record.model_id, json.loads(run.store.read(record))["sha256"]))
    where.write_bytes(where.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"network.json names, which is damaged"):
        ShardScorer(Store(), run.layout.root, run.record.run_id, 16)
    where.unlink()
    with pytest.raises(StoreError, match=r"network.json names, which is gone"):
        ShardScorer(Store(), run.layout.root, run.record.run_id, 16)


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def test_a_pickle_inside_a_stored_network_is_not_unpickled(config: Config, tmp_path: Path) -> None:
    run = run_of(config, score_images(config))
    info = admit_learner(run.store, run.layout, config)
    whole, hostile, arrays = BytesIO(read_network(run.store, run.layout, info.model_id, "head")), BytesIO(), BytesIO()
    np.savez(arrays, kept=np.array([Payload(tmp_path / "ran")], dtype=object))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(hostile, "w") as new:
        for name in old.namelist():
            new.writestr(name, arrays.getvalue() if name == "kept.npz" else old.read(name))
    with pytest.raises(LearnerError, match="can't be read"):
        StoredLearner(hostile.getvalue(), info)
    assert not (tmp_path / "ran").exists()
    np.load(BytesIO(arrays.getvalue()), allow_pickle=True)["kept"]
    assert (tmp_path / "ran").exists(), "the payload works where pickles are allowed"


def test_every_image_is_read_once_the_next_shards_too(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched ahead is used, and not fetched again."""
    run = run_of(config, score_images(config))
    worker = ShardScorer(Store(), run.layout.root, run.record.run_id, 16)
    reads: Counter[str] = Counter()
    fetch = Store.fetch

    def counted(self: Store, uri: str) -> tuple[bytes, str | None]:
        reads[uri] += 1
        return fetch(self, uri)

    monkeypatch.setattr(Store, "fetch", counted)
    shards = list(range(run.record.shards))
    assert len(shards) > 1
    for each, upcoming in zip(shards, [*shards[1:], None], strict=True):
        worker.run(each, upcoming)
    images = set(run.manifest(["uri"])["uri"].to_pylist())
    assert reads == dict.fromkeys(images, 1)


def test_a_wrong_guess_of_the_next_shard_costs_nothing_but_reads(config: Config) -> None:
    run = run_of(config, score_images(config))
    worker = ShardScorer(Store(), run.layout.root, run.record.run_id, 16)
    assert worker.run(0, 1).rows == run.counts(0).rows
    assert worker.run(2, None).rows == run.counts(2).rows
    assert worker.run(1, None).rows == run.counts(1).rows


def test_batches_are_bounded_by_count_and_by_bytes() -> None:
    small, large = {"size": 10}, {"size": BATCH_BYTES}
    assert [len(batch) for batch in cut([small] * 10, 4)] == [4, 4, 2]
    assert [len(batch) for batch in cut([small, large, large, small, small], 4)] == [1, 1, 1, 2]
    assert cut([], 4) == [] and [len(batch) for batch in cut([{"size": None}] * 3, 4)] == [3]
