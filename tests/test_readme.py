"""What the README and ARCHITECTURE say holds: their code runs, their commands exist, their lists are not stale."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import learners
import pandas as pd
import pytest

import drivetrain
from drivetrain.admit import inspect_learner
from drivetrain.cli import JOBS, main
from drivetrain.config import Config
from drivetrain.labelfiles import ToLabel, to_csv
from drivetrain.reference import read_labels

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text()
ARCHITECTURE = (HERE / "ARCHITECTURE.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_commands() -> list[list[str]]:
    lines = [line for block in (*blocks("sh"), *blocks("cron")) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def flags_of(command: str) -> set[str]:
    found: click.Command = main
    for word in command.split():
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return {flag for option in found.params for flag in option.opts}


def command_of(words: list[str]) -> str:
    """The command that some words call: one word, or two where the first one is a group."""
    return " ".join(words[: 2 if isinstance(main.commands.get(words[0]), click.Group) else 1])


# A job of a name that is a group stands for one of its commands.
JOB_COMMANDS = {"drift": "drift measure"}


def test_every_command_line_names_a_command_and_flags_that_exist() -> None:
    seen = set()
    for words in shell_commands():
        for i, word in enumerate(words):
            job = re.fullmatch(r"jobs/(\w+)\.py", word)
            if word == "drivetrain" or job:
                command = JOB_COMMANDS.get(job[1], job[1]) if job else command_of(words[i + 1 :])
                rest = words[i + 1 :]
                if job:
                    assert (HERE / word).exists()
                rest = rest[: rest.index(">>")] if ">>" in rest else rest
                if command == "submit":
                    first = next(place for place, each in enumerate(rest) if each in {job.split()[0] for job in JOBS})
                    assert set(rest[:first]) >= {"--wait"}
                    unknown = {each for each in rest[:first] if each.startswith("--")} - flags_of(command)
                    assert not unknown, (command, unknown)
                    command, rest = command_of(rest[first:]), rest[first:]
                    assert command in JOBS
                unknown = {each for each in rest if each.startswith("--")} - flags_of(command)
                assert not unknown, (command, unknown)
                seen.add(command)
    assert {"score", "reference", "nightly", "rescore"} <= seen


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (HERE / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in shell_commands() if words[0] == "make"}
    assert named == {"demo", "demo-loop", "test", "thorough"} and named <= targets
    run = (HERE / ".ci" / "run").read_text()
    assert re.findall(r"^make (.+)$", run, re.MULTILINE) == ["check test", "demo", "demo-loop", "thorough"]


def test_the_config_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    path = tmp_path / "drivetrain.toml"
    path.write_text(text)
    config = Config.load(path)
    assert config.dated and set(tomllib.loads(text)) <= set(Config.model_fields)


def test_the_cron_line_is_one_that_cron_takes() -> None:
    (line,) = (block.strip() for block in blocks("cron"))
    minute, hour, day, month, weekday, command = line.split(maxsplit=5)
    assert (minute, hour, day, month, weekday) == ("0", "2", "*", "*", "*")
    assert "%" not in command, "cron takes % for a new line"
    assert "RAY_AUTH_MODE=token drivetrain submit" in command and "--wait nightly --config drivetrain.toml" in command


@pytest.mark.slow
def test_the_lines_that_write_labels_csv(tmp_path: Path) -> None:
    """They are run as they stand, on dataloaders labelled by folder."""
    (code,) = (block for block in blocks("python") if "labels.csv" in block)
    learners.write_digits(tmp_path / "train", 0, 200, by_label=True)
    dls = learners.digits_dataloaders(tmp_path / "train")
    code = code.replace('"labels.csv"', repr(str(tmp_path / "labels.csv")))
    exec(code, {"pd": pd, "dls": dls})
    labels = read_labels((tmp_path / "labels.csv").read_text(), "labels.csv")
    assert {Path(fname).parent.name: label for fname, (_, label) in labels.items()} == {
        label: label for label in dls.vocab
    }
    held_out = {fname for fname, (split, _) in labels.items() if split == "held_out"}
    assert held_out == {str(path) for path in dls.valid_ds.items} and len(labels) == 200


@pytest.mark.slow
def test_the_lines_that_retrain_a_head_leave_the_body_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are run as they stand, but for the pretrained weights, which would be downloaded."""
    (code,) = (block for block in blocks("python") if "BnFreeze" in block)
    learners.write_photos(tmp_path / "photos", 24)
    learn = learners.photos_learner(tmp_path / "photos")
    learners.train(learn)
    learners.exported(learn, tmp_path / "export.pkl")
    monkeypatch.chdir(tmp_path)
    assert "resnet18, " in code
    with learn.no_bar(), learn.no_logging():
        exec(code.replace("resnet18, ", "resnet18, pretrained=False, "), {"dls": learn.dls})
    paths = (tmp_path / "export.pkl", Path(learn.path) / "new.pkl")
    old, new = (inspect_learner(Config(learner=str(path))) for path in paths)
    assert old["sha256"] != new["sha256"] and old["body"] == new["body"] != ""


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learners.write_digits(tmp_path / "incoming" / "2026-11-23", 0, 20)
    learners.write_digits(tmp_path / "train", 0, 64, by_label=True)
    exported = learners.exported(learners.digits_learner(tmp_path / "train", epochs=1), tmp_path / "export.pkl")
    (tmp_path / "drivetrain.toml").write_text(
        f'root = "{tmp_path}/root"\nlearner = "{exported.path}"\ntrust = ["{exported.sha256}"]\n'
        f'images = "{tmp_path}/incoming/{{night}}"\nsource = "shop"\nactors = 0\n'
    )
    monkeypatch.chdir(tmp_path)
    night, scores = (next(b for b in blocks("python") if word in b) for word in ("run_night", "read_parquet"))
    names: dict[str, object] = {}
    exec(night, names)
    result = names["result"]
    assert isinstance(result, dict) and result["rows"] == 20
    exec(scores, {"parts": result["parts"]})


