"""What --dry-run says beforehand beside what the same command then takes.

    python benchmarks/dryrun.py --images FOLDER --labels images.csv --learner resnet18.pkl [--number 2000]

FOLDER, images.csv and the learner are those of learners.py. The photos are linked under so many names as there are to
be images. Each command is typed twice, with --dry-run and without, each in a process of its own and both on a fresh
copy of the same root. The table goes to stdout and to dryrun.md beside this file.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

from headonly import linked, retrained
from tables import heading, publish, table

# Photos from which int8 is made, under the name that the root knows the learner by.
TO_KNOW = 1300
ABOUT = (
    "Scoring is the seconds of commit.json, which the forecast is of; the whole command has beside it the start of "
    "Python, the choice of the engine, comparing and pages. A new head over stored embeddings is forecast as 0, and "
    "said to take seconds. A local disk; the images are {photos:,} photos under several names each."
)


def typed(*words: str) -> tuple[dict[str, Any], float]:
    """Type a command: its result, and the seconds until it had ended."""
    started = time.monotonic()
    command = [sys.executable, "-m", "drivetrain.cli", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, time.monotonic() - started


def roots(given: argparse.Namespace, work: Path) -> dict[str, tuple[Path, list[str]]]:
    """For each case the root that it begins on, and what is typed on it."""
    score = ["score", "--images", str(work / "images"), "--source", "bench", "--learner", given.learner]
    known = ["score", "--images", str(work / "known"), "--source", "known", "--learner", given.learner, "--name", "all"]
    known += ["--actors", "0"]
    retrained(given, work / "new.pkl")
    typed(*known, "--root", str(work / "exact"))
    shutil.copytree(work / "exact", work / "int8")
    typed(*known, "--root", str(work / "int8"), "--engine", "int8")
    shutil.copytree(work / "exact", work / "scored")
    old, _ = typed(*score, "--name", "all", "--root", str(work / "scored"), "--actors", "0")
    again = ["rescore", "--learner", str(work / "new.pkl"), "--run", old["run_id"], "--actors", "0"]
    score += ["--name", "all"]
    return {
        "score, one process": (work / "exact", [*score, "--actors", "0"]),
        f"score, {given.actors} actors": (work / "exact", [*score, "--actors", str(given.actors)]),
        "score, int8, one process": (work / "int8", [*score, "--actors", "0", "--engine", "int8"]),
        "rescore, one process": (work / "scored", [*again, "--full"]),
        "rescore, head only": (work / "scored", again),
    }


def measured(begin: Path, words: list[str], work: Path) -> dict[str, float]:
    """A forecast and the real run after it, which begins on the same root since a forecast writes nothing."""
    root = Path(shutil.copytree(begin, work / "root"))
    try:
        told, dry = typed(*words, "--root", str(root), "--dry-run")
        if bool(told["head_only"]) != (words[0] == "rescore" and "--full" not in words):
            raise SystemExit("The new learner must have the old one's body and transforms: see what was said above")
        done, whole = typed(*words, "--root", str(root))
        assert done["run_id"] == told["runs"][0], "the forecast was of another run"
        real = json.loads((root / "runs" / done["run_id"] / "commit.json").read_text())["seconds"]
        return {"told": told["seconds"], "scoring": real, "whole": whole, "dry": dry}
    finally:
        shutil.rmtree(root)


def row(case: str, found: list[dict[str, float]]) -> list[str]:
    """The medians of a case."""
    told, scoring, whole, dry = (median(one[key] for one in found) for key in ("told", "scoring", "whole", "dry"))
    times = f"{told / scoring:.2f}" if told else ""
    return [case, f"{told:.1f}", f"{scoring:.1f}", times, f"{whole:.1f}", f"{dry:.1f}"]


def main() -> None:
    """Measure, and publish the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", dest="photos", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--learner", required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = linked(Path(given.photos), work / "images", given.number)
        linked(Path(given.photos), work / "known", TO_KNOW)
        cases = roots(given, work)
        # In turns, so that a machine that gets slower does so for all.
        found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(given.repeats):
            for case, (begin, words) in cases.items():
                found[case].append(measured(begin, words, work))
    lines = heading("Dry run", "python benchmarks/dryrun.py", "torch", "openvino", "ray")
    lines += [f"{given.number:,} images, {Path(given.learner).stem}; medians of {given.repeats}.", ""]
    heads = ["command", "forecast, s", "scoring, s", "times", "whole command, s", "the dry run itself, s"]
    rows = [row(case, each) for case, each in found.items()]
    publish(__file__, [*lines, *table(heads, rows), "", ABOUT.format(photos=photos)])


if __name__ == "__main__":
    main()
