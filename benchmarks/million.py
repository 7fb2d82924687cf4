"""A night of a million scored images, judged: sketching its parts, drift from the sketches alone, the report.

    python benchmarks/million.py [--images 1000000] [--size 512]

The rows are made up (Gaussian embeddings, 10 classes, a shift of one image in ten) and written as scoring writes them;
no image lies behind them, so that the page has grey places for thumbnails. Everything is done in one process with one
thread (OMP_NUM_THREADS=1); each step is its own process, so that its memory is its own.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tables import heading, in_own_process, publish, table

from drivetrain.bundle import look, open_bundle
from drivetrain.config import Config
from drivetrain.images import ObjectInfo, batches_of, in_order
from drivetrain.judge import judge_run
from drivetrain.layout import Layout
from drivetrain.manifest import freeze, with_labels
from drivetrain.reference import find_reference, register
from drivetrain.root import open_root
from drivetrain.run import Run, RunRecord, run_id_of
from drivetrain.schema import SCHEMA_MAJOR, round_mantissa, row_schema
from drivetrain.store import Store

CLASSES = tuple(f"class {i}" for i in range(10))
REFERENCE = 5000
# Rows that Evidently is asked beside, as few as its measures have time for.
BESIDE = 10_000
SHA256 = "5a" * 32
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SETTINGS = {"engine": "torch", "precision": "float32", "embedding": "head", "max_pixels": 64_000_000}


def begin(store: Store, layout: Layout, name: str, kind: str, images: int, size: int) -> Run:
    """Freeze a plan of images that need not exist, and begin its run."""
    when = datetime(2026, 1, 2, tzinfo=UTC)
    listed = (ObjectInfo(f"/bucket/{name}/{i:08d}.jpg", 100_000, "e0", when) for i in range(images))
    split = "held_out" if kind == "plan" else "unknown"
    labels = (lambda uri: (split, CLASSES[int(uri[-12:-4]) % 10])) if kind == "plan" else (lambda uri: None)
    chosen = with_labels(in_order(batches_of(listed)), labels)
    plan = freeze(store, layout, chosen, source="million", kind=kind, name=name, prefix=f"/bucket/{name}", skipped={})
    record = RunRecord(
        run_id=run_id_of(plan, SHA256, SETTINGS), source="million", kind=kind, name=name, manifest=plan.digest,
        images=plan.images, shards=plan.shards, skipped={}, model_id=SHA256[:12], sha256=SHA256, task="single_label",
        vocab=CLASSES, layer="head", embedding_size=size, settings=SETTINGS, schema=SCHEMA_MAJOR,
        created=when.isoformat(),
    )  # fmt: skip
    return Run.begin(store, layout, plan.paths(layout).manifest(plan.digest), record)


def fill(run: Run, shifted: float) -> None:
    """Write every part of a run, and commit it."""
    counts, size = {}, run.record.embedding_size
    centres = np.random.default_rng(0).normal(0, 1, (10, size)).astype(np.float32)
    for shard in range(run.record.shards):
        rng = np.random.default_rng([1, shard])
        listed = run.shard(shard)
        n = len(listed)
        truth = np.array([int(uri[-12:-4]) % 10 for uri in listed["uri"].to_pylist()])
        embeddings = centres[truth] + rng.normal(0, 1, (n, size)).astype(np.float32)
        embeddings[rng.random(n) < shifted] += 0.5
        logits = embeddings @ centres.T / np.sqrt(size)
        outputs = np.exp(logits - logits.max(axis=1, keepdims=True))
        outputs /= outputs.sum(axis=1, keepdims=True)
        counts[shard] = run.save_part(shard, rows_of(run, listed, embeddings, outputs, logits, rng))
    run.commit(counts, 0.01, 1.0, run.record.images)


def rows_of(run: Run, listed: pa.Table, embeddings: Any, outputs: Any, logits: Any, rng: Any) -> pa.Table:
    """Rows as an actor writes them."""
    n, top, schema = len(listed), outputs.argmax(axis=1), row_schema(run.record.embedding_size)
    flat = pa.array(round_mantissa(embeddings).ravel())
    offsets = pa.array(np.arange(0, n * 10 + 1, 10, dtype=np.int32))
    known: dict[str, Any] = {name: listed[name] for name in ("uri", "etag", "size", "mtime", "split", "true_label")}
    known |= {
        "status": ["ok"] * n, "verified": [True] * n, "attempts": [1] * n, "width": [400] * n, "height": [400] * n,
        "brightness": rng.normal(0.5, 0.1, n), "contrast": rng.normal(0.2, 0.05, n), "label": [CLASSES[i] for i in top],
        "sharpness": rng.normal(0.05, 0.01, n), "label_index": top, "confidence": outputs.max(axis=1),
        "energy": np.log(np.exp(logits).sum(axis=1)),
        "probs": pa.ListArray.from_arrays(offsets, pa.array(outputs.ravel())),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, run.record.embedding_size),
        "run_id": [run.record.run_id] * n, "model_id": [run.record.model_id] * n,
    }  # fmt: skip
    columns = []
    for field in schema:
        values = known.get(field.name)
        if isinstance(values, (pa.ChunkedArray, pa.Array)):
            columns.append(values.cast(field.type))
        else:
            columns.append(pa.array(values, field.type) if values is not None else pa.nulls(n, field.type))
    return pa.table(columns, schema=schema)


def step(root: str, what: str) -> dict[str, Any]:
    """One step in this process: seconds and the most memory."""
    config = Config(root=root, actors=0)
    store, layout = open_root(config)
    runs = [Run.find(store, layout, name) for name in store.names(layout.runs)]
    run = next(each for each in runs if each.record.kind == "night")
    started = time.perf_counter()
    size = 0
    if what == "report":
        result = judge_run(store, layout, run, config)
        size = Path(result["report"]).stat().st_size
        verdict = result["verdict"]
    else:
        reference = find_reference(store, layout, run)
        assert reference is not None
        bundle = open_bundle(store, layout, reference, config)
        look(run, bundle, config)
        verdict = ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - started, "peak": peak, "bytes": size, "verdict": verdict}


def evidently_alone(rows: int, size: int) -> dict[str, Any]:
    """Evidently's own drift of embeddings and its preset over their columns, as a page: seconds and bytes."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import model
    from evidently.presets import DataDriftPreset

    rng, names = np.random.default_rng(0), [f"e{i}" for i in range(size)]
    frames = [pd.DataFrame(rng.standard_normal((number, size)), columns=names) for number in (rows, REFERENCE)]
    started = time.perf_counter()
    model()(*frames)
    sets = [Dataset.from_pandas(frame, data_definition=DataDefinition(numerical_columns=names)) for frame in frames]
    with tempfile.TemporaryDirectory() as folder:
        Report([DataDriftPreset()]).run(*sets).save_html(f"{folder}/page.html")
        found = Path(folder, "page.html").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - started, "peak": peak, "bytes": found, "verdict": ""}


