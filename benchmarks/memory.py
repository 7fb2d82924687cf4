"""Memory of the actors while they score a bucket: does it grow?

    python benchmarks/memory.py --images FOLDER resnet18.pkl

Every half second the memory of each actor's process is read: resident (with what it shares with other processes) and
proportional (shared pages divided among those who share them). The table goes to stdout and to memory.md beside this
file: means of the first and of the last quarter of the scoring, and the most.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
from tables import heading, publish, table

MIB = 2**20


class Watch(threading.Thread):
    """Samples the memory of Ray's actors until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: dict[int, list[tuple[float, float]]] = {}
        self.over = threading.Event()

    def run(self) -> None:
        """Sample."""
        while not self.over.wait(0.5):
            for process in psutil.process_iter(["cmdline"]):
                if "ray::_Actor" in " ".join(process.info["cmdline"] or []):
                    try:
                        full = process.memory_full_info()
                    except psutil.Error:
                        continue
                    self.samples.setdefault(process.pid, []).append((full.rss / MIB, full.pss / MIB))


def watched(learner: str, images: str, engine: str) -> tuple[int, float, dict[int, list[tuple[float, float]]]]:
    """Score a folder on two actors: images, seconds, and the samples of each actor."""
    from drivetrain import Config, cluster, score_images

    with tempfile.TemporaryDirectory() as root, cluster.connected(None, 2):
        config: Any = Config(
            root=root, learner=learner, images=images, source="bench", name="b", actors=2, engine=engine
        )  # type: ignore[arg-type]
        watch = Watch()
        watch.start()
        started = time.perf_counter()
        rows = int(score_images(config)["rows"])
        seconds = time.perf_counter() - started
        watch.over.set()
        watch.join()
    return rows, seconds, watch.samples


def main() -> None:
    """Measure every learner."""
    parser = argparse.ArgumentParser()
    parser.add_argument("learners", nargs="+")
    parser.add_argument("--images", required=True)
    parser.add_argument("--engine", default="auto")
    given = parser.parse_args()
    rows = []
    for learner in given.learners:
        images, seconds, samples = watched(learner, given.images, given.engine)
        for number, each in enumerate(samples.values(), 1):
            # The first seconds are the start: imports, the learner.
            scoring = each[len(each) // 10 :]
            quarter = max(1, len(scoring) // 4)
            cells = []
            for kind in (0, 1):
                values = [sample[kind] for sample in scoring]
                first, last = mean(values[:quarter]), mean(values[-quarter:])
                cells += [f"{first:.0f}", f"{last:.0f}", f"{last / first:.3f}", f"{max(values):.0f}"]
            rows.append([f"{Path(learner).stem}: actor {number}", f"{images:,}", f"{seconds:.0f}", *cells])
    heads = ["learner", "images, both actors", "s"]
    for kind in ("resident", "proportional"):
        heads += [f"{kind}: first quarter, MiB", "last quarter", "times", "most"]
    lines = heading("Memory of an actor", "python benchmarks/memory.py", "torch", "ray", "openvino")
    publish(__file__, [*lines, *table(heads, rows)])


if __name__ == "__main__":
    main()
