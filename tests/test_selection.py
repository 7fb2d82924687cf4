"""What a page shows of what was found: the rows that say most, and pictures within its budget."""

from dataclasses import replace
from pathlib import Path

import findings_builder as build
import pytest

from drivetrain import report, selection
from drivetrain.figures import MARKS, plain_text
from drivetrain.findings import Findings
from drivetrain.selection import choose
from drivetrain.store import Store
from drivetrain.widgets import escaped


class Counting(Store):
    """A store that counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def read(self, uri: str) -> bytes:
        self.reads.append(uri)
        return super().read(uri)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return build.findings(tmp_path_factory.mktemp("pictures"), 1000)


def test_no_image_is_read_twice_and_at_most_some_two_hundred_are(found: Findings) -> None:
    store = Counting()
    shown = choose(build.page(found), store)
    assert len(store.reads) == len(set(store.reads)) <= 200
    assert (len(shown.queue), len(shown.classes), len(shown.regions)) == (30, 100, 30)
    assert set(shown.pictures) == set(store.reads) - {"/nowhere/lost image.jpg"}


def test_the_rows_that_say_most_come_first(found: Findings) -> None:
    shown = choose(build.page(found), Store())
    assert shown.classes[0].label == "class 0002" and shown.regions[0].number == 4
    many = replace(found, classes=build.class_shifts(140, ["a"], ["b"]))
    assert choose(build.page(many), Store()).classes == many.classes[:100], "in the order of the findings"


def test_the_budget_holds_each_copy_and_the_queue_comes_first(found: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "PICTURE_BYTES", 40_000)
    page = build.page(found)
    shown = choose(page, Store())
    places = list(selection._places(shown.queue, shown.classes, shown.regions))
    assert 0 < sum(len(shown.pictures.get(uri, "")) for uri in places) <= 40_000
    assert places[0] in shown.pictures


def test_a_night_without_findings_or_images_shows_nothing() -> None:
    shown = choose(build.page(None, build.UNKNOWN, queue=build.queue([], 0)), Store())
    assert (shown.queue, shown.classes, shown.regions, shown.pictures) == ([], (), (), {})


def test_what_is_no_text_of_ours_is_shown_to_the_letter() -> None:
    assert escaped("![x](http://a)") == r"\!\[x\]\(http\://a\)"
    assert escaped("two\nlines\x1b[0m") == r"two lines \[0m"
    assert plain_text("<a href='x'>&" + "y" * 50) == "a href='x'" + "y" * 26 + "…"


def test_verdicts_differ_in_shape_and_not_in_colour_alone() -> None:
    assert len({shape for _, shape in MARKS.values()}) == len({colour for colour, _ in MARKS.values()}) == 4


@pytest.mark.slow
def test_the_workspace_gets_a_point_a_night_and_panels_with_thresholds(found: Findings, tmp_path: Path) -> None:
    store, small = Store(), replace(found, classes=found.classes[:3])
    made = report.make(build.page(small), build.scored(40), build.scored(50), store)
    first = report.publish(made, str(tmp_path / "workspace"), store, None)
    second = report.publish(made, str(tmp_path / "workspace"), store, first)
    space = report.Workspace.create(str(tmp_path / "workspace"))
    (project,) = space.search_project("drivetrain: shop")
    assert [str(run) for run in space.list_runs(project.id)] == [second], "a night is one point"
    panels = {
        panel.title: [value.metric.split(":")[-1] for value in panel.values]
        for panel in project.dashboard.model().panels
    }
    assert panels["Drift score by night"] == ["DriftScore", "DriftThreshold"]
    assert len(panels) == 10
