"""Two learners on the same images: tests and intervals for paired numbers. Pure functions: arrays in, numbers out.

Knows statistics. Does not know images or what a difference is good for.

sign      exact two-sided sign test; of right and wrong it is McNemar's exact test (McNemar 1947, Psychometrika 12)
newcombe  interval of the difference of two paired shares: method 10 of Newcombe 1998 (Stat. Med. 17, 2635-2650)
images_needed  of a paired comparison (Connor 1987, Biometrics 43, 207-211)
"""

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, binomtest, hypergeom, norm, t, wilcoxon

Vector = npt.NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95
POWER = 0.8


def wilson(successes: int, n: int) -> Interval:
    """Wilson's 95 % score interval of a share."""
    found = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def sign_test(lost: int, won: int) -> float:
    """The exact two-sided p-value that of the pairs that differ as many are lost as won; 1 where none differs."""
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def lost_more(lost: int, won: int) -> float:
    """The exact one-sided p-value against more being lost than won; 1 where no pair differs."""
    return float(binom.sf(lost - 1, lost + won, 0.5)) if lost + won else 1.0


def more_than_elsewhere(inside: int, n: int, all_marked: int, all_n: int) -> float:
    """The exact one-sided p-value of ``inside`` of n images being marked, drawn from all_n of which all_marked are."""
    return float(hypergeom.sf(inside - 1, all_n, all_marked, n))


def newcombe(both: int, lost: int, won: int, neither: int) -> Interval:
    """The 95 % interval of the share that the second one gets right less that of the first.

    ``lost``: right by the first alone, ``won``: by the second alone. At least one pair.
    """
    n = both + lost + won + neither
    first, second = (both + lost) / n, (both + won) / n
    (low_1, high_1), (low_2, high_2) = wilson(both + lost, n), wilson(both + won, n)
    phi = _phi(both, lost, won, neither)

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2)))

    difference = second - first
    below, above = reach(second - low_2, high_1 - first), reach(high_2 - second, first - low_1)
    return max(-1.0, difference - below), min(1.0, difference + above)


def _phi(both: int, lost: int, won: int, neither: int) -> float:
    """The correlation of the two, made smaller where it is positive (Newcombe's correction), 0 where it is unknown."""
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    product, half = both * neither - lost * won, (both + lost + won + neither) / 2
    corrected = max(product - half, 0) if product > 0 else product
    return float(corrected / np.sqrt(float(margins))) if margins else 0.0


def mean_interval(differences: Vector) -> Interval:
    """Student's 95 % interval of the mean of paired differences; the mean alone where there is one pair."""
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, mean
    half = float(t.ppf((1 + LEVEL) / 2, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences)))
    return mean - half, mean + half


def signed_ranks(differences: Vector) -> float:
    """Wilcoxon's two-sided p-value of paired differences; 1 where none differs."""
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def images_needed(margin: float, *, differing: float | None = None, spread: float | None = None) -> int:
    """How many pairs show a difference of ``margin`` at 5 % with a power of 80 %.

    ``differing``: the share of the pairs on which only one is right, for shares; else ``spread``, the standard
    deviation of the differences.
    """
    alpha, beta = float(norm.ppf((1 + LEVEL) / 2)), float(norm.ppf(POWER))
    if spread is not None:
        return int(np.ceil(((alpha + beta) * spread / margin) ** 2))
    # A difference of the margin takes at least as many pairs that differ.
    share = max(differing or 0.0, margin)
    return int(np.ceil(((alpha * np.sqrt(share) + beta * np.sqrt(share - margin**2)) / margin) ** 2))
