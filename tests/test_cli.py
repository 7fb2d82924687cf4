"""The command line: plain errors, exit codes, stdout for the result and stderr for the log."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import learners
import pytest
from servers import free_ports

from drivetrain.cli import JOBS, main
from drivetrain.config import Config


def leaves(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """Every command that does something, by the words that call it."""
    found: dict[str, click.Command] = {}
    for name, each in group.commands.items():
        found |= leaves(each, f"{before}{name} ") if isinstance(each, click.Group) else {f"{before}{name}": each}
    return found


COMMANDS = leaves(main)


def drivetrain(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "drivetrain.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | (env or {}))


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_explains_every_option_with_an_example(command: str) -> None:
    for option in COMMANDS[command].params:
        if option.param_type_name == "option" and option.name not in ("help", "json_only", "config_file"):
            text = getattr(option, "help", "") or ""
            assert text, (command, option.name)
            if not getattr(option, "is_flag", False) and option.name != "storage":
                assert f"E.g. {option.opts[0]} " in text, (command, option.name)


def test_every_key_of_the_config_is_a_flag_somewhere() -> None:
    flags = {option.name for command in COMMANDS.values() for option in command.params}
    assert set(Config.model_fields) <= flags


def test_a_wrong_command_names_the_nearest() -> None:
    done = drivetrain("nightli")
    assert done.returncode == 2 and "Did you mean 'nightly'?" in done.stderr


def test_drift_measures_accepts_and_tests_itself() -> None:
    assert {name for name in COMMANDS if name.startswith("drift ")} == {
        "drift measure",
        "drift accept",
        "drift selftest",
    }
    assert {name for name in JOBS if name.startswith("drift")} == {"drift measure", "drift accept", "drift selftest"}
    done = drivetrain("drift", "mesure")
    assert done.returncode == 2 and "Did you mean 'measure'?" in done.stderr


def test_an_unknown_flag_is_a_usage_error() -> None:
    done = drivetrain("score", "--imagse", "x")
    assert done.returncode == 2 and "--images" in done.stderr


def test_a_missing_setting_says_what_to_add() -> None:
    done = drivetrain("score", "--root", "somewhere")
    assert done.returncode == 2
    assert "--learner s3://" in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_an_unknown_key_of_the_config_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('roof = "x"\n')
    done = drivetrain("nights", "--config", str(tmp_path / "c.toml"))
    assert done.returncode == 2 and "Did you mean 'root'?" in done.stderr


def test_an_untrusted_learner_is_exit_code_2_and_shows_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "export.pkl").write_bytes(b"some pickle")
    done = drivetrain(
        "score", "--root", str(tmp_path / "root"), "--learner", str(tmp_path / "export.pkl"), "--images", str(tmp_path)
    )
    assert done.returncode == 2 and "--trust " in done.stderr and "Traceback" not in done.stderr


def test_a_store_out_of_reach_is_a_plain_line_and_exit_code_1() -> None:
    (port,) = free_ports(1)
    words = ["nights", "--root", "s3://bucket/root", "--storage", f"s3.endpoint_url=http://127.0.0.1:{port}"]
    without = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    done = drivetrain(*words, env={**without, "AWS_SHARED_CREDENTIALS_FILE": os.devnull})
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Credentials come from" in done.stderr
    done = drivetrain(*words, env={"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"})
    assert done.returncode == 1 and "Traceback" not in done.stderr and "the store refused" in done.stderr


def test_a_date_of_another_form_says_what_is_expected() -> None:
    done = drivetrain("nightly", "--night", "23-11-2026")
    assert done.returncode == 2 and "expected e.g. 2026-11-23" in done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, drivetrain; print([m for m in ('torch', 'ray', 'evidently', 'fastai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_night_yet(tmp_path: Path) -> None:
    (tmp_path / "drivetrain.json").write_text('{"schema": 1}')
    done = drivetrain("nights", "--root", str(tmp_path))
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1]) == {"nights": [], "learners": {}}


def test_reading_a_mistyped_root_is_an_error_and_makes_no_root(tmp_path: Path) -> None:
    done = drivetrain("nights", "--root", str(tmp_path / "typo"))
    assert done.returncode == 2 and "No drivetrain root" in done.stderr
    assert not (tmp_path / "typo").exists()


def test_a_root_that_is_a_file_is_a_plain_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no root")
    done = drivetrain("nights", "--root", str(tmp_path / "file"))
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A score command over 40 images, one of them broken."""
    folder = tmp_path_factory.mktemp("cli")
    learners.write_digits(folder / "images", 0, 39)
    (folder / "images" / "broken.png").write_bytes(b"no image")
    learners.write_digits(folder / "train", 0, 64, by_label=True)
    exported = learners.exported(learners.digits_learner(folder / "train", epochs=1), folder / "export.pkl")
    return [
        "score", "--root", str(folder / "root"), "--images", str(folder / "images"), "--learner", exported.path,
        "--trust", exported.sha256, "--actors", "0", "--source", "cli",
    ]  # fmt: skip


@pytest.mark.slow
def test_too_many_failed_images_are_exit_code_3_also_when_asked_again(command: list[str]) -> None:
    first = drivetrain(*command, "--name", "many")
    again = drivetrain(*command, "--name", "many")
    assert first.returncode == again.returncode == 3
    result = json.loads(first.stdout.splitlines()[-1])
    assert result == json.loads(again.stdout.splitlines()[-1])
    assert (result["rows"], result["failed"]) == (40, 1)
    assert "is committed already" in again.stderr
    assert "Too many images failed" in first.stdout


@pytest.mark.slow
def test_json_alone_and_no_control_characters_in_a_pipe(command: list[str]) -> None:
    done = drivetrain(*command, "--name", "json", "--max-failed", "0.5", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["rows"] == 40
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr
    assert "Scoring cli json: 40 of 40 images" in done.stderr


@pytest.mark.slow
def test_a_terminal_gets_a_progress_bar_on_stderr_alone(command: list[str]) -> None:
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "drivetrain.cli", *command, "--name", "tty", "--max-failed", "0.5"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=follower, text=True, env=os.environ | {"TERM": "xterm"}
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            seen += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    stdout, _ = process.communicate()
    assert process.returncode == 0
    assert b"40/40" in seen and "\x1b" not in stdout


@pytest.mark.slow
def test_secrets_of_the_environment_reach_no_output(command: list[str]) -> None:
    planted = "planted-secret-3141592653"
    done = drivetrain(*command, "--name", "secret", env={"AWS_SECRET_ACCESS_KEY": planted, "RAY_AUTH_TOKEN": planted})
    assert planted not in done.stdout + done.stderr
    root = Path(command[command.index("--root") + 1])
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 5 and not any(planted.encode() in path.read_bytes() for path in files)


@pytest.mark.slow
def test_inspect_says_what_an_export_is_without_trust(tmp_path: Path) -> None:
    paths = learners.write_photos(tmp_path / "photos", 8)
    exported = learners.exported(learners.photos_learner(paths[0].parent.parent), tmp_path / "export.pkl")
    done = drivetrain("learner", "inspect", exported.path)
    assert done.returncode == 0, done.stderr
    for word in (exported.sha256, "nothing of the file was run", "china, flower", "CrossEntropyLossFlat; softmax"):
        assert word in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["layer"], found["embedding_size"], found["read"]) == ("1.2", 1024, "data")
    assert {"0", "1", "0.7", "1.8"} <= set(found["layers"])
