"""Two committed runs over the same images without any learner: what each says of an image is written down by a test."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from builders import begun, frozen, image

from drivetrain.images import ObjectInfo
from drivetrain.labels import LABELS
from drivetrain.layout import Layout
from drivetrain.reference import register
from drivetrain.run import Run
from drivetrain.schema import parquet_bytes, row_schema
from drivetrain.store import Store

OLD, NEW = "5a" * 32, "7b" * 32
VOCAB = ("cat", "dog", "emu")
# What one learner says of an image: label and confidence, and its embedding where one is wanted; None where it failed.
Said = tuple[str, float] | tuple[str, float, list[float]] | None


def scored(
    store: Store, layout: Layout, said: Mapping[str, Said], *, sha256: str = OLD, vocab: Sequence[str] = VOCAB,
    true: Mapping[str, str] | None = None, hashes: Mapping[str, str] | None = None, name: str = "2026-01-02",
    splits: Mapping[str, str] | None = None, objects: Sequence[ObjectInfo] | None = None, **plan: Any,
) -> Run:  # fmt: skip
    """A committed run of the source ``shop``: what a learner says of each uri. ``splits`` are for a reference."""
    true, hashes, splits = true or {}, hashes or {}, splits or {}
    objects = objects or [image(uri.rsplit("/", 1)[-1]) for uri in said]
    marks = {uri: (splits.get(uri, "unknown"), true.get(uri)) for uri in said}
    frozen_plan = frozen(store, layout, objects, labels=marks if true or splits else None, name=name, **plan)
    run = begun(store, layout, frozen_plan, sha256=sha256, task="single_label", vocab=tuple(vocab))
    counts = {}
    for shard in range(run.record.shards):
        rows = []
        for listed in run.shard(shard).to_pylist():
            about = {key: listed[key] for key in ("uri", "etag", "size", "mtime", "split", "true_label")}
            what = said[listed["uri"]]
            about |= {"content_hash": hashes.get(listed["uri"]), "run_id": run.record.run_id}
            if what is None:
                rows.append(about | {"status": "failed", "error": "gone", "error_text": "a test says so"})
                continue
            word, confidence, *embedding = what
            probs = [confidence if each == word else (1 - confidence) / (len(vocab) - 1) for each in vocab]
            place = list(vocab).index(word)
            outcome = {"status": "ok", "label": word, "label_index": place, "probs": probs, "confidence": confidence}
            rows.append(about | outcome | {"embedding": embedding[0] if embedding else [0, 0, 0]})
        counts[shard] = run.save_part(shard, pa.Table.from_pylist(rows, schema=row_schema(3)))
    run.commit(counts, 1.0, 1.0, run.record.images)
    return run


def reference(
    store: Store, layout: Layout, splits: Mapping[str, str], *, sha256: str, elsewhere: Sequence[str] | None = None,
    **about: Any,
) -> Run:  # fmt: skip
    """A reference of a learner that says which images it was trained on. ``elsewhere``: others of them, by name."""
    said: dict[str, Said] = dict.fromkeys(splits, ("cat", 0.9))
    about = {"kind": "plan", "name": f"reference-{sha256[:4]}"} | about
    run = scored(store, layout, said, sha256=sha256, splits=splits, **about)
    register(store, layout, run, elsewhere)
    return run


def people_say(store: Store, layout: Layout, labels: Mapping[str, str], *, when: str = "2026-01-05") -> None:
    """An import of people's labels for the source ``shop``."""
    rows = [{"uri": uri, "label": label, "imported": when} for uri, label in labels.items()]
    data = parquet_bytes(pa.Table.from_pylist(rows, schema=LABELS))
    store.create(f"{layout.labels('shop')}/{hashlib.sha256(data).hexdigest()}.parquet", data)


def judged(store: Store, layout: Layout, run: Run, verdict: str, *, number: int = 1, accuracy: Any = None) -> str:
    """A closed record of a run; returns its folder."""
    record = layout.plan("shop", run.record.kind, run.record.name).record(run.record.model_id, number)
    numbers = {"rows": 10, "failed": 0, "p_value": 0.002, "effect": 0.91, "score": 1.7, "accuracy": None}
    store.replace(record.drift, json.dumps({"accuracy": accuracy} if accuracy else {}).encode())
    store.replace(record.report, b"<html>report</html>")
    about = {"run_id": run.record.run_id, "verdict": verdict, "sentence": f"A test says {verdict}.", "lever": "look"}
    store.create(record.verdict, json.dumps(about | {"numbers": numbers, "made": "2026-01-04"}).encode())
    return record.folder


def behaves(
    store: Store, layout: Layout, model_id: str, *, passed: bool, made: str = "2026-01-06", **found: Any
) -> str:
    """Behaviour tests of a learner; returns their page. ``found``: what broke."""
    folder = layout.behaviour(model_id, made.replace("-", ""))
    about = {"model_id": model_id, "made": made, "passed": passed, "sentence": f"Made {made}: passed is {passed}."}
    about |= {"perturbations": [], "cases": [], "broke": []} | found
    store.replace(f"{folder}/behaviour.json", json.dumps(about | {"page": f"{folder}/index.html"}).encode())
    store.replace(f"{folder}/index.html", b"<html>behaviour</html>")
    return f"{folder}/index.html"
