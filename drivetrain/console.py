"""What a person sees while a command works: log lines and progress, on stderr only.

Knows terminals. Does not know what is being counted. On a terminal progress is a bar; anywhere else (a job's log, a
pipe) it is a line every ten seconds, without colour and without carriage returns.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from drivetrain.config import without_secrets

LINE_EVERY_SECONDS = 10.0


def printable(text: str) -> str:
    """A text whose every letter but the line's end shows as itself: no key, image or learner moves the cursor.

    What does not is written as JSON writes it, so that JSON stays what it says.
    """
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def say(text: str) -> None:
    """One line for the log."""
    sys.stderr.write(printable(without_secrets(text)) + "\n")
    sys.stderr.flush()


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Say what is going on while something of unknown length takes more than a moment."""
    if not sys.stderr.isatty():
        say(text)
        yield
        return
    with Console(stderr=True).status(text):
        yield


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Counting:
    """Progress over a known number of images: done of all, images a second, failed, time left."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self.failed = what, total, done, 0
        self._at_start, self._started = done, time.monotonic()
        self._said = self._started
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            text = TextColumn("{task.fields[rate]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, rate="")
        else:
            say(f"{self.what}: {self.done:,} of {self.total:,} images")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif self.done > self._at_start:
            say(self.line())

    @property
    def rate(self) -> float:
        """Images a second since the start."""
        return (self.done - self._at_start) / max(time.monotonic() - self._started, 1e-9)

    def line(self) -> str:
        """The progress as one line of a log."""
        left = (self.total - self.done) / self.rate if self.rate > 0 else 0.0
        end = f", {duration(left)} left" if self.done < self.total else ""
        return f"{self.what}: {self.done:,} of {self.total:,} images, {self.rate:.1f}/s, {self.failed:,} failed{end}"

    def add(self, images: int, failed: int) -> None:
        """Count more images."""
        self.done += images
        self.failed += failed
        if self._bar and self._task is not None:
            rate = f"{self.rate:.0f}/s, {self.failed:,} failed"
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif time.monotonic() - self._said >= LINE_EVERY_SECONDS and self.done < self.total:
            self._said = time.monotonic()
            say(self.line())
