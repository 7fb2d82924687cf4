"""The images on which two runs disagree, most telling first: labels of these alone can tell two learners apart.

Knows rows of two runs. Does not know what the two learners are, or who has labelled what.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from drivetrain.compare import columns_of, flipped_images
from drivetrain.errors import SettingError
from drivetrain.lens import Matrix
from drivetrain.realised import rows_of
from drivetrain.review import CHOICE, apart
from drivetrain.run import Run
from drivetrain.schema import column


@dataclass(frozen=True)
class Flips:
    """``uris``: the images to be labelled, in their order. ``labelled``: those that have labels and are left out."""

    uris: tuple[str, ...]
    labelled: frozenset[str]


def flips_to_label(old: Run, new: Run, size: int, labelled: Collection[str]) -> Flips:
    """At most ``size`` images that two committed runs both scored and call otherwise, without the ``labelled`` ones.

    First those of which the less sure of the two is surest, diverse as a review queue is. Raises SettingError for
    learners of numbers, which have no labels, and for two of different kinds.
    """
    if new.record.task == "regression" or old.record.task != new.record.task:
        raise SettingError(
            f"--flips: expected two runs with labels, found {old.record.run_id} ({old.record.task}) and "
            f"{new.record.run_id} ({new.record.task})."
        )
    columns = columns_of(new.record.task)
    flipped = flipped_images(old.rows(columns), new.rows(columns), new.record.task)
    uris = flipped["uri"].to_pylist()
    known = np.array([uri in labelled for uri in uris], bool)
    sure = np.minimum(column(flipped, "confidence"), column(flipped, "confidence_new"))
    order = np.argsort(-np.where(np.isnan(sure), 0, sure), kind="stable")
    order = order[~known[order]][: CHOICE * size]
    first = [uris[place] for place in order]
    if len(first) > size and (points := _standardised(new, first)) is not None:
        first = [first[place] for place in apart(np.arange(len(first)), points, size)]
    return Flips(tuple(first[:size]), frozenset(uri for uri, is_known in zip(uris, known, strict=True) if is_known))


def _standardised(run: Run, uris: list[str]) -> Matrix | None:
    """The embeddings of some images, each number by its spread among them; None where the run has none."""
    if not run.record.embedding_size:
        return None
    rows = rows_of(run, uris, ["embedding"])
    points = np.array([rows[uri]["embedding"] for uri in uris], np.float64)
    spread = points.std(axis=0)
    scaled: Matrix = (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scaled
