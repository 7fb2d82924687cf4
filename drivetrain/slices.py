"""Parts of the images on which the new learner does worse: by class, by folder, by region.

Knows numbers of two learners on the same images, and how images are cut into parts. Does not know what follows.

A part must be cut so that the two learners could change places, or the cut itself makes one of them look better: among
the images that the old learner calls a cat are all its hits, and a new learner that is as good misses some of those. In
trials with two equally good learners that missed 30 % of one class, 200 of 200 comparisons alarmed so. Cut by what
either of them calls a cat, 7 did. So a class's part holds what either calls so, or what truly is so. Regions are seen
through the old learner's eyes, and therefore never decide.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.comparison import Slice
from drivetrain.lens import Indices, Vector
from drivetrain.paired import lost_more, more_than_elsewhere
from drivetrain.why import holm

ENOUGH = 20
# With fewer pairs that differ no result could be significant: 0.5 ** 5 is the first below 5 %.
ENOUGH_DIFFERING = 5
ALPHA = 0.05
MOST_SHOWN = 12
EXAMPLES = 6
DEEPEST = 4
MOST_FOLDERS = 1000


@dataclass(frozen=True)
class Part:
    """Some of the images, by their places."""

    kind: str
    name: str
    places: Indices
    decides: bool = True


def parts_by_class(kind: str, *columns: Sequence[Sequence[str]]) -> Iterator[Part]:
    """A part for each class: the images that have it in any of the columns, which hold some classes for each image."""
    places: dict[str, set[int]] = {}
    for column in columns:
        for place, words in enumerate(column):
            for word in words:
                places.setdefault(word, set()).add(place)
    for word in sorted(places):
        yield Part(kind, word, np.array(sorted(places[word]), np.int64))


def parts_by_label(kind: str, *columns: pa.ChunkedArray) -> Iterator[Part]:
    """As `parts_by_class`, for columns of one label each: millions of them."""
    found: dict[str, list[Indices]] = {}
    for column in columns:
        coded = pc.dictionary_encode(column.combine_chunks())
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(coded.dictionary) + 1))
        for code, word in enumerate(coded.dictionary.to_pylist()):
            found.setdefault(word, []).append(order[ends[code] : ends[code + 1]])
    for word in sorted(found):
        places = found[word][0] if len(found[word]) == 1 else np.unique(np.concatenate(found[word]))
        yield Part(kind, word, places)


def parts_by_folder(uris: pa.ChunkedArray) -> Iterator[Part]:
    """A part for each folder below the deepest one that holds all images, four levels deep."""
    coded = pc.dictionary_encode(pc.replace_substring_regex(uris.combine_chunks(), "[^/]*$", ""))
    names = coded.dictionary.to_pylist()
    if len(names) < 2:
        return
    by_name = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[by_name] = np.arange(len(names))
    codes = rank[coded.indices.to_numpy(zero_copy_only=False)]
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(names) + 1))
    names.sort()
    top = _common(names[0], names[-1])
    seen: set[tuple[int, int]] = {(0, len(names))}
    for folder in _folders(names, top):
        first, last = bisect_left(names, folder), bisect_left(names, folder + "\U0010ffff")
        # A folder that holds nothing but one other is the same part.
        if (first, last) not in seen:
            seen.add((first, last))
            yield Part("folder", folder.removeprefix(top), order[ends[first] : ends[last]])


def _common(one: str, other: str) -> str:
    """The deepest folder above both: all names between two in order lie in it."""
    same = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
    return one[: one.rfind("/", 0, same) + 1]


def _folders(names: list[str], top: str) -> list[str]:
    found: set[str] = set()
    for name in names:
        steps = name.removeprefix(top).split("/")[:-1]
        found.update(top + "/".join(steps[:depth]) + "/" for depth in range(1, min(len(steps), DEEPEST) + 1))
    return sorted(found)


def parts_by_region(numbers: Indices, said: pa.ChunkedArray | None) -> Iterator[Part]:
    """A part for each region, named by what the old learner mostly calls its images; they do not decide."""
    for number in np.unique(numbers[numbers >= 0]):
        places = np.flatnonzero(numbers == number)
        words = pc.value_counts(said.take(pa.array(places))).to_pylist() if said is not None else []
        most = max(words, key=lambda each: (each["counts"], each["values"] or ""), default={"values": None})["values"]
        yield Part("region", f"{number}, mostly {most}" if most else str(number), places, decides=False)


def worse(
    parts: Sequence[Part], old: Vector, new: Vector, uris: pa.ChunkedArray, changed: Vector | None, sign: float
) -> tuple[list[Slice], int]:
    """The parts on which the new learner does noticeably worse, most certain first, and how many parts were tested.

    Exact one-sided sign tests over at least 20 images of which 5 differ, corrected by Holm, those that decide and those
    that don't each among themselves. ``old``, ``new``: more is better; ``sign`` makes them the shown numbers.
    """
    tested = []
    for part in parts:
        before, now = old[part.places], new[part.places]
        lost, won = int((now < before).sum()), int((now > before).sum())
        if len(before) >= ENOUGH and lost + won >= ENOUGH_DIFFERING:
            tested.append((part, lost, won, lost_more(lost, won)))
    corrected = _corrected([(part.decides, p_value) for part, _, _, p_value in tested])
    ordered = sorted(
        (each, p_value) for each, p_value in enumerate(corrected) if p_value < 1
    )  # fmt: skip
    ordered.sort(key=lambda each: (each[1], tested[each[0]][2] - tested[each[0]][1]))
    found = []
    for each, p_value in ordered[:MOST_SHOWN]:
        part, lost, won, _ = tested[each]
        fell = (new - old)[part.places]
        broken = part.places[np.argsort(fell, kind="stable")[: min(lost, EXAMPLES)]]
        found.append(
            Slice(
                kind=part.kind,
                name=part.name,
                by="labels",
                n=len(part.places),
                old=sign * float(old[part.places].mean()),
                new=sign * float(new[part.places].mean()),
                lost=lost,
                won=won,
                changed=None if changed is None else float(changed[part.places].mean()),
                p_value=p_value,
                decides=part.decides,
                examples=tuple(uris.take(pa.array(broken)).to_pylist()),
            )
        )
    return found, len(tested)


def disagreeing(parts: Sequence[Part], changed: Vector, fell: Vector, uris: pa.ChunkedArray) -> tuple[list[Slice], int]:
    """The parts in which labels changed significantly more often than in all images; these never decide.

    ``changed`` (n,): 0 or 1; ``fell`` (n,): how much less sure the new learner is.
    """
    total, n = int(changed.sum()), len(changed)
    tested = [part for part in parts if ENOUGH <= len(part.places) < n]
    counts = [int(changed[part.places].sum()) for part in tested]
    raw = [more_than_elsewhere(count, len(part.places), total, n) for part, count in zip(tested, counts, strict=True)]
    corrected = holm(raw)
    shares = [count / len(part.places) for part, count in zip(tested, counts, strict=True)]
    order = sorted(range(len(tested)), key=lambda each: -shares[each])
    found = []
    for each in [each for each in order if corrected[each] <= ALPHA][:MOST_SHOWN]:
        part = tested[each]
        there = part.places[changed[part.places] > 0]
        shown = there[np.argsort(-fell[there], kind="stable")[:EXAMPLES]]
        examples = tuple(uris.take(pa.array(shown)).to_pylist())
        found.append(
            Slice(part.kind, part.name, "disagreement", len(part.places), None, None, 0, 0, shares[each],
                  corrected[each], False, examples)
        )  # fmt: skip
    return found, len(tested)


def _corrected(tests: Sequence[tuple[bool, float]]) -> list[float]:
    """P-values corrected by Holm, those that decide and the others apart."""
    found = [1.0] * len(tests)
    for decides in (True, False):
        places = [place for place, (each, _) in enumerate(tests) if each == decides]
        for place, p_value in zip(places, holm([tests[place][1] for place in places]), strict=True):
            found[place] = p_value
    return found
