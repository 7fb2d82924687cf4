"""How many labels are likely right tonight, without labels: a range, or "can't say".

Knows held-out images with true labels. Does not know whether the night drifted: images may look different and be
labelled as well as ever, and the other way round.

atc    average thresholded confidence: the share of images above the confidence that as large a share of the held-out
       images exceeds as are labelled right (Garg et al. 2022, arXiv:2201.04234)
doc    difference of confidences: held-out accuracy plus the change of the mean confidence
       (Guillory et al. 2021, arXiv:2107.03315)

The range spans both, each with its bootstrap interval: where they disagree, nobody should trust one of them. Both fail
on images of a new kind, on which a learner may be sure and wrong; then nothing is said.
"""

from dataclasses import dataclass

import numpy as np

from drivetrain.findings import Accuracy
from drivetrain.groups import whole_groups
from drivetrain.lens import Lens, Matrix, Scores, Vector

RESAMPLES = 200
# Fewer labelled images than this, of all or of a class, give no estimate.
ENOUGH_LABELLED = 100
ENOUGH_OF_CLASS = 40
# One in a hundred of the reference's own images counts as novel.
NOVEL_QUANTILE = 0.99
MOST_NOVEL = 0.05
MOST_TOLD_APART = 0.85


def estimate(lens: Lens, reference: Scores, current: Scores, effect: float, seed: int) -> Accuracy | None:
    """Estimate the accuracy on the current images; None where the reference has no labels to learn it from.

    ``effect`` (0.5..1): how often a current image is told from a reference one. Where that is nearly always so, the
    reference has nothing like these images, and nothing is said.
    """
    known = reference.take(np.flatnonzero(reference.truth >= 0))
    if len(known) < ENOUGH_LABELLED or not len(current) or np.isnan(known.confidence).any():
        return None
    right = (known.labels == known.truth).astype(np.float64)
    novel = novel_share(lens, reference, current)
    if novel > MOST_NOVEL or effect > MOST_TOLD_APART:
        why = (
            f"{novel:.0%} of the images look like nothing in the reference (of its own, 1 % do), and of a pair the new "
            f"one is told in {effect:.0%}"
        )
        return Accuracy(float(right.mean()), None, None, None, novel, why)
    rng = np.random.default_rng([seed, 6])
    both = []
    for _ in range(RESAMPLES):
        theirs = _resampled(known, rng)
        ours = _resampled(current, rng)
        both.append((_atc(known.confidence[theirs], right[theirs], current.confidence[ours]),
                     _doc(known.confidence[theirs], right[theirs], current.confidence[ours])))  # fmt: skip
    low, high = np.quantile(np.array(both), [0.025, 0.975], axis=0)
    return Accuracy(
        reference=float(right.mean()),
        estimate=_atc(known.confidence, right, current.confidence),
        low=float(np.clip(low.min(), 0, 1)),
        high=float(np.clip(high.max(), 0, 1)),
        novel=novel,
    )


@dataclass(frozen=True)
class OfClass:
    """Of a predicted class: the accuracy measured on the reference, the one estimated now, and its 95 % range."""

    reference: float | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None


def by_class(reference: Scores, current: Scores, classes: int, seed: int) -> list[OfClass]:
    """Each predicted class by ATC, with its bootstrap range; None where there are too few images."""
    found: list[OfClass] = []
    known, rng = reference.truth >= 0, np.random.default_rng([seed, 8])
    for each in range(classes):
        ours, theirs = current.labels == each, known & (reference.labels == each)
        if theirs.sum() < ENOUGH_OF_CLASS:
            found.append(OfClass())
            continue
        right = (reference.truth[theirs] == each).astype(np.float64)
        if ours.sum() < ENOUGH_OF_CLASS:
            found.append(OfClass(float(right.mean())))
            continue
        before, now = reference.take(np.flatnonzero(theirs)), current.take(np.flatnonzero(ours))
        guesses = []
        for _ in range(RESAMPLES):
            first, second = _resampled(before, rng), _resampled(now, rng)
            guesses.append(_atc(before.confidence[first], right[first], now.confidence[second]))
        low, high = np.quantile(guesses, [0.025, 0.975])
        guess = _atc(before.confidence, right, now.confidence)
        found.append(OfClass(float(right.mean()), guess, min(float(low), guess), max(float(high), guess)))
    return found


def novel_share(lens: Lens, reference: Scores, current: Scores) -> float:
    """The share of images that lie further from the reference's middle than 99 % of its own, by whitened embedding."""
    limit = float(np.quantile(_norms(lens.whiten(reference)), NOVEL_QUANTILE))
    return float((_norms(lens.whiten(current)) > limit).mean())


def _norms(whitened: Matrix) -> Vector:
    norms: Vector = np.linalg.norm(whitened, axis=1)
    return norms


def _resampled(scores: Scores, rng: np.random.Generator) -> np.ndarray:
    """Places of a bootstrap sample of whole groups, as many images as there are."""
    if len(np.unique(scores.groups)) == len(scores):
        return rng.integers(0, len(scores), len(scores))
    # Whole groups without replacement, half of them: as wide as a bootstrap, once stretched by the others.
    half = whole_groups(scores.groups, max(1, len(scores) // 2), rng)
    return np.concatenate([half, half])


def _atc(known: Vector, right: Vector, current: Vector) -> float:
    limit = np.quantile(known, 1 - right.mean())
    return float((current > limit).mean()) if len(current) else float("nan")


def _doc(known: Vector, right: Vector, current: Vector) -> float:
    return float(right.mean() + current.mean() - known.mean())
