"""What is known of two runs beside their rows: records, training sets, people's labels, behaviour tests, regions.

Knows where these lie. Does not know how they are weighed.
"""

import hashlib
import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.behaviour import latest_behaviour
from drivetrain.comparison import SCHEMA, Behaviour, OwnDrift
from drivetrain.labels import people_labels
from drivetrain.layout import Layout, RecordPaths
from drivetrain.lens import Indices, Lens, from_arrays
from drivetrain.nights import records
from drivetrain.reference import (
    Reference,
    find_reference,
    newest_reference,
    perhaps_meant,
    references_of,
    scores_of,
)
from drivetrain.root import from_json
from drivetrain.run import Run
from drivetrain.store import Store
from drivetrain.trained import trained_files, trained_names
from drivetrain.truth import Training

# Parts that are read again for their embeddings: of a large run these would be gigabytes.
MOST_PARTS = 64
MOST_IMAGES = 50_000
EMBEDDED = (
    "uri", "embedding", "probs", "values", "confidence", "energy", "label_index", "true_label", "size", "width",
    "height", "brightness", "contrast", "sharpness", "status",
)  # fmt: skip


def inputs_of(store: Store, layout: Layout, old: Run, new: Run) -> dict[str, Any]:
    """All that a comparison of two committed runs depends on; a few small files are read, and no row."""
    sources = sorted({old.record.source, new.record.source})
    records = [_record(store, layout, run) for run in (old, new)]
    references = [training_reference(store, layout, run) for run in (old, new)]
    named = [trained_files(store, layout, each.model_id, each.run_id) if each else [] for each in references]
    tests = behaviour_of(store, layout, new.record.model_id)
    lens = lens_path(store, layout, old)
    return {
        "schema": SCHEMA,
        "labels": {source: labels_digest(store, layout, source) for source in sources},
        "records": [found[0].folder if found else None for found in records],
        "references": [found.run_id if found else None for found in references],
        "trained": named,
        "behaviour": asdict(tests) if tests else None,
        "lens": lens,
    }


def labels_digest(store: Store, layout: Layout, source: str) -> str:
    """Names the labels that people gave a source's images so far: imports are created once, and never change."""
    return hashlib.sha256("\n".join(store.names(layout.labels(source))).encode()).hexdigest()[:16]


def labels_of(store: Store, layout: Layout, old: Run, new: Run) -> dict[str, str]:
    """The labels that people gave the images of both runs' sources."""
    sources = dict.fromkeys((old.record.source, new.record.source))
    return {uri: label for source in sources for uri, label in people_labels(store, layout, source).items()}


def _record(store: Store, layout: Layout, run: Run) -> tuple[RecordPaths, dict[str, Any]] | None:
    """The latest closed record that was made of this very run."""
    found = None
    for model_id, record in records(store, layout, run.record.source, run.record.kind, run.record.name):
        if model_id == run.record.model_id:
            verdict = from_json(store, record.verdict)
            found = (record, verdict) if verdict and verdict["run_id"] == run.record.run_id else found
    return found


def own_drift(store: Store, layout: Layout, run: Run) -> OwnDrift:
    """How these images lie against the learner's own reference, by the run's latest closed record."""
    found = _record(store, layout, run)
    if found is None:
        first = "" if find_reference(store, layout, run) else "build a reference of this learner first, then "
        return OwnDrift(None, f"To measure it: {first}drivetrain drift measure --run {run.record.run_id}")
    record, verdict = found
    numbers = verdict["numbers"]
    accuracy = (from_json(store, record.drift) or {}).get("accuracy") or {}
    return OwnDrift(
        verdict=verdict["verdict"],
        sentence=verdict["sentence"],
        p_value=numbers.get("p_value"),
        score=numbers.get("score"),
        effect=numbers.get("effect"),
        estimate=accuracy.get("estimate"),
        low=accuracy.get("low"),
        high=accuracy.get("high"),
        reference_accuracy=accuracy.get("reference"),
        why=accuracy.get("why", ""),
        report=record.report,
    )


def training_reference(store: Store, layout: Layout, run: Run) -> Reference | None:
    """The newest reference of a run's learner by which it is known what that was trained on, whatever its settings."""
    found = references_of(store, layout, run.record.model_id)
    told = [each for each in found if _tells_training(store, layout, each)]
    return max(told, key=lambda reference: (reference.created, reference.run_id), default=None)


def _tells_training(store: Store, layout: Layout, reference: Reference) -> bool:
    """Whether somebody said of this very learner what it was trained on.

    A reference of held-out images alone does not say it, and one with the splits of an older learner does not either.
    """
    if trained_files(store, layout, reference.model_id, reference.run_id):
        return True
    # References of before say no more than whether `rescore` made them.
    made_by_rescore = Run.find(store, layout, reference.run_id).record.rescore_of is not None
    return reference.splits.get("trained", 0) > 0 and not made_by_rescore


