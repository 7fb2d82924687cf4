"""What odd and broken image files cost: time, memory, and what becomes of each.

    python benchmarks/badimages.py --images FOLDER resnet18.pkl

Every file below the folder is prepared and scored alone, as an actor would. Memory is the process's own peak above
what it held before the file (Linux). The table goes to stdout and to badimages.md beside this file: how many files came
to each outcome, and those that cost most.
"""

import argparse
import gc
import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tables import heading, publish, table

SHOWN = 12


def peak(field: str) -> float:
    """A field of this process's status in MiB: VmHWM or VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def one(learner: Any, data: bytes, max_pixels: int) -> tuple[str, float, float]:
    """What becomes of a file, the seconds it takes, and the MiB above those before."""
    from drivetrain.errors import ImageError

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, started = peak("VmRSS"), time.perf_counter()
    try:
        item, _ = learner.prepare(data, max_pixels)
        (found,) = learner.predict([item])
        outcome = found.reason if isinstance(found, ImageError) else "scored"
    except ImageError as error:
        outcome = error.reason
    return outcome, time.perf_counter() - started, peak("VmHWM") - before


def main() -> None:
    """Measure every file."""
    from drivetrain import Config
    from drivetrain.learner import open_learner

    parser = argparse.ArgumentParser()
    parser.add_argument("learner")
    parser.add_argument("--images", required=True)
    given = parser.parse_args()
    data = Path(given.learner).read_bytes()
    learner = open_learner(data, hashlib.sha256(data).hexdigest(), threads=1)
    most = Config().max_pixels
    folder = Path(given.images)
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        outcome, seconds, memory = one(learner, path.read_bytes(), most)
        found.append((str(path.relative_to(folder)), outcome, seconds, memory))
    lines = heading("Odd and broken images", "python benchmarks/badimages.py", "torch", "pillow")
    lines += [f"{len(found)} files, each alone in one process, one run; max_pixels is {most:,}.", ""]
    outcomes = Counter(outcome for _, outcome, _, _ in found)
    lines += table(["outcome", "files"], [[name, str(number)] for name, number in outcomes.most_common()])
    for title, key in (("slowest", 2), ("largest", 3)):
        worst = sorted(found, key=lambda each: each[key], reverse=True)[:SHOWN]
        rows = [[name[:60], outcome, f"{seconds:.2f}", f"{memory:.0f}"] for name, outcome, seconds, memory in worst]
        lines += ["", *table([f"the {title}", "outcome", "s", "MiB above"], rows)]
    publish(__file__, lines)


if __name__ == "__main__":
    main()
