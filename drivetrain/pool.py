"""Actors that come and go, and the tasks they do. It knows no image.

A task is a number; a worker turns it into a result. Tasks are done at least once: whatever a worker writes must be
harmless when written twice. An exception that a worker raises is a wrong setting or a bug and ends the work at once.
0 actors do everything in this process, in order: for debugging, and for tests of everything but Ray.

An actor gets a task once it has said that it runs: those that have no place yet hold nothing back. One that dies is
replaced and its task tried again, up to MAX_ATTEMPTS times; that a node was lost is nothing that a task did. One whose
device failed counts as dead.

A task that ended its actor is done again step by step, and the actor says before each step which one it is: the step
that ends two actors more is left out. So one image can't stop a run, and costs three actors. What an actor looked at
ahead may be what ended it, so the task after it is done step by step too, and nobody looks ahead at such a task.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray

from drivetrain.cluster import LOOK_SECONDS, Places
from drivetrain.console import say
from drivetrain.errors import DeviceError, DrivetrainError, RunError

# Deaths of a task's actors that no step explains, and of actors that had no task yet.
MAX_ATTEMPTS = 3
# With more of them in one task it is the machine that ends actors, and not what they work on.
MOST_FATAL_STEPS = 16
# Nodes that one task lost while no other task got done: it may be the task that ends them.
MOST_LOST_NODES = 20
_ANSI = re.compile(r"\x1b\[[0-9;]*m")

Result = TypeVar("Result", covariant=True)


class Worker(Protocol[Result]):
    """Turns a task into a result."""

    def run(self, task: int, upcoming: int | None) -> Result:
        """Do one task. ``upcoming`` is most likely the next one: what it needs may be fetched already."""
        ...

    def steps(
        self, task: int, first: int | None, without: frozenset[int]
    ) -> Iterator[tuple[int | None, Result | None]]:
        """Do one task step by step: (step, None) before each step, (None, result) at the end.

        The step ``first`` comes first, to see soon whether it was it; those in ``without`` are left out.
        """
        ...


class _Actor:
    """A worker on its own process. Making the worker waits for the first task, so that its errors come back."""

    def __init__(self, make: Callable[[], Worker[Any]]) -> None:
        self._make = make
        self._worker: Worker[Any] | None = None

    def _made(self) -> Worker[Any]:
        if self._worker is None:
            self._worker = self._make()
        return self._worker

    def node(self) -> str:
        """The node that it runs on: asked first of all, since an answer means that it has a place."""
        found: str = ray.get_runtime_context().get_node_id()
        return found

    def run(self, task: int, upcoming: int | None) -> Any:
        return self._made().run(task, upcoming)

    def steps(self, task: int, first: int | None, without: frozenset[int]) -> Iterator[Any]:
        yield from self._made().steps(task, first, without)


@dataclass
class _Trouble:
    """What is known of a task whose actor ended: the step it was at, and the steps that are to blame.

    Nodes that it lost while no other task got done are counted apart: they are no fault of its steps.
    """

    at: int | None = None
    suspect: int | None = None
    fatal: frozenset[int] = frozenset()
    unexplained: int = 0
    lost: int = 0
    looked_at: bool = False
    _done_then: int = 0

    @property
    def by_steps(self) -> bool:
        """Whether it is to be done step by step, since it ended an actor, or an actor ended that looked at it ahead."""
        return bool(self.fatal or self.unexplained or self.looked_at)

    def died(self) -> None:
        """An actor died at the step ``at``, None if at no known one."""
        if self.at is not None and self.at == self.suspect:
            self.fatal, self.suspect, self.unexplained = self.fatal | {self.at}, None, 0
        else:
            self.suspect, self.unexplained = self.at, self.unexplained + 1
        self.at = None

    def lost_its_node(self, done: int) -> None:
        """The actor's node is gone, after so many tasks of all were done."""
        self.lost = self.lost + 1 if done == self._done_then else 1
        self._done_then, self.at = done, None


