"""Which images belong together: by a pattern on their uris, by a column, or because they are near-duplicates.

Knows groups as numbers. Does not know statistics. Ten frames of one video are one observation and not ten: a test that
takes them for independent alarms on every night (200 sources of 5 near-identical frames: 98 to 100 false alarms in 100
nights were measured).
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2

from drivetrain.errors import SettingError
from drivetrain.lens import Indices, Matrix
from drivetrain.schema import row_schema

# Columns of a run that images may be grouped by.
GROUPING = ("content_hash", "true_label", "label", "size", "width", "height")
# Two images nearer than this share of the usual distance between two images are near-duplicates.
NEAR = 0.3
# So many neighbours an image may have by chance, were the images normally distributed.
CHANCE = 0.05
# Distances that are held at once: 32 MiB of them, and as much again while they are made.
AT_ONCE = 2**22


def names_column(group_by: str) -> bool:
    """Whether it is a column, and not a pattern. Raises SettingError for a column that nothing is grouped by."""
    if group_by not in row_schema(0).names:
        return False
    if group_by not in GROUPING:
        raise SettingError(f"group_by = {group_by!r}: no column to group by; known: {', '.join(GROUPING)}.")
    return True


def check_group_by(group_by: str, uris: Iterable[str]) -> None:
    """Raise SettingError for a pattern that finds nothing in any uri, before these images are scored.

    The uris are read no further than to the first in which it finds something.
    """
    if names_column(group_by):
        return
    matcher, first = re.compile(group_by), ""
    for uri in uris:
        if _found(matcher, uri) is not None:
            return
        first = first or uri
    if first:
        raise _finds_nothing(group_by, first)


def _found(matcher: re.Pattern[str], uri: str) -> str | None:
    match = matcher.search(uri)
    # A group that takes no part in a match has found nothing.
    return match[1 if matcher.groups else 0] if match else None


def _finds_nothing(pattern: str, first: str) -> SettingError:
    return SettingError(f"group_by = {pattern!r} finds nothing in any uri; the first is {first!r}.")


def by_pattern(uris: Sequence[str], pattern: str) -> Indices:
    """Number images by what a regular expression finds in their uris: its first group, else the whole match.

    Images in which it finds nothing are groups of their own. Raises SettingError when it finds nothing in any.
    """
    matcher = re.compile(pattern)
    found = [_found(matcher, uri) for uri in uris]
    if uris and all(each is None for each in found):
        raise _finds_nothing(pattern, uris[0])
    names = [f"\0{place}" if each is None else each for place, each in enumerate(found)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64) if names else np.zeros(0, np.int64)


def near_duplicates(whitened: Matrix) -> Indices:
    """Number images so that near-duplicates, directly or by way of others, bear the same number; shape (n,).

    ``whitened`` (n, k): embeddings along axes on each of which the reference has unit variance.
    """
    n = len(whitened)
    if n < 2:
        return np.arange(n)
    squares, depth = (whitened**2).sum(axis=1), whitened.shape[1]
    # Of two independent images of the reference the squared distance is twice the number of axes. The night's own
    # distances are no measure: images of another world all lie far out, and differ all the same. Along few axes images
    # are near by chance: of 5,000 in 8 dimensions nearly all would hang together.
    limit = min(NEAR**2 * 2 * depth, 2 * float(chi2.ppf(CHANCE / n, depth)))
    left, right = [], []
    block = max(1, AT_ONCE // n)
    for first in range(0, n, block):
        rows = slice(first, first + block)
        near = squares[rows, None] + squares[None, :] - 2 * whitened[rows] @ whitened.T < limit
        found, other = np.nonzero(near)
        left.append(found + first)
        right.append(other)
    pairs = np.concatenate(left), np.concatenate(right)
    links = coo_array((np.ones(len(pairs[0]), dtype=np.int8), pairs), shape=(n, n))
    numbers: Indices = connected_components(links, directed=False)[1].astype(np.int64)
    return numbers


def capped(groups: Indices, most: int, rng: np.random.Generator) -> Indices:
    """The places of at most ``most`` images of each group, drawn at random, in random order of groups kept whole."""
    order = rng.permutation(len(groups))
    rank = _rank_in_group(groups[order])
    places: Indices = np.sort(order[rank < most])
    return places


def usual_size(groups: Indices) -> int:
    """The size that nine of ten groups do not exceed."""
    sizes = np.unique(groups, return_counts=True)[1]
    return max(1, int(np.quantile(sizes, 0.9, method="inverted_cdf"))) if len(sizes) else 1


def whole_groups(groups: Indices, n: int, rng: np.random.Generator) -> Indices:
    """The places of n images in groups drawn at random and taken whole, the last of them in part."""
    numbers = np.unique(groups, return_inverse=True)[1]
    keys = rng.random(int(numbers.max()) + 1 if len(numbers) else 0)[numbers]
    return np.argsort(keys, kind="stable")[:n]


def _rank_in_group(groups: Indices) -> Indices:
    """Of each image, how many of its group stand before it."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, bool)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(ordered)), 0))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(ordered)) - starts
    return rank
