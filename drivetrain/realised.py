"""How often a learner was right, by the labels of people: counted, with an interval, and never more than they can say.

Knows rows and labels. Does not know how images came to be labelled but for those drawn at random: these alone speak for
a night. The images of a review queue are the ones that moved most, and what is true of them is not true of the night.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from scipy.stats import binomtest

from drivetrain.findings import Realised
from drivetrain.labelfiles import delimiter_of
from drivetrain.run import Run

SURE = 0.95
COLUMNS = ("uri", "status", "label", "labels", "values")


def realised_of(run: Run, people: Mapping[str, str], drawn: frozenset[str]) -> tuple[Realised, ...]:
    """What people's labels say of a committed run: of all its images, or of those drawn, and of the others labelled.

    ``people``: labels by uri. ``drawn``: the uris that were drawn at random of the run's plan. Empty for a regression,
    and where no scored image has a label.
    """
    if not people or run.record.task == "regression":
        return ()
    scored = 0
    right: dict[bool, list[bool]] = {True: [], False: []}
    there = 0
    for rows in _scored(run):
        scored += len(rows)
        for row in rows.select(["uri", "label", "labels"]).to_pylist():
            there += row["uri"] in drawn
            if row["uri"] in people:
                right[row["uri"] in drawn].append(_right(row, people[row["uri"]], run))
    every = right[True] + right[False]
    if every and len(every) == scored:
        share = sum(every) / scored
        return (Realised("all", scored, scored, sum(every), share, share, share),)
    found = [_counted("random", right[True], there), _counted("moved", right[False], len(right[False]))]
    return tuple(each for each in found if each)


def draw(run: Run, number: int) -> list[str]:
    """So many scored images of a run, drawn evenly; more of them hold fewer, and every learner's run gives the same.

    By a hash of plan and uri, so that it needs no state: who asks again is given the same images.
    """
    plan = f"{run.record.source}\0{run.record.kind}\0{run.record.name}\0"

    def hashed() -> Iterator[tuple[bytes, str]]:
        for rows in _scored(run):
            for uri in rows["uri"].to_pylist():
                yield hashlib.blake2b((plan + uri).encode(), digest_size=16).digest(), uri

    return [uri for _, uri in heapq.nsmallest(number, hashed())]


def rows_of(run: Run, uris: Iterable[str], columns: list[str]) -> dict[str, dict[str, Any]]:
    """Some columns of some scored images of a committed run, by uri, part by part."""
    wanted = set(uris)
    names = list(dict.fromkeys(["uri", *columns]))
    found: dict[str, dict[str, Any]] = {}
    for rows in _scored(run, names):
        mask = pa.array([uri in wanted for uri in rows["uri"].to_pylist()], pa.bool_())
        found |= {row["uri"]: row for row in rows.filter(mask).to_pylist()}
    return found


def _scored(run: Run, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows with status ok, part by part: memory stays bounded for a run of any size."""
    commit = run.committed()
    assert commit is not None, "only what is committed is read"
    for name in sorted(commit.parts):
        names = list(dict.fromkeys([*(columns or COLUMNS), "status"]))
        rows = run.store.read_table(f"{run.paths.parts}/{name}", names)
        yield rows.filter(pa.array([status == "ok" for status in rows["status"].to_pylist()], pa.bool_()))


def _right(row: Mapping[str, object], label: str, run: Run) -> bool:
    if run.record.task != "multi_label":
        return row["label"] is not None and str(row["label"]).strip() == label
    wanted = {word for each in label.split(delimiter_of(run.record.vocab)) if (word := each.strip())}
    said = row["labels"]
    return isinstance(said, list) and {str(word).strip() for word in said} == wanted


def _counted(chosen: str, right: list[bool], drawn: int) -> Realised | None:
    """The share that is right, with an exact (Clopper-Pearson) interval.

    An image that was drawn and has no label may be either: the low end counts it as wrong, the high end as right. So
    who labels the easy ones alone gets a wide interval.
    """
    labelled, good = len(right), sum(right)
    if not labelled:
        return None
    low = binomtest(good, drawn).proportion_ci(SURE, method="exact").low
    high = binomtest(good + drawn - labelled, drawn).proportion_ci(SURE, method="exact").high
    return Realised(chosen, drawn, labelled, good, good / labelled, float(low), float(high))
