"""Nothing runs from a file that nobody vouched for, whatever it is, and it costs little to find out.

`tests/hostile.py` makes the files and opens them, in processes of their own whose memory is limited.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import hostile
import learners
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain import Config, inspect_learner
from drivetrain.errors import DrivetrainError, TrustError
from drivetrain.learner import open_learner

pytestmark = pytest.mark.slow

SECONDS = 300
# The dearest of them is a pickle of sets alone, which stops after three million.
MOST_BYTES = 1024**3
MUTANTS = 600


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return learners.from_df_learner(learners.write_photos(tmp_path_factory.mktemp("photos"), 12))


@pytest.fixture(scope="module")
def export(learn: Any) -> bytes:
    return hostile.exported_with(learn, learn.model)


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def harmful(export: bytes, marks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A folder of files that run code in whoever unpickles them, and the mark that each would leave."""
    folder = tmp_path_factory.mktemp("harmful")
    return folder, written(folder, export, hostile.harmful(export, marks))


def written(folder: Path, export: bytes, files: Iterator[tuple[str, bytes]]) -> set[str]:
    (folder / "good").write_bytes(export)
    names = set()
    for name, data in files:
        names.add(hostile.slug(name))
        (folder / f"{hostile.slug(name)}.pkl").write_bytes(data)
    return names


