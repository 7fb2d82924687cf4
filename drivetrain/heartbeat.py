"""Who works on a run now: the heartbeat that its driver writes, and what another driver makes of it.

Knows status.json. A driver that ends, in whatever way it can still tell of, says so; one that is killed leaves
`running` behind, and a heartbeat that stands still. Two drivers on one run do no harm, since parts are created once:
waiting for the other only saves the work.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any

from drivetrain.console import say
from drivetrain.errors import DrivetrainError, SettingError, StoreError, Terminated, came_of
from drivetrain.layout import Layout
from drivetrain.root import from_json
from drivetrain.run import Run, RunRecord
from drivetrain.store import Store

BEAT_EVERY_SECONDS = 10.0
# A heartbeat that did not move for so long has no driver any more.
SILENT_SECONDS = 60.0
LOOK_EVERY_SECONDS = 2.0
# Clocks of two machines differ; older than that is old on any.
OLD = timedelta(minutes=5)


class Heartbeat:
    """The heartbeat of one run, written by a thread so that a long shard does not look like death."""

    def __init__(self, run: Run, done: int) -> None:
        self.done = done
        self._run, self._ends = run, Event()
        self._thread = Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._say("running")
        self._thread.start()

    def end(self, state: str, why: str = "") -> None:
        """The last beat: ``committed``, ``failed`` or ``stopped``."""
        self._ends.set()
        self._thread.join()
        self._say(state, why)

    def _beat(self) -> None:
        while not self._ends.wait(BEAT_EVERY_SECONDS):
            self._say("running")

    def _say(self, state: str, why: str = "") -> None:
        # A heartbeat that can't be written is missed by its readers, and is no reason to stop the work.
        with suppress(StoreError, OSError):
            self._run.beat(self.done, state, host=platform.node(), pid=os.getpid(), why=why)


@contextmanager
def beating(run: Run, done: int) -> Iterator[Heartbeat]:
    """Beat while the block works, and say how it ended."""
    heart = Heartbeat(run, done)
    heart.start()
    try:
        yield heart
    except BaseException as error:
        if not isinstance(error, Exception) or came_of(error, Terminated, KeyboardInterrupt, SystemExit):
            heart.end("stopped")
        else:
            heart.end(
                "failed", str(error).splitlines()[0] if isinstance(error, DrivetrainError) else type(error).__name__
            )
        raise
    heart.end("committed")


def wait_for_another(run: Run) -> bool:
    """Wait while another driver works on this run: until it committed, ended or fell silent.

    Returns whether any driver ever worked on it.
    """
    last, moved, told = None, time.monotonic(), False
    while (status := from_json(run.store, run.paths.status)) and alive(status):
        if (status["at"], status["images_done"]) != last:
            last, moved = (status["at"], status["images_done"]), time.monotonic()
        if time.monotonic() - moved > SILENT_SECONDS:
            break
        if not told:
            say(
                f"Run {run.record.run_id} is being scored by process {status.get('pid')} on {status.get('host')}, "
                f"{status['images_done']:,} of {status['of']:,} images so far. Waiting for it."
            )
        told = True
        time.sleep(LOOK_EVERY_SECONDS)
    if told and not run.committed():
        say("It did not finish; going on from where it was.")
    return status is not None


def alive(status: dict[str, Any]) -> bool:
    """Whether a status.json tells of a driver that works, one that is not this process."""
    if status["state"] != "running" or age(status) > OLD:
        return False
    if status.get("host") != platform.node():
        return True
    return bool(status["pid"] != os.getpid() and _runs(status["pid"]))


def age(status: dict[str, Any]) -> timedelta:
    """How long ago a status.json was written, by this machine's clock."""
    return datetime.now(UTC) - datetime.fromisoformat(status["at"])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def refuse_another(store: Store, layout: Layout, record: RunRecord) -> None:
    """Raises SettingError when the plan is being scored at this moment by the same learner with other settings."""
    for run_id in store.names(layout.runs):
        if run_id == record.run_id or not run_id.startswith(f"{record.source}-{record.name}-{record.sha256[:8]}-"):
            continue
        status = from_json(store, layout.run(run_id).status)
        if not status or not alive(status):
            continue
        other = Run.find(store, layout, run_id).record
        if other.manifest != record.manifest or other.sha256 != record.sha256:
            continue
        differs = [
            f"  {key}: {value!r} there, {record.settings.get(key)!r} here"
            for key, value in other.settings.items()
            if value != record.settings.get(key)
        ]
        if not differs:  # one of the two scores the other's failed images again
            continue
        raise SettingError(
            f"{record.name} of {record.source} is being scored with other settings by process {status.get('pid')} on "
            f"{status.get('host')}, run {run_id}:\n" + "\n".join(differs) + "\n"
            "Use the same settings, wait until it is done, or end that command first."
        )