def main() -> None:
    """Make the million, take the steps, write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--step", nargs=2)
    given = parser.parse_args()
    if given.step:
        alone = given.step[1] == "evidently"
        print(json.dumps(evidently_alone(BESIDE, given.size) if alone else step(*given.step)))
        return
    # For the processes of the steps.
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    with tempfile.TemporaryDirectory() as folder:
        store, layout = open_root(Config(root=folder))
        reference = begin(store, layout, "reference", "plan", REFERENCE, given.size)
        fill(reference, 0)
        register(store, layout, reference)
        run = begin(store, layout, "2026-01-03", "night", given.images, given.size)
        fill(run, 0.1)
        print(f"{run.record.shards:,} parts written", file=sys.stderr)
        rows = []
        for what, name in (
            ("sketch", "sketching every part (done once, on actors where there are any)"),
            ("look", "reading and merging the sketches"),
            ("report", "a night judged from its sketches: drift, verdict, page, dashboard"),
            ("evidently", f"beside: {BESIDE:,} rows by Evidently's EmbeddingsDrift and DataDriftPreset, as a page"),
        ):
            found = in_own_process(__file__, "--step", folder, what, "--size", str(given.size))
            size = f"{found['bytes'] / 1e6:.1f}" if found["bytes"] else ""
            rows.append([name, f"{found['seconds']:.1f}", f"{found['peak']:.0f}", size, found["verdict"]])
    lines = heading(f"{given.images:,} images x {given.size}", "python benchmarks/million.py", "pyarrow", "evidently")
    lines += ["One process, one thread; one run of each step. The peak holds the imports (Evidently among them).", ""]
    lines += table(["step", "s", "peak MiB", "page MB", "verdict"], rows)
    publish(__file__, lines)


if __name__ == "__main__":
    main()
