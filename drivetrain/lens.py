"""How a reference sees images: what it teaches about turning a learner's scores into numbers that can be compared.

Knows projections. Does not know what is held against what. A lens is learnt from a reference once and kept as plain
arrays, so that each machine sees through the very same one.

whitened    the reference's principal axes, each scaled to unit variance: at most 128
mmd         random Fourier features of a Gaussian kernel on the whitened embeddings (Rahimi and Recht 2007, NIPS 20)
bbsd        the softmax, each column scaled by its spread (Lipton et al. 2018, arXiv:1802.03916)
regions     clusters of the whitened embeddings
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.spatial.distance import cdist, pdist
from sklearn.cluster import KMeans

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]

FEATURES = 1024
COMPONENTS = 128
# Axes learnt from fewer groups of images than that for each fit the reference and nothing else: new images of the same
# world lie further out than its own, and nights alarm falsely (128 axes from 1,000 groups: on 57 of 80 quiet nights).
GROUPS_PER_AXIS = 40
# How often a class that the reference hardly shows is met is not known: without these, a single image of one alarmed on
# 8 of 100 quiet nights within one label of the clothing photos.
FEW_IMAGES = 2
REGIONS = 30
BINS = 20
PROPERTIES = ("brightness", "contrast", "sharpness", "pixels", "aspect", "compression")
# Below that many images of the reference a region, its share says little.
IMAGES_PER_REGION = 25


@dataclass(frozen=True)
class Scores:
    """What a learner said of n images, without failed ones, and what is known of them beside.

    ``embeddings`` (n, d), d = 0 without; ``outputs`` (n, k): softmax, multi-label probabilities, or regression values;
    ``confidence``, ``energy`` (n,), NaN where there is none; ``labels`` (n,) indices into the vocab, empty for a
    regression. ``groups`` (n,): images with the same number belong together (a camera, near-duplicates). ``truth``
    (n,): the true label's index, -1 where it is not known. ``properties`` (n, 6), `PROPERTIES`, NaN where not measured.
    """

    embeddings: Matrix
    outputs: Matrix
    confidence: Vector
    energy: Vector
    labels: Indices
    groups: Indices
    truth: Indices
    properties: Matrix

    def __len__(self) -> int:
        return len(self.outputs)

    def take(self, rows: Indices) -> "Scores":
        """Some of the images, in the order given."""
        chosen = {each.name: getattr(self, each.name) for each in fields(self)}
        return Scores(**{name: value[rows] if len(value) == len(self) else value for name, value in chosen.items()})

    def grouped(self, groups: Indices) -> "Scores":
        """The same images with other groups."""
        return Scores(**{each.name: getattr(self, each.name) for each in fields(self)} | {"groups": groups})


def plain_scores(
    embeddings: Matrix, outputs: Matrix, *, truth: Indices | None = None, groups: Indices | None = None
) -> Scores:
    """Scores from a softmax alone: what follows from it is computed; each image is a group of its own."""
    n, none = len(outputs), np.full(len(outputs), np.nan)
    return Scores(
        embeddings=embeddings,
        outputs=outputs,
        confidence=outputs.max(axis=1) if n else none,
        energy=none,
        labels=outputs.argmax(axis=1).astype(np.int64) if n else np.zeros(0, np.int64),
        groups=np.arange(n) if groups is None else groups,
        truth=np.full(n, -1) if truth is None else truth,
        properties=np.full((n, len(PROPERTIES)), np.nan),
    )


def concatenated(parts: Sequence[Scores]) -> Scores:
    """The images of several, one after the other; their groups keep their numbers."""
    return Scores(
        **{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Scores)}
    )


@dataclass(frozen=True)
class Lens:
    """What a reference teaches, as arrays. Make one with `learn`, or `from_arrays`."""

    mean: Vector
    axes: Matrix
    wide_axes: Matrix
    variances: Vector
    weights: Features
    phases: Features
    scale: Vector
    centres: Matrix
    energy_edges: Vector
    of_embeddings: npt.NDArray[np.bool_]

    def arrays(self) -> dict[str, Any]:
        """As named arrays."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def whiten(self, scores: Scores) -> Matrix:
        """Images along the reference's principal axes, shape (n, at most 128)."""
        inputs = scores.embeddings if self.of_embeddings else scores.outputs
        whitened: Matrix = (inputs - self.mean) @ self.axes
        return whitened

    def whiten_wide(self, scores: Scores) -> Matrix:
        """Images along more axes than are sure, shape (n, at most 128): what near-duplicates are told by."""
        inputs = scores.embeddings if self.of_embeddings else scores.outputs
        whitened: Matrix = (inputs - self.mean) @ self.wide_axes
        return whitened

    def blocks(self, scores: Scores) -> dict[str, Features]:
        """The features that a statistic is the difference of means of, by the statistic's name: each (n, some)."""
        found = {}
        if self.of_embeddings:
            waves = np.cos(self.whiten(scores).astype(np.float32) @ self.weights + self.phases)
            found["mmd"] = waves * np.float32(np.sqrt(2 / FEATURES))
        found["bbsd"] = (scores.outputs * self.scale).astype(np.float32)
        for name in ("confidence", "energy"):
            column = getattr(scores, name)
            if len(column) and not np.isnan(column).any():
                found[name] = column[:, None].astype(np.float32)
        if len(scores.labels):
            found["labels"] = np.eye(scores.outputs.shape[1], dtype=np.float32)[scores.labels]
        return found

    def regions(self, whitened: Matrix) -> Indices:
        """The nearest region of each image, shape (n,)."""
        if not len(whitened):
            return np.zeros(0, np.int64)
        return np.concatenate([cdist(each, self.centres).argmin(axis=1) for each in _pieces(whitened)]).astype(np.int64)


