"""Raylets that join and leave while tasks are done: whoever has a place works, and nobody else holds that up."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from nodes import Nodes
from servers import poll

from drivetrain import cluster, pool
from drivetrain.errors import RunError

pytestmark = pytest.mark.thorough


@dataclass
class Visitor:
    """Leaves a file for each task that it begins, ``TASK-NODE-PID``; those in ``held`` wait until ``go`` is there."""

    folder: Path
    held: tuple[int, ...] = ()

    def run(self, task: int, upcoming: int | None) -> str:
        where = f"{ray.get_runtime_context().get_node_id()}-{os.getpid()}"
        (self.folder / f"{task}-{where}").touch()
        while task in self.held and not (self.folder / "go").exists():
            time.sleep(0.05)
        return where

    def steps(self, task: int, first: int | None, without: frozenset[int]) -> Iterator[tuple[int | None, str | None]]:
        raise AssertionError("no task of these tests ends its actor, whatever becomes of its node")


class Work:
    """Tasks that are done in a thread while the test changes the cluster."""

    def __init__(self, make: Any, tasks: int, **how: Any) -> None:
        self.done: dict[int, str] = {}
        self.error: RunError | None = None
        self._thread = threading.Thread(target=self._run, args=(make, tasks, how))
        self._thread.start()

    def _run(self, make: Any, tasks: int, how: dict[str, Any]) -> None:
        try:
            for task, where in pool.run_tasks(make, range(tasks), **how):
                assert task not in self.done
                self.done[task] = where
        except RunError as error:
            self.error = error

    def end(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive(), "it hangs"


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    # Ray takes 15 s to miss a raylet; these tests lose many.
    made = Nodes(_system_config={"health_check_initial_delay_ms": 500, "health_check_period_ms": 500})
    try:
        with pytest.MonkeyPatch.context() as patch:
            # Actors import this very file.
            patch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
            with cluster.connected(made.address, None):
                yield made
    finally:
        made.end()


@pytest.fixture
def nodes(head: Nodes) -> Iterator[Nodes]:
    yield head
    head.lose_all()
    poll(lambda: not ray.cluster_resources().get("CPU"), "Ray misses the nodes", 60)


class Said:
    """What was said on stderr so far."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured, self._text = captured, ""

    def __call__(self) -> str:
        self._text += self._captured.readouterr().err
        return self._text


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


@contextmanager
def at_work(folder: Path, make: Any, tasks: int, **how: Any) -> Iterator[Work]:
    """Work that ends with the block, whatever happens there."""
    work = Work(make, tasks, **how)
    try:
        yield work
    finally:
        (folder / "go").touch()
        work.end()


def node_of(folder: Path, task: int) -> str:
    """The node on which a task was begun last."""
    return max(folder.glob(f"{task}-*"), key=lambda path: path.stat().st_mtime_ns).name.split("-")[1]


def begun(folder: Path, task: int | str = "*") -> list[str]:
    """The nodes on which a task was begun."""
    return [path.name.split("-")[1] for path in folder.glob(f"{task}-*")]


def test_a_head_without_any_worker_is_waited_on_and_said_so(nodes: Nodes, said: Said, tmp_path: Path) -> None:
    with at_work(tmp_path, partial(Visitor, tmp_path), 6, actors=None) as work:
        poll(lambda: "Waiting for a node: an actor needs 1 CPU, and no node has that (0 CPUs" in said(), "what for")
        assert "ray start --address=" in said() and not work.done
        there = nodes.add(cpus=2)
    assert {where.split("-")[0] for where in work.done.values()} == {there}
    assert sorted(work.done) == list(range(6)) and not work.error
    assert said().count("Waiting for") == 1
    assert "The cluster has grown: 2 actors now, 1 before." in said()


def test_what_is_waited_for_is_said_again_when_it_changes(nodes: Nodes, said: Said, tmp_path: Path) -> None:
    nodes.add(cpus=2)
    with at_work(tmp_path, partial(Visitor, tmp_path), 4, actors=None, gpus_per_actor=0.5) as work:
        poll(lambda: "needs 1 CPU and 0.5 GPU, and no node has that (2 CPUs and 0 GPUs in all)" in said(), "what for")
        nodes.add(cpus=0, gpus=1)
        poll(lambda: "(2 CPUs and 1 GPU in all)" in said(), "a GPU without a CPU does not help")
        there = nodes.add(cpus=4, gpus=1)
    assert {where.split("-")[0] for where in work.done.values()} == {there} and len(work.done) == 4
    assert said().count("Waiting for") == 2


