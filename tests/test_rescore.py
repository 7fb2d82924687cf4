"""Old nights under a new learner, with real learners: by the head or from the images, one or many, again and again."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable

from drivetrain import (
    Config,
    build_reference,
    compare_runs,
    inspect_learner,
    rescore_run,
    rescore_runs,
    run_night,
    score_images,
)
from drivetrain.aliases import name_next
from drivetrain.cli import main
from drivetrain.errors import SettingError
from drivetrain.labels import keep_labels
from drivetrain.nights import latest_record, records
from drivetrain.reference import Reference, find_reference
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.schema import matrix
from drivetrain.told import lines_of

pytestmark = pytest.mark.slow

NIGHTS = ("2026-11-20", "2026-11-21", "2026-11-22")
IMAGES = (200, 60, 60)
# What the new head makes anew; all else of a row is the old row's.
OWN = {"label", "label_index", "labels", "confidence", "margin", "entropy", "energy", "probs", "model_id", "run_id"}


@dataclass(frozen=True)
class World:
    """A folder with images, three learners, and a root in which the first of them has scored three nights."""

    folder: Path
    root: Path
    old: learners.Exported
    head: learners.Exported
    norms: learners.Exported

    def config(self, learner: str = "head", **changes: Any) -> Config:
        about = {"root": str(self.root), "images": f"{self.folder}/in/{{night}}", "source": "digits", "actors": 0}
        return Config(**{**about, "learner": getattr(self, learner).path, **changes})

    def run(self, run_id: str) -> Run:
        return Run.find(*open_root(self.config()), run_id)

    def rows(self, run_id: str) -> pa.Table:
        run = self.run(run_id)
        return pa.concat_tables([run.part(shard) for shard in range(run.record.shards)])

    def old_runs(self) -> list[Run]:
        found = [self.run(path.name) for path in sorted((self.root / "runs").iterdir())]
        return [run for run in found if run.record.sha256 == self.old.sha256]

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Every file that is not derived for all nights: what it holds and when it was written."""
        found = (path for path in self.root.rglob("*") if path.is_file())
        kept = (
            path for path in found if path.relative_to(self.root).parts[0] not in ("site", "workspace", "probe.json")
        )
        return {str(path.relative_to(self.root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in kept}

    @contextmanager
    def without_images(self) -> Iterator[None]:
        """As long as no image can be read."""
        (self.folder / "in").rename(self.folder / "away")
        try:
            yield
        finally:
            (self.folder / "away").rename(self.folder / "in")


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, digits_export: learners.Exported) -> World:
    folder = tmp_path_factory.mktemp("rescore")
    train = learners.write_digits(folder / "train", 1000, 1200, by_label=True)[0].parent.parent
    head = learners.retrained_head(digits_export, train, folder / "head.pkl")
    norms = learners.retrained_head(digits_export, train, folder / "norms.pkl", frozen_norms=False)
    first = 0
    for night, number in zip(NIGHTS, IMAGES, strict=True):
        learners.write_digits(folder / "in" / night, first, first + number)
        first += number
    (folder / "in" / NIGHTS[0] / "broken.png").write_bytes(b"no image")
    learners.write_digits(folder / "reference" / "valid", 400, 700, by_label=True)
    world = World(folder, folder / "root", digits_export, head, norms)
    for night in NIGHTS:
        run_night(world.config("old", night=night))
    return world


def copied(world: World, root: Path) -> World:
    """The same bucket and learners with a root of its own."""
    shutil.copytree(world.root, root)
    return replace(world, root=root)


@pytest.fixture
def world(scored: World, tmp_path: Path) -> World:
    """A copy of that folder, to be changed."""
    return copied(scored, tmp_path / "root")


def nights_of(result: dict[str, Any], key: str) -> list[Any]:
    return [night[key] for night in result["nights"]]


# --- head only ---


def test_a_new_head_gives_what_the_images_give_and_reads_none(world: World) -> None:
    before = world.files()
    with world.without_images():
        alone = rescore_runs(world.config(all=True))
    full = rescore_runs(world.config(all=True, full=True))
    assert nights_of(alone, "made") == ["head only"] * 3 and nights_of(full, "made") == ["scored"] * 3
    assert nights_of(alone, "failed") == nights_of(full, "failed") == [1, 0, 0]
    labels = []
    for night, other, old in zip(alone["nights"], full["nights"], world.old_runs(), strict=True):
        found, wanted, was = (world.rows(run_id) for run_id in (night["run_id"], other["run_id"], old.record.run_id))
        ok = np.array(found["status"].to_pylist()) == "ok"
        assert found.schema.equals(wanted.schema)
        for name in found.column_names:
            if name not in OWN:
                assert found[name].equals(was[name]), name
        probs = [matrix(rows.filter(pa.array(ok))["probs"]) for rows in (found, wanted)]
        assert np.abs(probs[0] - probs[1]).max() <= 1e-3
        for name in ("confidence", "margin", "entropy", "energy"):
            one, another = (rows.filter(pa.array(ok))[name].to_numpy() for rows in (found, wanted))
            assert np.allclose(one, another, atol=1e-2), name
        same = np.array(found["label"].to_pylist()) == np.array(wanted["label"].to_pylist())
        # No rounding of embeddings turns what is not a tie.
        assert same[ok][wanted["margin"].to_numpy(zero_copy_only=False)[ok] > 2e-3].all()
        labels += same.tolist()
        assert set(found["model_id"].to_pylist()) == {alone["learner"]}
        assert set(found["run_id"].to_pylist()) == {night["run_id"]}
        record = world.run(night["run_id"]).record
        assert record.made_from == record.rescore_of == record.settings["head_of"] == old.record.run_id
        assert world.run(other["run_id"]).record.made_from is None
        assert night["run_id"] != other["run_id"]
    # One tie in 321 images may turn here; benchmarks/headonly.py counts over 20,000.
    assert sum(labels) >= len(labels) - 1
    after = world.files()
    assert {path: after[path] for path in before} == before, "nothing of the old learner is touched"


def test_a_night_that_the_new_champion_scored_by_its_head_is_done_and_reads_no_image(world: World) -> None:
    only, store, layout = f"{NIGHTS[1]}..{NIGHTS[1]}", *open_root(world.config())
    night = rescore_runs(world.config(nights=only))["nights"][0]["run_id"]
    sha256 = world.head.sha256
    name_next(store, layout, "digits", "champion", model_id=sha256[:12], sha256=sha256, reason="promoted")
    runs = store.names(layout.runs)
    with world.without_images():
        # A night that is planned lists nothing.
        again = run_night(world.config("head", night=NIGHTS[1]))
    assert again["run_id"] == night and (again["failed"], store.names(layout.runs)) == (0, runs)
    other = run_night(world.config("head", night=NIGHTS[1], embedding="none"))
    assert other["run_id"] != night, "other settings, other values"


def test_a_failed_image_stays_failed_with_its_reason_until_failed_is_asked_for(world: World) -> None:
    first = rescore_runs(world.config(all=True))
    row = next(row for row in world.rows(first["nights"][0]["run_id"]).to_pylist() if row["status"] == "failed")
    assert row["error"] == "undecodable" and row["uri"].endswith("broken.png") and row["probs"] is None
    broken = world.folder / "in" / NIGHTS[0] / "broken.png"
    bytes_before = broken.read_bytes()
    try:
        shutil.copy(next((world.folder / "in" / NIGHTS[0]).glob("d*.png")), broken)
        assert nights_of(rescore_runs(world.config(all=True)), "made") == ["known"] * 3
        again = rescore_runs(world.config(all=True, reprocess="failed"))
    finally:
        broken.write_bytes(bytes_before)
    assert nights_of(again, "made") == ["scored", "known", "known"]
    assert nights_of(again, "failed") == [0, 0, 0] and not again["too_many_failed"]
    assert again["nights"][0]["run_id"] == first["nights"][0]["run_id"] + "-retry1"
    kept, before = (world.rows(result["nights"][0]["run_id"]) for result in (again, first))
    same = [name for name in kept.column_names if name != "run_id"]
    whole = [row for row in before.select(same).to_pylist() if row["status"] == "ok"]
    assert [row for row in kept.select(same).to_pylist() if not row["uri"].endswith("broken.png")] == whole


def test_batch_norms_that_were_trained_make_it_read_the_images(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    result = rescore_runs(world.config("norms", nights=f"{NIGHTS[1]}..{NIGHTS[2]}"))
    assert nights_of(result, "made") == ["scored"] * 2
    said = capsys.readouterr().err
    assert said.count("Images are read again: the body differs in 15 of 18 tensors, all of batch norms") == 1


def test_other_transforms_make_it_read_the_images(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    train = world.folder / "train"
    resized = learners.retrained_head(world.old, train, world.root.parent / "resized.pkl", size=32)
    config = world.config(nights=f"{NIGHTS[1]}..{NIGHTS[1]}")
    result = rescore_runs(config.model_copy(update={"learner": resized.path}))
    assert nights_of(result, "made") == ["scored"]
    said = capsys.readouterr().err
    assert "images are prepared otherwise" in said and "Resize" in said


def test_inspect_tells_by_a_line_whether_the_body_is_the_same(world: World) -> None:
    old, head, norms = (inspect_learner(world.config(name)) for name in ("old", "head", "norms"))
    assert old["body"] == head["body"] != norms["body"]
    assert f"body          {old['body']}" in lines_of(old)


# --- resuming ---


def test_what_ends_half_way_goes_on_from_there(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The second night's old part is gone for a while, and one of the first night's four."""
    first, second, _ = world.old_runs()
    assert first.record.shards == 4
    part = Path(first.paths.part(2))
    part.rename(world.root / "away")
    with pytest.raises(OSError):
        rescore_runs(world.config(all=True))
    said = capsys.readouterr().err
    assert f"0 of 3 nights are done; night {NIGHTS[0]} ended with an error. The same command goes on there." in said
    (begun,) = (path for path in world.root.glob("runs/digits-2026-11-20-*") if path.name != first.record.run_id)
    assert not (begun / "commit.json").exists()
    there = {path.name: path.stat().st_mtime_ns for path in begun.glob("parts/*")}
    assert sorted(there) == ["part-00000.parquet", "part-00001.parquet"]
    (world.root / "away").rename(part)
    Path(second.paths.part(0)).rename(world.root / "away")
    with pytest.raises(OSError):
        rescore_runs(world.config(all=True))
    assert "1 of 3 nights are done" in capsys.readouterr().err
    (world.root / "away").rename(second.paths.part(0))
    result = rescore_runs(world.config(all=True))
    assert nights_of(result, "made") == ["known", "head only", "head only"]
    assert result["nights"][0]["run_id"] == begun.name
    assert {name: (begun / "parts" / name).stat().st_mtime_ns for name in there} == there
    uris = world.rows(begun.name)["uri"].to_pylist()
    assert len(uris) == len(set(uris)) == 201


def test_readers_get_the_nights_before_the_one_that_failed(world: World) -> None:
    """The new learner is champion already, and rescores what the old one did."""
    config = world.config(all=True)
    model_id = world.head.sha256[:12]
    store, layout = open_root(config)
    name_next(store, layout, "digits", "champion", model_id=model_id, sha256=world.head.sha256, reason="promoted")
    Path(world.old_runs()[1].paths.part(0)).rename(world.root / "away")
    with pytest.raises(OSError):
        rescore_runs(config)
    rows = DeltaTable(layout.table("digits")).to_pyarrow_table(columns=["night", "model_id"]).to_pylist()
    assert {row["model_id"] for row in rows if row["night"] == NIGHTS[0]} == {model_id}
    assert {row["model_id"] for row in rows if row["night"] == NIGHTS[1]} == {world.old.sha256[:12]}


def test_the_same_command_again_does_nothing_and_says_the_same(world: World) -> None:
    first = rescore_runs(world.config(all=True))
    files = world.files()
    again = rescore_runs(world.config(all=True))
    assert world.files() == files
    assert nights_of(again, "made") == ["known"] * 3
    for key in ("run_id", "agreement", "flips", "comparison", "failed", "verdict"):
        assert nights_of(again, key) == nights_of(first, key)


def test_all_makes_the_comparison_anew_and_no_row(world: World) -> None:
    first = rescore_runs(world.config(nights=f"{NIGHTS[1]}..{NIGHTS[1]}"))
    page = Path(first["nights"][0]["comparison"])
    rows = world.files()
    page.write_text("old")
    again = rescore_runs(world.config(nights=f"{NIGHTS[1]}..{NIGHTS[1]}"))
    assert page.read_text() == "old" and again["nights"][0]["agreement"] == first["nights"][0]["agreement"]
    anew = rescore_runs(world.config(nights=f"{NIGHTS[1]}..{NIGHTS[1]}", reprocess="all"))
    assert page.read_text() != "old" and nights_of(anew, "made") == ["known"]
    kept = {path: there for path, there in world.files().items() if not path.startswith("comparisons")}
    assert kept == {path: there for path, there in rows.items() if not path.startswith("comparisons")}


# --- which nights, and what is compared ---


def test_a_range_takes_its_nights_oldest_first_and_one_run_alone_its_own(world: World) -> None:
    part = rescore_runs(world.config(nights=f"{NIGHTS[1]}..2026-12-24"))
    assert nights_of(part, "night") == list(NIGHTS[1:])
    one = rescore_runs(world.config(run=world.old_runs()[0].record.run_id))
    assert world.run(one["run_id"]).record.head_only and one["rows"] == 201
    assert rescore_run(world.config(run=world.old_runs()[0].record.run_id)) == one
    every = rescore_runs(world.config(all=True))
    assert nights_of(every, "night") == list(NIGHTS) and nights_of(every, "made") == ["known"] * 3
    assert every["nights"][0]["run_id"] == one["run_id"] and every["nights"][0]["agreement"] == one["agreement"]


def test_a_night_that_was_never_finished_is_named_and_left_out(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(world.old_runs()[1].paths.commit).unlink()
    result = rescore_runs(world.config(all=True))
    assert nights_of(result, "night") == [NIGHTS[0], NIGHTS[2]]
    assert f"Night {NIGHTS[1]} of digits was never scored to its end" in capsys.readouterr().err


def test_a_night_without_images_is_rescored_and_has_nothing_to_compare(world: World) -> None:
    (world.folder / "in" / "2026-11-23").mkdir(exist_ok=True)
    run_night(world.config("old", night="2026-11-23"))
    result = rescore_runs(world.config(nights="2026-11-23..2026-11-23"))
    (night,) = result["nights"]
    assert (night["agreement"], night["flips"], night["comparison"]) == (None, 0, None)
    assert world.run(night["run_id"]).committed()
    assert any("no labels to compare" in line for line in lines_of(result))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "Expected one of --run, --nights and --all, found none"),
        ({"run": "x", "nights": "2026-11-20..2026-11-21"}, "found --run and --nights together"),
        ({"nights": "2026-11-20..2026-11-21", "all": True}, "found --nights and --all together"),
        ({"nights": "2026-01-01..2026-01-31"}, "No scored night in the range.*from 2026-11-20 to 2026-11-22"),
        ({"all": True, "source": "shop"}, "Source 'shop' has no night.*Sources with nights: digits"),
        ({"all": True, "source": None, "images": None}, "Name of this stream of images"),
    ],
)
def test_what_can_not_be_rescored_says_why(scored: World, changes: dict[str, Any], message: str) -> None:
    files = scored.files()
    with pytest.raises(SettingError, match=message):
        rescore_runs(scored.config(**changes))
    assert scored.files() == files


@pytest.mark.parametrize(
    ("nights", "message"),
    [
        ("2026-11-22..2026-11-20", "the first night comes after the last; expected 2026-11-20..2026-11-22"),
        ("2026-11-22", "expected two dates such as 2026-11-01..2026-11-23, found '2026-11-22'"),
        ("2026-11-22..yesterday", "expected two dates"),
    ],
)
def test_a_bad_range_is_refused(nights: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Config.load(nights=nights)


def test_the_learners_own_run_is_nothing_to_rescore(world: World) -> None:
    (first, *_) = world.old_runs()
    with pytest.raises(SettingError, match="made by this very learner"):
        rescore_run(world.config("old", run=first.record.run_id))
    own = rescore_runs(world.config("old", all=True))
    assert nights_of(own, "made") == ["known"] * 3 and nights_of(own, "comparison") == [None] * 3


# --- the reference ---


@pytest.fixture(scope="session")
def with_reference(scored: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with a reference of the old learner."""
    world = copied(scored, tmp_path_factory.mktemp("judged") / "root")
    build_reference(world.config("old", images=f"{scored.folder}/reference"))
    return world


def test_the_reference_is_made_first_of_the_old_learners_and_judges(
    with_reference: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Old nights are no news: nobody is told, or this would be a note.
    monkeypatch.setenv("DRIVETRAIN_WEBHOOK", "http://127.0.0.1:9/no-one-listens")
    world = copied(with_reference, tmp_path / "root")
    before = world.files()
    config = world.config(nights=f"{NIGHTS[0]}..{NIGHTS[0]}")
    result = rescore_runs(config)
    said = capsys.readouterr().err
    assert "the images of digits-reference-" in said and "nobody can know" in said
    assert result["nights"][0]["verdict"] in ("ok", "warn", "drift")
    new = world.run(result["nights"][0]["run_id"])
    store, layout = open_root(config)
    reference = find_reference(store, layout, new)
    old = find_reference(store, layout, world.old_runs()[0])
    assert reference and old and reference.run_id == result["reference"] != old.run_id
    assert reference.splits == old.splits == {"held_out": 300} and reference.labelled == 300
    assert world.run(reference.run_id).record.made_from == old.run_id
    assert world.run(reference.run_id).manifest().equals(world.run(old.run_id).manifest())
    again = rescore_runs(config)
    assert nights_of(again, "verdict") == nights_of(result, "verdict") and nights_of(again, "made") == ["known"]

    def numbers() -> list[str]:
        return [
            record.folder[-4:]
            for model_id, record in records(store, layout, "digits", "night", NIGHTS[0])
            if model_id == new.record.model_id
        ]

    assert numbers() == ["0001"], "judged once"
    anew = rescore_runs(world.config(nights=f"{NIGHTS[0]}..{NIGHTS[0]}", reprocess="all"))
    assert numbers() == ["0001", "0002"]
    assert anew["nights"][0]["run_id"].endswith("-retry1"), "the failed image was scored again too"
    verdict = json.loads(store.read(layout.plan("digits", "night", NIGHTS[0]).record(new.record.model_id, 2).verdict))
    assert verdict["notes"] == [] and "webhook" not in said.lower()
    after = world.files()
    assert {path: after[path] for path in before} == before


def test_a_reference_with_the_new_learners_labels_has_its_splits(with_reference: World, tmp_path: Path) -> None:
    world = copied(with_reference, tmp_path / "root")
    paths = sorted((world.folder / "reference").rglob("*.png"))
    lines = [f"{path},{path.parent.name},{place % 3 > 0}\n" for place, path in enumerate(paths)]
    (tmp_path / "labels.csv").write_text("fname,label,is_valid\n" + "".join(lines))
    result = rescore_runs(world.config(nights=f"{NIGHTS[1]}..{NIGHTS[1]}", labels=str(tmp_path / "labels.csv")))
    store, layout = open_root(world.config())
    reference = find_reference(store, layout, world.run(result["nights"][0]["run_id"]))
    assert reference and reference.splits == {"trained": 100, "held_out": 200}
    assert world.run(reference.run_id).record.head_only, "the same images: no need to read them"
    rows = world.rows(reference.run_id)
    assert rows["split"].to_pylist().count("trained") == 100 and rows["split"].equals(
        world.run(reference.run_id).manifest()["split"]
    )


@pytest.fixture
def trained_on(with_reference: World, tmp_path: Path) -> World:
    """The same where the old learner's reference says what it was trained on."""
    world = copied(with_reference, tmp_path / "root")
    paths = sorted((world.folder / "reference").rglob("*.png"))
    lines = [f"{path},{path.parent.name},{place % 6 > 0}\n" for place, path in enumerate(paths)]
    (tmp_path / "old.csv").write_text("fname,label,is_valid\n" + "".join(lines))
    build_reference(world.config("old", images=f"{world.folder}/reference", labels=str(tmp_path / "old.csv")))
    return world


def test_a_learner_trained_on_the_labelled_night_is_not_promoted_by_its_answers_there(
    trained_on: World, tmp_path: Path
) -> None:
    """As README goes round the loop: the labels of the night are what it was trained on."""
    world, only = trained_on, f"{NIGHTS[0]}..{NIGHTS[0]}"
    old = world.old_runs()[0].record.run_id
    new = rescore_runs(world.config(nights=only))["nights"][0]["run_id"]
    says = {row["uri"]: row["label"] for row in world.rows(new).to_pylist() if row["label"]}
    keep_labels(*open_root(world.config()), "digits", says)
    found = compare_runs(world.config(), old, new)
    assert found["truth"]["new"] == 1 and found["truth"]["p_value"] < 0.05, "it looks as if it were better"
    assert found["recommendation"]["do"] == "look" and not found["truth"]["known_training_new"]
    assert found["truth"]["known_training_old"]
    night = "".join(f"/home/ann/labelled/{Path(uri).name},{label},False\n" for uri, label in says.items())
    (tmp_path / "new.csv").write_text((tmp_path / "old.csv").read_text() + night)
    told = rescore_runs(world.config(nights=only, labels=str(tmp_path / "new.csv")))
    assert told["nights"][0]["run_id"] == new
    found = compare_runs(world.config(), old, new)
    assert (found["truth"]["labelled"], found["truth"]["trained_new"]) == (0, 200)
    assert found["recommendation"]["do"] != "promote" and found["truth"]["known_training_new"]


def test_labels_given_later_make_the_reference_anew_and_the_old_learners_own_do_not(
    trained_on: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, only = trained_on, f"{NIGHTS[1]}..{NIGHTS[1]}"
    store, layout = open_root(world.config())

    def rescored(file: str | None) -> Reference:
        result = rescore_runs(world.config(nights=only, labels=str(tmp_path / file) if file else None))
        run = world.run(result["nights"][0]["run_id"])
        found, done = find_reference(store, layout, run), latest_record(store, layout, run)
        assert found and done and done[1]["inputs"]["reference"] == found.run_id == result["reference"]
        return found

    copied = rescored(None)
    assert copied.splits == {"trained": 50, "held_out": 250}
    assert rescored("old.csv") == copied and "may be the old one's file" in capsys.readouterr().err
    head, *lines = (tmp_path / "old.csv").read_text().splitlines()
    lines[:30] = [line.replace("True", "False") for line in lines[:30]]
    (tmp_path / "new.csv").write_text("\n".join([head, *lines]))
    told = rescored("new.csv")
    assert told.splits == {"trained": 75, "held_out": 225}
    files = world.files()
    assert rescored("new.csv") == rescored(None) == rescored("old.csv") == told
    assert world.files() == files


def test_what_score_scored_is_part_of_all_of_a_source_and_gets_the_reference_first(
    trained_on: World, tmp_path: Path
) -> None:
    world = trained_on
    scored = score_images(world.config("old", images=f"{world.folder}/in/{NIGHTS[1]}", name="Backfill"))["run_id"]
    one = rescore_run(world.config(run=scored))
    reference = find_reference(*open_root(world.config()), world.run(one["run_id"]))
    assert reference and reference.splits == {"trained": 50, "held_out": 250}
    every = rescore_runs(world.config(all=True))
    assert nights_of(every, "kind") == ["night"] * 3 + ["plan"] and nights_of(every, "night")[3] == "Backfill"
    assert every["nights"][3]["run_id"] == one["run_id"] and every["nights"][3]["made"] == "known"
    assert "Backfill" not in nights_of(rescore_runs(world.config(nights=f"{NIGHTS[0]}..2026-12-31")), "night")


# --- the command ---


def test_the_command_prints_one_json_object(world: World) -> None:
    flags = ["--root", str(world.root), "--learner", world.head.path, "--source", "digits", "--actors", "0"]
    done = CliRunner().invoke(main, ["rescore", *flags, "--nights", "2026-11-21..2026-11-22", "--max-failed", "0"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["nights"][0]) == {
        "night", "kind", "run_id", "agreement", "flips", "comparison", "verdict", "made", "failed", "seconds"
    }  # fmt: skip
    failed = CliRunner().invoke(main, ["rescore", *flags, "--all", "--max-failed", "0", "--json"])
    assert failed.exit_code == 3 and json.loads(failed.stdout)["too_many_failed"]


@pytest.mark.thorough
def test_on_ray_actors_as_a_job_does_it(world: World) -> None:
    only = f"{NIGHTS[0]}..{NIGHTS[0]}"
    command = [sys.executable, "-m", "drivetrain.cli", "rescore", "--json", "--root", str(world.root)]
    command += ["--nights", only, "--learner", world.head.path, "--source", "digits", "--actors", "2"]
    with world.without_images():
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert nights_of(found, "made") == ["head only"]
    rows = world.rows(found["nights"][0]["run_id"])
    here = rescore_runs(world.config(nights=only))
    assert nights_of(here, "run_id") == nights_of(found, "run_id") and nights_of(here, "made") == ["known"]
    assert len(rows) == 201 and rows["uri"].equals(world.rows(world.old_runs()[0].record.run_id)["uri"])


def test_a_learner_admitted_before_bodies_were_told_is_opened(world: World) -> None:
    """learner.json of an earlier version says nothing of the body, and what is created once stays."""
    (about,) = world.root.glob(f"models/{world.old.sha256[:12]}/learner.json")
    known = json.loads(about.read_text())
    about.write_text(json.dumps({key: value for key, value in known.items() if key not in ("body", "road")}))
    result = rescore_runs(world.config(nights=f"{NIGHTS[2]}..{NIGHTS[2]}"))
    assert nights_of(result, "made") == ["head only"]
