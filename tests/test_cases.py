"""Own cases: both forms of the folder, and no case that is passed over in silence."""

from dataclasses import replace
from pathlib import Path

import pytest

from drivetrain.cases import Case, check_cases, read_cases
from drivetrain.errors import SettingError
from drivetrain.export import LearnerInfo
from drivetrain.store import Store

INFO = LearnerInfo("5a" * 6, "5a" * 32, "single_label", ("cat", "dog"), 2, "head.0", 3, "tiny")


def folder(path: Path, *keys: str, labels: str | None = None) -> str:
    for key in keys:
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(b"an image")
    if labels is not None:
        (path / "labels.csv").write_text(labels)
    return str(path)


def read(where: str) -> dict[str, str]:
    return {case.uri.removeprefix(f"{where}/"): case.expected for case in read_cases(Store(), where)}


def test_a_subfolder_for_each_label(tmp_path: Path) -> None:
    where = folder(tmp_path, "cat/a.jpg", "cat/2026/b.jpg", "dog/a.jpg", "dog/.hidden.jpg", "cat/notes.txt")
    assert read(where) == {"cat/2026/b.jpg": "cat", "cat/a.jpg": "cat", "dog/a.jpg": "dog"}


def test_a_file_of_labels_wins_over_folders(tmp_path: Path) -> None:
    where = folder(tmp_path, "x/a.jpg", "b.jpg", labels="\ufefffname,label\nx/a.jpg,dog\nb.jpg,cat\n")
    assert read(where) == {"x/a.jpg": "dog", "b.jpg": "cat"}


@pytest.mark.parametrize(
    ("keys", "labels", "said"),
    [
        ([], None, "No image below"),
        (["cat/a.jpg", "b.jpg"], None, "b.jpg has no label"),
        (["a.jpg", "b.jpg"], "fname,label\na.jpg,cat\n", "'b.jpg' has no line"),
        (["a.jpg"], "fname,label\na.jpg,cat\na.jgp,cat\n", "'a.jgp' .* is not there. Did you mean 'a.jpg'"),
        (["a.jpg"], "fname,label\na.jpg\n", "'a.jpg' has no label"),
        (["a.jpg"], "file,label\na.jpg,cat\n", "expected the columns fname,label"),
    ],
)
def test_no_case_is_passed_over(tmp_path: Path, keys: list[str], labels: str | None, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        read_cases(Store(), folder(tmp_path, *keys, labels=labels))


@pytest.mark.parametrize("hidden", ["_background/a.jpg", ".x/a.jpg", "cat/_old/a.jpg", "cat/_1.jpg"])
def test_a_case_in_a_hidden_place_is_named(tmp_path: Path, hidden: str) -> None:
    with pytest.raises(SettingError, match=rf"{hidden} would be passed over.*labels\.csv"):
        read_cases(Store(), folder(tmp_path, "cat/a.jpg", hidden))


def test_what_systems_leave_behind_is_no_case(tmp_path: Path) -> None:
    where = folder(tmp_path, "cat/a.jpg", "cat/.DS_Store", ".DS_Store", "_notes/read.txt")
    assert read(where) == {"cat/a.jpg": "cat"}


def test_a_label_that_nobody_can_give_is_named(tmp_path: Path) -> None:
    case = Case("/cases/dgo/a.jpg", "e", "dgo")
    with pytest.raises(SettingError, match=r"'dgo', no label\. Did you mean 'dog'"):
        check_cases([case], [INFO])


def test_a_label_that_only_the_champion_knows_may_be_asked_for() -> None:
    check_cases([Case("/cases/emu/a.jpg", "e", "emu")], [INFO, replace(INFO, vocab=("cat", "dog", "emu"))])


def test_a_case_of_several_labels_and_of_none() -> None:
    multi = replace(INFO, task="multi_label")
    assert Case("u", "e", "dog; cat").answer("multi_label") == ("cat", "dog")
    assert Case("u", "e", "").answer("multi_label") == ()
    check_cases([Case("u", "e", "dog;cat"), Case("u", "e", "")], [multi])
    with pytest.raises(SettingError, match="'emu'"):
        check_cases([Case("u", "e", "cat;emu")], [multi])


def test_a_case_of_numbers() -> None:
    numbers = replace(INFO, task="regression", vocab=(), outputs=2)
    assert Case("u", "e", "1.5;2").answer("regression") == (1.5, 2.0)
    check_cases([Case("u", "e", "1.5;2")], [numbers])
    for wrong in ("1.5", "1.5;dog", ""):
        with pytest.raises(SettingError, match="expected 2 numbers"):
            check_cases([Case("u", "e", wrong)], [numbers])
