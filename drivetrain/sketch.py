"""What is counted over all images of a run, however many: sums and counts that add up, and a few images by name.

Knows what a lens sees. Does not know files or tests. A sketch of each part, made anywhere, is merged into the run's;
shares and means of a million images are then read from kilobytes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from drivetrain.lens import BINS, Indices, Lens, Scores, Vector

CONFIDENCE_EDGES = np.linspace(0, 1, BINS + 1)
# Of each part, the images furthest from the reference: the review queue must not miss them.
CANDIDATES = 8


@dataclass(frozen=True)
class Totals:
    """Counts and sums over n images.

    ``labels`` (k,), ``regions`` (r,), ``confidence`` and ``energy`` (bins,) count images; ``properties`` (3, 6): how
    many images have one, the sum, the sum of squares.
    """

    images: int
    labels: Vector
    regions: Vector
    confidence: Vector
    energy: Vector
    properties: np.ndarray

    def __add__(self, other: "Totals") -> "Totals":
        # A part whose images all failed says nothing of shapes either.
        if not other.images or not self.images:
            return other if other.images else self
        return Totals(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def to_json(self) -> str:
        """As text, to be kept beside a part's sample."""
        return json.dumps({each.name: np.asarray(getattr(self, each.name)).tolist() for each in fields(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Totals":
        """From text. Raises KeyError for a value that is missing."""
        found = json.loads(text)
        arrays = {each.name: np.array(found[each.name], dtype=float) for each in fields(cls) if each.name != "images"}
        return cls(images=int(found["images"]), **arrays)


def totals_of(lens: Lens, scores: Scores) -> Totals:
    """Count images."""
    if not len(scores):
        return Totals(0, *(np.zeros(0) for _ in range(len(fields(Totals)) - 1)))
    classes, regions = scores.outputs.shape[1], len(lens.centres)
    measured = ~np.isnan(scores.properties)
    values = np.where(measured, scores.properties, 0)
    return Totals(
        images=len(scores),
        labels=np.bincount(scores.labels, minlength=classes).astype(float) if len(scores.labels) else np.zeros(0),
        regions=np.bincount(lens.regions(lens.whiten(scores)), minlength=regions).astype(float),
        confidence=_counted(scores.confidence, CONFIDENCE_EDGES),
        energy=_counted(scores.energy, lens.energy_edges),
        properties=np.stack([measured.sum(axis=0), values.sum(axis=0), (values**2).sum(axis=0)]).astype(float),
    )


def merged(parts: Sequence[Totals]) -> Totals:
    """The totals of several parts. Raises ValueError for none."""
    if not parts:
        raise ValueError("nothing to merge")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def chosen_by_hash(uris: Sequence[str], share: float) -> Indices:
    """The places of a share of the images, by their uris' hash: the same ones wherever and whenever it is asked."""
    limit = int(share * 2**64)
    hashes = (int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "big") for uri in uris)
    return np.flatnonzero([each < limit for each in hashes]).astype(np.int64)


def candidates(lens: Lens, scores: Scores) -> Indices:
    """The places of the images that lie furthest from the reference's middle."""
    norms = np.linalg.norm(lens.whiten(scores), axis=1)
    return np.argsort(-norms, kind="stable")[:CANDIDATES].astype(np.int64)


def _counted(values: Vector, edges: Vector) -> Vector:
    known = values[~np.isnan(values)]
    if len(edges) < 2 or not len(known):
        return np.zeros(max(0, len(edges) - 1))
    return np.histogram(known, edges)[0].astype(float)
