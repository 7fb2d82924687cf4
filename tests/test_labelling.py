"""Queues go out, labels come back, and a night's accuracy is counted: whole runs, written without a learner."""

import csv
import io
import json
import os
import re
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from builders import begun, frozen, image, part_of
from click.testing import CliRunner
from scipy.stats import beta

from drivetrain import Config, export_queue, import_labels, list_nights
from drivetrain.alerts import Judgement
from drivetrain.aliases import name_next
from drivetrain.cli import main
from drivetrain.errors import SettingError
from drivetrain.gc import collect_garbage
from drivetrain.images import ObjectInfo
from drivetrain.judge import judge_run
from drivetrain.labels import LABELS, drawn_images, people_labels
from drivetrain.layout import Layout
from drivetrain.nights import latest_record
from drivetrain.realised import draw, realised_of
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.schema import parquet_bytes, row_schema
from drivetrain.store import Store
from drivetrain.told import lines_of

STORE = Store()
NIGHT = "2026-01-02"
HOSTILE = '<img src=x onerror="alert(1)">=cmd|![p](http://evil)'


def said_of(uri: str) -> str:
    """What the learner says of an image: cat, of every fourth dog."""
    digits = re.findall(r"\d+", uri)
    return "dog" if digits and int(digits[-1]) % 4 == 0 else "cat"


def scored(layout: Layout, keys: list[str], *, name: str = NIGHT, kind: str = "night", **changes: Any) -> Run:
    """A committed run over some images."""
    about = {"task": "single_label"} | changes
    plan = frozen(STORE, layout, [image(key) for key in sorted(keys)], name=name, kind=kind)
    run = begun(STORE, layout, plan, **about)
    counts = {shard: run.save_part(shard, _part(run, shard)) for shard in range(run.record.shards)}
    run.commit(counts, 0.5, 1.0, plan.images)
    return run


def _part(run: Run, shard: int) -> pa.Table:
    bad = {row["uri"]: "undecodable" for row in run.shard(shard).to_pylist() if "bad" in row["uri"]}
    rows = part_of(run, shard, failed=bad).to_pylist()
    for row in rows:
        if row["status"] == "ok":
            label = said_of(row["uri"])
            row |= {"label": label, "label_index": int(label == "dog"), "probs": [0.75, 0.25], "energy": 1.0}
            if run.record.task == "multi_label":
                row["labels"] = ["cat", "dog"] if label == "dog" else []
            if run.record.task == "regression":
                row |= {"label": None, "label_index": None, "confidence": None, "probs": None, "values": [1.5]}
    return pa.Table.from_pylist(rows, schema=row_schema(run.record.embedding_size))


def config_of(layout: Layout, **changes: Any) -> Config:
    return Config(root=layout.root, source="shop", actors=0, **changes)


def measured(layout: Layout, run: Run, **settings: Any) -> Run:
    judge_run(STORE, layout, run, config_of(layout, **settings))
    return run


def keys(number: int) -> list[str]:
    return [f"day/{each:03d}.jpg" for each in range(number)]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return open_root(Config(root=str(tmp_path / "root")))[1]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The root of `night`, to be copied."""
    layout = open_root(Config(root=str(tmp_path_factory.mktemp("template") / "root")))[1]
    return measured(layout, scored(layout, keys(40)), review_size=12)


@pytest.fixture
def night(layout: Layout, template: Run) -> Run:
    """A measured night of 40 images; of ten of them the learner says dog."""
    shutil.copytree(template.layout.root, layout.root, dirs_exist_ok=True)
    return Run.find(STORE, layout, template.record.run_id)


def written(folder: Path, labels: dict[str, str], name: str = "labels.csv") -> str:
    sink = io.StringIO(newline="")
    csv.writer(sink).writerows([("fname", "label"), *labels.items()])
    (folder / name).write_text(sink.getvalue())
    return str(folder / name)


def queue_of(run: Run, folder: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """A queue's result, and the lines of its CSV."""
    file = folder / f"{len(list(folder.iterdir()))}.csv"
    config = config_of(run.layout, run=run.record.run_id, output=str(file), **changes)
    result = export_queue(config)
    return result, list(csv.DictReader(io.StringIO(file.read_text(), newline="")))


def brought(run: Run, folder: Path, labels: dict[str, str]) -> dict[str, Any]:
    return import_labels(config_of(run.layout), written(folder, labels))


