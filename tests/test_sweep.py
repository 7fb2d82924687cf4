"""A command that dies anywhere, twice, and two commands at once: each image is there exactly once, or nothing is.

`make test` takes a seeded share of the cases, `make thorough` all of them.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from random import Random
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import HALF_A_SHARD, begun, frozen, images, part_of
from modelstore import FAULTS, READER, Died, Fault, Turns, World

from drivetrain.config import Config
from drivetrain.errors import RunError, SettingError, StoreError
from drivetrain.gc import collect_garbage
from drivetrain.layout import Layout
from drivetrain.nights import nights_table
from drivetrain.root import open_root
from drivetrain.run import PartCounts, Run
from drivetrain.score import finish_run
from drivetrain.store import Store

LAYOUT = Layout("model://bucket/root")
IMAGES = images(4, size=HALF_A_SHARD)
URIS = [each.uri for each in IMAGES]
# The table of nights has a line for each day since the first night.
NIGHT = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
TOLD = (Died, RunError, StoreError, OSError)
# The share of all cases that is taken: 1 of `make sweep`, less of `make thorough`; of `make test` the fewest.
SHARE = float(os.environ.get("SWEEP_SHARE", "0"))
FEWEST = 100


def number_of(every: int) -> int:
    return max(FEWEST, round(SHARE * every))


class Writer:
    """What an actor does, without a learner: rows that bear the writer's mark, so that two writers never agree."""

    def __init__(self, store: Store, root: str, run_id: str, *_: Any, **__: Any) -> None:
        self._run = Run.find(store, Layout(root), run_id)
        self._mark = str(store.options["model"]["writer"])

    def run(self, task: int, upcoming: int | None) -> PartCounts:
        rows = part_of(self._run, task, failed={URIS[1]: "empty"})
        marked = pa.array([self._mark] * len(rows), pa.string())
        return self._run.save_part(task, rows.set_column(rows.schema.get_field_index("group"), "group", marked))


@pytest.fixture(autouse=True)
def _no_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain.score._scorer", Writer)


def command(store: Store) -> None:
    """What `drivetrain score` does once its learner is known: freeze, begin, score, commit."""
    finish_run(begun(store, LAYOUT, frozen(store, LAYOUT, IMAGES, name=NIGHT)), Config(actors=0))


@contextmanager
def killed_or_told() -> Iterator[None]:
    """A command may die, or end with a plain error; anything else is a bug."""
    with suppress(*TOLD):
        yield


class Reader:
    """Looks at each of the store's calls, as any reader might: it sees no row, or all; and what it once saw stays."""

    def __init__(self, world: World) -> None:
        self.looks = self.seen = 0
        self._world, self._store = world, world.store(READER)
        self._committed: dict[str, bytes] | None = None

    def __call__(self) -> None:
        self.looks += 1
        found = [key for key in self._world.objects if key.endswith("/run.json")]
        assert len(found) <= 1, "the same command is the same run"
        state = [night.state for night in nights_table(self._store, LAYOUT)]
        if not found:
            return
        run = Run.find(self._store, LAYOUT, found[0].split("/")[-2])
        if run.committed() is None:
            with pytest.raises(RunError, match="not committed"):
                run.rows(["uri"])
            assert "done" not in state
            return
        self.seen += 1
        if self._committed is None:
            self._committed = self._files()
            check_rows(self._world, run)
        assert self._files() == self._committed, "what is committed never changes"

    def _files(self) -> dict[str, bytes]:
        return {key: data for key, data in self._world.objects.items() if not key.endswith("status.json")}


def check_rows(world: World, run: Run) -> None:
    """Each image once, also for who reads the folder and knows nothing of commits."""
    rows = run.rows(["uri", "status"]).to_pylist()
    assert [row["uri"] for row in rows] == URIS and [row["status"] for row in rows] == ["ok", "failed", "ok", "ok"]
    below = run.paths.parts.removeprefix("model://") + "/"
    glob = [pq.read_table(io.BytesIO(data)) for key, data in world.objects.items() if key.startswith(below)]
    assert sorted(pa.concat_tables(glob)["uri"].to_pylist()) == URIS
    commit = run.committed()
    assert commit and (commit.rows, commit.failed, commit.reasons) == (4, 1, {"empty": 1})


