"""Whether a learner's answers stay when they should: the statistics of behaviour tests, and the rule that decides.

Takes arrays and returns records. Does not know images, learners or changes. The images are taken as independent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

# Below so many images nothing is said: with 11 changes eight answers must turn before it is more than chance.
FEWEST_IMAGES = 30
# Chance, over all changes together, that a learner as stable as the champion fails.
ALPHA = 0.05
# Differences below so many points are let be, however sure they are.
LEAST_DIFFERENCE = 0.02
# Of a learner that has no champion beside it, so many of its answers must stay.
FLOOR = 0.9
# A regression's value may move by so much of itself, or of the usual size of such values where it is smaller.
TOLERANCE = 0.05
Z = 1.96

Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Stability:
    """How many answers one change left as they were, for a learner and the champion beside it.

    ``stable`` and ``champion_stable`` are counts of ``n`` images. ``difference``: share of the learner less that of the
    champion, with a 95 % interval. ``p_value``: exact one-sided McNemar test that the learner is the less stable one;
    ``adjusted_p``: the same after Holm over all changes. All five are None without a champion.
    """

    perturbation: str
    n: int
    stable: int
    champion_stable: int | None
    difference: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    adjusted_p: float | None
    passed: bool


def judged(stayed: Mapping[str, Marks], champion: Mapping[str, Marks] | None) -> list[Stability]:
    """Decide change by change. ``stayed`` and ``champion``: by change, whether each image's answer stayed (n,).

    With a champion a change fails when the learner is significantly less stable (Holm at ALPHA) and by LEAST_DIFFERENCE
    or more; without one when fewer than FLOOR of its answers stay. Fewer than FEWEST_IMAGES images pass nothing.
    """
    if champion is None:
        return [
            Stability(name, len(marks), int(marks.sum()), None, None, None, None, None, _above_floor(marks))
            for name, marks in stayed.items()
        ]
    p_values = {name: _less_stable(stayed[name], champion[name]) for name in stayed}
    adjusted = holm(p_values)
    return [_beside(name, stayed[name], champion[name], p_values[name], adjusted[name]) for name in stayed]


def _above_floor(marks: Marks) -> bool:
    return len(marks) >= FEWEST_IMAGES and bool(marks.mean() >= FLOOR)


def _beside(name: str, stayed: Marks, champion: Marks, p_value: float, adjusted: float) -> Stability:
    n, stable, champion_stable = len(stayed), int(stayed.sum()), int(champion.sum())
    # In counts, so that 4 of 200 are 2 points exactly.
    worse = adjusted <= ALPHA and champion_stable - stable >= LEAST_DIFFERENCE * n
    return Stability(
        name, n, stable, champion_stable, (stable - champion_stable) / n if n else 0.0,
        paired_interval(stayed, champion), p_value, adjusted, n >= FEWEST_IMAGES and not worse,
    )  # fmt: skip


def _less_stable(stayed: Marks, champion: Marks) -> float:
    """Exact one-sided McNemar test: of the images on which one of the two turned, was it mostly the learner?"""
    lost, won = int((~stayed & champion).sum()), int((stayed & ~champion).sum())
    return float(binomtest(lost, lost + won, alternative="greater").pvalue) if lost + won else 1.0


def paired_interval(stayed: Marks, champion: Marks) -> tuple[float, float]:
    """The 95 % interval of the difference of two paired shares (Bonett and Price 2012: Wald, after one image more of
    each kind on which the two differ)."""  # fmt: skip
    n = len(stayed) + 2
    lost, won = (int((~stayed & champion).sum()) + 1) / n, (int((stayed & ~champion).sum()) + 1) / n
    half = Z * float(np.sqrt((won + lost - (won - lost) ** 2) / n))
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values after Holm (1979): what is at most ALPHA among them is wrong with at most that chance in all."""
    adjusted, so_far = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = so_far
    return adjusted


def near(values: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> Marks:
    """Whether each image's values (n, k) are what they were, or should be, within TOLERANCE of the larger of the
    expected value and the mean size of that value over the images."""  # fmt: skip
    scale = np.maximum(np.abs(expected), np.abs(expected).mean(axis=0, keepdims=True)) if len(expected) else expected
    inside = np.abs(values - expected) <= TOLERANCE * scale
    return np.asarray(inside.all(axis=1), bool)