def learn(reference: Scores, seed: int) -> Lens:
    """Learn a lens from a reference of at least 2 images."""
    of_embeddings = reference.embeddings.shape[1] > 0
    inputs = reference.embeddings if of_embeddings else reference.outputs
    mean, wide_axes, variances = _principal_axes(inputs)
    axes = wide_axes[:, : max(1, len(np.unique(reference.groups)) // GROUPS_PER_AXIS)]
    whitened = (inputs - mean) @ axes
    rng = np.random.default_rng([seed, 2])
    some = whitened[rng.permutation(len(whitened))[:500]]
    width = max(float(np.median(pdist(some))), 1e-6)
    known = reference.energy[~np.isnan(reference.energy)]
    clusters = int(np.clip(len(whitened) // IMAGES_PER_REGION, 1, REGIONS))
    return Lens(
        mean=mean,
        axes=axes,
        wide_axes=wide_axes,
        variances=variances,
        weights=(rng.standard_normal((axes.shape[1], FEATURES)) / width).astype(np.float32),
        phases=rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32),
        scale=1 / _spread(reference.outputs, len(np.unique(reference.groups))),
        centres=KMeans(clusters, n_init=1, random_state=seed).fit(whitened).cluster_centers_,
        energy_edges=_edges(known),
        of_embeddings=np.array(of_embeddings),
    )


def from_arrays(arrays: Mapping[str, Any]) -> Lens:
    """A lens from its arrays. Raises KeyError for one that is missing."""
    return Lens(**{each.name: arrays[each.name] for each in fields(Lens)})


def _spread(outputs: Matrix, independent: int) -> Vector:
    """The standard deviation of each output, as though a few images more were as far from the others as any can be.

    ``independent``: how many groups of images the reference has.
    """
    are_shares = outputs.min() >= 0 and outputs.max() <= 1
    # A regression's values have each a scale of their own, and no bounds.
    jump = 1.0 if are_shares else np.ptp(outputs, axis=0)
    spread: Vector = np.sqrt(outputs.var(axis=0) + FEW_IMAGES * jump**2 / independent)
    return np.maximum(spread, 1e-6)


def _principal_axes(inputs: Matrix) -> tuple[Vector, Matrix, Vector]:
    """Mean, axes that whiten, and the share of the variance on each axis; by the smaller of the two Gram matrices."""
    n, d = inputs.shape
    mean = inputs.mean(axis=0)
    centred = inputs - mean
    kept = min(COMPONENTS, max(1, n // 10), d)
    narrow = d <= n
    gram = (centred.T @ centred if narrow else centred @ centred.T) / max(n - 1, 1)
    values, vectors = eigh(gram, subset_by_index=[len(gram) - kept, len(gram) - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    values = np.maximum(values, max(float(values[0]) * 1e-6, 1e-12))
    if not narrow:
        vectors = centred.T @ vectors / np.sqrt(values * max(n - 1, 1))
    return mean, vectors / np.sqrt(values), values / max(float(np.trace(gram)), 1e-12)


def _edges(values: Vector) -> Vector:
    """Edges of equal bins from the first to the 99th percentile, an open one at both ends; none without values."""
    if not len(values):
        return np.zeros(0)
    low, high = np.quantile(values, [0.01, 0.99])
    return np.concatenate([[-np.inf], np.linspace(low, max(high, low + 1e-6), BINS - 1), [np.inf]])


def _pieces(matrix: Matrix) -> list[Matrix]:
    return [matrix[first : first + 4096] for first in range(0, len(matrix), 4096)]
