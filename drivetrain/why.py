"""What changed, in words that lead to an action: which classes, which regions, which properties of the pixels.

Knows statistics of parts. Does not decide: a night may have classes that moved and be ok, since what is looked at here
is many things at once (Holm 1979 corrects for that).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import gamma, norm

from drivetrain.drift import MAX_REFERENCE
from drivetrain.findings import Cause, ClassShift, Histogram, Map, Pair, Region
from drivetrain.lens import PROPERTIES, Indices, Lens, Matrix, Scores, Vector
from drivetrain.severity import by_class
from drivetrain.sketch import CONFIDENCE_EDGES, Totals

SHUFFLES = 200
# Fewer images of a class than these, on either side, say nothing of its looks.
ENOUGH_CURRENT, ENOUGH_REFERENCE = 10, 20
EXAMPLES = 6
SHOWN_CLASSES = 100
POINTS = 1000
# Smaller changes of a property than this, in standard deviations, name no cause.
WORTH_SAYING = 0.2

_WORDS = {
    "brightness": ("darker", "brighter", "of white"),
    "contrast": ("lower in contrast", "higher in contrast", "of white"),
    "sharpness": ("blurrier", "sharper or noisier", ""),
    "pixels": ("smaller", "larger", "px"),
    "aspect": ("narrower", "wider", "width / height"),
    "compression": ("more compressed", "less compressed", "bytes / px"),
}
# These are measured in powers of two: their means are geometric ones.
_LOGARITHMIC = ("pixels", "aspect", "compression")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[int(place)] = least
    return corrected


def share_p_value(before: float, now: float, m: float, n: float) -> float:
    """The two-sided p-value of a changed share: two independent samples, normal approximation (pooled)."""
    pooled = (before * m + now * n) / (m + n)
    spread = np.sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / m + 1 / n))
    return float(2 * norm.sf(abs(now - before) / spread))


def effective(scores: Scores, images: int) -> float:
    """How many independent images a sample amounts to: whole groups count as they do when they are all alike.

    Not more than 5,000, whatever the size of the night: at a million, every difference is significant.
    """
    sizes = np.unique(scores.groups, return_counts=True)[1].astype(float)
    alike = float((sizes**2).sum() / max(sizes.sum(), 1))
    return max(1.0, min(images, MAX_REFERENCE) / max(alike, 1.0))


def classes(
    lens: Lens, reference: Scores, current: Scores, totals: tuple[Totals, Totals], vocab: Sequence[str], alpha: float,
    seed: int,
) -> tuple[ClassShift, ...]:  # fmt: skip
    """Every predicted class, the one that changed most first; none for a regression. Examples are added later."""
    if not len(current.labels) or not len(reference.labels):
        return ()
    before, now = (each.labels / max(1, each.images) for each in totals)
    m, n = effective(reference, totals[0].images), effective(current, totals[1].images)
    of_shares = holm([share_p_value(float(a), float(b), m, n) for a, b in zip(before, now, strict=True)])
    white = lens.whiten(reference), lens.whiten(current)
    rng = np.random.default_rng([seed, 7])
    looks = [_looks(white, reference, current, each, alpha / len(vocab), rng) for each in range(len(vocab))]
    tested = [place for place, found in enumerate(looks) if found]
    corrected = dict(zip(tested, holm([looks[place][1] for place in tested]), strict=True))  # type: ignore[index]
    accuracy = by_class(reference, current, len(vocab), seed)
    found = [
        ClassShift(
            label=word,
            n_reference=int(totals[0].labels[place]),
            n_current=int(totals[1].labels[place]),
            reference_share=float(before[place]),
            current_share=float(now[place]),
            moved=looks[place][0] if looks[place] else None,  # type: ignore[index]
            p_value=corrected.get(place),
            share_p_value=of_shares[place],
            accuracy=accuracy[place].estimate,
            accuracy_reference=accuracy[place].reference,
            accuracy_low=accuracy[place].low,
            accuracy_high=accuracy[place].high,
        )
        for place, word in enumerate(vocab)
    ]
    return tuple(sorted(found, key=lambda each: _rank(each, m, n)))


def _rank(each: ClassShift, m: float, n: float) -> tuple[float, float]:
    """The least likely first; among the least likely of all, the largest change."""
    raw = share_p_value(each.reference_share, each.current_share, m, n)
    return min(raw, each.p_value if each.p_value is not None else 1.0), -(each.moved or 0.0)


def _looks(
    white: tuple[Matrix, Matrix], reference: Scores, current: Scores, label: int, alpha: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """How far the images of a class moved (0 usual, 1 the threshold) and its p-value, or None if they are too few."""
    theirs, ours = white[0][reference.labels == label], white[1][current.labels == label]
    if len(theirs) < ENOUGH_REFERENCE or len(ours) < ENOUGH_CURRENT:
        return None
    pooled = np.concatenate([theirs, ours])
    sides = np.concatenate([reference.groups[reference.labels == label], -1 - current.groups[current.labels == label]])
    value = float(((ours.mean(axis=0) - theirs.mean(axis=0)) ** 2).sum())
    null = _shuffled(pooled, sides, len(ours), rng)
    # Two moments of the shuffles give p-values smaller than one in their number (Welch-Satterthwaite).
    mean, variance = float(null.mean()), max(float(null.var()), 1e-18)
    shape, scale = mean**2 / variance, variance / mean if mean else 1.0
    usual, threshold = np.sqrt(mean), np.sqrt(gamma.isf(alpha, shape, scale=scale))
    return float((np.sqrt(value) - usual) / max(threshold - usual, 1e-12)), float(gamma.sf(value, shape, scale=scale))


def _shuffled(pooled: Matrix, groups: Indices, n: int, rng: np.random.Generator) -> Vector:
    """The squared distance of means when whole groups change sides at random."""
    numbers = np.unique(groups, return_inverse=True)[1]
    total, null = pooled.sum(axis=0), []
    for _ in range(SHUFFLES):
        chosen = np.argsort(rng.random(int(numbers.max()) + 1)[numbers], kind="stable")[:n]
        inside = pooled[chosen].sum(axis=0)
        null.append(((inside / n - (total - inside) / (len(pooled) - n)) ** 2).sum())
    return np.array(null)


def with_examples(
    found: tuple[ClassShift, ...], lens: Lens, reference: Scores, current: Scores,
    uris: tuple[Sequence[str], Sequence[str]], moved: Vector, vocab: Sequence[str],
) -> tuple[ClassShift, ...]:  # fmt: skip
    """The same classes, the first hundred with those of their images that moved most, each beside its nearest one."""
    white = lens.whiten(reference), lens.whiten(current)
    places = {word: place for place, word in enumerate(vocab)}
    out = []
    for rank, each in enumerate(found):
        if rank < SHOWN_CLASSES:
            label = places[each.label]
            ours = np.flatnonzero(current.labels == label)
            theirs = np.flatnonzero(reference.labels == label)
            ours = ours[np.argsort(-moved[ours], kind="stable")[:EXAMPLES]]
            pairs = tuple(Pair(uris[1][int(i)], _nearest(white[1][i], white[0], theirs, uris[0])) for i in ours)
            each = replace(each, examples=pairs)
        out.append(each)
    return tuple(out)


def _nearest(point: Vector, others: Matrix, places: Indices, uris: Sequence[str]) -> str | None:
    if not len(places):
        return None
    return uris[int(places[np.argmin(((others[places] - point) ** 2).sum(axis=1))])]


def regions(
    lens: Lens, reference: Scores, current: Scores, totals: tuple[Totals, Totals],
    uris: tuple[Sequence[str], Sequence[str]], vocab: Sequence[str],
) -> tuple[Region, ...]:  # fmt: skip
    """Every region, the one whose share changed least likely by chance first."""
    before, now = (each.regions / max(1, each.images) for each in totals)
    m, n = effective(reference, totals[0].images), effective(current, totals[1].images)
    raw = [share_p_value(float(a), float(b), m, n) for a, b in zip(before, now, strict=True)]
    corrected = holm(raw)
    where = lens.regions(lens.whiten(reference)), lens.regions(lens.whiten(current))
    found = []
    for place in np.argsort(raw, kind="stable"):
        theirs, ours = (np.flatnonzero(each == place) for each in where)
        of_class = np.bincount(reference.labels[theirs]) if len(reference.labels) and len(theirs) else None
        found.append(
            Region(
                number=int(place),
                label=vocab[int(of_class.argmax())] if of_class is not None and len(vocab) else "",
                reference_share=float(before[place]),
                current_share=float(now[place]),
                p_value=corrected[int(place)],
                current_images=tuple(uris[1][i] for i in ours[:EXAMPLES]),
                reference_images=tuple(uris[0][i] for i in theirs[:EXAMPLES]),
            )
        )
    return tuple(found)


def causes(reference: Scores, current: Scores, totals: tuple[Totals, Totals]) -> tuple[Cause, ...]:
    """The properties that changed by a fifth of a standard deviation or more, the largest change first."""
    rows = []
    for place, name in enumerate(PROPERTIES):
        (m, total_m, squares), (n, total_n, _) = (each.properties[:, place] for each in totals)
        if min(m, n) < ENOUGH_CURRENT:
            continue
        before, now = total_m / m, total_n / n
        spread = np.sqrt(max(squares / m - before**2, 0.0))
        # Images that are all alike (one camera, one size) have no spread to measure a change in.
        spread = max(spread, 0.01 * abs(before), 1e-6)
        change = float((now - before) / spread)
        sizes = effective(reference, int(m)), effective(current, int(n))
        p_value = float(2 * norm.sf(abs(change) / np.sqrt(1 / sizes[0] + 1 / sizes[1])))
        rows.append((name, change, float(before), float(now), p_value))
    corrected = holm([row[-1] for row in rows])
    found = [
        _cause(name, change, before, now, p_value)
        for (name, change, before, now, _), p_value in zip(rows, corrected, strict=True)
        if abs(change) >= WORTH_SAYING and p_value <= 0.01
    ]
    return tuple(sorted(found, key=lambda each: -abs(each.change)))


def _cause(name: str, change: float, before: float, now: float, p_value: float) -> Cause:
    less, more, unit = _WORDS[name]
    if name in _LOGARITHMIC:
        before, now = 2**before, 2**now
    words = f"{more if change > 0 else less} by {abs(change):.1f} sd"
    return Cause(name, words, change, before, now, unit, p_value)


def histograms(lens: Lens, totals: tuple[Totals, Totals]) -> tuple[Histogram, ...]:
    """Confidence and energy, where there are any; the open bins of the energy are drawn as wide as the others."""
    found = []
    for name, edges in (("confidence", CONFIDENCE_EDGES), ("energy", lens.energy_edges)):
        counts = [getattr(each, name) for each in totals]
        if len(edges) < 2 or not all(each.sum() for each in counts):
            continue
        closed = edges.copy()
        if np.isinf(closed[0]):
            closed[0], closed[-1] = 2 * closed[1] - closed[2], 2 * closed[-2] - closed[-3]
        shares = [tuple(float(share) for share in each / each.sum()) for each in counts]
        found.append(Histogram(name, tuple(float(edge) for edge in closed), *shares))
    return tuple(found)


def map_of(lens: Lens, reference: Scores, current: Scores, seed: int) -> Map:
    """The first two principal components of the reference; the axes reach a third beyond 98 % of its images."""
    rng = np.random.default_rng([seed, 8])
    sides = []
    for each in (reference, current):
        points = lens.whiten(each.take(rng.permutation(len(each))[:POINTS]))[:, :2]
        sides.append(points if points.shape[1] == 2 else np.column_stack([points, np.zeros(len(points))]))
    low, high = np.quantile(sides[0], [0.01, 0.99], axis=0)
    margin = (high - low) / 3 + 1e-6
    variances = (*lens.variances[:2].tolist(), 0.0)[:2]
    return Map(
        reference=tuple((float(x), float(y)) for x, y in sides[0]),
        current=tuple((float(x), float(y)) for x, y in sides[1]),
        low=tuple((low - margin).tolist()),
        high=tuple((high + margin).tolist()),
        explained=(float(variances[0]), float(variances[1])),
    )