class _Queue:
    """The tasks that wait. One of them is set apart for each actor, so that it can be told what comes next."""

    def __init__(self, tasks: Iterable[int]) -> None:
        self.waiting = deque(tasks)
        self._apart: dict[Any, int] = {}

    def left(self) -> int:
        """How many tasks nobody works on."""
        return len(self.waiting) + len(self._apart)

    def take(self, actor: Any) -> tuple[int, int | None] | None:
        """The next task of an actor and the one after it, or None if nothing is left."""
        task = self._apart.pop(actor, None)
        if task is None and self.waiting:
            task = self.waiting.popleft()
        elif task is None and self._apart:
            # Rather than idle, take what another actor would do later; what that one fetched for it is lost.
            task = self._apart.popitem()[1]
        if task is None:
            return None
        if self.waiting:
            self._apart[actor] = self.waiting.popleft()
        return task, self._apart.get(actor)

    def give_back(self, actor: Any) -> None:
        """An actor is gone; what was set apart for it waits again."""
        if actor in self._apart:
            self.waiting.appendleft(self._apart.pop(actor))


def run_tasks(
    make: Callable[[], Worker[Result]], tasks: Iterable[int], *, actors: int | None, gpus_per_actor: float = 0.0
) -> Iterator[tuple[int, Result]]:
    """Do every task and yield (task, result) as they finish, in any order.

    ``actors`` is how many are wanted throughout, None for as many as the cluster has places for at any time. Waits as
    long as there is no place, and says what for. Raises whatever a worker raises, and RunError when a task has killed
    its actor MAX_ATTEMPTS times.
    """
    queue = _Queue(tasks)
    if actors == 0:
        worker = make()
        while given := queue.take(None):
            yield given[0], worker.run(*given)
        return
    pool = _Pool(make, queue, Places(actors, gpus_per_actor))
    try:
        yield from pool.results()
    finally:
        pool.end()


@dataclass(eq=False)
class _Member:
    """An actor, its node once it runs there, the task that it has in hand then, and the one that it looks at ahead."""

    actor: Any
    node: str | None = None
    task: int | None = None
    upcoming: int | None = None


class _Pool(Generic[Result]):
    """The actors, and what is awaited of each: that it runs, or what comes of its task."""

    def __init__(self, make: Callable[[], Worker[Result]], queue: _Queue, places: Places) -> None:
        # Once for all actors: it may hold a whole learner (`overlay`).
        self._make, self._queue, self._places = ray.put(make), queue, places
        self._remote = ray.remote(num_cpus=1, num_gpus=places.gpus_per_actor, max_restarts=0, max_task_retries=0)(
            _Actor
        )
        self._awaited: dict[Any, _Member] = {}
        self._troubles: dict[int, _Trouble] = {}
        self._done = 0
        self._died_at_start = 0

    def results(self) -> Iterator[tuple[int, Result]]:
        """Do what the queue holds, on as many actors as there are places for."""
        while left := self._queue.left() + sum(member.task is not None for member in self._awaited.values()):
            self._places.look()
            self._resize(min(left, self._places.wanted))
            self._places.tell(any(member.node for member in self._awaited.values()))
            ready, _ = ray.wait(list(self._awaited), num_returns=1, timeout=LOOK_SECONDS)
            for each in ready:
                yield from self._take(each)

    def end(self) -> None:
        """End all actors, whatever they do."""
        for member in self._awaited.values():
            ray.kill(member.actor)

    def _resize(self, wanted: int) -> None:
        """Have as many actors as that. Only those that don't run yet are taken back: what would they do?"""
        while len(self._awaited) < wanted:
            member = _Member(self._remote.remote(self._make))
            self._awaited[member.actor.node.remote()] = member
        surplus = len(self._awaited) - wanted
        if surplus > 0:
            for asked in [ref for ref, member in self._awaited.items() if member.node is None][:surplus]:
                ray.kill(self._awaited.pop(asked).actor)

    def _take(self, asked: Any) -> Iterator[tuple[int, Result]]:
        """Take what came from an actor, and give it the next task."""
        member = self._awaited[asked]
        try:
            step, result = _received(asked)
        except ray.exceptions.RayTaskError as error:
            if not isinstance(cause := _cause(error), DeviceError):
                raise cause from None
            # Its process computes nothing more, and would take every task to say so.
            ray.kill(self._awaited.pop(asked).actor)
            self._bury(member, cause)
            return
        except ray.exceptions.RayError as error:
            del self._awaited[asked]
            self._bury(member, error)
            return
        if step is not None and member.task is not None:
            self._troubles[member.task].at = step
            return
        del self._awaited[asked]
        task, member.task = member.task, None
        if task is None:
            member.node, self._died_at_start = result, 0
        else:
            self._done += 1
        self._hand_out(member)
        if task is not None:
            yield task, result

    def _hand_out(self, member: _Member) -> None:
        """Give an actor its next task. When there is none nobody holds the actor any more, and Ray ends it."""
        if not (given := self._queue.take(member)):
            return
        member.task, upcoming = given
        by_steps = self._by_steps(member.task)
        member.upcoming = None if by_steps or (upcoming is not None and self._by_steps(upcoming)) else upcoming
        if by_steps:
            trouble = self._troubles[member.task]
            # The actor waits before a step until the driver knows which one it is.
            steps = member.actor.steps.options(num_returns="streaming", _generator_backpressure_num_objects=1)
            self._awaited[steps.remote(member.task, trouble.suspect, trouble.fatal)] = member
        else:
            self._awaited[member.actor.run.remote(member.task, member.upcoming)] = member

    def _by_steps(self, task: int) -> bool:
        trouble = self._troubles.get(task)
        return trouble is not None and trouble.by_steps

    def _bury(self, member: _Member, error: BaseException) -> None:
        """Take back what a dead actor had in hand. Raises RunError when another one would die as well."""
        lines = _ANSI.sub("", str(error)).strip().splitlines()
        self._queue.give_back(member)
        lost = _lost_its_node(member, error)
        if lost:
            # Out of reach is not dead: it may have been cut off, and would hold its place.
            ray.kill(member.actor)
        elif member.task is None:
            self._died_at_start += 1
        if getattr(error, "actor_init_failed", False) or self._died_at_start >= MAX_ATTEMPTS:
            raise RunError(f"No actor can start: {lines[-1]}\nIs drivetrain installed on every node of the cluster?")
        if member.task is None:
            return
        self._queue.waiting.append(member.task)
        trouble = self._troubles.setdefault(member.task, _Trouble())
        if lost:
            _lose(member.task, trouble, self._done)
            return
        # Nothing is computed ahead, so that a device fails by what was in hand.
        if member.upcoming is not None and not isinstance(error, DeviceError):
            self._troubles.setdefault(member.upcoming, _Trouble()).looked_at = True
        _die(member.task, trouble, lines[0])


