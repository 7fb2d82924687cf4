"""Who works on a run: status.json tells the truth, a second command waits, and no end is exit code 0 but a good one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import learners
import pandas as pd
import pytest
from builders import begun, frozen, images
from servers import poll

from drivetrain import heartbeat
from drivetrain.errors import RunError
from drivetrain.heartbeat import alive, beating
from drivetrain.layout import Layout
from drivetrain.run import Run
from drivetrain.store import Store

IMAGES = 320


def a_run(tmp_path: Path) -> Run:
    store, layout = Store(), Layout(str(tmp_path / "root"))
    return begun(store, layout, frozen(store, layout, images(3)))


def status_of(run: Run) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(run.store.read(run.paths.status))
    return status


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (None, "committed", ""),
        (RunError("3 parts are missing\nrun the same command"), "failed", "3 parts are missing"),
        (ValueError("a value that nobody should see"), "failed", "ValueError"),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(15), "stopped", ""),
    ],
)
def test_the_last_beat_says_how_it_ended(error: BaseException | None, state: str, why: str, tmp_path: Path) -> None:
    run = a_run(tmp_path)
    caught: BaseException | None = None
    try:
        with beating(run, 1) as heart:
            assert status_of(run)["state"] == "running"
            heart.done = 2
            if error:
                raise error
    except BaseException as raised:
        caught = raised
    assert caught is error
    status = status_of(run)
    assert (status["state"], status["why"], status["images_done"]) == (state, why, 2)


def test_it_beats_while_no_shard_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_SECONDS", 0.05)
    run = a_run(tmp_path)
    with beating(run, 0):
        first = status_of(run)["at"]
        poll(lambda: status_of(run)["at"] > first, "another beat")


def test_a_store_that_takes_no_heartbeat_stops_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path)

    def refuse(self: Store, uri: str, data: bytes) -> None:
        raise PermissionError(uri)

    monkeypatch.setattr(Store, "replace", refuse)
    with beating(run, 0) as heart:
        heart.done = 3


def test_whose_heartbeat_counts(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with beating(run, 0):
        status = status_of(run)
    assert not alive(status), "it is our own"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert alive(status | {"pid": child.pid})
    assert not alive(status | {"pid": child.pid, "state": "failed"})
    child.communicate()
    assert not alive(status | {"pid": child.pid}), "its process has ended"
    assert alive(status | {"pid": child.pid, "host": "another"}), "nobody can know"
    assert not alive(status | {"pid": child.pid, "host": "another", "at": "2026-01-01T00:00:00+00:00"})


def test_a_heartbeat_that_stands_still_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(heartbeat, "LOOK_EVERY_SECONDS", 0.05)
    run.beat(1, host="another", pid=7)
    heartbeat.wait_for_another(run)
    said = capsys.readouterr().err
    assert "process 7 on another, 1 of 3 images so far" in said and "going on from where it was" in said


# --- real commands ---


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> learners.Exported:
    folder = tmp_path_factory.mktemp("train")
    learners.write_digits(folder, 1000, 1300, by_label=True)
    return learners.exported(learners.digits_learner(folder, epochs=1), folder.parent / "export.pkl")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    learners.write_photos(folder, IMAGES)
    return folder


class Commands:
    """`drivetrain score` into one root, as often as wanted, each a process of its own with its log in a file."""

    def __init__(self, root: Path, exported: learners.Exported, photos: Path) -> None:
        self.root, self._logs = root, root.parent
        self._about = ["--learner", exported.path, "--images", str(photos), "--source", "s", "--name", "n"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "drivetrain.cli", "score", "--root", str(self.root), *self._about, *more]
        with self.log(len(self.processes)).open("wb") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.processes[-1]

    def log(self, number: int) -> Path:
        return self._logs / f"log{number}"

    def said(self, number: int) -> str:
        return self.log(number).read_text(errors="replace")

    def one_part(self) -> "list[Path]":
        return list(self.root.glob("runs/*/parts/*.parquet"))

    def status(self) -> dict[str, Any]:
        (path,) = self.root.glob("runs/*/status.json")
        status: dict[str, Any] = json.loads(path.read_text())
        return status

    def check_rows(self) -> None:
        (folder,) = self.root.glob("runs/*")
        assert (folder / "commit.json").exists()
        uris = pd.read_parquet(folder / "parts", columns=["uri"])["uri"]
        assert len(uris) == IMAGES and uris.is_unique


@contextmanager
def commands(*about: Any) -> Iterator[Commands]:
    made = Commands(*about)
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_second_command_waits_and_other_settings_are_refused(
    tmp_path: Path, exported: learners.Exported, photos: Path
) -> None:
    with commands(tmp_path / "root", exported, photos) as made:
        first = made.start("--actors", "0")
        poll(made.one_part, "a part", 120)
        first.send_signal(signal.SIGSTOP)
        kept = {path: path.read_bytes() for path in made.one_part()}
        assert made.status()["state"] == "running"
        second = made.start("--actors", "0")
        poll(lambda: "Waiting for it" in made.said(1), "the second command waits", 120)
        third = made.start("--actors", "0", "--embedding", "none")
        assert third.wait(120) == 2
        assert f"by process {first.pid} on" in made.said(2)
        assert "embedding: 'head' there, 'none' here" in made.said(2) and "Traceback" not in made.said(2)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert second.wait(120) == 0, made.said(1)
        made.check_rows()
        assert {path: path.read_bytes() for path in kept} == kept
        assert made.status()["state"] == "committed"


@pytest.mark.slow
def test_sigterm_is_no_success_is_told_and_resumed(tmp_path: Path, exported: learners.Exported, photos: Path) -> None:
    """On Ray, which puts its own handler in place of ours."""
    with commands(tmp_path / "root", exported, photos) as made:
        first = made.start("--actors", "1")
        poll(made.one_part, "a part", 120)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143
        assert "the same command goes on" in made.said(0) and "Traceback" not in made.said(0)
        assert made.status()["state"] == "stopped"
        assert made.start("--actors", "0").wait(120) == 0
        made.check_rows()