def verdicts(run: Run) -> list[dict[str, Any]]:
    folder = Path(run.layout.plan("shop", run.record.kind, run.record.name).model(run.record.model_id))
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/verdict.json"))]


# --- the queue ---


def test_a_queue_is_the_latest_records_images_in_their_order(night: Run, tmp_path: Path) -> None:
    result, rows = queue_of(night, tmp_path)
    done = latest_record(STORE, night.layout, night)
    assert done and [row["fname"] for row in rows] == STORE.read_table(done[0].review)["uri"].to_pylist()
    assert (result["images"], result["unsure"], result["random"], len(rows)) == (12, 12, 0, 12)
    assert {row["chosen"] for row in rows} == {"unsure"}, "without a reference nobody knows what moved"
    assert any("12 the learner is least sure of (no reference" in line for line in lines_of(result))
    assert {row["label"] for row in rows} == {""} and {row["predicted"] for row in rows} == {"cat", "dog"}


def test_a_run_that_was_not_measured_has_no_queue(layout: Layout, tmp_path: Path) -> None:
    run = scored(layout, keys(3))
    with pytest.raises(SettingError, match=f"drivetrain drift measure --root .* --run {run.record.run_id}"):
        queue_of(run, tmp_path)


def test_labelled_images_are_left_out_and_counted(night: Run, tmp_path: Path) -> None:
    _, rows = queue_of(night, tmp_path)
    brought(night, tmp_path, {row["fname"]: "cat" for row in rows[:5]})
    result, again = queue_of(night, tmp_path)
    assert (result["labelled_before"], [row["fname"] for row in again]) == (5, [row["fname"] for row in rows[5:]])


def test_a_file_that_may_hold_labels_is_not_written_over(night: Run, tmp_path: Path) -> None:
    config = config_of(night.layout, run=night.record.run_id, output=str(tmp_path / "queue.csv"))
    assert export_queue(config) == export_queue(config), "the same queue again is the same file"
    (tmp_path / "queue.csv").write_text("fname,label\nx,cat\n")
    with pytest.raises(SettingError, match="holds something else: labels, perhaps"):
        export_queue(config)
    assert "x,cat" in (tmp_path / "queue.csv").read_text()


