"""--dry-run of nights and of what is scored again: every run that would be begun, and not a byte is written."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learners
import pytest
from test_overlay import tree

from drivetrain import Config, build_reference, promote, rescore_nights, rescore_runs, run_night
from drivetrain.aliases import challenger_of, in_scope
from drivetrain.root import open_root
from drivetrain.told import lines_of

pytestmark = pytest.mark.slow

DAYS = ("2026-11-20", "2026-11-21", "2026-11-22")
OF_REFERENCE = 40


@dataclass(frozen=True)
class World:
    """Three days of 12 digits, the first with a broken image too, and a root with its reference and that night.

    ``old`` scored them; ``head`` has its body and another head, ``other`` nothing of it.
    """

    folder: Path
    old: learners.Exported
    head: learners.Exported
    other: learners.Exported

    def config(self, night: str = DAYS[0], **more: Any) -> Config:
        about = {"root": str(self.folder / "root"), "images": f"{self.folder}/in/{{night}}", "learner": self.old.path}
        about |= {"source": "digits", "night": night, "actors": 0, "engine": "torch"}
        return Config.load(**about | more)

    def foretold(self, story: Any, night: str = DAYS[0], **more: Any) -> dict[str, Any]:
        before = tree(self.folder)
        result: dict[str, Any] = story(self.config(night, dry_run=True, **more))
        assert tree(self.folder) == before
        return result

    def copy(self, name: str) -> str:
        """Another root with the same in it, to be changed."""
        return str(shutil.copytree(self.folder / "root", self.folder / name))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, digits_export: learners.Exported) -> World:
    folder = tmp_path_factory.mktemp("dryrun")
    for place, day in enumerate(DAYS):
        learners.write_digits(folder / "in" / day, 12 * place, 12 * place + 12)
    (folder / "in" / DAYS[0] / "broken.png").write_bytes(b"no image")
    learners.write_digits(folder / "reference" / "valid", 100, 100 + OF_REFERENCE, by_label=True)
    learners.write_digits(folder / "train", 1300, 1400, by_label=True)
    head = learners.retrained_head(digits_export, folder / "train", folder / "head.pkl")
    other = learners.exported(learners.digits_learner(folder / "train", epochs=1, seed=1), folder / "other.pkl")
    found = World(folder, digits_export, head, other)
    build_reference(found.config(images=f"{folder}/reference"))
    run_night(found.config())
    return found


# --- nights ---


def test_all_nights_that_would_be_caught_up_are_forecast_together(world: World) -> None:
    found = world.foretold(run_night, DAYS[2], catch_up=True)
    assert found["nights_to_do"] == [*DAYS[1:]] and len(found["runs"]) == 2
    assert (found["new"], found["images_to_score"], found["parts_to_write"]) == (24, 24, 2)
    assert lines_of(found)[0].startswith("2 nights, 2026-11-21 to 2026-11-22; 24 new images")
    root = world.copy("caught-up")
    done = run_night(world.config(DAYS[2], catch_up=True, root=root))
    assert [each["run_id"] for each in done["caught_up"]] == found["runs"]
    nothing = world.foretold(run_night, DAYS[2], catch_up=True, root=root)
    assert (nothing["nights_to_do"], nothing["images_to_score"]) == ([], 0)


def test_an_image_that_two_nights_could_take_is_counted_once(world: World) -> None:
    """Both nights of one folder find all of it; the second has what the first one left."""
    month = str(shutil.copytree(world.folder / "in" / DAYS[1], world.folder / "month" / "2026-11"))
    root, images = world.copy("month-root"), f"{Path(month).parent}/{{night:%Y-%m}}"
    run_night(world.config(source="month", root=root, images=f"{world.folder}/in/{{night}}"))
    found = world.foretold(run_night, DAYS[2], catch_up=True, source="month", root=root, images=images)
    assert (found["images"], found["images_to_score"]) == (12, 12) and len(found["runs"]) == 2


def test_a_first_night_with_a_shadow_counts_both_learners_and_makes_no_champion(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    found = world.foretold(run_night, DAYS[1], root=f"{world.folder}/nowhere", shadow=world.other.path)
    assert (found["images"], found["new"], found["beside"], found["images_to_score"]) == (12, 12, 12, 24)
    assert len(found["runs"]) == 2 and found["parts_to_write"] == 2 and found["probed"] == 24
    assert "12 of them scored beside the champion too" in lines_of(found)[0]
    assert "from now on" not in capsys.readouterr().err


def test_a_shadow_that_would_fail_is_a_note(world: World) -> None:
    found = world.foretold(run_night, DAYS[1], shadow=f"{world.folder}/nowhere.pkl")
    assert (found["beside"], found["images_to_score"]) == (0, 12)
    assert "Nothing was scored beside the champion" in found["notes"][0]


def test_a_challenger_counts_with_the_images_of_its_scope(world: World) -> None:
    root = world.copy("challenged")
    promote(world.config(root=root), world.other.path, scope="0.4")
    store, layout = open_root(world.config(root=root))
    challenger = challenger_of(store, layout, "digits")
    assert challenger and challenger.scope
    found = world.foretold(run_night, DAYS[1], root=root)
    uris = [str(path) for path in sorted((world.folder / "in" / DAYS[1]).iterdir())]
    inside = sum(in_scope([store.normalise(uri) for uri in uris], challenger.scope))
    assert 0 < inside < 12
    assert (found["new"], found["beside"], found["images_to_score"]) == (12, inside, 12 + inside)
    result = run_night(world.config(DAYS[1], root=root))
    assert [result["run_id"], result["shadow_run_id"]] == found["runs"]


# --- scored again ---


def test_nights_under_another_learner_count_with_the_reference_that_it_has_to_have(world: World) -> None:
    about = {"nights": f"{DAYS[0]}..{DAYS[2]}", "learner": world.other.path, "labels": None}
    found = world.foretold(rescore_runs, **about)
    assert (found["images_to_score"], found["head_only"], found["new"]) == (13 + OF_REFERENCE, 0, 0)
    root = world.copy("rescored")
    real = rescore_nights(world.config(root=root, **about))
    assert {*found["runs"]} == {real["nights"][0]["run_id"], real["reference"]}
    nothing = world.foretold(rescore_runs, root=root, **about)
    assert (nothing["images_to_score"], nothing["parts_to_write"]) == (0, 0)


def test_a_new_head_reads_no_image(world: World) -> None:
    about = {"nights": f"{DAYS[0]}..{DAYS[2]}", "learner": world.head.path}
    found = world.foretold(rescore_runs, **about)
    assert (found["head_only"], found["images_to_score"], found["probed"]) == (13 + OF_REFERENCE, 0, 0)
    assert f"{13 + OF_REFERENCE} images go through the new head" in lines_of(found)[0]
    full = world.foretold(rescore_runs, full=True, **about)
    assert (full["head_only"], full["images_to_score"]) == (0, 13 + OF_REFERENCE)
    real = rescore_nights(world.config(root=world.copy("headed"), **about))
    assert {*found["runs"]} == {real["nights"][0]["run_id"], real["reference"]}


def test_failed_images_are_scored_again_only_where_that_is_asked_for(world: World) -> None:
    about = {"nights": f"{DAYS[0]}..{DAYS[0]}", "learner": world.old.path}
    wanted = {"missing": 0, "failed": 1, "all": 1}
    for reprocess, number in wanted.items():
        found = world.foretold(rescore_runs, reprocess=reprocess, **about)
        assert found["images_to_score"] == number, reprocess
