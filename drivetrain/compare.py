"""Two runs over the same images side by side: what changed when the learner did.

Knows rows of two runs. Does not know which of the two is in use, or where anything lies. Never subtracts embeddings of
two learners: they live in different spaces.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain import slices
from drivetrain.comparison import ENOUGH_FOR_SLICES, Behaviour, Comparison, OwnDrift, Slice
from drivetrain.errors import RunError
from drivetrain.labelfiles import NO_CLASS
from drivetrain.lens import Indices, Vector
from drivetrain.paired import wilson
from drivetrain.recommend import Facts, recommend
from drivetrain.schema import column, matrix
from drivetrain.truth import Joined, Labelled, Training, jaccard, judged, labelled

MOST_FLIPS = 500
MOST_CONFUSED = 1000

COLUMNS = ("uri", "status", "label", "labels", "confidence", "true_label", "values", "content_hash")
# What each task says in a row; the other columns are not read.
_OTHERS = {"single_label": {"labels", "values"}, "multi_label": {"values"}, "regression": {"label", "labels"}}

NOT_MEASURED = OwnDrift(None, "Not measured.")
# The region of each image with one of these uris, -1 where it is not known, and why where none is.
Regions = Callable[[pa.ChunkedArray], tuple[Indices | None, str]]


def columns_of(task: str) -> tuple[str, ...]:
    """The columns of a run's rows that a comparison looks at."""
    return tuple(name for name in COLUMNS if name not in _OTHERS[task])


@dataclass(frozen=True)
class Known:
    """What is known of two runs beside their rows; the old one first where there are two."""

    task: str = "single_label"
    models: tuple[str, str] = ("old", "new")
    source: str = "source"
    root: str = "root"
    vocabs: tuple[Sequence[str], Sequence[str]] = ((), ())
    people: Mapping[str, str] = field(default_factory=dict)
    training: tuple[Training | None, Training | None] = (None, None)
    drift: tuple[OwnDrift, OwnDrift] = (NOT_MEASURED, NOT_MEASURED)
    behaviour: Behaviour | None = None
    regions: Regions | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    made: str = ""


def compare(old_id: str, new_id: str, old: pa.Table, new: pa.Table, known: Known | None = None) -> Comparison:
    """Compare the rows of two runs, matched by uri. Raises RunError when they have no image in common."""
    known = known or Known()
    pairs = _said(_joined(old, new), known.task)
    if not len(pairs):
        raise RunError(
            f"The runs {old_id} and {new_id} have no image in common; expected a rescore of the same images."
        )
    ok_old, ok_new = _scored(pairs)
    scored = pairs.filter(pc.and_(ok_old, ok_new))
    says = known.task != "regression" and len(scored) > 0
    differs = pc.not_equal(scored["said"], scored["said_new"]) if says else None
    flipped = scored.filter(differs) if says else scored.slice(0, 0)
    classes = set(known.vocabs[0]) | set(known.vocabs[1])
    found, counted = labelled(pairs, known.people, known.training, known.task, classes)
    truth = judged(
        found,
        counted,
        task=known.task,
        known=(known.training[0] is not None, known.training[1] is not None),
        changed=len(flipped) / len(scored) if says else None,
        classes=classes,
    )
    worst, tested, note = _slices(found, scored, differs, known)
    before, now = known.vocabs
    facts = Facts(
        run_old=old_id,
        run_new=new_id,
        model_new=known.models[1],
        source=known.source,
        root=known.root,
        images=len(pairs),
        scored_by_both=len(scored),
        only_old=_count(pc.and_(ok_old, pc.invert(ok_new))),
        agreement=1 - len(flipped) / len(scored) if says else None,
        flipped=len(flipped),
        classes_removed=tuple(word for word in before if word not in set(now)),
        truth=truth,
        drift_old=known.drift[0],
        drift_new=known.drift[1],
        slices=worst,
        behaviour=known.behaviour,
    )
    return Comparison(
        old=old_id,
        new=new_id,
        model_old=known.models[0],
        model_new=known.models[1],
        images=facts.images,
        scored_by_both=facts.scored_by_both,
        only_old=facts.only_old,
        only_new=_count(pc.and_(ok_new, pc.invert(ok_old))),
        agreement=facts.agreement,
        agreement_interval=wilson(len(scored) - len(flipped), len(scored)) if says else None,
        overlap=_overlap(scored) if known.task == "multi_label" and len(scored) else None,
        flipped=len(flipped),
        confusion=_confusion(flipped),
        classes_added=tuple(word for word in now if word not in set(before)),
        classes_removed=tuple(facts.classes_removed),
        confidence_change=_confidence_change(scored) if says else None,
        value_change=_value_change(scored) if known.task == "regression" and len(scored) else None,
        truth=truth,
        drift_old=facts.drift_old,
        drift_new=facts.drift_new,
        slices=tuple(worst),
        slices_tested=tested,
        slices_note=note,
        behaviour=known.behaviour,
        recommendation=recommend(facts),
        flips=_flips(flipped, found, known.task, classes),
        inputs=dict(known.inputs),
        made=known.made,
    )