def test_the_file_lies_in_the_working_directory(night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_queue(config_of(night.layout, run=night.record.run_id))
    result = export_queue(config_of(night.layout, run=night.record.run_id, to="labelstudio"))
    names = {f"queue-{night.record.run_id}.{suffix}" for suffix in ("csv", "json")}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert '<Choice value="dog"/>' in result["interface"]


def test_what_is_drawn_is_even_the_same_again_and_part_of_a_larger_draw(layout: Layout, tmp_path: Path) -> None:
    run = measured(layout, scored(layout, [*keys(200), "bad/1.jpg"]), review_size=12)
    _, rows = queue_of(run, tmp_path, sample=20)
    drawn = {row["fname"] for row in rows if row["chosen"] == "random"}
    assert len(drawn) == 20 and drawn == drawn_images(STORE, layout, "shop", "night", NIGHT)
    assert drawn == set(draw(run, 20)) < set(draw(run, 40)) and not any("bad" in uri for uri in draw(run, 300))
    other = scored(layout, [*keys(200), "bad/1.jpg"], sha256="6b" * 32)
    assert draw(other, 20) == draw(run, 20), "another learner's run of the night gives the same"
    hits = [sum(f"day/{each:03d}" in uri for uri in draw(run, 100)) for each in range(200)]
    assert 35 <= sum(hits[:100]) <= 65, "no end of the listing is preferred"


def test_a_draw_is_known_before_anybody_can_label_it(
    night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the file: the next command writes it. Where a file with labels stands, nothing is drawn."""
    create = Store.create

    def killed(store: Store, uri: str, data: bytes) -> bool:
        if uri.endswith(".csv"):
            create(store, uri, data)
            raise KeyboardInterrupt
        return create(store, uri, data)

    (tmp_path / "queue.csv").write_text("fname,label\nx,cat\n")
    config = config_of(night.layout, run=night.record.run_id, sample=5, output=str(tmp_path / "queue.csv"))
    with pytest.raises(SettingError, match="holds something else"):
        export_queue(config)
    assert not drawn_images(STORE, night.layout, "shop", "night", NIGHT)
    monkeypatch.setattr(Store, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        export_queue(config.model_copy(update={"output": str(tmp_path / "new.csv")}))
    assert (tmp_path / "new.csv").exists()
    assert drawn_images(STORE, night.layout, "shop", "night", NIGHT) == set(draw(night, 5))


def test_a_multi_label_queue_joins_what_is_predicted(layout: Layout, tmp_path: Path) -> None:
    run = measured(layout, scored(layout, keys(8), task="multi_label"))
    _, rows = queue_of(run, tmp_path)
    assert {row["predicted"] for row in rows} == {"cat;dog", ""}
    brought(run, tmp_path, {rows[0]["fname"]: "dog; cat", rows[1]["fname"]: "dog"})
    people = people_labels(STORE, layout, "shop")
    (found,) = realised_of(run, people, frozenset())
    assert (found.labelled, found.right) == (2, sum(said_of(rows[0]["fname"]) == "dog" for _ in "x"))


@pytest.mark.parametrize(("task", "vocab"), [("multi_label", ("cat", "dog")), ("regression", ())])
def test_the_csv_beside_the_report_says_what_the_queue_says(
    layout: Layout, tmp_path: Path, task: str, vocab: tuple[str, ...]
) -> None:
    run = measured(layout, scored(layout, keys(8), task=task, vocab=vocab))
    _, rows = queue_of(run, tmp_path)
    done = latest_record(STORE, layout, run)
    assert done and list(csv.DictReader(io.StringIO(Path(done[0].labelling).read_text(), newline=""))) == rows
    assert any(row["predicted"] for row in rows)


def test_an_image_of_no_class_comes_back_as_the_empty_set(
    layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(layout, scored(layout, keys(8), task="multi_label"))
    _, rows = queue_of(run, tmp_path)
    brought(run, tmp_path, {rows[0]["fname"]: "(none)", rows[1]["fname"]: ""})
    assert people_labels(STORE, layout, "shop") == {rows[0]["fname"]: ""}
    export_queue(config_of(layout, run=run.record.run_id, to="labelstudio", output=str(tmp_path / "tasks.json")))
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    tasks[0]["annotations"] = [{"result": [], "updated_at": "2026-01-05"}]
    tasks[1]["annotations"] = [{"result": [], "updated_at": "2026-01-05", "was_cancelled": True}]
    (tmp_path / "back.json").write_text(json.dumps(tasks))
    result = import_labels(config_of(layout), str(tmp_path / "back.json"))
    assert (result["labels"], result["unlabelled"]) == (1, 6)
    people = people_labels(STORE, layout, "shop")
    assert people == {rows[0]["fname"]: "", tasks[0]["data"]["image"]: ""}
    (found,) = realised_of(run, people, frozenset())
    assert (found.labelled, found.right) == (2, sum(said_of(uri) == "cat" for uri in people))
    assert "no classes of the learner" not in capsys.readouterr().err


def test_one_label_is_no_empty_set(night: Run, tmp_path: Path) -> None:
    (tmp_path / "back.json").write_text(
        json.dumps([{"data": {"image": image(key).uri}, "annotations": [{"result": []}]} for key in keys(2)])
    )
    with pytest.raises(SettingError, match="holds 2 images and no label"):
        import_labels(config_of(night.layout), str(tmp_path / "back.json"))


def test_a_regression_queues_numbers_and_has_no_accuracy(layout: Layout, tmp_path: Path) -> None:
    run = measured(layout, scored(layout, keys(6), task="regression", vocab=()))
    _, rows = queue_of(run, tmp_path)
    assert {row["predicted"] for row in rows} == {"1.5"}
    result = brought(run, tmp_path, {rows[0]["fname"]: "1.5"})
    assert result["nights"][0]["realised"] == [] and people_labels(STORE, layout, "shop") == {rows[0]["fname"]: "1.5"}


# --- labels come back ---


def test_the_numbers_are_those_counted_by_hand(night: Run, tmp_path: Path) -> None:
    """Of the ten images that were drawn 9 are labelled, 7 rightly; of four others 1 is."""
    queue_of(night, tmp_path, sample=10)
    drawn = draw(night, 10)
    others = [uri for uri in (image(key).uri for key in keys(40)) if uri not in drawn][:4]
    wrong = {"cat": "dog", "dog": "cat"}
    labels = {uri: said_of(uri) for uri in drawn[:7]} | {uri: wrong[said_of(uri)] for uri in drawn[7:9]}
    labels |= {others[0]: said_of(others[0])} | {uri: wrong[said_of(uri)] for uri in others[1:]}
    (found,) = brought(night, tmp_path, labels)["nights"]
    at_random, moved = found["realised"]
    assert (at_random["chosen"], at_random["drawn"], at_random["labelled"], at_random["right"]) == ("random", 10, 9, 7)
    # Clopper and Pearson's ends, by the beta distribution: the one without a label is wrong for the low end, right for
    # the high one.
    assert at_random["low"] == pytest.approx(beta.ppf(0.025, 7, 4))
    assert at_random["high"] == pytest.approx(beta.ppf(0.975, 9, 2))
    assert at_random["accuracy"] == pytest.approx(7 / 9)
    assert (moved["chosen"], moved["labelled"], moved["right"], moved["accuracy"]) == ("moved", 4, 1, 0.25)


def test_images_that_moved_never_make_the_nights_accuracy(night: Run, tmp_path: Path) -> None:
    _, rows = queue_of(night, tmp_path)
    (found,) = brought(night, tmp_path, {row["fname"]: "cat" for row in rows})["nights"]
    assert [each["chosen"] for each in found["realised"]] == ["moved"]


def test_a_night_that_is_labelled_as_a_whole_needs_no_interval(layout: Layout, tmp_path: Path) -> None:
    run = measured(layout, scored(layout, [*keys(8), "bad/1.jpg"]))
    (found,) = brought(run, tmp_path, {image(key).uri: "cat" for key in keys(8)})["nights"]
    (every,) = found["realised"]
    assert (every["chosen"], every["right"], every["labelled"], every["low"], every["high"]) == (
        "all",
        6,
        8,
        0.75,
        0.75,
    )


def test_the_night_gets_a_new_record_and_the_old_one_stays(night: Run, tmp_path: Path) -> None:
    (before,) = verdicts(night)
    page = night.layout.plan("shop", "night", NIGHT).record(night.record.model_id, 1).report
    was = Path(page).read_bytes()
    (found,) = brought(night, tmp_path, {image(key).uri: "cat" for key in keys(5)})["nights"]
    old, new = verdicts(night)
    assert old == before and Path(page).read_bytes() == was
    assert {key: new[key] for key in ("verdict", "lever", "reasons")} == {
        key: old[key] for key in ("verdict", "lever", "reasons")
    }
    assert new["inputs"] == old["inputs"] | {"labels": new["numbers"]["realised_accuracy"]}
    assert new["numbers"] == old["numbers"] | {"realised_accuracy": found["realised"]}
    (listed,) = [each for each in list_nights(config_of(night.layout)) if each.night == NIGHT]
    assert list(listed.realised) == found["realised"] and listed.report == found["report"]
    assert "of 5 that moved" in Path(f"{night.layout.site}/index.html").read_text()


def test_labels_that_came_before_a_promotion_are_on_the_new_champions_record_too(night: Run, tmp_path: Path) -> None:
    """The challenger was rescored, then people labelled, then it was promoted."""
    name_next(STORE, night.layout, "shop", "champion", model_id=night.record.model_id, sha256="5a" * 32, reason="x")
    sha256 = "7b" * 32
    new = measured(night.layout, scored(night.layout, keys(40), sha256=sha256, model_id=sha256[:12]))
    (found,) = brought(night, tmp_path, {image(key).uri: "cat" for key in keys(5)})["nights"]
    assert found["run_id"] == night.record.run_id
    name_next(STORE, night.layout, "shop", "champion", model_id=sha256[:12], sha256=sha256, reason="promoted")
    (listed,) = [each for each in list_nights(config_of(night.layout)) if each.night == NIGHT]
    assert f"/{new.record.model_id}/" in listed.report and len(listed.realised) == 1
    files = sorted(Path(night.layout.root).rglob("*"))
    brought(night, tmp_path, {image(key).uri: "cat" for key in keys(5)})
    assert sorted(Path(night.layout.root).rglob("*")) == files


def test_settings_and_notes_of_the_record_stay_and_no_chat_is_told(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A webhook that nobody answers would leave a note of its own."""
    run = scored(layout, keys(20))
    monkeypatch.setenv("DRIVETRAIN_WEBHOOK", "http://127.0.0.1:9/told")
    config = config_of(layout, min_images=7, effect_floor=0.6, alarms_per_year=9, review_size=5)
    told: list[object] = []

    def tell(judgement: Judgement) -> tuple[str, ...]:
        told.append(judgement)
        return ("the first note",)

    judge_run(STORE, layout, run, config, alert=tell)
    brought(run, tmp_path, {image(key).uri: "cat" for key in keys(5)})
    old, new = verdicts(run)
    assert new["inputs"]["settings"] == old["inputs"]["settings"] and old["inputs"]["settings"]["min_images"] == 7
    assert (new["notes"], len(told)) == (["the first note"], 1)


def test_the_same_file_again_changes_nothing(night: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {image(key).uri: "cat" for key in keys(5)}
    first = brought(night, tmp_path, labels)
    files = sorted(Path(night.layout.root).rglob("*"))
    again = brought(night, tmp_path, labels)
    assert (first["new"], again["new"], again["labels"]) == (5, 0, 5)
    assert again["nights"] == first["nights"] and len(verdicts(night)) == 2
    assert sorted(Path(night.layout.root).rglob("*")) == files
    assert "known already" in capsys.readouterr().err


def test_labels_that_were_kept_before_their_pages_were_made_are_shown_by_the_same_command(
    night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {image(key).uri: "cat" for key in keys(5)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("drivetrain.labelling.judge_labelled", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        brought(night, tmp_path, labels)
    assert len(people_labels(STORE, night.layout, "shop")) == 5 and len(verdicts(night)) == 1
    assert brought(night, tmp_path, labels)["new"] == 0
    assert verdicts(night)[-1]["numbers"]["realised_accuracy"][0]["labelled"] == 5


def test_the_import_that_came_last_counts_also_when_it_says_what_an_older_one_said(night: Run, tmp_path: Path) -> None:
    uri = image(keys(1)[0]).uri
    for label in ("cat", "dog", "cat"):
        assert brought(night, tmp_path, {uri: label})["new"] == 1
        assert people_labels(STORE, night.layout, "shop") == {uri: label}


def test_the_newest_label_counts_whatever_the_names_of_the_files(layout: Layout) -> None:
    for name, label, at in (
        ("b", "new", "2026-02-01T00:00:00.000001"),
        ("a", "old", "2026-01-01"),
        ("c", "older", "2025"),
    ):
        table = pa.table({"uri": ["u"], "label": [label], "imported": [at]}, schema=LABELS)
        STORE.create(f"{layout.labels('shop')}/{name}.parquet", parquet_bytes(table))
    assert people_labels(STORE, layout, "shop") == {"u": "new"} and people_labels(STORE, layout, "mill") == {}


def test_names_that_another_machine_gave_match_by_the_end_that_one_image_alone_has(
    layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(layout, scored(layout, ["one/1.jpg", "one/2.jpg", "two/1.jpg", "two/3.jpg"]))
    labels = {"C:\\photos\\one\\1.jpg": "cat", "3.jpg": "dog", "1.jpg": "cat", "s3://elsewhere/one/2.jpg": "dog"}
    result = brought(run, tmp_path, labels)
    assert people_labels(STORE, layout, "shop") == {image("one/1.jpg").uri: "cat", image("two/3.jpg").uri: "dog"}
    # 1.jpg is an end of two images, and a whole uri of another bucket is another image.
    assert (result["labels"], result["unknown"]) == (2, 2)
    assert "2 labelled images are in no plan of shop, or fit several; e.g. '1.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["fiftyone", "a copy of the bucket"])
def test_keys_that_differ_in_the_night_alone_match_however_deep_they_are(
    layout: Layout, tmp_path: Path, to: str
) -> None:
    """What was exported names the whole key; a copy of the bucket has more before it."""
    for night in (NIGHT, "2026-01-03"):
        keys = [f"{night.replace('-', '/')}/site/hall/cam/10/{number:04d}.jpg" for number in range(4)]
        plan = frozen(STORE, layout, [ObjectInfo(f"s3://b/{key}", 10, "e", None) for key in keys], name=night)
        run = begun(STORE, layout, plan, task="single_label")
        run.commit({shard: run.save_part(shard, _part(run, shard)) for shard in range(plan.shards)}, 0.5, 1.0, 4)
    export_queue(config_of(layout, run=run.record.run_id, sample=4, to="fiftyone", output=str(tmp_path / "out.json")))
    named = json.loads((tmp_path / "out.json").read_text())["labels"]
    before, suffix = ("", "") if to == "fiftyone" else ("/home/me/copy/", ".jpg")
    back = {"classes": ["cat", "dog"], "labels": {f"{before}{name}{suffix}": 1 for name in named}}
    (tmp_path / "back.json").write_text(json.dumps(back))
    assert import_labels(config_of(layout), str(tmp_path / "back.json"))["labels"] == 4
    assert people_labels(STORE, layout, "shop") == {f"s3://b/{key}": "dog" for key in keys}


def test_a_whole_key_means_its_image_though_another_key_ends_so(layout: Layout, tmp_path: Path) -> None:
    objects = [ObjectInfo(f"s3://b/{key}", 10, "e", None) for key in ("cam/1.jpg", "old/cam/1.jpg")]
    plan = frozen(STORE, layout, objects)
    run = begun(STORE, layout, plan, task="single_label")
    run.commit({0: run.save_part(0, _part(run, 0))}, 0.5, 1.0, 2)
    brought(run, tmp_path, {"cam/1.jpg": "cat"})
    assert people_labels(STORE, layout, "shop") == {"s3://b/cam/1.jpg": "cat"}


def test_the_config_that_init_writes_names_the_source(layout: Layout, tmp_path: Path) -> None:
    """README's line of `init` gives images and no source; `nightly` made a name of that."""
    export, file = tmp_path / "export.pkl", str(tmp_path / "drivetrain.toml")
    export.write_bytes(b"no learner yet")
    words = ["--learner", str(export), "--images", "s3://my-bucket/incoming/{night:%Y/%m/%d}", "--root", layout.root]
    assert CliRunner().invoke(main, ["init", "--config", file, *words]).exit_code == 0
    plan = frozen(STORE, layout, [image("1.jpg")], source="bucket-incoming")
    run = begun(STORE, layout, plan, task="single_label")
    run.commit({0: run.save_part(0, _part(run, 0))}, 0.5, 1.0, 1)
    labels = written(tmp_path, {image("1.jpg").uri: "cat"})
    for command in (["labels", "import", labels], ["table"]):
        done = CliRunner().invoke(main, [*command, "--config", file])
        assert done.exit_code == 0, done.output
    assert people_labels(STORE, layout, "bucket-incoming") == {image("1.jpg").uri: "cat"}
    done = CliRunner().invoke(main, ["table", "--root", layout.root])
    assert done.exit_code == 2 and "--source" in done.output


def test_of_two_names_for_one_image_neither_is_guessed(layout: Layout, tmp_path: Path) -> None:
    run = measured(layout, scored(layout, ["one/1.jpg", "one/2.jpg"]))
    brought(run, tmp_path, {"a/1.jpg": "cat", "b/1.jpg": "dog", "2.jpg": "dog"})
    assert people_labels(STORE, layout, "shop") == {image("one/2.jpg").uri: "dog"}


def test_labels_of_several_nights_go_to_each_and_named_plans_are_looked_at_too(layout: Layout, tmp_path: Path) -> None:
    first = measured(layout, scored(layout, ["one/1.jpg", "one/2.jpg"]))
    measured(layout, scored(layout, ["one/2.jpg", "two/3.jpg"], name="backfill", kind="plan"))
    scored(layout, ["four/4.jpg"], name="2026-01-03")
    result = brought(first, tmp_path, {image(key).uri: "cat" for key in ("one/2.jpg", "two/3.jpg", "four/4.jpg")})
    told = {each["night"]: (each["labels"], len(each["realised"])) for each in result["nights"]}
    assert told == {NIGHT: (1, 1), "2026-01-03": (1, 0), "backfill": (2, 1)}
    (unmeasured,) = [each for each in result["nights"] if each["night"] == "2026-01-03"]
    assert f"drivetrain drift measure --root {layout.root} --run shop-2026-01-03-" in unmeasured["why"]


def test_a_night_counts_for_the_champion(layout: Layout, tmp_path: Path) -> None:
    old = measured(layout, scored(layout, keys(6)))
    new = measured(layout, scored(layout, keys(6), sha256="6b" * 32, created="2026-01-04T00:00:00+00:00"))
    labels = {image(keys(1)[0]).uri: "cat"}
    assert brought(old, tmp_path, labels)["nights"][0]["run_id"] == new.record.run_id
    name_next(STORE, layout, "shop", "champion", model_id=old.record.model_id, sha256=old.record.sha256, reason="test")
    assert brought(old, tmp_path, labels)["nights"][0]["run_id"] == old.record.run_id


def test_files_of_the_tools_come_back_through_the_whole_way(night: Run, tmp_path: Path) -> None:
    about = {"run": night.record.run_id}
    export_queue(config_of(night.layout, **about, to="labelstudio", output=str(tmp_path / "tasks.json")))
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    for task in tasks[:3]:
        choices = {"type": "choices", "value": {"choices": ["dog"]}}
        task["annotations"] = [{"result": [choices], "updated_at": "2026-01-05"}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    result = import_labels(config_of(night.layout), str(tmp_path / "export.json"))
    assert (result["form"], result["labels"], result["unlabelled"]) == ("labelstudio", 3, 9)
    export_queue(config_of(night.layout, **about, to="fiftyone", output=str(tmp_path / "labels.json")))
    found = json.loads((tmp_path / "labels.json").read_text())
    with pytest.raises(SettingError, match="no label"):
        import_labels(config_of(night.layout), str(tmp_path / "labels.json"))
    # FiftyOne names an image by its file's stem, or by a path of its own machine.
    names = [Path(uri).stem for uri in found["labels"]][:1] + [f"/home/me/{uri}" for uri in found["labels"]][1:2]
    (tmp_path / "back.json").write_text(json.dumps({"classes": ["cat", "dog"], "labels": dict.fromkeys(names, 0)}))
    result = import_labels(config_of(night.layout), str(tmp_path / "back.json"))
    assert (result["form"], result["new"]) == ("fiftyone", 2) and len(people_labels(STORE, night.layout, "shop")) == 5


def test_a_class_that_the_learner_lacks_is_kept_said_and_never_right(
    night: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = brought(night, tmp_path, {image(key).uri: "emu" for key in keys(3)})
    assert "1 labels are no classes of the learner: 'emu' (3). They are kept." in capsys.readouterr().err
    assert result["nights"][0]["realised"][0]["right"] == 0


def test_hostile_labels_reach_no_page(night: Run, tmp_path: Path) -> None:
    (found,) = brought(night, tmp_path, {image(key).uri: HOSTILE for key in keys(3)})["nights"]
    for page in (Path(found["report"]), Path(f"{night.layout.site}/index.html")):
        text = page.read_text()
        # Evidently's script has an onerror of its own.
        assert 'onerror="alert' not in text and "evil" not in text


def test_a_file_in_which_no_image_is_known_is_refused(night: Run, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no image fits.*'s3://b/x.jpg'.*the first image of shop is '/bucket"):
        brought(night, tmp_path, {"s3://b/x.jpg": "cat"})
    with pytest.raises(SettingError, match="mill has no plan"):
        import_labels(Config(root=night.layout.root, source="mill"), written(tmp_path, {"x": "cat"}))
    with pytest.raises(SettingError, match="can't be read"):
        import_labels(config_of(night.layout), str(tmp_path / "nothing.csv"))
    assert STORE.names(night.layout.labels("shop")) == []


def test_labels_and_draws_are_no_garbage(night: Run, tmp_path: Path) -> None:
    queue_of(night, tmp_path, sample=5)
    brought(night, tmp_path, {image(keys(1)[0]).uri: "cat"})
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    for path in Path(night.layout.root).rglob("*"):
        os.utime(path, (long_ago, long_ago))
    found = collect_garbage(Config(root=night.layout.root), delete=True)
    assert found["removed"] == []
    assert people_labels(STORE, night.layout, "shop") and drawn_images(STORE, night.layout, "shop", "night", NIGHT)


def test_a_record_of_a_realised_accuracy_is_plain_json(night: Run) -> None:
    people = {image(key).uri: "cat" for key in keys(2)}
    (found,) = realised_of(night, people, frozenset())
    assert json.loads(json.dumps(asdict(found)))["labelled"] == 2
