"""`drivetrain score` in a process of its own: stopped, killed, started again; and what it left behind."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd


class Command:
    """One command with one log, for all of its starts."""

    def __init__(self, log: Path, *flags: str) -> None:
        self._log, self.starts = log, 0
        self._words = [sys.executable, "-m", "drivetrain.cli", "score", "--source", "s", "--name", "n", *flags]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=log, start_new_session=True)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def code(self) -> int | None:
        """The exit code, None while it works."""
        assert self.process
        return self.process.poll()

    def wait(self, seconds: float = 120) -> int:
        assert self.process
        return self.process.wait(seconds)

    def said(self) -> str:
        return self._log.read_text(errors="replace")


@contextmanager
def command(log: Path, *flags: str) -> Iterator[Command]:
    """A command that was not started yet; it is killed at the end if it still works."""
    made = Command(log, *flags)
    try:
        yield made
    finally:
        if made.process and made.process.poll() is None:
            made.kill()


def parts(root: Path) -> list[Path]:
    """The parts of a root's runs."""
    return sorted(root.glob("runs/*/parts/*.parquet"))


def status(root: Path) -> dict[str, Any]:
    """The heartbeat of a root's only run."""
    (path,) = root.glob("runs/*/status.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def whole(root: Path, images: int) -> bool:
    """Whether a root's only run is committed and holds each image once."""
    (folder,) = root.glob("runs/*")
    uris = pd.read_parquet(folder / "parts", columns=["uri"])["uri"]
    return (folder / "commit.json").exists() and len(uris) == images and bool(uris.is_unique)
