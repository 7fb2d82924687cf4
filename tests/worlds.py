"""Made-up worlds as scores: embeddings, and what a linear head with a softmax says of them. No image, no network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax

from drivetrain.drift import Yardstick, decide
from drivetrain.findings import Decision
from drivetrain.groups import near_duplicates
from drivetrain.lens import PROPERTIES, Indices, Lens, Matrix, Scores, learn

DEPTH, CLASSES = 16, 4
VOCAB = ("cat", "dog", "emu", "fox")
HEAD = np.random.default_rng(1).standard_normal((DEPTH, CLASSES)) / 2


def scored(embeddings: Matrix, *, truth: Indices | None = None, groups: Indices | None = None) -> Scores:
    """What a head says of some embeddings; each image is a group of its own unless told otherwise."""
    n = len(embeddings)
    logits = embeddings @ np.resize(HEAD, (embeddings.shape[1], CLASSES))
    outputs = softmax(logits, axis=1)
    return Scores(
        embeddings=embeddings,
        outputs=outputs,
        confidence=outputs.max(axis=1),
        energy=logsumexp(logits, axis=1),
        labels=outputs.argmax(axis=1).astype(np.int64),
        groups=np.arange(n) if groups is None else groups,
        truth=np.full(n, -1) if truth is None else truth,
        properties=np.full((n, len(PROPERTIES)), np.nan),
    )


def some(number: int, seed: int, shift: float = 0.0, depth: int = DEPTH) -> Scores:
    """Images of one world, or of one that has moved along its first axis."""
    embeddings = np.random.default_rng([seed, 77]).standard_normal((number, depth))
    embeddings[:, 0] += shift
    return scored(embeddings)


def frames(sources: int, copies: int, seed: int, noise: float = 0.02, depth: int = DEPTH) -> Scores:
    """Some images of each of many sources, nearly alike within one; in no order, and every image a group of its own."""
    rng = np.random.default_rng([seed, 78])
    embeddings = np.repeat(rng.standard_normal((sources, depth)), copies, axis=0)
    embeddings = embeddings + noise * rng.standard_normal(embeddings.shape)
    return scored(embeddings[rng.permutation(len(embeddings))])


def in_groups(lens: Lens, scores: Scores) -> Scores:
    """The same images, near-duplicates as groups."""
    return scores.grouped(near_duplicates(lens.whiten_wide(scores)))


def held(
    reference: Scores, current: Scores, *, alpha: float = 0.01, seed: int = 0, accepted: Sequence[float] = ()
) -> Decision:
    """A night held against a reference, with all that takes."""
    return decide(
        Yardstick(reference, learn(reference, seed), seed), current, alpha=alpha, seed=seed, accepted=accepted
    )


def changed(scores: Scores, **columns: Any) -> Scores:
    """The same images with other columns."""
    return Scores(**scores.__dict__ | columns)
