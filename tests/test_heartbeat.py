"""Who works on a run: status.json tells the truth, a second command waits, and no end is exit code 0 but a good one."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import learners
import pytest
from builders import begun, frozen, images
from commands import command, parts, status, whole
from servers import poll

from drivetrain import heartbeat
from drivetrain.errors import RunError, StoreError, Terminated
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


def made_of(error: BaseException, kind: type[Exception] = SystemError) -> Exception:
    other = kind("returned a result with an exception set")
    other.__context__ = error
    return other


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (None, "committed", ""),
        (RunError("3 parts are missing\nrun the same command"), "failed", "3 parts are missing"),
        (ValueError("a value that nobody should see"), "failed", "ValueError"),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(15), "stopped", ""),
        # What Ray's C code makes of SIGTERM: the run was told to have failed.
        (made_of(Terminated()), "stopped", ""),
        (made_of(Terminated(), StoreError), "stopped", ""),
        (made_of(ValueError()), "failed", "SystemError"),
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
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    learners.write_photos(folder, IMAGES)
    return folder


@pytest.mark.thorough
def test_a_second_command_waits_and_other_settings_are_refused(
    tmp_path: Path, digits_export: learners.Exported, photos: Path
) -> None:
    root = tmp_path / "root"
    about = ("--root", str(root), "--learner", digits_export.path, "--images", str(photos), "--actors", "0")
    with (
        command(tmp_path / "first", *about) as first,
        command(tmp_path / "second", *about) as second,
        command(tmp_path / "third", *about, "--embedding", "none") as third,
    ):
        first.start()
        poll(lambda: parts(root), "a part", 120)
        first.send(signal.SIGSTOP)
        kept = {path: path.read_bytes() for path in parts(root)}
        assert status(root)["state"] == "running"
        second.start()
        poll(lambda: "Waiting for it" in second.said(), "the second command waits", 120)
        third.start()
        assert third.wait() == 2
        assert f"by process {first.pid} on" in third.said()
        assert "embedding: 'head' there, 'none' here" in third.said() and "Traceback" not in third.said()
        first.kill()
        assert second.wait() == 0, second.said()
    assert whole(root, IMAGES) and status(root)["state"] == "committed"
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.thorough
def test_sigterm_is_no_success_is_told_and_resumed(
    tmp_path: Path, digits_export: learners.Exported, photos: Path
) -> None:
    """On Ray, which puts its own handler in place of ours."""
    root = tmp_path / "root"
    about = ("--root", str(root), "--learner", digits_export.path, "--images", str(photos), "--actors", "1")
    with command(tmp_path / "log", *about) as made:
        made.start()
        poll(lambda: parts(root), "a part", 120)
        made.send(signal.SIGTERM)
        assert made.wait() == 143, made.said()
        assert "the same command goes on" in made.said() and "Traceback" not in made.said()
        assert status(root)["state"] == "stopped"
        made.start()
        assert made.wait() == 0
    assert whole(root, IMAGES)


SWALLOWED = """
import os, signal, sys, time
from drivetrain.cli import _guarded

class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)

def work():
    Ends()
    print("goes on", flush=True)
    time.sleep(60)
    return 0

_guarded(work)
"""


@pytest.mark.slow
def test_sigterm_in_a_destructor_ends_the_work_all_the_same() -> None:
    """Python swallows there what our handler raises; the work went on to its end."""
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=50)
    assert done.stdout == "goes on\n", "it was swallowed"
    assert done.returncode == 143 and "Ended by SIGTERM" in done.stderr


CHANGED = """
import os, signal, sys, time
from drivetrain.cli import _guarded

def work():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(60)
    except BaseException as error:
        raise SystemError("returned a result with an exception set") from error
    return 0

_guarded(work)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "Ended by SIGTERM"), (signal.SIGINT, 1, "Stopped.")]
)
def test_a_signal_that_a_library_makes_something_else_of_is_still_told(
    number: signal.Signals, code: int, said: str
) -> None:
    """Ray's C code did so; the alarm then ended a process that was going down, with the code -14."""
    # A shell's background job ignores SIGINT, and so would what it starts.
    as_usual = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-c", CHANGED, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, preexec_fn=as_usual)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