def flipped_images(old: pa.Table, new: pa.Table, task: str) -> pa.Table:
    """The images that both runs scored and call otherwise, with the columns of both; those of the new end in ``_new``.

    ``old`` and ``new`` have `columns_of` the task, which is none of numbers.
    """
    pairs = _said(_joined(old, new), task)
    return pairs.filter(pc.and_(pc.and_(*_scored(pairs)), pc.not_equal(pairs["said"], pairs["said_new"])))


def _scored(pairs: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Which images the old run scored, and which the new one."""
    return pc.equal(pairs["status"], "ok"), pc.equal(pairs["status_new"], "ok")


def _joined(old: pa.Table, new: pa.Table) -> pa.Table:
    """The images of both runs: columns of the old one, and those of the new one with ``_new`` behind the name."""
    if old["uri"].equals(new["uri"]):
        # A rescore has the rows of its manifest in the manifest's order: nothing to match, and nothing is copied.
        right = new
    else:
        left, right = (
            table.select(["uri"]).append_column(f"row_{i}", pa.array(np.arange(len(table))))
            for i, table in enumerate((old, new))
        )
        places = left.join(right, "uri", join_type="inner").sort_by("row_0")
        old, right = old.take(places["row_0"]), new.take(places["row_1"])
    for name in right.column_names:
        if name != "uri":
            old = old.append_column(f"{name}_new", right[name])
    return old


def _said(pairs: pa.Table, task: str) -> pa.Table:
    """With the columns ``said`` and ``said_new``: what each learner calls an image, a set of labels as one text."""
    for suffix in ("", "_new") if task != "regression" else ():
        said = pairs[f"label{suffix}"]
        if task == "multi_label":
            sets = pairs[f"labels{suffix}"].to_pylist()
            said = pa.chunked_array([[None if each is None else _one_text(each) for each in sets]], pa.string())
        pairs = pairs.append_column(f"said{suffix}", said)
    return pairs


def _one_text(labels: Iterable[str]) -> str:
    """A set of labels as it is shown."""
    return ", ".join(sorted(labels)) or NO_CLASS


def _slices(
    found: Labelled, scored: pa.Table, differs: pa.ChunkedArray | None, known: Known
) -> tuple[list[Slice], int, str]:
    """The slices on which the new learner is worse by labels; where labels say too little, those that disagree most."""
    if len(found.rows) >= ENOUGH_FOR_SLICES:
        parts, note = _parts(found.rows, known, symmetric=True)
        changed = None if known.task == "regression" else _changed(found.rows)
        sign = -1.0 if known.task == "regression" else 1.0
        worst, tested = slices.worse(parts, found.old, found.new, found.rows["uri"], changed, sign)
        return worst, tested, note
    if differs is None:
        return (
            [],
            0,
            "Without labels there are no slices of numbers, or of images that one learner alone scored.",
        )
    parts, note = _parts(scored, known, symmetric=False)
    fell = column(scored, "confidence") - column(scored, "confidence_new")
    worst, tested = slices.disagreeing(parts, _changed(scored), fell, scored["uri"])
    few = f"{len(found.rows):,} labelled images are too few to tell slices by: these are the ones that changed most."
    return worst, tested, f"{few} {note}".strip()


def _changed(rows: pa.Table) -> Vector:
    changed: Vector = pc.not_equal(rows["said"], rows["said_new"]).to_numpy().astype(np.float64)
    return changed


def _parts(rows: pa.Table, known: Known, *, symmetric: bool) -> tuple[list[slices.Part], str]:
    """How images are cut into parts. ``symmetric``: so that the two learners could change places."""
    parts = list(slices.parts_by_folder(rows["uri"]))
    if known.task == "multi_label":
        sets = [rows[name].to_pylist() for name in (("labels", "labels_new") if symmetric else ("labels",))]
        parts += slices.parts_by_class("predicted class", *sets)
    elif known.task == "single_label":
        said = [rows[name] for name in (("said", "said_new") if symmetric else ("said",))]
        parts += slices.parts_by_label("predicted class", *said)
        parts += slices.parts_by_label("true class", rows["truth"]) if symmetric else []
    if known.regions is None:
        return parts, ""
    numbers, why = known.regions(rows["uri"])
    if numbers is None:
        return parts, f"Regions are not looked at: {why}"
    return [*parts, *slices.parts_by_region(numbers, rows["said"] if "said" in rows.column_names else None)], ""


def _confusion(flipped: pa.Table) -> tuple[tuple[str, str, int], ...]:
    if not len(flipped):
        return ()
    counted = flipped.group_by(["said", "said_new"]).aggregate([("uri", "count")]).to_pylist()
    counted.sort(key=lambda row: (-row["uri_count"], row["said"], row["said_new"]))
    return tuple((row["said"], row["said_new"], row["uri_count"]) for row in counted[:MOST_CONFUSED])


def _confidence_change(scored: pa.Table) -> tuple[float, float, float]:
    change = column(scored, "confidence_new") - column(scored, "confidence")
    half = 1.96 * float(change.std(ddof=1)) / np.sqrt(len(change)) if len(change) > 1 else 0.0
    mean = float(change.mean())
    return mean, mean - float(half), mean + float(half)


def _overlap(scored: pa.Table) -> float:
    both = zip(scored["labels"].to_pylist(), scored["labels_new"].to_pylist(), strict=True)
    return float(np.mean([jaccard(set(one or ()), set(other or ())) for one, other in both]))


def _flips(flipped: pa.Table, found: Labelled, task: str, classes: Collection[str]) -> tuple[dict[str, Any], ...]:
    """The surest of the images whose label changed, with their true label where it is known.

    Of multi-label images that is written as the sets are that were said, so that it can be held against them.
    """
    if not len(flipped):
        return ()
    names = ["uri", "said", "confidence", "said_new", "confidence_new", "true_label"]
    rows = flipped.select(names).sort_by([("confidence_new", "descending")]).slice(0, MOST_FLIPS)
    here = found.rows.filter(pc.is_in(found.rows["uri"], value_set=rows["uri"].combine_chunks()))
    truth = dict(zip(here["uri"].to_pylist(), here["truth"].to_pylist(), strict=True))
    renamed = rows.rename_columns(["uri", "label", "confidence", "label_new", "confidence_new", "true_label"])
    flips = [row | {"true_label": truth.get(row["uri"], row["true_label"])} for row in renamed.to_pylist()]
    if task == "multi_label":
        joined = Joined(classes)
        flips = [
            flip | {"true_label": None if (text := flip["true_label"]) is None else _one_text(joined.classes_of(text))}
            for flip in flips
        ]
    return tuple(flips)


def _value_change(scored: pa.Table) -> float | None:
    if scored["values"].null_count or scored["values_new"].null_count:
        return None
    widths = [set(pc.list_value_length(scored[name]).unique().to_pylist()) for name in ("values", "values_new")]
    if len(widths[0]) != 1 or widths[0] != widths[1]:
        return None
    return float(np.abs(matrix(scored["values_new"]) - matrix(scored["values"])).mean())


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)