@pytest.mark.slow
def test_a_queue_that_people_labelled_goes_into_fastai_by_the_lines_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (block for block in blocks("python") if "from_df" in block)
    paths = learners.write_digits(tmp_path / "night", 0, 20)
    queue = [ToLabel(str(path), ("NA", "one", None)[place % 3], ("one",), 0.5) for place, path in enumerate(paths)]
    (tmp_path / "queue.csv").write_bytes(to_csv(queue))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    dls = names["dls"]
    assert list(dls.vocab) == ["NA", "one"], "a class that pandas takes for nothing is one"
    assert len(dls.train_ds) + len(dls.valid_ds) == sum(each.label is not None for each in queue)
    assert dls.train.new(bs=4, num_workers=0).one_batch()[0].shape == (4, 3, 224, 224)


def test_the_table_of_commands_is_the_help() -> None:
    table = dict(re.findall(r"^\| `drivetrain ([\w ]+)` \| (.+?) \|$", README, re.MULTILINE))
    context = click.Context(main)
    commands = {name: command for name, command in main.commands.items() if not isinstance(command, click.Group)}
    for name, group in main.commands.items():
        if isinstance(group, click.Group):
            commands |= {f"{name} {inner}": command for inner, command in group.commands.items()}
    helps = {name: command.get_short_help_str(200) for name, command in commands.items()}
    assert context and table == helps


def test_every_job_stands_behind_a_command_of_its_name() -> None:
    jobs = {path.stem for path in (HERE / "jobs").glob("*.py")}
    assert jobs == {"reference", "score", "drift", "rescore", "nightly"}
    assert {JOB_COMMANDS.get(job, job) for job in jobs} <= set(JOBS)
    for job, command in JOB_COMMANDS.items():
        words = ", ".join(f'"{word}"' for word in command.split())
        assert f"main([{words}, *sys.argv[1:]]" in (HERE / "jobs" / f"{job}.py").read_text()


def test_pictures_and_links_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (HERE / target).exists(), target


def test_the_floors_in_architecture_are_the_ones_enforced() -> None:
    contract = tomllib.loads((HERE / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    drawn = re.search(r"## Floors\n(?:(?!    ).*\n)*((?:    .+\n)+)", ARCHITECTURE)
    assert drawn and [line.strip() for line in drawn[1].splitlines()] == contract["layers"]
    rooms = {path.stem for path in (HERE / "drivetrain").glob("*.py")} - {"__init__"}
    rooms |= {path.parent.name for path in (HERE / "drivetrain").glob("*/__init__.py")}
    assert {room.strip() for floor in contract["layers"] for room in floor.split("|")} == rooms


def test_the_versions_agree() -> None:
    assert f"## {drivetrain.__version__}" in (HERE / "CHANGELOG.md").read_text()
