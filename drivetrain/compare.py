"""Two runs over the same images side by side: what changed when the learner did.

Knows rows of two runs. Does not know which of the two is in use. Never subtracts embeddings of two learners: they live
in different spaces.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binomtest

from drivetrain.errors import RunError
from drivetrain.schema import column

MOST_FLIPS = 500


@dataclass(frozen=True)
class Comparison:
    """What two learners say of the same images.

    ``flips`` are the images whose label changed, most confident new label first, at most 500. ``confusion``: how often
    each label became which. ``confidence_change``: mean of new minus old over images scored by both, with a 95 %
    interval (normal approximation of the paired mean). ``accuracy``: of old and new where true labels are known;
    ``mcnemar_p`` the exact two-sided McNemar test on them.
    """

    old: str
    new: str
    images: int
    scored_by_both: int
    only_old: int
    only_new: int
    agreement: float | None
    confusion: tuple[tuple[str, str, int], ...]
    confidence_change: tuple[float, float, float] | None
    accuracy: tuple[float, float] | None
    labelled: int
    mcnemar_p: float | None
    flips: tuple[dict[str, Any], ...]
    value_change: float | None = None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


COLUMNS = ("uri", "status", "label", "confidence", "true_label", "values")


def compare(old_id: str, new_id: str, old: pa.Table, new: pa.Table) -> Comparison:
    """Compare the rows of two runs, matched by uri. Raises RunError when they have no image in common."""
    both = _joined(old, new)
    if not len(both):
        raise RunError(
            f"The runs {old_id} and {new_id} have no image in common; expected a rescore of the same images."
        )
    ok_old, ok_new = pc.equal(both["status"], "ok"), pc.equal(both["status_new"], "ok")
    scored = both.filter(pc.and_(ok_old, ok_new))
    labelled = scored["label"].null_count == 0 and scored["label_new"].null_count == 0 and len(scored) > 0
    flipped = scored.filter(pc.not_equal(scored["label"], scored["label_new"])) if labelled else scored.slice(0, 0)
    accuracy, known, p_value = _accuracy(scored) if labelled else (None, 0, None)
    return Comparison(
        old=old_id,
        new=new_id,
        images=len(both),
        scored_by_both=len(scored),
        only_old=pc.sum(pc.and_(ok_old, pc.invert(ok_new))).as_py() or 0,
        only_new=pc.sum(pc.and_(ok_new, pc.invert(ok_old))).as_py() or 0,
        agreement=1 - len(flipped) / len(scored) if labelled else None,
        confusion=_confusion(flipped),
        confidence_change=_confidence_change(scored) if labelled else None,
        accuracy=accuracy,
        labelled=known,
        mcnemar_p=p_value,
        flips=_flips(flipped),
        value_change=None if labelled or not len(scored) else _value_change(scored),
    )


def _joined(old: pa.Table, new: pa.Table) -> pa.Table:
    right = new.rename_columns([name if name == "uri" else f"{name}_new" for name in new.column_names])
    left, right = (
        table.append_column(f"row_{i}", pa.array(range(len(table)), pa.int64())) for i, table in enumerate((old, right))
    )
    places = left.select(["uri", "row_0"]).join(right.select(["uri", "row_1"]), "uri", join_type="inner")
    places = places.sort_by("row_0")
    taken_old, taken_new = old.take(places["row_0"]), right.take(places["row_1"])
    for name in taken_new.column_names:
        if name.endswith("_new"):
            taken_old = taken_old.append_column(name, taken_new[name])
    return taken_old


def _confusion(flipped: pa.Table) -> tuple[tuple[str, str, int], ...]:
    if not len(flipped):
        return ()
    counted = flipped.group_by(["label", "label_new"]).aggregate([("uri", "count")]).to_pylist()
    counted.sort(key=lambda row: (-row["uri_count"], row["label"], row["label_new"]))
    return tuple((row["label"], row["label_new"], row["uri_count"]) for row in counted)


def _confidence_change(scored: pa.Table) -> tuple[float, float, float]:
    change = column(scored, "confidence_new") - column(scored, "confidence")
    half = 1.96 * float(change.std(ddof=1)) / np.sqrt(len(change)) if len(change) > 1 else 0.0
    mean = float(change.mean())
    return mean, mean - float(half), mean + float(half)


def _accuracy(scored: pa.Table) -> tuple[tuple[float, float] | None, int, float | None]:
    known = scored.filter(pc.is_valid(scored["true_label"]))
    if not len(known):
        return None, 0, None
    old = pc.equal(known["label"], known["true_label"]).to_numpy(zero_copy_only=False)
    new = pc.equal(known["label_new"], known["true_label"]).to_numpy(zero_copy_only=False)
    lost, won = int((old & ~new).sum()), int((~old & new).sum())
    p_value = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return (float(old.mean()), float(new.mean())), len(known), p_value


def _flips(flipped: pa.Table) -> tuple[dict[str, Any], ...]:
    names = ["uri", "label", "confidence", "label_new", "confidence_new", "true_label"]
    rows = flipped.select(names).sort_by([("confidence_new", "descending")]).slice(0, MOST_FLIPS)
    return tuple(rows.to_pylist())


def _value_change(scored: pa.Table) -> float | None:
    if scored["values"].null_count or scored["values_new"].null_count:
        return None
    old = np.array(scored["values"].to_pylist(), dtype=np.float64)
    new = np.array(scored["values_new"].to_pylist(), dtype=np.float64)
    return float(np.abs(new - old).mean()) if old.shape == new.shape else None
