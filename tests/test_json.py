"""--json: on every command, and stdout is one JSON object then, whether it succeeds or fails."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import learners
import numpy as np
import pytest
from click.testing import CliRunner, Result
from servers import free_ports
from test_cli import COMMANDS

from drivetrain import cli
from drivetrain.cli import main
from drivetrain.config import Config
from drivetrain.root import to_json

# Without a root, these have something to say or to do.
NEEDS_NOTHING = {"doctor", "demo", "learner inspect"}


def called(command: str, *flags: str) -> Result:
    """A command in this process, with its stdout apart from its stderr."""
    return CliRunner().invoke(main, [*command.split(), *flags])


def error_of(done: Result) -> dict[str, Any]:
    """The one object on stdout of a command that failed."""
    found: dict[str, Any] = json.loads(done.stdout)
    assert list(found) == ["error"] and list(found["error"]) == ["kind", "message", "exit_code"]
    assert found["error"]["exit_code"] == done.exit_code and found["error"]["message"]
    return found["error"]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_it(command: str) -> None:
    assert any("--json" in option.opts for option in COMMANDS[command].params)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_flag_that_does_not_exist_is_a_json_object(command: str) -> None:
    flags = ["--json", "--no-such-flag"]
    error = error_of(called(command, *flags))
    assert error["exit_code"] == 2 and "--no-such-flag" in error["message"]


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - NEEDS_NOTHING))
def test_a_setting_that_is_missing_is_a_json_object(command: str) -> None:
    required = [each for each in COMMANDS[command].params if isinstance(each, click.Argument)]
    assert error_of(called(command, "--json", *("x" for _ in required)))["exit_code"] == 2


def test_a_command_that_does_not_exist_is_one_too() -> None:
    assert "nightly" in error_of(called("nightli", "--json"))["message"]
    assert "measure" in error_of(called("drift mesure", "--json"))["message"]


def test_a_number_that_is_not_finite_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    """Python writes NaN, at which every strict reader of JSON stops."""
    record = {"a": float("nan"), "b": [{"c": float("inf"), "d": 0.5}, (np.float64("nan"), 1)], "e": {"f": -math.inf}}
    assert cli._told(record, Config(), json_only=True) == 0
    for text in (to_json(record).decode(), capsys.readouterr().out):
        found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
        assert found == {"a": None, "b": [{"c": None, "d": 0.5}, [None, 1]], "e": {"f": None}}


def test_without_it_a_failure_leaves_stdout_empty() -> None:
    assert called("nights").stdout == "" and called("nights", "--no-such-flag").stdout == ""


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("nights", []),
        ("gc", []),
        ("gc", ["--delete"]),
        ("doctor", []),
    ],
)
def test_what_succeeds_is_one_object(tmp_path: Path, command: str, flags: list[str]) -> None:
    (tmp_path / "drivetrain.json").write_text('{"schema": 1}')
    done = called(command, "--root", str(tmp_path), "--json", *flags)
    assert done.exit_code == 0, done.output
    assert isinstance(json.loads(done.stdout), dict) and "\x1b" not in done.output


def test_a_failed_check_and_a_store_out_of_reach_are_objects(tmp_path: Path) -> None:
    done = called("doctor", "--learner", str(tmp_path / "none.pkl"), "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["ok"] is False
    (port,) = free_ports(1)
    words = ["--root", "s3://bucket/root", "--storage", f"s3.endpoint_url=http://127.0.0.1:{port}", "--json"]
    environment = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "planted-secret-31415"}
    done = CliRunner(env=environment).invoke(main, ["nights", *words])
    assert error_of(done)["exit_code"] == 1 and "planted" not in done.output


def test_what_libraries_print_is_kept_out_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def collect(config: Config, **_: Any) -> dict[str, Any]:
        print("a library says something")
        sys.stdout.write("without an end")
        return {"fine": True}

    monkeypatch.setattr("drivetrain.collect_garbage", collect)
    done = called("gc", "--root", str(tmp_path), "--json")
    assert json.loads(done.stdout) == {"fine": True} and "a library says something" in done.stderr


def test_a_bug_is_an_object_and_still_a_stack_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(config: Config, **_: Any) -> dict[str, Any]:
        raise KeyError("a bug")

    monkeypatch.setattr("drivetrain.collect_garbage", broken)
    done = called("gc", "--root", str(tmp_path), "--json")
    assert isinstance(done.exception, KeyError)
    assert json.loads(done.stdout)["error"] == {"kind": "KeyError", "message": "'a bug'", "exit_code": 1}


STOPPED = """
import os, signal, sys
import drivetrain
from drivetrain.cli import main

def stop(config, **_):
    os.kill(os.getpid(), int(sys.argv.pop()))
    signal.pause()

drivetrain.collect_garbage = stop
main(["gc", "--root", "x", "--json"])
"""


@pytest.mark.parametrize(
    ("number", "kind", "code"), [(signal.SIGTERM, "Terminated", 143), (signal.SIGINT, "KeyboardInterrupt", 1)]
)
def test_what_a_signal_ended_says_so(number: int, kind: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(int(number))], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == code
    assert json.loads(done.stdout)["error"]["kind"] == kind and json.loads(done.stdout)["error"]["exit_code"] == code


def test_every_key_has_a_flag_of_the_same_name() -> None:
    flags = {flag for command in COMMANDS.values() for option in command.params for flag in option.opts}
    assert {"--" + key.replace("_", "-") for key in Config.model_fields} <= flags


def test_every_flag_of_a_setting_bears_its_name() -> None:
    """A flag that sets a key under another name would be missing from the file that `init` writes."""
    for command in COMMANDS.values():
        for option in command.params:
            if option.name in Config.model_fields and isinstance(option, click.Option):
                assert option.opts == ["--" + str(option.name).replace("_", "-")]


@pytest.mark.slow
def test_inspect_and_a_served_dashboard_in_a_pipe(tmp_path: Path, digits_export: learners.Exported) -> None:
    done = called("learner inspect", digits_export.path, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["sha256"] == digits_export.sha256
    (tmp_path / "drivetrain.json").write_text('{"schema": 1}')
    (port,) = free_ports(1)
    words = [sys.executable, "-m", "drivetrain.cli", "ui", "--root", str(tmp_path), "--port", str(port), "--json"]
    served = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert served.stdout and json.loads(served.stdout.readline())["dashboard"] == f"http://127.0.0.1:{port}"
    finally:
        os.killpg(served.pid, signal.SIGKILL)
        served.communicate()