def opened(way: str, folder: Path) -> str:
    """What `tests/hostile.py` printed; it was there until the last file."""
    command = [sys.executable, hostile.__file__, way, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read(folder: Path, names: set[str]) -> list[dict[str, Any]]:
    """What came of reading each file by drivetrain: nothing ran, and what was said is plain."""
    found: list[dict[str, Any]] = [json.loads(line) for line in opened("read", folder).splitlines()]
    assert {(each["file"], each["way"]) for each in found} == {
        (name, way) for name in names for way in ("inspect", "admit")
    }
    for each in found:
        assert each["seen"] == [], each
        assert "not plain" not in each["said"] and "Traceback" not in each["said"], each
        assert len(each["said"]) < 1500 and each["said"].replace("\n", "").isprintable(), each
        assert each["more_bytes"] < MOST_BYTES, each
    return found


@pytest.mark.thorough
def test_nothing_runs_from_a_file_that_nobody_vouched_for(harmful: tuple[Path, set[str]], marks: Path) -> None:
    folder, names = harmful
    found = read(folder, names)
    left = {path.name for path in marks.iterdir()}
    assert not names & left, "it ran"
    # What stands before a good learner and is thrown away is not run either, and that learner may open.
    for each in found:
        assert each["said"] or each["file"].endswith("before-a-good-learner"), each
    refused = sum(bool(each["said"]) for each in found if each["way"] == "inspect")
    print(
        f"{len(names)} files with code: 0 ran; {refused} refused in plain words, {len(names) - refused} opened without"
    )
    # All of this proves something only if the files do run in who unpickles them. Afterwards: the marks stay.
    opened("unpickle", folder)
    assert names <= {path.name for path in marks.iterdir()}


@pytest.mark.thorough
def test_bombs_and_broken_files_are_refused_in_little_memory(
    learn: Any, export: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bombs")
    names = written(folder, export, hostile.bombs(learn))
    found = read(folder, names)
    assert all(each["said"] for each in found), [each["file"] for each in found if not each["said"]]
    most, longest = max(each["more_bytes"] for each in found), max(each["seconds"] for each in found)
    print(f"{len(names)} bombs and broken files: {len(names)} refused in plain words; at most {most / 1e6:.0f} MB more")
    print(f"and {longest:.1f} s for one")


def test_the_command_shows_a_line_and_no_traceback(harmful: tuple[Path, set[str]], tmp_path: Path) -> None:
    folder, names = harmful
    path = str(folder / f"{next(name for name in sorted(names) if name.endswith('alone'))}.pkl")
    for words in (["learner", "inspect", path], ["score", "--learner", path, "--root", str(tmp_path / "root")]):
        command = [
            sys.executable,
            "-m",
            "drivetrain.cli",
            *words,
            *(["--images", str(tmp_path)] if "--root" in words else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode in (1, 2) and "Error: " in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("bit", [0, 4_000, 100_000, -1])
def test_one_flipped_bit_in_a_vouched_file_is_refused_before_parsing(
    bit: int, export: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file runs code in fastai's way, which its hash allows; flipped, not even a zip reader sees it."""
    mark, path = tmp_path / "mark", tmp_path / "export.pkl"
    payload = hostile.PAYLOADS["INST of a class of one's own"](str(mark))
    data = bytearray(hostile.FORMS["before a good learner"](export, hostile.pickled_in(export), payload))
    sha256 = hashlib.sha256(data).hexdigest()
    data[bit] ^= 1
    path.write_bytes(data)

    def parsed(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was parsed")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", parsed)
        patch.setattr("drivetrain.learner.scorer.recipe_from_data", parsed)
        with pytest.raises(TrustError, match="The hashes in trust are others"):
            inspect_learner(Config(learner=str(path), trust=(sha256,)))
        with pytest.raises(TrustError, match="the copy is damaged"):
            open_learner(bytes(data), sha256, vouched=True)
    assert not mark.exists()
    data[bit] ^= 1
    path.write_bytes(data)
    assert inspect_learner(Config(learner=str(path), trust=(sha256,)))["read"] == "fastai"
    assert mark.exists(), "vouched for and whole, it is opened as its owner wishes: the test can fail"
    print("one flipped bit in a vouched file: refused before parsing")


def test_looking_at_a_learner_writes_nothing(export: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "export.pkl"
    path.write_bytes(export)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert str(inspect_learner(Config(learner=str(path)))["engine"]).startswith("OpenVINO")
    assert os.listdir(tmp_path) == ["export.pkl"]


@pytest.fixture
def limited_memory() -> Iterator[None]:
    """What a mutated network may ask for: 4 GiB more than what this process has mapped."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 4 * 1024**3, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# What is done to a file at some places, told as shares of its length.
PLACES = st.floats(0, 1)
CHANGES = st.one_of(
    st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
    st.tuples(st.just("replace"), PLACES, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("leave out"), PLACES, st.integers(1, 40)),
    st.tuples(st.just("splice"), PLACES, PLACES),
    st.tuples(st.just("cut"), st.floats(0.9, 1), st.none()),
)


def test_mutants_of_an_export_are_opened_or_refused_and_nothing_runs(
    export: bytes, marks: Path, limited_memory: None
) -> None:
    """Of the pickle, in a file that is otherwise whole, and of the file. It holds a payload, which runs in neither."""
    mark, outcomes = marks / "of-a-mutant", {"opened": 0, "refused": 0}
    genuine = hostile.pickled_in(export)
    evil = hostile.PROTOCOL + hostile.PAYLOADS["getattr of an import"](str(mark)) + b"0" + genuine
    file = hostile.rewritten(export, evil)

    @settings(
        max_examples=MUTANTS, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(CHANGES, min_size=1, max_size=2), st.booleans())
    def mutate(changes: list[Any], pickle_alone: bool) -> None:
        data = reduce(changed, changes, evil if pickle_alone else file)
        data = hostile.rewritten(export, data) if pickle_alone else data
        try:
            open_learner(data, hashlib.sha256(data).hexdigest())
            outcomes["opened"] += 1
        except DrivetrainError as error:
            assert str(error).replace("\n", "").isprintable()
            outcomes["refused"] += 1

    mutate()
    assert not mark.exists()
    assert min(outcomes.values()) >= MUTANTS // 20, outcomes
    print(f"{sum(outcomes.values())} mutants: {outcomes}, 0 ran")


def changed(data: bytes, change: tuple[str, float, Any]) -> bytes:
    """The data after one change."""
    how, where, what = change
    place = int(where * (len(data) - 1))
    if how == "flip":
        return data[:place] + bytes([data[place] ^ 1 << what]) + data[place + 1 :]
    if how == "replace":
        return data[:place] + what + data[place + len(what) :]
    if how == "leave out":
        return data[:place] + data[place + what :]
    if how == "splice":
        start = int(what * len(data))
        return data[:place] + data[start : start + 64] + data[place:]
    return data[:place]
