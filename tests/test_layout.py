"""The tree in layout.py's docstring is the documentation of every path, so every path must stand in it."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import product
from typing import Any

import pytest

from drivetrain import layout
from drivetrain.layout import Layout, RunPaths, shard_of, shipped

ABOVE = "<root>/sources/<source>/{nights,plans}/<name>"
# What the docstring writes where a method takes an argument of that name.
PLACEHOLDERS = {
    "model_id": ("<model_id>",),
    "run_id": ("<run_id>",),
    "source": ("<source>",),
    "kind": ("night", "plan"),
    "name": ("<name>",),
    "digest": ("<digest>",),
    "sha256": ("<hash>",),
    "embedding": ("head", "<layer>"),
    "old": ("<run>",),
    "new": ("<run>",),
    "shard": (42,),
    "place": (1,),
    "number": (0,),
    "view": ("0", "<view>"),
    "reference": ("<reference>",),
    "alias": ("champion", "challenger"),
}
LINE = re.compile(r"\s+((?:<root>|…)\S*(?: \S+)*?)\s{2,}(created once|replaceable)")


def tree() -> list[tuple[str, str]]:
    """The documented paths, braces filled in, each with its writer rule."""
    lines = [line for line in (layout.__doc__ or "").splitlines() if line.strip().startswith(("<root>", "…"))]
    found = []
    for line in lines:
        match = LINE.match(line)
        assert match, f"a path without its writer rule: {line.strip()}"
        path = match[1].replace("…/<name>", ABOVE).rstrip("/")
        found += [(each, match[2]) for each in filled(path)]
    return found


def filled(path: str) -> list[str]:
    parts = [part.strip("{}").replace(" ", "").split(",") for part in re.split(r"(\{[^}]*\})", path)]
    return ["".join(words) for words in product(*parts)]


def paths_of(room: Any) -> Iterator[str]:
    """Every path that an object of layout.py can say, with placeholders for arguments."""
    for each in fields(room):
        yield getattr(room, each.name)
    for name, member in vars(type(room)).items():
        # A static method says a name, not a path.
        if name.startswith("_") or isinstance(member, staticmethod):
            continue
        if isinstance(member, property):
            said = [getattr(room, name)]
        else:
            wanted = list(inspect.signature(member).parameters)[1:]
            said = [getattr(room, name)(*given) for given in product(*(PLACEHOLDERS[each] for each in wanted))]
        for value in said:
            yield from paths_of(value) if is_dataclass(value) else (value,)


PATHS = sorted({re.sub(r"/0000(?=[/.]|$)", "/NNNN", path) for path in paths_of(Layout("<root>"))})


def test_the_walk_over_the_layout_finds_paths_of_every_depth() -> None:
    assert "<root>/drivetrain.json" in PATHS
    assert "<root>/runs/<run_id>/parts/part-00042.parquet" in PATHS
    assert "<root>/sources/<source>/plans/<name>/<model_id>/NNNN/verdict.json" in PATHS


@pytest.mark.parametrize("path", PATHS)
def test_every_path_stands_in_the_tree(path: str) -> None:
    assert any(documented == path or documented.startswith(path + "/") for documented, _ in tree())


@pytest.mark.parametrize("documented", [path for path, _ in tree()])
def test_the_tree_holds_nothing_that_the_layout_cannot_say(documented: str) -> None:
    assert documented in PATHS or documented.rsplit("/", 1)[0] in PATHS


def test_no_path_has_two_writer_rules() -> None:
    assert len({path for path, _ in tree()}) == len(tree())


def test_no_two_properties_say_the_same_path() -> None:
    said = list(paths_of(RunPaths("<folder>")))
    assert len(said) == len(set(said))


def test_what_closes_a_run_or_a_record_is_created_once() -> None:
    rules = dict(tree())
    closing = [path for path in rules if path.endswith(("commit.json", "verdict.json", "plan.json", "run.json"))]
    assert {rules[path] for path in closing} == {"created once"}
    assert rules["<root>/runs/<run_id>/status.json"] == "replaceable"


@pytest.mark.parametrize("shard", [0, 42, 99_999, 100_000])
def test_a_part_is_found_again_by_its_name(shard: int) -> None:
    assert shard_of(RunPaths("/x").part(shard).rsplit("/", 1)[1]) == shard


@pytest.mark.parametrize("name", ["part-42.parquet", "part-00042.parquet.tmp", ".part-00042.parquet", "x.parquet", ""])
def test_any_other_name_is_no_part(name: str) -> None:
    assert shard_of(name) is None


def test_a_sketch_is_named_as_the_part_that_it_is_of() -> None:
    run = RunPaths("/x")
    assert run.part(42).rsplit("/", 1)[1] == run.sketch("r", 42).rsplit("/", 1)[1] == run.part_name(42)
    assert run.sketch("r", 42).rsplit("/", 1)[0] == run.sketches("r") != run.sketches("s")


def test_parts_sort_by_shard_up_to_99999() -> None:
    names = [RunPaths("/x").part(shard) for shard in (0, 9, 10, 99, 100, 99_999)]
    assert names == sorted(names)


@pytest.mark.parametrize("name", ["dashboards", "jobs"])
def test_what_ships_with_the_package_is_there(name: str) -> None:
    assert any(shipped(name).iterdir())