def test_places_that_others_hold_are_waited_for_and_said_so(
    nodes: Nodes, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "START_SECONDS", 3.0)
    nodes.add(cpus=1)
    other = ray.remote(num_cpus=1)(Visitor).remote(tmp_path)
    ray.get(other.run.remote(99, None), timeout=60)
    with at_work(tmp_path, partial(Visitor, tmp_path), 3, actors=2) as work:
        poll(lambda: "the cluster has room for 1 (1 CPU and 0 GPUs in all), if nobody else works" in said(), "what for")
        assert not work.done
        ray.kill(other)
    assert len(work.done) == 3 and not work.error


def test_actors_without_a_place_hold_nothing_back(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(cpus=2)
    with at_work(tmp_path, partial(Visitor, tmp_path, held=(0,)), 12, actors=6) as work:
        # All but the one that is held, though most of the six actors never run.
        poll(lambda: len(work.done) == 11, "the others", 60)
    assert len(work.done) == 12 and len(set(work.done.values())) == 2
    print(f"6 actors wanted, 2 places: {len(set(work.done.values()))} actors did {len(work.done)} tasks")


@pytest.mark.parametrize("actors", [None, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_node_that_joins_gets_tasks(nodes: Nodes, actors: int | None, tmp_path: Path) -> None:
    first = nodes.add()
    with at_work(tmp_path, partial(Visitor, tmp_path, held=(0,)), 10, actors=actors) as work:
        poll(lambda: begun(tmp_path, 0), "the first node's work", 60)
        second = nodes.add()
        # The first node is at work on what it began with.
        poll(lambda: len(work.done) == 9, "the second node's work", 60)
    assert set(begun(tmp_path, 0)) == {first}
    assert {where.split("-")[0] for task, where in work.done.items() if task} == {second}


@pytest.mark.thorough
@pytest.mark.parametrize("told", [False, True])
def test_lost_nodes_are_no_fault_of_the_task(nodes: Nodes, told: bool, said: Said, tmp_path: Path) -> None:
    """The same task loses its node more often than it may end an actor."""
    losses = pool.MAX_ATTEMPTS + 1
    nodes.add()
    with at_work(tmp_path, partial(Visitor, tmp_path, held=(0,)), 3, actors=None) as work:
        for nth in range(losses):
            poll(lambda nth=nth: len(begun(tmp_path, 0)) > nth, f"start {nth + 1} of the task", 60)  # type: ignore[misc]
            nodes.lose(node_of(tmp_path, 0), told=told)
            nodes.add()
        poll(lambda: len(begun(tmp_path, 0)) > losses, "the last start", 60)
    assert not work.error and sorted(work.done) == [0, 1, 2]
    assert said().count("The node that worked on shard 0 is gone") == losses
    print(f"{losses} nodes lost on one task ({'told to go' if told else 'without a word'}): all 3 tasks done")


def test_a_cluster_that_shrinks_goes_on_with_what_is_left(nodes: Nodes, said: Said, tmp_path: Path) -> None:
    both = {nodes.add(), nodes.add()}
    with at_work(tmp_path, partial(Visitor, tmp_path, held=(0, 1)), 8, actors=None) as work:
        poll(lambda: len(work.done) == 6 and begun(tmp_path, 0) and begun(tmp_path, 1), "two tasks that are held", 60)
        kept, lost = node_of(tmp_path, 0), node_of(tmp_path, 1)
        assert {kept, lost} == both
        nodes.lose(lost)
        # Its actor outlives it for a moment, and might finish its task.
        poll(lambda: "is gone; another one does it" in said(), "the loss is noticed", 60)
    assert sorted(work.done) == list(range(8)) and not work.error
    assert {work.done[task].split("-")[0] for task in (0, 1)} == {kept}


@pytest.mark.thorough
def test_a_task_that_ends_every_node_ends_the_run_at_last(nodes: Nodes, tmp_path: Path) -> None:
    with at_work(tmp_path, partial(Visitor, tmp_path, held=(0,)), 1, actors=None) as work:
        for nth in range(pool.MOST_LOST_NODES):
            nodes.add()
            poll(lambda nth=nth: len(begun(tmp_path, 0)) > nth, f"start {nth + 1} of the task", 60)  # type: ignore[misc]
            nodes.lose(node_of(tmp_path, 0), told=True)
        work.end()
    assert work.error and "lost its node 20 times" in str(work.error)
