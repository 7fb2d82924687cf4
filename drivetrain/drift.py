"""Is tonight from the same world as the reference? Pure functions: arrays in, records out.

Knows statistics. Does not know files, images or what an alarm costs.

Two statistics decide, because they see different things: MMD what images look like to the network, BBSD above all what
it takes them for:

mmd    maximum mean discrepancy of the embeddings with random Fourier features
       (Gretton et al. 2012, JMLR 13; Rahimi and Recht 2007, NIPS 20)
bbsd   largest Kolmogorov-Smirnov distance over the softmax columns
       (Lipton et al. 2018, arXiv:1802.03916; Rabanser et al. 2019, arXiv:1810.11953)

Each is standardised by its own null, and the larger one is `combined`. Every null comes from splits of the reference
against itself, so that no table of a textbook and no assumption on the network is needed. Beside them stand confidence,
energy and label shares, which never decide: they say what changed.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]

FEATURES = 1024
COMPONENTS = 64
MAX_REFERENCE = 5000
MAX_CURRENT = 1000
# Splits that play a night much larger than a fifth of the reference make thresholds that alarm falsely.
REFERENCE_PER_IMAGE = 5
MAX_COLUMNS = 100
# Below that many images on the night's side of a split, the null is too coarse to mean much.
SMALLEST_TEST = 50
# More splits than that fill memory; the verdict says when they are too few for an alpha.
MIN_SPLITS, MAX_SPLITS = 1000, 10_000


@dataclass(frozen=True)
class Scores:
    """What a learner said of n images, without failed ones.

    ``embeddings`` (n, d); ``outputs`` (n, k): softmax, multi-label probabilities, or regression values;
    ``confidence``, ``energy`` (n,), NaN where there is none; ``labels`` (n,) indices into the vocab, empty for a
    regression.
    """

    embeddings: Matrix
    outputs: Matrix
    confidence: Vector
    energy: Vector
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.outputs)

    def take(self, rows: npt.NDArray[np.int64]) -> "Scores":
        """Some of the images, in the order given."""
        labels = self.labels[rows] if len(self.labels) else self.labels
        return Scores(self.embeddings[rows], self.outputs[rows], self.confidence[rows], self.energy[rows], labels)


@dataclass(frozen=True)
class Statistic:
    """One number, its null and its p-value. ``threshold`` is the null's 1 - alpha quantile."""

    name: str
    value: float
    p_value: float
    threshold: float
    null_mean: float
    null: tuple[float, ...] = field(repr=False, default=())

    def record(self) -> dict[str, Any]:
        """As JSON, the null as 41 quantiles from its least to its largest value."""
        quantiles = [float(q) for q in np.quantile(self.null, np.linspace(0, 1, 41))] if self.null else []
        return asdict(self) | {"null": quantiles}


@dataclass(frozen=True)
class Drift:
    """A current sample held against a reference.

    ``n_current, n_reference`` images at hand; ``n_tested`` of the current ones enter the test. ``p_value`` belongs to
    ``combined``. ``effect`` in 0.5..1: how often, of a random pair of a current and a reference image, the current one
    is told by its embedding alone (cross-fitted area under the ROC curve). ``label_shares``: of each class, the
    reference's share and the current one.
    """

    n_current: int
    n_reference: int
    n_tested: int
    splits: int
    alpha: float
    seed: int
    p_value: float
    effect: float
    statistics: tuple[Statistic, ...]
    label_shares: tuple[tuple[float, float], ...]

    def statistic(self, name: str) -> Statistic | None:
        """The statistic of that name, or None if it was not computed."""
        return next((each for each in self.statistics if each.name == name), None)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"statistics": [each.record() for each in self.statistics]}


def measure(reference: Scores, current: Scores, *, classes: int, alpha: float, seed: int) -> Drift:
    """Hold a current sample against a reference.

    Raises ValueError for fewer than 2 images on either side; whether there are enough to say anything is the
    verdict's business.
    """
    if len(reference) < 2 or len(current) < 2:
        raise ValueError(f"need at least 2 images on both sides, found {len(reference)} and {len(current)}")
    rng = np.random.default_rng([seed, 1])
    held = reference.take(rng.permutation(len(reference))[:MAX_REFERENCE])
    m = len(held)
    n = tested_size(m, len(current))
    tested = current.take(rng.permutation(len(current))[:n])
    splits = min(MAX_SPLITS, max(MIN_SPLITS, int(np.ceil(10 / alpha)))) if alpha > 0 else MIN_SPLITS
    inside = split_matrix(m, n, splits, rng)
    statistics = _statistics(held, tested, inside, classes, alpha, seed)
    combined = _combined(statistics, alpha)
    return Drift(
        n_current=len(current),
        n_reference=len(reference),
        n_tested=n,
        splits=splits,
        alpha=alpha,
        seed=seed,
        p_value=combined.p_value,
        effect=effect(held, current, seed),
        statistics=(combined, *statistics),
        label_shares=_label_shares(reference, current, classes),
    )


