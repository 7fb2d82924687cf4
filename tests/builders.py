"""Small things that many tests build on: images that need no bytes, frozen plans, runs whose parts need no learner."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from drivetrain.images import Images, ObjectInfo, batches_of, in_order
from drivetrain.layout import Layout
from drivetrain.manifest import SHARD_BYTES, Plan, freeze, with_labels
from drivetrain.run import Commit, Run, RunRecord, run_id_of
from drivetrain.schema import SCHEMA_MAJOR, row_schema
from drivetrain.store import Store

PREFIX = "/bucket/images"
SHA256 = "5a" * 32
SETTINGS = {"engine": "torch", "precision": "float32", "embedding": "head", "max_pixels": 64_000_000}
# Two images of that size fill a shard, so that few images make many shards.
HALF_A_SHARD = SHARD_BYTES // 2


def image(key: str, *, size: int = 1000, etag: str = "e0") -> ObjectInfo:
    """An object as a listing gives it; nothing needs to lie there."""
    return ObjectInfo(f"{PREFIX}/{key}", size, etag, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def images(number: int, *, size: int = 1000) -> list[ObjectInfo]:
    """Some images, in the order of their keys."""
    return [image(f"{each:05d}.jpg", size=size) for each in range(number)]


def frozen(
    store: Store,
    layout: Layout,
    chosen: Collection[ObjectInfo],
    *,
    labels: dict[str, tuple[str, str | None]] | None = None,
    **changes: Any,
) -> Plan:
    """A plan of some images: a night of the source ``shop`` unless ``changes`` say otherwise."""
    about = {"source": "shop", "kind": "night", "name": "2026-01-02", "prefix": PREFIX, "skipped": {}} | changes
    return freeze(store, layout, listed(chosen, labels), **about)


def listed(chosen: Iterable[ObjectInfo], labels: dict[str, tuple[str, str | None]] | None = None) -> Images:
    """Some images as a listing gives them. ``labels``: split and true label of each uri that has them."""
    return with_labels(in_order(batches_of(chosen)), (labels or {}).get)


def begun(store: Store, layout: Layout, plan: Plan, *, sha256: str = SHA256, **changes: Any) -> Run:
    """A run of a plan that has a manifest and a run.json, and no part yet. Its embeddings have 3 numbers."""
    record = replace(
        RunRecord(
            run_id=run_id_of(plan, sha256, SETTINGS),
            source=plan.source,
            kind=plan.kind,
            name=plan.name,
            manifest=plan.digest,
            images=plan.images,
            shards=plan.shards,
            skipped=plan.skipped,
            model_id=sha256[:12],
            sha256=sha256,
            task="single",
            vocab=("cat", "dog"),
            layer="head.0",
            embedding_size=3,
            settings=SETTINGS,
            schema=SCHEMA_MAJOR,
            created="2026-01-03T00:00:00+00:00",
        ),
        **changes,
    )
    return Run.begin(store, layout, plan.paths(layout).manifest(plan.digest), record)


def part_of(run: Run, shard: int, *, failed: Mapping[str, str] | None = None) -> pa.Table:
    """The rows of one shard as an actor would write them. ``failed``: the reason of each uri that has one."""
    failed = failed or {}
    rows = []
    for listed in run.shard(shard).to_pylist():
        about = {key: listed[key] for key in ("uri", "etag", "size", "mtime", "split", "true_label")}
        reason = failed.get(listed["uri"])
        if reason:
            outcome: dict[str, Any] = {"status": "failed", "error": reason, "error_text": "a test says so"}
        else:
            outcome = {"status": "ok", "label": "cat", "label_index": 0, "confidence": 0.75, "embedding": [1, 2, 3]}
        rows.append(about | outcome | {"run_id": run.record.run_id})
    return pa.Table.from_pylist(rows, schema=row_schema(run.record.embedding_size))


def committed(run: Run, *, failed: Mapping[str, str] | None = None, max_failed: float = 0.01) -> Commit:
    """Write every part of a run and close it."""
    counts = {shard: run.save_part(shard, part_of(run, shard, failed=failed)) for shard in range(run.record.shards)}
    return run.commit(counts, max_failed, 1.0, run.record.images)
