"""What int8 costs in labels and gives in speed, on labelled photos that the learner and int8 have not seen.

    python benchmarks/int8.py --labels photos.csv --repeats 3 resnet18.pkl lite0.pkl

The CSV has fname, label and is_valid. 300 photos that are not held out give the ranges; one half of the held-out ones
says which calls are close, the other is scored, and then the other way round. Labels are held against float32's and,
where the learner has these classes, against the CSV's. Speed is the network's alone, in one thread; both take turns.
The table goes to stdout and to int8.md beside this file.
"""

import argparse
import csv
import hashlib
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tables import heading, in_own_process, publish, table

from drivetrain.errors import DrivetrainError

CALIBRATION = 300
ABOUT = """\
"alone" is the share of photos whose label is float32's if int8 is trusted always, "with close calls" when those are
computed again in float32, as drivetrain does; "twice" is the share of photos computed again, and its time is counted.
Made: seconds to quantise and check, once for a learner. A learner without the CSV's classes has no accuracy."""


def measure(learner: str, labels: str, repeats: int) -> dict[str, Any]:
    """Make the network in int8 with one half of the held-out photos, score the other with both, and turn round."""
    from drivetrain.learner import StoredLearner, open_learner

    data = Path(learner).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    with Path(labels).open() as file:
        photos = list(csv.DictReader(file))
    exported = open_learner(data, sha256, threads=1)
    items = [exported.prepare(Path(each["fname"]).read_bytes(), 10**8)[0] for each in photos]
    held_out = [place for place, each in enumerate(photos) if each["is_valid"] == "True"]
    trained = [items[place] for place in sorted(set(range(len(items))) - set(held_out))]
    stored, info = exported.stored(items), exported.info
    exact = StoredLearner(stored, info, 1)
    halves = held_out[::2], held_out[1::2]
    times: dict[str, list[float]] = {"float32": [], "int8": [], "made": []}
    labels_of: dict[str, list[int]] = {"float32": [], "int8": [], "alone": []}
    qualities = []
    for checks, tested in (halves, halves[::-1]):
        started = time.perf_counter()
        made, quality = exact.make_int8(stored, trained[:CALIBRATION], [items[place] for place in checks])
        times["made"].append(time.perf_counter() - started)
        qualities.append(quality)
        scorers = {
            "float32": exact,
            "int8": StoredLearner(stored, info, 1, made),
            "alone": StoredLearner(stored, info, 1, trusting(made)),
        }
        rest = [items[place] for place in tested]
        for name, scorer in scorers.items():
            labels_of[name] += [int(one.outputs[0].argmax()) for one in scorer.predict(rest)]  # type: ignore[union-attr]
        for _ in range(repeats):
            for name in ("float32", "int8"):
                started = time.perf_counter()
                scorers[name].predict(rest)
                times[name].append((time.perf_counter() - started) / len(rest))
    truth = [photos[place]["label"] for half in halves[::-1] for place in half]
    vocab = exact.info.vocab
    known = set(truth) <= set(vocab)
    chosen = {name: np.array(each) for name, each in labels_of.items()}
    return {
        "images": len(truth),
        "rates": {name: 1 / median(times[name]) for name in ("float32", "int8")},
        "accuracy": {name: float((np.array(vocab)[each] == truth).mean()) for name, each in chosen.items()}
        if known
        else {},
        "same": {name: float((chosen[name] == chosen["float32"]).mean()) for name in ("int8", "alone")},
        "twice": float(np.mean([each.recomputed for each in qualities])),
        "cosine": float(np.mean([each.cosine for each in qualities])),
        "seconds": median(times["made"]),
        "bytes": len(made),
    }


def trusting(made: bytes) -> bytes:
    """The same network without close calls."""
    import io
    import zipfile

    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(made)) as old, zipfile.ZipFile(sink, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == "quality.json":
                text = json.dumps(json.loads(text) | {"close": -1.0}).encode()
            new.writestr(name, text)
    return sink.getvalue()


def row_of(learner: str, one: dict[str, Any]) -> list[str]:
    """A learner's line of the table."""
    shares = [f"{one['same']['alone']:.2%}", f"{one['same']['int8']:.2%}"]
    right = [f"{one['accuracy'][name]:.2%}" if one["accuracy"] else "" for name in ("float32", "int8")]
    fast, faster = one["rates"]["float32"], one["rates"]["int8"]
    return [
        Path(learner).stem, *shares, *right, f"{one['twice']:.1%}", f"{fast:.1f}", f"{faster:.1f}",
        f"{faster / fast:.2f}", f"{one['cosine']:.4f}", f"{one['seconds']:.0f}", f"{one['bytes'] / 1e6:.1f}",
    ]  # fmt: skip


def main() -> None:
    """Measure every learner, or, with --one, print what one gave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("learners", nargs="+")
    parser.add_argument("--labels", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true")
    given = parser.parse_args()
    if given.one:
        try:
            print(json.dumps(measure(given.learners[0], given.labels, given.repeats)))
        except DrivetrainError as error:
            print(json.dumps({"refused": str(error)}))
        return
    rows, images = [], 0
    for learner in given.learners:
        one = in_own_process(__file__, "--one", "--labels", given.labels, "--repeats", str(given.repeats), learner)
        if "refused" in one:
            rows.append([f"{Path(learner).stem}: refused, {one['refused']}", *[""] * 11])
            continue
        images = one["images"]
        rows.append(row_of(learner, one))
    lines = heading("int8", "python benchmarks/int8.py", "torch", "openvino", "nncf")
    lines += [f"{images:,} labelled photos, one thread, medians of {2 * given.repeats}.", ""]
    heads = [
        "learner", "label as float32: alone", "with close calls", "right: float32", "right: int8", "twice",
        "float32 images/s", "int8 images/s", "times", "cosine of embeddings", "made, s", "MB",
    ]  # fmt: skip
    publish(__file__, [*lines, *table(heads, rows), "", ABOUT])


if __name__ == "__main__":
    main()