def tested_size(n_reference: int, n_current: int) -> int:
    """How many of a night's images enter the test: a fixed size, bounded by a fifth of the reference."""
    bound = min(n_reference, MAX_REFERENCE) // REFERENCE_PER_IMAGE
    return max(1, min(n_current, bound, MAX_CURRENT))


def split_matrix(m: int, n: int, splits: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Random splits of m reference images: shape (splits, m), 1/n for the n images that play the night, else 0."""
    inside = np.zeros((splits, m), dtype=np.float32)
    for row in inside:
        row[rng.choice(m, n, replace=False)] = 1 / n
    return inside


def _statistics(
    held: Scores, tested: Scores, inside: npt.NDArray[np.float32], classes: int, alpha: float, seed: int
) -> list[Statistic]:
    found = []
    if held.embeddings.shape[1]:
        features = FourierFeatures(held.embeddings, seed)
        found.append(_judged("mmd", *mmd(features(held.embeddings), features(tested.embeddings), inside), alpha))
    columns = np.argsort(-held.outputs.var(axis=0))[:MAX_COLUMNS]
    found.append(_judged("bbsd", *largest_ks(held.outputs[:, columns], tested.outputs[:, columns], inside), alpha))
    for name in ("confidence", "energy"):
        of_reference, of_current = getattr(held, name), getattr(tested, name)
        if not (np.isnan(of_reference).any() or np.isnan(of_current).any()):
            found.append(_judged(name, *largest_ks(of_reference[:, None], of_current[:, None], inside), alpha))
    if len(held.labels) and len(tested.labels):
        found.append(_judged("labels", *share_distance(held.labels, tested.labels, inside, classes), alpha))
    return found


def _judged(name: str, value: float, null: Vector, alpha: float) -> Statistic:
    p_value = (1 + int((null >= value).sum())) / (1 + len(null))
    threshold = float(np.quantile(null, 1 - alpha))
    return Statistic(name, float(value), p_value, threshold, float(null.mean()), tuple(map(float, null)))


def _combined(statistics: list[Statistic], alpha: float) -> Statistic:
    """The max of the standardised deciding statistics, against the null of that max (computed on the same splits)."""
    deciding = [each for each in statistics if each.name in ("mmd", "bbsd")]
    nulls = np.array([each.null for each in deciding])
    mean, spread = nulls.mean(axis=1), np.maximum(nulls.std(axis=1), 1e-12)
    null = ((nulls - mean[:, None]) / spread[:, None]).max(axis=0)
    value = max((each.value - mean[i]) / spread[i] for i, each in enumerate(deciding))
    return _judged("combined", float(value), null, alpha)


class FourierFeatures:
    """Random Fourier features of a Gaussian kernel (Rahimi and Recht 2007), shape (n, d) -> (n, 1024).

    Columns are standardised by the reference; the kernel's width is the median distance between reference images.
    """

    def __init__(self, reference: Matrix, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self.mean = reference.mean(axis=0)
        self.spread = np.maximum(reference.std(axis=0), 1e-6)
        some = self._standard(reference[rng.permutation(len(reference))[:500]])
        width = float(np.median(pdist(some))) if len(some) > 1 else 1.0
        self.weights = rng.standard_normal((reference.shape[1], FEATURES)).astype(np.float32) / max(width, 1e-6)
        self.phases = rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32)

    def _standard(self, embeddings: Matrix) -> npt.NDArray[np.float32]:
        standard: npt.NDArray[np.float32] = ((embeddings - self.mean) / self.spread).astype(np.float32)
        return standard

    def __call__(self, embeddings: Matrix) -> npt.NDArray[np.float32]:
        """The features of some embeddings."""
        waves = np.cos(self._standard(embeddings) @ self.weights + self.phases)
        features: npt.NDArray[np.float32] = (waves * np.sqrt(2 / FEATURES)).astype(np.float32)
        return features


def mmd(
    reference: npt.NDArray[np.float32], current: npt.NDArray[np.float32], inside: npt.NDArray[np.float32]
) -> tuple[float, Vector]:
    """Distance of mean features, and its null over splits of the reference. Shapes (m, D), (n, D), (splits, m)."""
    value = float(np.linalg.norm(current.mean(axis=0) - reference.mean(axis=0)))
    m, n = len(reference), len(current)
    # mean(inside) - mean(outside) = (mean(inside) - mean(all)) * m / (m - n): the reference's own error is in it.
    gaps = (inside @ reference - reference.mean(axis=0)) * (m / max(m - n, 1))
    return value, np.linalg.norm(gaps, axis=1).astype(np.float64)


def largest_ks(reference: Matrix, current: Matrix, inside: npt.NDArray[np.float32]) -> tuple[float, Vector]:
    """The largest Kolmogorov-Smirnov distance over the columns, and its null. Shapes (m, k), (n, k), (splits, m)."""
    m, n = len(reference), len(current)
    value, null = 0.0, np.zeros(len(inside))
    share = np.arange(1, m + 1) / m
    for column in range(reference.shape[1]):
        order = np.argsort(reference[:, column], kind="stable")
        ordered = reference[order, column]
        value = max(value, ks_distance(ordered, np.sort(current[:, column])))
        last = np.append(ordered[1:] != ordered[:-1], True)
        gaps = np.cumsum(inside[:, order], axis=1)[:, last] - share[last]
        null = np.maximum(null, np.abs(gaps).max(axis=1) * (m / max(m - n, 1)))
    return value, null


def ks_distance(left: Vector, right: Vector) -> float:
    """The two-sample Kolmogorov-Smirnov distance of two sorted vectors."""
    points = np.concatenate([left, right])
    of_left = np.searchsorted(left, points, side="right") / len(left)
    of_right = np.searchsorted(right, points, side="right") / len(right)
    return float(np.abs(of_left - of_right).max())


def share_distance(
    reference: npt.NDArray[np.int64], current: npt.NDArray[np.int64], inside: npt.NDArray[np.float32], classes: int
) -> tuple[float, Vector]:
    """Half the summed difference of class shares (total variation), and its null."""
    m, n = len(reference), len(current)
    of_reference = np.bincount(reference, minlength=classes) / m
    of_current = np.bincount(current, minlength=classes) / n
    members = np.eye(classes, dtype=np.float32)[reference]
    gaps = (inside @ members - of_reference) * (m / max(m - n, 1))
    return float(np.abs(of_current - of_reference).sum() / 2), np.abs(gaps).sum(axis=1) / 2


class Whitened:
    """The reference's principal axes, each scaled to unit variance: at most 64."""

    def __init__(self, reference: Matrix) -> None:
        self.mean = reference.mean(axis=0)
        centred = reference - self.mean
        values, vectors = np.linalg.eigh(centred.T @ centred / max(len(reference) - 1, 1))
        kept = min(COMPONENTS, max(1, len(reference) // 10), reference.shape[1])
        floor = max(float(values[-1]) * 1e-6, 1e-12)
        self.axes = vectors[:, ::-1][:, :kept] / np.sqrt(np.maximum(values[::-1][:kept], floor))

    def __call__(self, embeddings: Matrix) -> Matrix:
        """Some embeddings along the axes, shape (n, at most 64)."""
        projected: Matrix = (embeddings - self.mean) @ self.axes
        return projected


def moved(reference: Scores, current: Scores, seed: int) -> tuple[Vector, Vector]:
    """How far each image lies in the direction in which the night moved, in standard deviations of the reference.

    Returns the current images' distances (n,) and the reference's (m,). The direction is the whitened difference of
    means; each image is projected on the direction that the other half of the images gives, so that none votes for
    itself. Without embeddings the outputs serve.
    """
    if len(reference) < 4 or len(current) < 4:
        return np.zeros(len(current)), np.zeros(len(reference))
    there = reference.embeddings.shape[1] > 0
    white = Whitened(reference.embeddings if there else reference.outputs)
    of_reference, of_current = (white(each.embeddings if there else each.outputs) for each in (reference, current))
    rng = np.random.default_rng([seed, 3])
    halves_reference = rng.permutation(len(reference)) % 2
    halves_current = rng.permutation(len(current)) % 2
    out_current, out_reference = np.zeros(len(current)), np.zeros(len(reference))
    for half in (0, 1):
        learnt_reference = of_reference[halves_reference != half]
        gap = of_current[halves_current != half].mean(axis=0) - learnt_reference.mean(axis=0)
        along = learnt_reference @ gap
        centre, spread = along.mean(), max(float(along.std()), 1e-12)
        out_current[halves_current == half] = (of_current[halves_current == half] @ gap - centre) / spread
        out_reference[halves_reference == half] = (of_reference[halves_reference == half] @ gap - centre) / spread
    return out_current, out_reference


def effect(reference: Scores, current: Scores, seed: int) -> float:
    """How often, of a random pair, the current image is told by its embedding: 0.5 is chance, 1 is always."""
    of_current, of_reference = moved(reference, current, seed)
    return max(0.5, area_under_roc(of_current, of_reference))


def area_under_roc(positive: Vector, negative: Vector) -> float:
    """The share of pairs in which the positive one is larger, ties counted half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def _label_shares(reference: Scores, current: Scores, classes: int) -> tuple[tuple[float, float], ...]:
    if not len(reference.labels) or not len(current.labels):
        return ()
    of_reference = np.bincount(reference.labels, minlength=classes) / len(reference)
    of_current = np.bincount(current.labels, minlength=classes) / len(current)
    return tuple((float(a), float(b)) for a, b in zip(of_reference, of_current, strict=True))
