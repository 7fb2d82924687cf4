"""Which of two learners is right more often, on images whose true label is known and that no training saw.

Knows pairs of rows, and labels. Does not know where labels or training sets come from. Whatever a label is (a class, a
set of classes, numbers), an image gets one number from each learner, more being better, and what follows is paired.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.comparison import Truth
from drivetrain.labelfiles import DELIMITERS
from drivetrain.lens import Vector
from drivetrain.paired import images_needed, mean_interval, newcombe, sign_test, signed_ranks

# A difference that is worth to know of: 2 points; of a regression a twentieth of the old learner's error.
MARGIN = 0.02
MARGIN_OF_ERROR = 0.05
MEASURES = {"single_label": "accuracy", "multi_label": "jaccard", "regression": "error"}


@dataclass(frozen=True)
class Training:
    """The images that a learner was trained on: by uri, and by the hash of their bytes."""

    uris: pa.Array
    hashes: pa.Array


@dataclass(frozen=True)
class Labelled:
    """The images that tell: ``rows`` with their ``truth``, and how good each learner is on each; more is better.

    ``old``, ``new`` (n,): 0 or 1, a Jaccard index, or an error below zero.
    """

    rows: pa.Table
    old: Vector
    new: Vector


@dataclass(frozen=True)
class Counted:
    """Labelled images that do not tell, and why; and how many labels are people's."""

    trained_old: int
    trained_new: int
    only_old: int
    only_new: int
    unreadable: int
    by_people: int


def labelled(
    pairs: pa.Table,
    people: Mapping[str, str],
    trained: tuple[Training | None, Training | None],
    task: str,
    classes: Collection[str] = (),
) -> tuple[Labelled, Counted]:
    """The images with a true label that both scored and neither was trained on, and how many fell out.

    ``pairs``: rows of both runs. ``classes``: those that either learner knows, which say what joins the labels of an
    image. People's labels win over the column ``true_label``.
    """
    given = pc.index_in(pairs["uri"], value_set=pa.array(list(people), pa.string()))
    by_people = pa.array(list(people.values()), pa.string()).take(given.combine_chunks())
    truth = pc.coalesce(by_people, pairs["true_label"], pairs["true_label_new"])
    rows = pairs.append_column("truth", truth).append_column("of_people", pc.is_valid(by_people))
    usable = pc.is_valid(truth) if task == "multi_label" else pc.greater(pc.utf8_length(truth), 0).fill_null(False)
    rows = rows.filter(usable)
    seen = [_seen(rows, each) for each in trained]
    rows = rows.filter(pc.invert(pc.or_(*seen)))
    ok_old, ok_new = (pc.equal(rows[name], "ok") for name in ("status", "status_new"))
    scored = rows.filter(pc.and_(ok_old, ok_new))
    joined = Joined(classes)
    old, new = _goodness(scored, "", task, joined), _goodness(scored, "_new", task, joined)
    readable = ~np.isnan(old) & ~np.isnan(new)
    scored = scored.filter(pa.array(readable))
    counted = Counted(
        trained_old=_count(seen[0]),
        trained_new=_count(seen[1]),
        only_old=_count(pc.and_(ok_old, pc.invert(ok_new))),
        only_new=_count(pc.and_(ok_new, pc.invert(ok_old))),
        unreadable=int((~readable).sum()),
        by_people=_count(scored["of_people"]),
    )
    return Labelled(scored, old[readable], new[readable]), counted


def judged(
    found: Labelled, counted: Counted, *, task: str, known: tuple[bool, bool], changed: float | None, classes: set[str]
) -> Truth:
    """Both learners on the labelled images, with a paired test and the interval of the difference.

    ``changed``: the share of all images whose label changed, by which is told how many labels are needed where there
    are few. ``classes``: those that either learner knows.
    """
    n, old, new = len(found.rows), found.old, found.new
    lost, won = int((new < old).sum()), int((new > old).sum())
    sign = -1.0 if task == "regression" else 1.0
    difference, low, high = _difference(old, new, task)
    if sign < 0 and low is not None and high is not None:
        low, high = -high, -low
    margin = MARGIN if task != "regression" else MARGIN_OF_ERROR * (abs(float(old.mean())) if n else 1.0)
    needed = _needed(old, new, margin, changed, task)
    p_value = None if not n else sign_test(lost, won) if task == "single_label" else signed_ranks(new - old)
    return Truth(
        measure=MEASURES[task],
        labelled=n,
        by_people=counted.by_people,
        old=sign * float(old.mean()) if n else None,
        new=sign * float(new.mean()) if n else None,
        difference=None if difference is None else sign * difference,
        low=low,
        high=high,
        lost=lost,
        won=won,
        p_value=p_value,
        test="McNemar exact" if task == "single_label" else "Wilcoxon signed-rank",
        margin=margin,
        needed=needed,
        needed_flips=None if changed is None else int(np.ceil(needed * changed)),
        labelled_flips=None if changed is None else _count(pc.not_equal(found.rows["said"], found.rows["said_new"])),
        trained_old=counted.trained_old,
        trained_new=counted.trained_new,
        known_training_old=known[0],
        known_training_new=known[1],
        only_old=counted.only_old,
        only_new=counted.only_new,
        foreign=_foreign(found.rows, classes, task),
        unreadable=counted.unreadable,
    )


