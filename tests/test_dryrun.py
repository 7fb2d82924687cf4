"""--dry-run: what would be scored and how long it takes, from a real probe, and not a byte is written.

The road is that of the command itself, so a learner is opened and an engine proved; the tree below the root is compared
before and after.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import learners
import pytest
from builders import begun, frozen, image, images
from click.testing import CliRunner
from servers import S3Server
from test_overlay import tree

from drivetrain import Config, accept_night, collect_garbage, rescore_run, run_night, score_images
from drivetrain.cli import main
from drivetrain.errors import SettingError
from drivetrain.forecast import Left, Pace, _kinds_of, _seconds
from drivetrain.layout import Layout
from drivetrain.overlay import Overlay
from drivetrain.root import open_root
from drivetrain.store import Store
from drivetrain.told import lines_of

TODAY = datetime.now(UTC).date()


def dry(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"dry_run": True} | changes)


@pytest.fixture
def config(tmp_path: Path, digits_export: learners.Exported) -> Config:
    """150 digits and what is no image, a learner, and a root that does not exist."""
    learners.write_digits(tmp_path / "in", 0, 150)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"hidden")
    return Config(
        root=str(tmp_path / "root"), learner=digits_export.path, images=str(tmp_path / "in"), source="digits",
        name="first", actors=0,
    )  # fmt: skip


@pytest.mark.slow
def test_nothing_is_written_on_a_root_that_does_not_exist(config: Config, tmp_path: Path) -> None:
    before = tree(tmp_path)
    found = score_images(dry(config, price_per_hour=7200.0))
    night = run_night(dry(config, night=TODAY, name=None))
    assert tree(tmp_path) == before, "no marker, no model, no plan"
    assert (found["new"], found["changed"], found["known"]) == (150, 0, 0) == (night["new"], 0, 0)
    assert found["skipped"] == {"txt": 1, "hidden": 1}
    assert (found["parts_to_write"], found["parts_there"], found["images_to_score"]) == (3, 0, 150)
    assert found["probed"] == 64 and found["actors"] == 1 and found["images_per_second"] > 0
    assert found["cost"] == pytest.approx(2 * found["seconds"], abs=0.2), "7,200 an hour are 2 a second"
    assert found["seconds"] >= found["start_seconds"]
    assert score_images(config)["run_id"] == found["runs"][0], "the run that it spoke of"


@pytest.mark.slow
def test_the_whole_life_of_a_root_and_nothing_is_written_at_any_point(config: Config, tmp_path: Path) -> None:
    """New, stopped half-way, committed, changed, failed, a night of it, and rescored: a dry run at each point."""
    root = tmp_path / "root"

    def foretold(story: Any, told: Config) -> dict[str, Any]:
        before = tree(tmp_path)
        result: dict[str, Any] = story(told)
        assert tree(tmp_path) == before
        return result

    done = score_images(config)
    part, commit = root / "runs" / done["run_id"] / "parts" / "part-00001.parquet", "commit.json"
    part.unlink()
    (part.parent.parent / commit).unlink()
    half = foretold(score_images, dry(config))
    assert (half["parts_to_write"], half["parts_there"], half["images_to_score"]) == (1, 2, 64)
    (part.parent / "part-00002.parquet").unlink()
    assert foretold(score_images, dry(config))["images_to_score"] == 64 + 22
    score_images(config)
    nothing = foretold(score_images, dry(config))
    assert (nothing["parts_to_write"], nothing["parts_there"], nothing["seconds"]) == (0, 3, 0.0)
    assert any("no image to score" in line for line in lines_of(nothing))
    # Two images are replaced, one is new.
    for name in ("d0003.png", "d0004.png"):
        (tmp_path / "in" / name).write_bytes((tmp_path / "in" / name).read_bytes() + b"\0")
    learners.write_digits(tmp_path / "in", 150, 151)
    second = foretold(score_images, dry(config, name="second"))
    assert (second["new"], second["changed"], second["known"]) == (1, 2, 148)
    night = dry(config, name=None, night=TODAY)
    assert foretold(run_night, night)["new"] == 151, "no other night has planned any of them"
    learners.write_digits(tmp_path / "train", 1300, 1400, by_label=True)
    challenger = learners.exported(learners.digits_learner(tmp_path / "train", epochs=1), tmp_path / "other.pkl")
    again = foretold(rescore_run, dry(config, learner=challenger.path, run=done["run_id"]))
    assert (again["known"], again["new"], again["images_to_score"], again["parts_to_write"]) == (150, 0, 150, 3)


@pytest.mark.slow
def test_failed_images_that_would_be_scored_again_are_counted(config: Config, tmp_path: Path) -> None:
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    score_images(config)
    before = tree(tmp_path)
    found = score_images(dry(config, retry_failed=True))
    assert tree(tmp_path) == before
    assert found["runs"][0].endswith("-retry1") and found["images_to_score"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("make", [learners.multi_label_learner, learners.regression_learner])
def test_learners_that_predict_no_single_class(make: Any, tmp_path: Path) -> None:
    """Scored, and under another such learner scored again: the runs foretold are those that come."""
    paths = learners.write_digits(tmp_path / "train", 0, 80, by_label=True)
    first, second = (learners.exported(make(paths), tmp_path / f"{name}.pkl") for name in ("first", "second"))
    root = tmp_path / "root"
    config = Config(
        root=str(root), learner=first.path, images=str(tmp_path / "train"), source="digits", name="all", actors=0
    )
    found = score_images(dry(config))
    assert not root.exists() and (found["images_to_score"], found["probed"]) == (80, 48)
    done = score_images(config)
    assert (done["failed"], [done["run_id"]]) == (0, found["runs"])
    before, again = tree(root), config.model_copy(update={"learner": second.path, "run": done["run_id"]})
    found = rescore_run(dry(again))
    assert tree(root) == before and found["images_to_score"] == 80
    assert [rescore_run(again)["run_id"]] == found["runs"]


@pytest.mark.slow
def test_the_command_prints_it_and_json_has_the_same_numbers(config: Config, tmp_path: Path) -> None:
    flags = ["score", "--dry-run", "--price-per-hour", "3600", "--actors", "0", "--source", "digits", "--name", "first"]
    for key in ("root", "learner", "images"):
        flags += [f"--{key}", str(getattr(config, key))]
    done = CliRunner().invoke(main, flags)
    assert done.exit_code == 0, done.output
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    assert f"150 new images, 0 changed, 2 passed over (1 hidden, 1 txt); {found['parts_to_write']} parts" in lines[0]
    assert f"on 1 actor ({found['probed']} images probed" in lines[0] and "at 3,600.00 an hour" in lines[0]
    assert lines[1] == "Nothing was written."
    assert not (tmp_path / "root").exists()


def test_who_knows_no_dry_run_refuses_it_instead_of_losing_the_work(tmp_path: Path) -> None:
    """Over a store that writes nothing an acceptance would be said to be there, and would not."""
    config = Config(root=str(tmp_path), run="r", dry_run=True)
    for story in (accept_night, collect_garbage, open_root):
        with pytest.raises(SettingError, match="only score, rescore and nightly"):
            story(config)
    assert not any(tmp_path.iterdir())


@pytest.fixture
def nights(tmp_path: Path) -> tuple[Store, Layout]:
    return Overlay(), Layout(str(tmp_path / "root"))


def test_new_changed_and_known_are_told_apart(nights: tuple[Store, Layout]) -> None:
    store, layout = nights
    frozen(store, layout, images(10), name="2026-01-01")
    frozen(store, layout, [image("00003.jpg", etag="e7")], name="2026-01-03")
    etags = {"00001.jpg": "e0", "00002.jpg": "e1", "00003.jpg": "e7", "00004.jpg": "e9", "zz.jpg": "e0"}
    mixed = [image(key, etag=etag) for key, etag in etags.items()]
    run = begun(store, layout, frozen(store, layout, mixed, name="2026-01-02"))
    kinds = _kinds_of(run)
    assert (kinds.new, kinds.changed, kinds.known) == (1, 2, 2)


def test_plans_of_other_sources_and_of_another_kind_do_not_count(nights: tuple[Store, Layout]) -> None:
    store, layout = nights
    frozen(store, layout, images(10), name="2026-01-01", source="other")
    frozen(store, layout, images(10), name="2026-01-01", kind="plan")
    frozen(store, layout, images(10), name="2026-01-03", prefix="/bucket/elsewhere")
    kinds = _kinds_of(begun(store, layout, frozen(store, layout, images(4), name="2026-01-02")))
    assert (kinds.new, kinds.changed, kinds.known) == (4, 0, 0)


def test_late_images_are_held_against_nights_of_other_prefixes(nights: tuple[Store, Layout]) -> None:
    store, layout = nights
    frozen(store, layout, images(4), name="2026-01-01", prefix="/bucket/day-1")
    late = [image("00001.jpg", etag="e9"), image("late.jpg")]
    kinds = _kinds_of(begun(store, layout, frozen(store, layout, late, name="2026-01-02", late=2)))
    assert (kinds.new, kinds.changed) == (1, 1)


def test_time_goes_by_rounds_of_shards_over_the_actors(nights: tuple[Store, Layout]) -> None:
    store, layout = nights
    run = begun(store, layout, frozen(store, layout, images(1)))
    pace = Pace(probed=64, actors=4, rate=40.0, connect=5.0, start=2.0)
    assert _seconds([Left(run, tuple(range(8)), 800)], pace) == 7 + 20
    assert _seconds([Left(run, tuple(range(9)), 900)], pace) == 7 + 30, "the ninth shard has an actor to itself"
    assert _seconds([Left(run, tuple(range(4)), 400)] * 2, pace) == 7 + 2 + 20, "several runs, one after the other"
    assert _seconds([Left(run, (), 0)], pace) == 5.0


@pytest.mark.thorough
def test_on_a_bucket_and_on_two_actors(
    s3: S3Server, tmp_path: Path, digits_export: learners.Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole bucket is compared; how near the forecast is to the real run is printed, since machines differ."""
    store, bucket = Store(s3.storage), s3.bucket()
    for path in learners.write_digits(tmp_path / "in", 0, 600):
        store.replace(f"{bucket}/in/{path.name}", path.read_bytes())
    config = Config(
        root=f"{bucket}/root", learner=digits_export.path, images=f"{bucket}/in", source="digits", name="first",
        storage=s3.storage, actors=2,
    )  # fmt: skip
    before = list(store.find(bucket))
    found = score_images(dry(config))
    assert list(store.find(bucket)) == before, "the learner is not copied in, and no plan is frozen"
    assert (found["new"], found["actors"], found["probed"]) == (600, 2, 64)
    score_images(config)
    layout = Layout(config.root or "")
    real = json.loads(store.read(layout.run(found["runs"][0]).commit))["seconds"]
    with capsys.disabled():
        sys.stdout.write(f"\nforecast {found['seconds']} s, real {real} s\n")
