"""A new head over stored embeddings against a full rescore of the same images.

    python benchmarks/headonly.py --images FOLDER --labels images.csv --learner resnet18.pkl [--number 20000]

FOLDER, images.csv and the learner are those of learners.py. The photos are linked under so many names as there are to
be images. The new learner is the old one with its head trained on for some epochs, its body frozen. Both are timed in
this process, after torch has been imported, from the frozen plan to the commit; both open the learner. The table goes
to stdout and to headonly.md beside this file.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from learners import FULL, loaders, photos_of
from tables import heading, publish, table

ABOUT = (
    "One process (`--actors 0`), a local disk. Its start and the import of torch are left out; opening the learner, "
    "reading the frozen manifest, and the commit are not. The images are {photos:,} photos under several names each; "
    "the new head was trained on for {epochs} epochs."
)


def linked(photos: Path, folder: Path, number: int) -> int:
    """So many images: the photos under other names, again and again. Returns how many photos there are."""
    found = sorted(path for path in photos.rglob("*") if path.is_file())
    folder.mkdir(parents=True)
    for place in range(number):
        source = found[place % len(found)]
        os.link(source, folder / f"{place:06d}{source.suffix}")
    return len(found)


def retrained(given: argparse.Namespace, new: Path) -> None:
    """The same learner with its head trained on, as the README retrains: a body at rest, its batch norms too."""
    import torch
    from fastai.vision.all import BnFreeze, load_learner

    torch.manual_seed(0)
    learn = load_learner(given.learner)
    learn.dls = loaders(photos_of(given.photos, given.labels), FULL, 32)
    learn.train_bn = False
    learn.freeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(given.epochs, 1e-3, cbs=BnFreeze())
    learn.export(new.absolute())


def timed(config: Any) -> tuple[float, str]:
    """Seconds that rescoring takes, without its pages, and the run."""
    from drivetrain.admit import admit_learner
    from drivetrain.heads import why_not
    from drivetrain.manifest import find_plan
    from drivetrain.root import open_root
    from drivetrain.run import Run
    from drivetrain.score import begin_run, finish_run

    store, layout = open_root(config)
    info = admit_learner(store, layout, config)
    old = Run.find(store, layout, config.run)
    plan = find_plan(store, layout, old.record.source, old.record.kind, old.record.name)
    reason = why_not(store, layout, old, info, config)
    if reason:
        raise SystemExit(f"The new learner's body is another: {reason}")
    made_from = None if config.full else config.run
    run = begin_run(store, layout, plan, info, config, rescore_of=config.run, made_from=made_from)
    started = time.perf_counter()
    finish_run(run, config)
    return time.perf_counter() - started, run.record.run_id


def measure(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Seconds of both, the largest difference of a probability, and the share of equal labels."""
    from drivetrain import Config, score_images
    from drivetrain.root import open_root
    from drivetrain.run import Run
    from drivetrain.schema import matrix

    photos = linked(Path(given.photos), work / "images", given.number)
    about = {"root": str(work / "root"), "images": str(work / "images"), "source": "bench", "name": "all", "actors": 0}
    new = work / "new.pkl"
    retrained(given, new)
    old = score_images(Config(**about, learner=given.learner))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    runs: dict[bool, str] = {}
    for full, repeats in ((True, given.full_repeats), (False, given.repeats)):
        for _ in range(repeats):
            config = Config(**about, learner=str(new), run=old["run_id"], full=full)
            took, runs[full] = timed(config)
            seconds[full].append(took)
            store, layout = open_root(config)
            if len(seconds[full]) < repeats:
                # The same command would only say that it is done.
                os.rename(layout.run(runs[full]).folder, work / f"{runs[full]}-{len(seconds[full])}")
    old_rows, full_rows, head_rows = (
        Run.find(store, layout, run_id).rows(("probs", "label"), only={"status": "ok"})
        for run_id in (old["run_id"], runs[True], runs[False])
    )
    before, full_labels, head_labels = (
        np.array(rows["label"].to_pylist()) for rows in (old_rows, full_rows, head_rows)
    )
    differences = np.abs(matrix(full_rows["probs"]) - matrix(head_rows["probs"])).max(axis=1)
    return {
        "photos": photos,
        "full": median(seconds[True]),
        "head": median(seconds[False]),
        "difference": float(differences.max()),
        "median": float(np.median(differences)),
        "same": float((full_labels == head_labels).mean()),
        "changed": float((full_labels != before).mean()),
    }


def main() -> None:
    """Measure, and publish the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", dest="photos", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--learner", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--number", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--full-repeats", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        one = measure(given, Path(folder))
    lines = heading("Head only", "python benchmarks/headonly.py", "torch", "openvino")
    lines += [f"{given.number:,} images; medians of {given.full_repeats} (images) and {given.repeats} (head).", ""]
    heads = [
        "learner", "from images, s", "head only, s", "times", "difference of a probability, median", "largest",
        "same label", "label other than the old learner's",
    ]  # fmt: skip
    row = [
        Path(given.learner).stem, f"{one['full']:.1f}", f"{one['head']:.2f}", f"{one['full'] / one['head']:.0f}",
        f"{one['median']:.1e}", f"{one['difference']:.1e}", f"{one['same']:.2%}", f"{one['changed']:.1%}",
    ]  # fmt: skip
    publish(__file__, [*lines, *table(heads, [row]), "", ABOUT.format(photos=one["photos"], epochs=given.epochs)])


if __name__ == "__main__":
    main()
