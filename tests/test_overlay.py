"""A store that writes nothing: what is written is read back from it, and the real store never learns of it."""

import pickle
from pathlib import Path

import pytest

from drivetrain.errors import StoreError
from drivetrain.overlay import Overlay
from drivetrain.store import Store


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder, hidden files too: time and bytes of each."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def real(tmp_path: Path) -> Path:
    Store().create(f"{tmp_path}/root/a/one.json", b"real one")
    return tmp_path / "root"


def test_what_is_written_is_read_back_and_the_disk_stays_as_it_was(real: Path) -> None:
    before, store = tree(real.parent), Overlay()
    assert store.create(f"{real}/a/two.json", b"two")
    store.replace(f"{real}/a/one.json", b"replaced")
    assert store.read(f"{real}/a/two.json") == b"two"
    assert store.read(f"{real}/a/one.json") == b"replaced"
    assert [store.fetch(f"{real}/a/{name}.json")[0] for name in ("two", "one")] == [b"two", b"replaced"]
    assert store.exists(f"{real}/a/two.json") and not store.exists(f"{real}/a/three.json")
    with store.open(f"{real}/a/two.json") as file:
        assert file.read() == b"two"
    assert tree(real.parent) == before


def test_the_first_writer_wins_also_over_the_real_store(real: Path) -> None:
    store = Overlay()
    assert not store.create(f"{real}/a/one.json", b"mine")
    assert store.read(f"{real}/a/one.json") == b"real one"
    assert store.create(f"{real}/a/one.json", b"real one")
    assert store.create(f"{real}/b", b"first") and not store.create(f"{real}/b", b"second")
    assert store.read(f"{real}/b") == b"first"


def test_names_are_those_of_both(real: Path) -> None:
    store = Overlay()
    store.replace(f"{real}/a/two.json", b"2")
    store.replace(f"{real}/a/deep/three.json", b"3")
    store.replace(f"{real}/ab/four.json", b"4")
    assert store.names(f"{real}/a") == ["deep", "one.json", "two.json"]
    assert store.names(f"{real}") == ["a", "ab"]
    assert store.names(f"{real}/none") == []


def test_nothing_is_removed(real: Path) -> None:
    with pytest.raises(StoreError, match="Not removed"):
        Overlay().delete(f"{real}/a/one.json")
    assert (real / "a" / "one.json").exists()


@pytest.mark.parametrize("other", [lambda store: store.once(1.0), lambda store: store.hasty(1.0)])
def test_the_same_store_for_a_hasty_caller_holds_the_same(real: Path, other: object) -> None:
    store = Overlay()
    same = other(store)  # type: ignore[operator]
    same.replace(f"{real}/x", b"through the hasty one")
    assert isinstance(same, Overlay) and store.read(f"{real}/x") == b"through the hasty one"
    assert not (real / "x").exists()


def test_an_actor_gets_what_lies_below_the_folders_it_needs(real: Path) -> None:
    store = Overlay({"s3": {"anon": True}})
    for name in ("run/run.json", "run-2/run.json", "models/m/export.pkl"):
        store.replace(f"{real}/{name}", name.encode())
    sent = pickle.loads(pickle.dumps(store.only(f"{real}/run", f"{real}/models/m")))
    assert sent.read(f"{real}/run/run.json") == b"run/run.json"
    assert sent.read(f"{real}/models/m/export.pkl") == b"models/m/export.pkl"
    assert not sent.exists(f"{real}/run-2/run.json") and sent.options == store.options
