"""The wheel holds all that works: jobs and dashboards inside the package, and nothing of the tests."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from drivetrain.layout import shipped

HERE = Path(__file__).parent.parent


@pytest.mark.slow
def test_an_installed_wheel_finds_its_dashboards_and_jobs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    wanted = ("drivetrain", "jobs", "dashboards", "pyproject.toml", "README.md", "LICENSE")
    source.mkdir()
    for name in wanted:
        if (HERE / name).is_dir():
            shutil.copytree(HERE / name, source / name)
        else:
            shutil.copy(HERE / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {"drivetrain/jobs/nightly.py", "drivetrain/dashboards/evidently.json"} <= names
    assert not any(name.startswith(("tests/", "jobs/", "dashboards/")) for name in names)
    code = "from drivetrain.layout import shipped; print(shipped('dashboards/site'), shipped('jobs/score.py'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    for path in done.stdout.split():
        assert Path(path).exists() and Path(path).is_relative_to(tmp_path / "site")


def test_in_a_checkout_they_are_found_beside_the_package() -> None:
    assert shipped("dashboards/evidently.json") == HERE / "dashboards" / "evidently.json"


def test_no_mark_of_a_merge_is_left() -> None:
    """CHANGELOG.md was committed with both sides of a conflict in it."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=HERE, capture_output=True, text=True, check=True).stdout
    marked = [
        name
        for name in filter(None, tracked.split("\0"))
        if (HERE / name).suffix in (".md", ".py", ".toml", ".yaml", ".j2", ".json", ".txt") and (HERE / name).exists()
        for line in (HERE / name).read_text().splitlines()
        if line.startswith(("<" * 7 + " ", ">" * 7 + " "))
    ]
    assert not marked
