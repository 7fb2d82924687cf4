"""The line that "label more" names writes the images whose labels tell two learners apart, of any committed run."""

import csv
import io
import shlex
from pathlib import Path

import pytest
from builders import PREFIX
from click.testing import CliRunner
from pairs import NEW, Said, people_say, scored

from drivetrain import Config, compare_runs, export_queue
from drivetrain.cli import main
from drivetrain.errors import SettingError
from drivetrain.labels import drawn_images
from drivetrain.layout import Layout
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.store import Store

STORE = Store()
PLANS = [("night", "2026-01-02"), ("plan", "2026-01-02-scope-0123abcd")]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return open_root(Config(root=str(tmp_path / "root")))[1]


def uri(number: int) -> str:
    return f"{PREFIX}/{number:03d}.jpg"


def two_runs(layout: Layout, flips: int = 30, **plan: str) -> tuple[Run, Run]:
    """Of 100 images the last ones are cat to the old learner and dog to the new one, each surer than the one before."""
    sure = {number: 0.6 + number / 1000 for number in range(100)}
    old: dict[str, Said] = {uri(number): ("cat", 0.9) for number in sure}
    new: dict[str, Said] = {
        uri(number): ("dog" if number >= 100 - flips else "cat", sure[number], [number % 7, number % 11, number % 13])
        for number in sure
    }
    return scored(STORE, layout, old, **plan), scored(STORE, layout, new, sha256=NEW, **plan)


def lines_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(), newline="")))


@pytest.mark.parametrize(("kind", "name"), PLANS)
def test_what_label_more_says_to_type_writes_the_flips(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """Neither run was measured, as those of a shadow and of a scope."""
    old, new = two_runs(layout, kind=kind, name=name)
    advice = compare_runs(Config(root=layout.root), old.record.run_id, new.record.run_id)["recommendation"]
    assert advice["do"] == "label more"
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(advice["next"])[1:])
    assert done.exit_code == 0, done.output
    rows = lines_of(tmp_path / f"flips-{new.record.run_id}.csv")
    assert [row["fname"] for row in rows] == [uri(number) for number in range(99, 69, -1)], "the surest first"
    assert {(row["label"], row["predicted"], row["chosen"]) for row in rows} == {("", "dog", "flipped")}


def test_the_same_line_goes_on_with_those_that_have_no_label(layout: Layout, tmp_path: Path) -> None:
    old, new = two_runs(layout)
    about = {"root": layout.root, "run": new.record.run_id, "flips": old.record.run_id}
    export_queue(Config(**about, review_size=20, output=str(tmp_path / "1.csv")))
    first = [row["fname"] for row in lines_of(tmp_path / "1.csv")]
    people_say(STORE, layout, dict.fromkeys(first, "dog"))
    result = export_queue(Config(**about, review_size=20, output=str(tmp_path / "2.csv")))
    second = [row["fname"] for row in lines_of(tmp_path / "2.csv")]
    assert (len(first), len(second), result["flipped"], result["labelled_before"]) == (20, 10, 10, 20)
    assert {*first, *second} == {uri(number) for number in range(70, 100)}


def test_copies_of_one_image_do_not_fill_the_file(layout: Layout, tmp_path: Path) -> None:
    """The surest ten are one picture; eight others, each of its own kind, are less sure."""
    old: dict[str, Said] = {uri(number): ("cat", 0.9) for number in range(18)}
    new: dict[str, Said] = {uri(number): ("dog", 0.9 - number / 1000, [0, 0, 0]) for number in range(10)}
    corners = [[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]
    new |= {uri(10 + place): ("dog", 0.8, corner) for place, corner in enumerate(corners)}
    runs = scored(STORE, layout, old), scored(STORE, layout, new, sha256=NEW)
    about = {"root": layout.root, "run": runs[1].record.run_id, "flips": runs[0].record.run_id}
    export_queue(Config(**about, review_size=9, output=str(tmp_path / "q.csv")))
    assert [row["fname"] for row in lines_of(tmp_path / "q.csv")] == [uri(0), *(uri(10 + place) for place in range(8))]


def test_images_at_random_need_no_measurement(layout: Layout, tmp_path: Path) -> None:
    _, new = two_runs(layout)
    config = Config(root=layout.root, run=new.record.run_id, output=str(tmp_path / "q.csv"))
    with pytest.raises(SettingError, match=r"not been measured.*(?s:.)*--flips RUN"):
        export_queue(config)
    result = export_queue(config.model_copy(update={"sample": 10}))
    assert (result["images"], result["random"]) == (10, 10)
    assert len(drawn_images(STORE, layout, "shop", "night", "2026-01-02")) == 10


def test_numbers_do_not_flip(layout: Layout, tmp_path: Path) -> None:
    old, new = two_runs(layout)
    record = Path(layout.run(new.record.run_id).record)
    record.write_text(record.read_text().replace("single_label", "regression"))
    with pytest.raises(SettingError, match=r"expected two runs with labels, found .*single_label.*regression"):
        export_queue(Config(root=layout.root, run=new.record.run_id, flips=old.record.run_id))