def training_of(store: Store, layout: Layout, run: Run) -> Training | None:
    """The images that a run's learner was trained on, or None where nobody said of it which these are.

    Those that its reference marks, and of the run's own images those that were named beside it.
    """
    reference = training_reference(store, layout, run)
    if reference is None:
        return None
    marked = Run.find(store, layout, reference.run_id)
    uris = marked.manifest(["uri", "split"])
    uris = uris.filter(pc.equal(uris["split"], "trained").fill_null(False))["uri"]
    if names := trained_names(store, layout, reference.model_id, reference.run_id):
        meant = perhaps_meant(names, run.manifest(["uri"])["uri"].to_pylist())
        uris = pa.chunked_array([*uris.chunks, pa.array(meant, pa.string())])
    hashes = []
    for shard in range(marked.record.shards):
        rows = store.read_table(marked.paths.part(shard), ["split", "content_hash"])
        trained = pc.equal(rows["split"], "trained").fill_null(False)
        hashes.append(rows.filter(trained)["content_hash"].drop_null())
    known = pa.chunked_array([chunk for each in hashes for chunk in each.chunks], pa.string())
    return Training(uris.combine_chunks(), known.combine_chunks())


def behaviour_of(store: Store, layout: Layout, model_id: str) -> Behaviour | None:
    """The newest behaviour tests of a learner, or None."""
    newest = latest_behaviour(store, layout, model_id)
    if newest is None:
        return None
    return Behaviour(model_id, newest["made"], newest["passed"], newest["sentence"], newest["page"])


def lens_path(store: Store, layout: Layout, run: Run) -> str | None:
    """How the newest reference of a run's learner sees images, if any night has been held against it."""
    reference = newest_reference(store, layout, run.record.model_id)
    if reference is None:
        return None
    folder = layout.run(reference.run_id).lens().rsplit("/", 1)[0]
    return next((f"{folder}/{name}" for name in store.names(folder) if name.endswith(".npz")), None)


def regions_of(store: Store, layout: Layout, run: Run, uris: pa.ChunkedArray) -> tuple[Indices | None, str]:
    """The region of each image, as the reference of a run's learner sees it; None, and why, where that is not told.

    Only parts that hold one of the images are read, and 64 of them at most.
    """
    path = lens_path(store, layout, run)
    if path is None:
        return None, "no night has been held against a reference of the old learner."
    with np.load(io.BytesIO(store.read(path))) as arrays:
        lens = from_arrays(arrays)
    if lens.of_embeddings and not run.record.embedding_size:
        return None, "the old run has no embeddings."
    if len(uris) > MOST_IMAGES:
        return None, f"that takes the embeddings, and is done for at most {MOST_IMAGES:,} images."
    parts = _parts_with(run, uris)
    if len(parts) > MOST_PARTS:
        return None, f"the images lie in {len(parts):,} parts, and at most {MOST_PARTS} are read again."
    places, numbers = {}, np.full(len(uris), -1, np.int64)
    for part in parts:
        places.update(_regions_in(store, run, lens, part))
    for place, uri in enumerate(uris.to_pylist()):
        numbers[place] = places.get(uri, -1)
    return numbers, ""


def _parts_with(run: Run, uris: pa.ChunkedArray) -> list[str]:
    """The parts of a run that hold some of the images. Their uris are in order, over all parts."""
    commit = run.committed()
    wanted = np.sort(np.array(uris.to_pylist(), dtype=object))
    found = []
    for name in sorted(commit.parts if commit else ()):
        path = f"{run.paths.parts}/{name}"
        there = run.store.read_table(path, ["uri"])["uri"]
        if not len(there):
            continue
        first, last = there[0].as_py(), there[-1].as_py()
        if np.searchsorted(wanted, last, "right") > np.searchsorted(wanted, first, "left"):
            found.append(path)
    return found


def _regions_in(store: Store, run: Run, lens: Lens, part: str) -> dict[str, int]:
    rows = store.read_table(part, list(EMBEDDED))
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    if not len(rows):
        return {}
    numbers = lens.regions(lens.whiten(scores_of(rows, run.record.vocab)))
    return dict(zip(rows["uri"].to_pylist(), numbers.tolist(), strict=True))


def recorded_inputs(store: Store, path: str) -> dict[str, Any] | None:
    """The inputs that a comparison was made from, or None if there is none that can be read."""
    try:
        found: dict[str, Any] | None = json.loads(store.read(path)).get("inputs")
    except (FileNotFoundError, ValueError):
        return None
    return found
