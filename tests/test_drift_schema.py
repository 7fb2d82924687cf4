"""docs/drift.md and the records of findings.py say the same: every field, its unit, and nothing else."""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import findings_builder as build
import pytest

from drivetrain import findings
from drivetrain.findings import Findings

TEXT = (Path(__file__).parent.parent / "docs" / "drift.md").read_text()
# What the page alone has.
NOT_IN_THE_FILE = {"Map", "TrendPoint"}
RECORDS = {
    name: each
    for name, each in vars(findings).items()
    if dataclasses.is_dataclass(each) and name not in NOT_IN_THE_FILE
}


def documented() -> dict[str, dict[str, str]]:
    """For each heading, its fields and their units."""
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    return {
        section.split("\n", 1)[0]: dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \| [^|]+ \|$", section, re.MULTILINE))
        for section in sections
    }


def test_every_record_and_no_other_is_documented() -> None:
    assert set(documented()) == set(RECORDS)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_every_field_is_documented_in_its_order_with_a_unit(name: str) -> None:
    fields = [field.name for field in dataclasses.fields(RECORDS[name]) if field.name != "map"]
    assert list(documented()[name]) == fields
    assert all(unit.strip() for unit in documented()[name].values())


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_what_may_be_null_says_so(name: str) -> None:
    hints = typing.get_type_hints(RECORDS[name])
    for field, unit in documented()[name].items():
        assert (type(None) in typing.get_args(hints[field])) == ("null" in unit), f"{name}.{field}: {unit}"


def test_the_version_is_the_documented_one() -> None:
    said = re.search(r"`schema` is (\d+)", TEXT)
    assert said and int(said[1]) == findings.SCHEMA


def test_the_file_holds_what_is_documented(tmp_path: Path) -> None:
    found = json.loads(json.dumps(build.findings(tmp_path).record()))
    held_against(found, "Findings")
    assert found["decision"]["statistics"][0]["null"]
    assert len(found["classes"]) == 10 and found["classes"][0]["examples"]


def held_against(value: Any, name: str) -> None:
    """An object of the file has the documented fields, down to its depth."""
    hints = typing.get_type_hints(RECORDS[name])
    assert set(value) == set(documented()[name]), name
    for field, inner in value.items():
        (record,) = records_in(hints[field]) or [None]
        for each in (inner if isinstance(inner, list) else [inner]) if record and inner is not None else []:
            held_against(each, record.__name__)


def records_in(hint: Any) -> list[Any]:
    """The records that a field's type speaks of."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [each for argument in typing.get_args(hint) for each in records_in(argument)]


def test_the_example_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    full: Findings = build.findings(tmp_path)
    (tmp_path / "drift.json").write_text(json.dumps(full.record()))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["moved"] == ["class 0002"]