def finished(world: World, reader: Reader) -> None:
    """The same command again, unharmed, ends with a committed run."""
    with world.faults({}):
        command(world.store("last"))
    reader()
    assert reader.seen, "committed"


def calls_of_a_command() -> int:
    world = World()
    command(world.store("a"))
    return world.calls


def cases() -> list[tuple[tuple[int, Fault], tuple[int, Fault]]]:
    points = list(product(range(calls_of_a_command()), FAULTS))
    every = list(product(points, points))
    return Random(0).sample(every, number_of(len(every)))


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1], ids=["even", "odd"])
def test_a_command_that_dies_at_any_call_twice_loses_nothing(half: int) -> None:
    chosen = cases()[half::2]
    looks = 0
    for first, second in chosen:
        world = World()
        world.watch = reader = Reader(world)
        for writer, fault in (("a", first), ("b", second)):
            with world.faults(dict([fault])), killed_or_told():
                command(world.store(writer))
        finished(world, reader)
        looks += reader.looks
    print(f"{len(chosen):,} cases of two deaths, {looks:,} looks of a reader: 0 bad")


@pytest.mark.slow
def test_two_commands_at_once_make_one_run_in_any_order() -> None:
    """Half of the time one of the two dies as well, or loses a reply."""
    number = number_of(4000)
    most = 2 * calls_of_a_command()
    looks = 0
    for seed in range(number):
        world, drawn = World(), Random(seed)
        world.watch = reader = Reader(world)
        world.turns = turns = Turns(["a", "b"], seed)
        faults: dict[int, Fault] = {drawn.randrange(most): drawn.choice(FAULTS)} if seed % 2 else {}
        with world.faults(faults):
            errors = at_once(turns, **{writer: partial(command, world.store(writer)) for writer in "ab"})
        unexpected = [error for error in errors if not isinstance(error, TOLD)]
        assert not unexpected, unexpected
        world.turns = None
        finished(world, reader)
        looks += reader.looks
    print(f"{number:,} interleavings of two commands, {looks:,} looks of a reader: 0 bad")


@pytest.mark.slow
def test_gc_beside_a_resume_takes_the_run_whole_or_not_at_all() -> None:
    """The run is half done, gc is told to remove it, and its command goes on with it, in any order."""
    number = number_of(2000)
    ends = {"committed": 0, "told": 0}
    for seed in range(number):
        world = World()
        store = world.store("a")
        run = begun(store, LAYOUT, frozen(store, LAYOUT, IMAGES, name=NIGHT))
        run.save_part(0, part_of(run, 0, failed={URIS[1]: "empty"}))
        open_root(Config(root=LAYOUT.root, storage=store.options))
        world.watch = reader = Reader(world)
        world.turns = turns = Turns(["a", "gc"], seed)
        config = Config(root=LAYOUT.root, run=run.record.run_id, storage=world.store("gc").options)
        errors = at_once(turns, a=partial(command, store), gc=partial(garbage, config))
        told = [error for error in errors if "removed by drivetrain gc" in str(error)]
        assert len(told) == len(errors), errors
        assert bool(reader.seen) != bool(told), "committed, or told"
        ends["told" if told else "committed"] += 1
    assert min(ends.values()) > 0
    print(f"{number} interleavings of gc and a resume: {ends}, 0 bad")


def garbage(config: Config) -> None:
    try:
        collect_garbage(config, delete=True)
    except SettingError as error:
        assert "is committed" in str(error), error


def at_once(turns: Turns, **work: Callable[[], None]) -> list[BaseException]:
    """Do several things in threads, by turns; the errors that they ended with."""
    errors: list[BaseException] = []

    def do(writer: str) -> None:
        try:
            work[writer]()
        except BaseException as error:
            errors.append(error)
        finally:
            turns.done(writer)

    threads = [Thread(target=do, args=[writer]) for writer in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors
