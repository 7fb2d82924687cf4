"""Is tonight from the same world as the reference? Pure functions: arrays in, records out.

Knows statistics. Does not know files, images or what an alarm costs.

Two statistics decide, because they see different things: MMD what images look like to the network, BBSD what it takes
them for:

mmd    maximum mean discrepancy of the whitened embeddings with random Fourier features
       (Gretton et al. 2012, JMLR 13; Rahimi and Recht 2007, NIPS 20)
bbsd   distance of the mean softmax, each class scaled by its spread
       (Lipton et al. 2018, arXiv:1802.03916; Rabanser et al. 2019, arXiv:1810.11953)

Each is standardised by its own null, and the larger one is `combined`. Every null comes from splits of the reference
against itself, whole groups at a time, so that no table of a textbook and no assumption on the network is needed.
Beside them stand confidence, energy and label shares, which never decide: they say what changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.stats import rankdata

from drivetrain.findings import Decision, Statistic
from drivetrain.groups import capped, usual_size, whole_groups
from drivetrain.lens import Features, Indices, Lens, Matrix, Scores, Vector

MAX_REFERENCE = 5000
MAX_CURRENT = 1000
# Splits that play a night much larger than a fifth of the reference make thresholds that alarm falsely.
REFERENCE_PER_IMAGE = 5
# With fewer images (or groups, where images come in groups) on the night's side of a split the null is too coarse.
SMALLEST_TEST, FEWEST_GROUPS = 50, 20
# An alpha needs ten splits beyond its threshold to be known to a third; more than the most take minutes.
SPLITS_BEYOND = 10
MIN_SPLITS, MAX_SPLITS = 1000, 50_000
SPLITS_AT_ONCE = 250
DECIDING = ("mmd", "bbsd")
# Two halves point less well: by embeddings alone, 47 % of the 50 images furthest along were darkened ones and not 56 %,
# where 20 % were.
FOLDS = 10
# Standard deviations of the reference beyond which a property says no more, and the share of a property's variance
# below which the embeddings tell it all, and what they leave is noise.
FURTHEST, TOLD_BY_EMBEDDINGS = 6.0, 0.01
# The reference is one sample, used every night: one that lies off by chance alarms again and again. So its share of
# the variance counts twice; benchmarks/drift.py measures it.
REFERENCE_ERROR = 2.0
# Fewer accepted nights say too little of how nights differ.
ENOUGH_ACCEPTED = 20


@dataclass(frozen=True)
class Null:
    """What no drift looks like for nights of n images: a column of values for each statistic, a row for each split."""

    names: tuple[str, ...]
    values: npt.NDArray[np.float64]

    @property
    def combined(self) -> Vector:
        """The larger of the standardised deciding statistics, of each split."""
        largest: Vector = self.standardised(self.values).max(axis=1)
        return largest

    def standardised(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The deciding statistics of some nights in standard deviations of the null, shape (nights, 1 or 2)."""
        places = [place for place, name in enumerate(self.names) if name in DECIDING]
        of_null = self.values[:, places]
        spread = np.maximum(of_null.std(axis=0), 1e-12)
        scaled: npt.NDArray[np.float64] = (values[:, places] - of_null.mean(axis=0)) / spread
        return scaled


class Yardstick:
    """A reference made ready to hold nights against: at most 5,000 of its images, in groups, seen through its lens.

    Making one costs a second, and the null of each size of night another few, once.
    """

    def __init__(self, reference: Scores, lens: Lens, seed: int) -> None:
        """Raises ValueError for fewer than 2 images."""
        if len(reference) < 2:
            raise ValueError(f"need at least 2 reference images, found {len(reference)}")
        self._rng_key = seed
        rng = np.random.default_rng([seed, 1])
        self.lens, self.cap = lens, usual_size(reference.groups)
        places = capped(reference.groups, self.cap, rng)
        self.held = reference.take(places).take(whole_groups(reference.groups[places], MAX_REFERENCE, rng))
        self._blocks = lens.blocks(self.held)
        self._means = {name: block.mean(axis=0) for name, block in self._blocks.items()}
        self._nulls: dict[tuple[int, int], Null] = {}

    def size_for(self, n_current: int) -> int:
        """How many of a night's images enter the test: a fixed size, bounded by a fifth of the reference."""
        return max(1, min(n_current, len(self.held) // REFERENCE_PER_IMAGE, MAX_CURRENT))

    def drawn(self, current: Scores, seed: int) -> Scores:
        """The images of a night that enter the test: whole groups, none larger than the reference's usually are."""
        rng = np.random.default_rng([seed, 4])
        places = capped(current.groups, self.cap, rng)
        n = self.size_for(len(places))
        return current.take(places).take(whole_groups(current.groups[places], n, rng))

    def values(self, current: Scores) -> dict[str, float]:
        """Each statistic of some images: how far their mean features lie from the reference's."""
        blocks = self.lens.blocks(current)
        return {
            name: float(np.linalg.norm(blocks[name].mean(axis=0) - mean))
            for name, mean in self._means.items()
            if name in blocks
        }

    def null(self, n: int, splits: int) -> Null:
        """The null of nights of n images: n reference images, in whole groups, against the others."""
        if (n, splits) not in self._nulls:
            self._nulls[n, splits] = self._split(n, splits)
        return self._nulls[n, splits]

    def _split(self, n: int, splits: int) -> Null:
        rng = np.random.default_rng([self._rng_key, 5, n])
        m, found = len(self.held), []
        for first in range(0, splits, SPLITS_AT_ONCE):
            inside = np.zeros((min(SPLITS_AT_ONCE, splits - first), m), dtype=np.float32)
            for row in inside:
                row[whole_groups(self.held.groups, n, rng)] = 1 / n
            found.append(np.stack([self._gaps(name, inside, n) for name in self._blocks], axis=1))
        return Null(tuple(self._blocks), np.concatenate(found))

    def _gaps(self, name: str, inside: Features, n: int) -> Vector:
        # mean(inside) - mean(all) has the variance 1/n - 1/m of one image's; a night's against the reference 1/n + 1/m.
        m = len(self.held)
        scale = np.sqrt((1 / n + REFERENCE_ERROR / m) / max(1 / n - 1 / m, 1e-12))
        gaps = inside @ self._blocks[name] - self._means[name]
        norms: Vector = (np.linalg.norm(gaps, axis=1) * scale).astype(np.float64)
        return norms


def splits_for(alpha: float) -> int:
    """As many splits as an alpha needs, between 1,000 and 50,000."""
    return min(MAX_SPLITS, max(MIN_SPLITS, int(np.ceil(SPLITS_BEYOND / alpha)))) if alpha > 0 else MIN_SPLITS


def decide(
    yardstick: Yardstick,
    current: Scores,
    *,
    alpha: float,
    seed: int,
    accepted: Sequence[float] = (),
    grouped_by: str = "",
) -> Decision:
    """Hold a night against a reference.

    ``accepted``: the value of `combined` on nights that were accepted as usual; from 20 on, how these differ widens the
    null. Raises ValueError for fewer than 2 images; whether there are enough to say anything is the verdict's business.
    """
    if len(current) < 2:
        raise ValueError(f"need at least 2 images, found {len(current)}")
    tested = yardstick.drawn(current, seed)
    splits = splits_for(alpha)
    null = yardstick.null(len(tested), splits)
    values = yardstick.values(tested)
    # A statistic that the night has no values for (no energy) is left out.
    kept = [place for place, name in enumerate(null.names) if name in values]
    null = Null(tuple(null.names[place] for place in kept), null.values[:, kept])
    row = np.array([[values[name] for name in null.names]])
    of_null, widened = widen(null.combined, accepted)
    combined = judged("combined", float(null.standardised(row).max()), of_null, alpha)
    beside = [judged(name, values[name], null.values[:, place], alpha) for place, name in enumerate(null.names)]
    return Decision(
        n_current=len(current),
        n_reference=len(yardstick.held),
        n_tested=len(tested),
        groups_tested=len(np.unique(tested.groups)),
        groups_reference=len(np.unique(yardstick.held.groups)),
        grouped_by=grouped_by,
        splits=splits,
        alpha=alpha,
        seed=seed,
        p_value=combined.p_value,
        effect=effect(yardstick.lens, yardstick.held, current, seed),
        statistics=(combined, *beside),
        accepted=len(accepted),
        widened=widened,
    )


def widen(null: Vector, accepted: Sequence[float]) -> tuple[Vector, float]:
    """Let the spread between accepted nights enter a null; returns it, and by how much it is wider (1: not at all).

    From 20 accepted nights on: the null is moved by what their mean lies above its own, and stretched by the ratio of
    their standard deviation to its own, times sqrt(1 + 1/k) for the next night of k known ones. Neither makes it
    narrower: accepting quiet nights must not make a monitor nervous.
    """
    if len(accepted) < ENOUGH_ACCEPTED:
        return null, 1.0
    k, centre, spread = len(accepted), float(null.mean()), max(float(null.std()), 1e-12)
    higher = max(0.0, float(np.mean(accepted)) - centre)
    wider = max(1.0, float(np.std(accepted, ddof=1)) * np.sqrt(1 + 1 / k) / spread)
    return centre + higher + (null - centre) * wider, float(wider)


def judged(name: str, value: float, null: Vector, alpha: float) -> Statistic:
    """A value with its p-value and threshold under a null."""
    p_value = (1 + int((null >= value).sum())) / (1 + len(null))
    threshold = float(np.quantile(null, 1 - alpha))
    quantiles = tuple(float(each) for each in np.quantile(null, np.linspace(0, 1, 41)))
    return Statistic(name, value, p_value, threshold, float(null.mean()), quantiles)


def moved(lens: Lens, reference: Scores, current: Scores, seed: int) -> tuple[Vector, Vector]:
    """How far each image lies in the direction in which the night moved, in standard deviations of the reference.

    Returns the current images' distances (n,) and the reference's (m,). Looks at the embeddings and, beside them, at
    what the pixels' properties say that embeddings do not: a network that learnt to see through the dark hardly tells
    a darkened image, its brightness does.
    """
    whitened = lens.whiten(reference), lens.whiten(current)
    beside = _beside_embeddings(whitened, (reference.properties, current.properties))
    of_reference, of_current = (np.hstack(each) for each in zip(whitened, beside, strict=True))
    return _along_shift(of_reference, of_current, reference.groups, current.groups, seed)


def _beside_embeddings(whitened: tuple[Matrix, Matrix], properties: tuple[Matrix, Matrix]) -> tuple[Matrix, Matrix]:
    """What is left of the properties, the embeddings' share taken off, each axis of unit variance on the reference.

    Both are pairs of the reference and the night; returns such a pair, with a column for each property that all images
    have and that differs between the reference's. One odd image is never further than `FURTHEST` of a property.
    """
    of_reference, of_current = properties
    known = np.isfinite(of_reference).all(axis=0) & np.isfinite(of_current).all(axis=0)
    known &= np.array([len(np.unique(each)) > 1 for each in of_reference.T])
    if not known.any():
        return np.zeros((len(of_reference), 0)), np.zeros((len(of_current), 0))
    mean, spread = of_reference[:, known].mean(axis=0), of_reference[:, known].std(axis=0)
    scaled = [np.clip((each[:, known] - mean) / spread, -FURTHEST, FURTHEST) for each in properties]
    told, *_ = np.linalg.lstsq(whitened[0], scaled[0], rcond=None)
    left, left_current = (each - white @ told for each, white in zip(scaled, whitened, strict=True))
    values, vectors = eigh(np.atleast_2d(np.cov(left, rowvar=False)))
    axes = vectors / np.sqrt(np.maximum(values, TOLD_BY_EMBEDDINGS))
    return (left - left.mean(axis=0)) @ axes, (left_current - left.mean(axis=0)) @ axes


def _along_shift(
    of_reference: Matrix, of_current: Matrix, reference_groups: Indices, current_groups: Indices, seed: int
) -> tuple[Vector, Vector]:
    """Images along the whitened difference of means, in standard deviations of the reference: night, reference.

    Each image is projected on the direction that the other nine tenths of the groups give, so that neither it nor its
    near-duplicates vote for it.
    """
    out_current, out_reference = np.zeros(len(of_current)), np.zeros(len(of_reference))
    if len(of_reference) < 4 or len(of_current) < 4:
        return out_current, out_reference
    rng = np.random.default_rng([seed, 3])
    folds_reference, folds_current = _folds(reference_groups, rng), _folds(current_groups, rng)
    for fold in range(FOLDS):
        learnt_reference, learnt = of_reference[folds_reference != fold], of_current[folds_current != fold]
        if not len(learnt_reference) or not len(learnt):
            continue
        gap = learnt.mean(axis=0) - learnt_reference.mean(axis=0)
        along = learnt_reference @ gap
        centre, spread = along.mean(), max(float(along.std()), 1e-12)
        out_current[folds_current == fold] = (of_current[folds_current == fold] @ gap - centre) / spread
        out_reference[folds_reference == fold] = (of_reference[folds_reference == fold] @ gap - centre) / spread
    return out_current, out_reference


def _folds(groups: Indices, rng: np.random.Generator) -> Indices:
    numbers = np.unique(groups, return_inverse=True)[1]
    folds: Indices = (rng.permutation(int(numbers.max()) + 1) % FOLDS)[numbers]
    return folds


def effect(lens: Lens, reference: Scores, current: Scores, seed: int) -> float:
    """How often, of a random pair, the current image is told by its embedding: 0.5 is chance, 1 is always."""
    whitened = lens.whiten(reference), lens.whiten(current)
    of_current, of_reference = _along_shift(*whitened, reference.groups, current.groups, seed)
    return max(0.5, area_under_roc(of_current, of_reference))


def area_under_roc(positive: Vector, negative: Vector) -> float:
    """The share of pairs in which the positive one is larger, ties counted half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))