def _difference(old: Vector, new: Vector, task: str) -> tuple[float | None, float | None, float | None]:
    """New less old, with its 95 % interval: Newcombe's of two paired shares, else Student's."""
    if not len(old):
        return None, None, None
    if task != "single_label":
        return (float((new - old).mean()), *mean_interval(new - old))
    right, now = old > 0, new > 0
    cells = (int(cell.sum()) for cell in (right & now, right & ~now, ~right & now, ~right & ~now))
    return (float(now.mean() - right.mean()), *newcombe(*cells))


def _needed(old: Vector, new: Vector, margin: float, changed: float | None, task: str) -> int:
    """How many labels show a difference of the margin."""
    enough_to_know = len(old) >= 100
    if task == "single_label":
        # An image of which only one is right has changed its label: the share that changed is the most it can be.
        most = 1.0 if changed is None else changed
        return images_needed(margin, differing=float((old != new).mean()) if enough_to_know else most)
    spread = float((new - old).std()) if enough_to_know else 0.5 * (1.0 if task == "multi_label" else 20 * margin)
    return max(1, images_needed(margin, spread=spread)) if margin else 1


def _seen(rows: pa.Table, training: Training | None) -> pa.ChunkedArray:
    """Which images a learner was trained on, under this name or another."""
    if training is None:
        return pa.chunked_array([pa.array(np.zeros(len(rows), bool))])
    by_name = pc.is_in(rows["uri"], value_set=training.uris)
    by_bytes = [
        pc.and_(pc.is_in(rows[name], value_set=training.hashes), pc.is_valid(rows[name]))
        for name in ("content_hash", "content_hash_new")
    ]
    return pc.or_(by_name, pc.or_(*by_bytes))


def _goodness(rows: pa.Table, suffix: str, task: str, joined: "Joined") -> Vector:
    """How good a learner is on each image, NaN where the true label can't be read."""
    if task == "single_label":
        right: Vector = pc.equal(rows[f"said{suffix}"], rows["truth"]).fill_null(False).to_numpy().astype(np.float64)
        return right
    truths = rows["truth"].to_pylist()
    if task == "multi_label":
        sets = [set(each or ()) for each in rows[f"labels{suffix}"].to_pylist()]
        return np.array([jaccard(mine, joined.classes_of(text)) for mine, text in zip(sets, truths, strict=True)])
    values = rows[f"values{suffix}"].to_pylist()
    return np.array([-_error(mine, text) for mine, text in zip(values, truths, strict=True)])


class Joined:
    """Reads the true labels of multi-label images, which are written as one text each."""

    def __init__(self, classes: Collection[str]) -> None:
        self._known = frozenset(classes)
        # What is inside a class's name joins none: the labels that people gave are joined likewise.
        self._marks = [each for each in DELIMITERS if not any(each in word for word in self._known)]

    def classes_of(self, text: str) -> set[str]:
        """The classes of an image: joined by ``;``, ``|``, ``,``, a tab or, as fastai has it, by a space."""
        if text in self._known:
            return {text}
        mark = next((each for each in self._marks if each in text), " ")
        return {part.strip() for part in text.split(mark)} - {""}


def jaccard(one: set[str], other: set[str]) -> float:
    """The labels that both sets hold, of all in either; 1 for two empty ones."""
    return len(one & other) / len(one | other) if one | other else 1.0


def _error(values: list[float] | None, text: str) -> float:
    try:
        true = [float(part) for part in re.split(r"[\s,;|]+", text.strip("[]() "))]
    except ValueError:
        return float("nan")
    if values is None or len(values) != len(true):
        return float("nan")
    return float(np.abs(np.array(values) - true).mean())


def _foreign(rows: pa.Table, classes: set[str], task: str) -> int:
    """Images whose true label neither learner knows, so that both must be wrong."""
    if task != "single_label" or not classes:
        return 0
    return len(rows) - _count(pc.is_in(rows["truth"], value_set=pa.array(sorted(classes), pa.string())))


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)
