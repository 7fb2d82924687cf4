"""Seconds from the command to the first part and to the commit, as a user types it: a new process, Ray not running.

    python benchmarks/start.py --images FOLDER resnet18.pkl resnet50.pkl

"first time": the learner is read, its engine proved. "known": on every later run. The table goes to stdout and to
start.md beside this file.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tables import heading, publish, table

ABOUT = "The first part is there when its file is; the process includes Python's start, Ray's start and its end."


def run(root: str, learner: str, images: str, name: str) -> tuple[float, float]:
    """Score once; seconds to the first part and to the end."""
    command = [
        str(Path(sys.executable).with_name("drivetrain")),
        "score",
        "--root",
        root,
        "--learner",
        learner,
        "--images",
        images,
        "--name",
        name,
    ]
    before = set(Path(root).glob("runs/*/parts/*"))
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not set(Path(root).glob("runs/*/parts/*")) - before:
        time.sleep(0.05)
    first = time.perf_counter() - started
    if process.wait():
        raise SystemExit(f"drivetrain score ended with {process.returncode}")
    return first, time.perf_counter() - started


def main() -> None:
    """Measure every learner."""
    parser = argparse.ArgumentParser()
    parser.add_argument("learners", nargs="+")
    parser.add_argument("--images", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    rows = []
    for learner in given.learners:
        found: dict[str, list[tuple[float, float]]] = {"first time": [], "known": []}
        for _ in range(given.repeats):
            with tempfile.TemporaryDirectory() as root:
                for name, times in found.items():
                    times.append(run(root, learner, given.images, name.replace(" ", "-")))
        for name, times in found.items():
            seconds = [f"{median(each):.1f}" for each in zip(*times, strict=True)]
            rows.append([f"{Path(learner).stem}: {name}", *seconds])
    count = len([path for path in Path(given.images).rglob("*") if path.is_file()])
    lines = heading("Start", "python benchmarks/start.py", "torch", "ray", "openvino")
    lines += [f"{count:,} photos; medians of {given.repeats}.", ""]
    publish(__file__, [*lines, *table(["learner", "first part after, s", "all done after, s"], rows), "", ABOUT])


if __name__ == "__main__":
    main()
