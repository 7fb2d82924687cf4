"""The door to Ray's tasks, actors and metrics (`submit` is the one to its jobs). It knows no image.

A task is a number; a worker turns it into a result. Tasks are done at least once: whatever a worker writes must be
harmless when written twice. An actor that dies is replaced and its task tried again, up to MAX_ATTEMPTS times; an
exception that a worker raises is a wrong setting or a bug and ends the work at once. 0 actors do everything in this
process, in order: for debugging, and for tests of everything but Ray.

A task that ended its actor is done again step by step, and the actor says before each step which one it is: the step
that ends two actors more is left out. So one image can't stop a run, and costs three actors.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray
from ray.util import metrics

from drivetrain.console import say
from drivetrain.dashboard import OPEN_MEANS, open_to_others
from drivetrain.errors import DrivetrainError, RunError

# Deaths of a task's actors that no step explains.
MAX_ATTEMPTS = 3
# With more of them in one task it is the machine that ends actors, and not what they work on.
MOST_FATAL_STEPS = 16
DASHBOARD_SECONDS = 2.0
MEND_OPEN = "Start every node under RAY_AUTH_MODE=token (cluster.yaml shows it)."
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

    def run(self, task: int, upcoming: int | None) -> Any:
        return self._made().run(task, upcoming)

    def steps(self, task: int, first: int | None, without: frozenset[int]) -> Iterator[Any]:
        yield from self._made().steps(task, first, without)


@dataclass
class _Trouble:
    """What is known of a task that ended its actor: the step it was at, and the steps that are to blame."""

    at: int | None = None
    suspect: int | None = None
    fatal: frozenset[int] = frozenset()
    unexplained: int = 0

    def died(self) -> None:
        """An actor died at the step ``at``, None if at no known one."""
        if self.at is not None and self.at == self.suspect:
            self.fatal, self.suspect, self.unexplained = self.fatal | {self.at}, None, 0
        else:
            self.suspect, self.unexplained = self.at, self.unexplained + 1
        self.at = None


class _Queue:
    """The tasks that wait. One of them is set apart for each actor, so that it can be told what comes next."""

    def __init__(self, tasks: Iterable[int]) -> None:
        self.waiting = deque(tasks)
        self._apart: dict[Any, int] = {}

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


@contextmanager
def connected(address: str | None, actors: int | None) -> Iterator[None]:
    """Be connected to a Ray cluster: the one named, RAY_ADDRESS, or a new one on this machine.

    0 actors need no cluster. A connection that was there before stays.
    """
    if actors == 0 or ray.is_initialized():
        yield
        return
    own = address is None and not os.environ.get("RAY_ADDRESS")
    extra: dict[str, Any] = {"include_dashboard": False} if own else {"address": address or "auto"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    where = address or os.environ.get("RAY_ADDRESS") or "this machine"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        found = ray.init(log_to_driver=False, logging_level=logging.ERROR, **extra)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise RunError(
            f"No Ray cluster at {where}: {str(error).splitlines()[0]}\n"
            "If the cluster asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from None
    if on_sigterm is not None and threading.current_thread() is threading.main_thread():
        # Ray put its own in place, which ends the process without a word.
        signal.signal(signal.SIGTERM, on_sigterm)
    if found.dashboard_url and not own:
        _say_if_open(f"http://{found.dashboard_url}")
    try:
        yield
    finally:
        ray.shutdown()


def _say_if_open(url: str) -> None:
    """Warn of a cluster that takes jobs from anyone. A dashboard that hangs does not hold up the work."""

    def ask() -> None:
        if open_to_others(url, DASHBOARD_SECONDS):
            say(f"Warning: the Ray cluster's dashboard at {url} asks for no token: {OPEN_MEANS}. {MEND_OPEN}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(DASHBOARD_SECONDS)


def look(address: str, seconds: float) -> str:
    """What a cluster has, asked by a process of its own: a connection that hangs can be ended only with its process.

    Raises RunError when there is no such cluster or it does not answer in time.
    """
    code = "import sys; from drivetrain.cluster import _tell; _tell(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"No answer within {seconds:.0f} s from the Ray cluster at {address}\n"
            "Correct --ray-address; on the cluster's head, type   ray status"
        ) from None
    if done.returncode:
        raise RunError(done.stderr.strip() or f"No Ray cluster at {address}")
    return done.stdout.strip()


def _tell(address: str) -> None:
    try:
        with connected(address, None):
            found = ray.cluster_resources()
    except RunError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{found.get('CPU', 0):.0f} CPUs, {found.get('GPU', 0):.0f} GPUs, Ray {ray.__version__}")


def default_actors(gpus_per_actor: float) -> int:
    """One actor a CPU of the cluster, or as many as its GPUs hold.

    A cluster that has no worker yet grows by what is asked for: 1, and a line that says how to ask for more.
    """
    resources = ray.cluster_resources()
    fit = int(resources.get("GPU", 0) / gpus_per_actor) if gpus_per_actor else int(resources.get("CPU", 0))
    if fit == 0:
        say("The cluster has no worker yet, and will start one for 1 actor. Say --actors N for more.")
    return max(1, fit)


def run_tasks(
    make: Callable[[], Worker[Result]], tasks: Iterable[int], *, actors: int | None, gpus_per_actor: float = 0.0
) -> Iterator[tuple[int, Result]]:
    """Do every task and yield (task, result) as they finish, in any order.

    Raises whatever a worker raises, and RunError when a task has killed its actor MAX_ATTEMPTS times.
    """
    queue = _Queue(tasks)
    if actors == 0:
        worker = make()
        while given := queue.take(None):
            yield given[0], worker.run(*given)
        return
    wanted = min(actors or default_actors(gpus_per_actor), len(queue.waiting))
    remote = ray.remote(num_cpus=1, num_gpus=gpus_per_actor, max_restarts=0, max_task_retries=0)(_Actor)
    troubles: dict[int, _Trouble] = {}
    busy: dict[Any, tuple[Any, int]] = {}
    try:
        for _ in range(wanted):
            _hand_out(remote.remote(make), queue, busy, troubles)
        while busy:
            ready, _ = ray.wait(list(busy), num_returns=1)
            actor, task = busy[ready[0]]
            try:
                step, result = _received(ready[0])
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except ray.exceptions.RayError as error:
                queue.give_back(actor)
                _retry(task, troubles.setdefault(task, _Trouble()), queue.waiting, error)
                actor = remote.remote(make)
            else:
                if step is not None:
                    troubles[task].at = step
                    continue
                yield task, result
            del busy[ready[0]]
            _hand_out(actor, queue, busy, troubles)
    finally:
        for actor, _ in busy.values():
            ray.kill(actor)


def _received(ready: Any) -> tuple[int | None, Any]:
    """What came from an actor: (step, None) or (None, result)."""
    if isinstance(ready, ray.ObjectRefGenerator):
        received: tuple[int | None, Any] = ray.get(next(ready))
        return received
    return None, ray.get(ready)


def _hand_out(actor: Any, queue: _Queue, busy: dict[Any, tuple[Any, int]], troubles: dict[int, _Trouble]) -> None:
    if not (given := queue.take(actor)):
        return
    task, upcoming = given
    if trouble := troubles.get(task):
        # The actor waits before a step until the driver knows which one it is.
        steps = actor.steps.options(num_returns="streaming", _generator_backpressure_num_objects=1)
        busy[steps.remote(task, trouble.suspect, trouble.fatal)] = (actor, task)
    else:
        busy[actor.run.remote(task, upcoming)] = (actor, task)


def _retry(task: int, trouble: _Trouble, waiting: deque[int], error: Exception) -> None:
    """Take back the task of an actor that died. Raises RunError when another one would die as well."""
    lines = _ANSI.sub("", str(error)).strip().splitlines()
    if getattr(error, "actor_init_failed", False):
        raise RunError(f"No actor can start: {lines[-1]}\nIs drivetrain installed on every node of the cluster?")
    trouble.died()
    first_line = lines[0]
    if trouble.unexplained >= MAX_ATTEMPTS or len(trouble.fatal) > MOST_FATAL_STEPS:
        times = f"{MAX_ATTEMPTS} times" if not trouble.fatal else f"at {len(trouble.fatal)} images and more"
        raise RunError(
            f"Shard {task} ended its actor {times}; the last time: {first_line}\n"
            "Everything finished so far is kept. Give actors more memory (fewer --actors) and run the same command."
        )
    say(f"An actor died on shard {task} ({first_line}); trying again on a new one.")
    waiting.append(task)


def _cause(error: Exception) -> BaseException:
    cause = getattr(error, "cause", None)
    # Ray's own error is of the cause's class too, and its text is a stack trace.
    if isinstance(cause, DrivetrainError | OSError):
        return cause
    return error


class RunMetrics:
    """What a job tells Prometheus through Ray while it works, labelled by source and run.

    ray_drivetrain_images_scored_total, ray_drivetrain_images_failed_total, ray_drivetrain_runs_committed_total,
    ray_drivetrain_images_per_second, ray_drivetrain_shards_waiting. They vanish with the job's node; commit.json keeps
    the totals. The verdict is not among them: a night is judged when the cluster has been left, and Ray forgets a gauge
    seconds after its job. It stands in site/metrics.prom (`exposition`).
    """

    def __init__(self, source: str, run_id: str) -> None:
        self._started = time.monotonic()
        self._done = 0
        self._active = ray.is_initialized()
        if not self._active:
            return
        tags = {"tag_keys": ("source", "run")}
        self._scored = metrics.Counter("drivetrain_images_scored", "Images scored.", **tags)
        self._failed = metrics.Counter("drivetrain_images_failed", "Images that got an error row.", **tags)
        self._committed = metrics.Counter("drivetrain_runs_committed", "Runs committed.", **tags)
        self._rate = metrics.Gauge("drivetrain_images_per_second", "Images a second since the job's start.", **tags)
        self._waiting = metrics.Gauge("drivetrain_shards_waiting", "Shards without a part yet.", **tags)
        for metric in (self._scored, self._failed, self._committed, self._rate, self._waiting):
            metric.set_default_tags({"source": source, "run": run_id})

    def add(self, images: int, failed: int, waiting: int) -> None:
        """Count a finished shard."""
        if not self._active:
            return
        self._done += images
        if images > failed:
            self._scored.inc(images - failed)
        if failed:
            self._failed.inc(failed)
        self._rate.set(self._done / max(time.monotonic() - self._started, 1e-9))
        self._waiting.set(waiting)

    def committed(self) -> None:
        """Count the run as done: an alert on its absence sees a night that did not end."""
        if self._active:
            self._committed.inc()
