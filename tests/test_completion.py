"""Completion in a real bash, by the script that the README says to load; zsh and fish get click's as well."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
LINE = 'eval "$(_DRIVETRAIN_COMPLETE=bash_source drivetrain)"'
# What the installed command is.
COMMAND = f"""#!{sys.executable}
import sys
from drivetrain.cli import main
sys.argv[0] = "drivetrain"
main()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bin")
    (folder / "drivetrain").write_text(COMMAND)
    (folder / "drivetrain").chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(Path(__file__).parent.parent)}


def completed(environment: dict[str, str], *words: str) -> list[str]:
    """What bash offers for the last word."""
    typed = " ".join(f"'{word}'" for word in ("drivetrain", *words))
    script = f"""{LINE}
        COMP_WORDS=({typed}); COMP_CWORD={len(words)}
        $(complete -p drivetrain | sed 's/.*-F \\([^ ]*\\).*/\\1/') drivetrain
        printf '%s\\n' "${{COMPREPLY[@]}}" """
    bash = shutil.which("bash")
    assert bash, "every developer's machine has one"
    done = subprocess.run([bash, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_readme_says_how_to_load_it() -> None:
    assert LINE in README


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("nig",), {"nightly", "nights"}),
        (("drift", ""), {"measure", "accept", "selftest"}),
        (("score", "--dry"), {"--dry-run"}),
        (("score", "--engine", ""), {"auto", "torch", "openvino", "int8"}),
        (("nightly", "--precision", "float1"), {"float16"}),
    ],
)
def test_commands_flags_and_choices_complete(
    environment: dict[str, str], words: tuple[str, ...], offered: set[str]
) -> None:
    assert set(completed(environment, *words)) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_a_script(environment: dict[str, str], shell: str) -> None:
    variable = {"_DRIVETRAIN_COMPLETE": f"{shell}_source"}
    done = subprocess.run(["drivetrain"], env=environment | variable, capture_output=True, text=True, check=True)
    assert f"{shell}_complete" in done.stdout