def _received(asked: Any) -> tuple[int | None, Any]:
    """What came from an actor: (step, None) or (None, result)."""
    if isinstance(asked, ray.ObjectRefGenerator):
        received: tuple[int | None, Any] = ray.get(next(asked))
        return received
    return None, ray.get(asked)


def _lost_its_node(member: _Member, error: BaseException) -> bool:
    """Whether an actor is gone with its node.

    Ray says so at once of a node that was told to go. Of one that vanished it calls the actors unavailable at first.
    """
    if isinstance(error, ray.exceptions.ActorUnavailableError | ray.exceptions.NodeDiedError):
        return True
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return member.node is not None and member.node not in alive


def _die(task: int, trouble: _Trouble, why: str) -> None:
    """Note that a task ended its actor. Raises RunError when it did so too often."""
    trouble.died()
    if trouble.unexplained >= MAX_ATTEMPTS or len(trouble.fatal) > MOST_FATAL_STEPS:
        times = f"{MAX_ATTEMPTS} times" if not trouble.fatal else f"at {len(trouble.fatal)} images and more"
        raise RunError(
            f"Shard {task} ended its actor {times}; the last time: {why}\n"
            "Everything finished so far is kept. Give actors more memory (fewer --actors) and run the same command."
        )
    say(f"An actor died on shard {task} ({why}); trying again on a new one.")


def _lose(task: int, trouble: _Trouble, done: int) -> None:
    """Note that a task lost its node. Raises RunError when it did so too often while nothing else got done."""
    trouble.lost_its_node(done)
    if trouble.lost >= MOST_LOST_NODES:
        raise RunError(
            f"Shard {task} lost its node {trouble.lost} times, and no other shard was finished meanwhile.\n"
            "Everything finished so far is kept. Use nodes that stay longer, or have more memory if they break down "
            "under the work, and run the same command."
        )
    say(f"The node that worked on shard {task} is gone; another one does it.")


def _cause(error: Exception) -> BaseException:
    cause = getattr(error, "cause", None)
    # Ray's own error is of the cause's class too, and its text is a stack trace.
    if isinstance(cause, DrivetrainError | OSError):
        return cause
    return error
