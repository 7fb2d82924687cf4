"""docs/comparison.md and the records of comparison.py say the same: every field, its unit, and nothing else."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from drivetrain import comparison

TEXT = (Path(__file__).parent.parent / "docs" / "comparison.md").read_text()
RECORDS = {name: each for name, each in vars(comparison).items() if dataclasses.is_dataclass(each)}
PROSE = {"What it rests on", "The rule", "The file"}


def documented() -> dict[str, dict[str, str]]:
    """For each heading, its fields and their units."""
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    return {
        section.split("\n", 1)[0]: dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \| [^|]+ \|$", section, re.MULTILINE))
        for section in sections
    }


def test_every_record_and_no_other_is_documented() -> None:
    assert set(documented()) - PROSE == set(RECORDS)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_every_field_is_documented_in_its_order_with_a_unit(name: str) -> None:
    assert list(documented()[name]) == [field.name for field in dataclasses.fields(RECORDS[name])]
    assert all(unit.strip() for unit in documented()[name].values())


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_what_may_be_null_says_so(name: str) -> None:
    hints = typing.get_type_hints(RECORDS[name])
    for field, unit in documented()[name].items():
        assert (type(None) in typing.get_args(hints[field])) == ("null" in unit), f"{name}.{field}: {unit}"


def test_the_version_is_the_documented_one() -> None:
    said = re.search(r"`schema` is (\d+)", TEXT)
    assert said and int(said[1]) == comparison.SCHEMA
