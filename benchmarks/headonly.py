"""A new head over stored embeddings against a full rescore of the same images.

    python benchmarks/headonly.py --images FOLDER --learner old.pkl [--number 20000]

FOLDER holds photos, which are linked under so many names as there are to be images. The new learner is the old one
with another head, as training with frozen batch norms leaves it. Both are timed in this process, after torch has been
imported, from the frozen plan to the commit; both open the learner. The table goes to stdout and to headonly.md
beside this file.
"""

import argparse
import hashlib
import io
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tables import heading, publish, table

ABOUT = (
    "One process (`--actors 0`), a local disk. Its start and the import of torch are left out; opening the learner, "
    "reading the frozen manifest, and the commit are not."
)


def linked(photos: Path, folder: Path, number: int) -> None:
    """So many images: the photos under other names, again and again."""
    found = sorted(path for path in photos.rglob("*") if path.is_file())
    folder.mkdir(parents=True)
    for place in range(number):
        source = found[place % len(found)]
        os.link(source, folder / f"{place:06d}{source.suffix}")


def with_new_head(export: bytes) -> bytes:
    """The same learner with a head of other weights, as training the head alone leaves it."""
    import torch
    from fastai.learner import load_learner

    learn = load_learner(io.BytesIO(export))
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in learn.model[1].parameters():
            tensor += 0.05 * tensor.std().nan_to_num(0.1) * torch.randn_like(tensor)
    sink = io.BytesIO()
    torch.save(learn, sink)
    return sink.getvalue()


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

    linked(Path(given.images), work / "images", given.number)
    about = {"root": str(work / "root"), "images": str(work / "images"), "source": "bench", "name": "all", "actors": 0}
    new = work / "new.pkl"
    new.write_bytes(with_new_head(Path(given.learner).read_bytes()))
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
    full_rows, head_rows = (
        Run.find(store, layout, runs[full]).rows(("probs", "label"), only={"status": "ok"}) for full in (True, False)
    )
    same = np.array(full_rows["label"].to_pylist()) == np.array(head_rows["label"].to_pylist())
    return {
        "full": median(seconds[True]),
        "head": median(seconds[False]),
        "difference": float(np.abs(matrix(full_rows["probs"]) - matrix(head_rows["probs"])).max()),
        "same": float(same.mean()),
        "sha256": hashlib.sha256(new.read_bytes()).hexdigest(),
    }


def main() -> None:
    """Measure, and publish the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--learner", required=True)
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
    heads = ["learner", "from images, s", "head only, s", "times", "largest difference of a probability", "same label"]
    row = [
        Path(given.learner).stem, f"{one['full']:.1f}", f"{one['head']:.2f}", f"{one['full'] / one['head']:.0f}",
        f"{one['difference']:.1e}", f"{one['same']:.2%}",
    ]  # fmt: skip
    publish(__file__, [*lines, *table(heads, [row]), "", ABOUT])


if __name__ == "__main__":
    main()
