"""What a page shows of all that was found: which rows and which pictures, so that no night makes a heavy page.

Knows how much a page holds. Does not know how it looks. The rows that say most come first; what is left out is counted,
and stands in drift.json and review.parquet.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from drivetrain.findings import ClassShift, Findings, Realised, Region, TrendPoint
from drivetrain.review import thumbnails
from drivetrain.run import Commit
from drivetrain.store import Store
from drivetrain.verdict import Verdict

QUEUE_SHOWN = 30
CLASSES_SHOWN = 100
REGIONS_SHOWN = 50
# The first rows of a table open to pictures, so many on each side: at most 30 + 14 x 6 + 14 x 6 thumbnails.
ROWS_WITH_PICTURES = 14
PICTURES_A_SIDE = 3
# Evidently's empty page has 3.7 MB, and a page has at most 6. Photos take half of this, noise takes all.
PICTURE_BYTES = 1_300_000


@dataclass(frozen=True)
class Page:
    """All that a night's report shows, computed elsewhere.

    ``trend``: the nights up to this one, oldest first. ``notes``: lines about the night itself, such as a webhook that
    could not be reached. ``effect_floor`` is the smallest effect that alarms. ``realised``: accuracy by labels.
    """

    source: str
    kind: str
    name: str
    model_id: str
    run_id: str
    verdict: Verdict
    findings: Findings | None
    commit: Commit
    vocab: tuple[str, ...]
    queue: pa.Table
    held_out: bool
    effect_floor: float
    trend: tuple[TrendPoint, ...] = ()
    notes: tuple[str, ...] = ()
    realised: tuple[Realised, ...] = ()


@dataclass(frozen=True, eq=False)
class Shown:
    """A page's choice. ``pictures``: thumbnails as data uris by their image's uri; those not shown are missing."""

    page: Page
    queue: list[dict[str, Any]]
    classes: tuple[ClassShift, ...]
    regions: tuple[Region, ...]
    pictures: Mapping[str, str] = field(repr=False)


def choose(page: Page, store: Store) -> Shown:
    """Choose what a page shows, and read its pictures. One that can't be read is missing, and no error."""
    queue = page.queue.slice(0, QUEUE_SHOWN).to_pylist()
    found = page.findings
    classes = found.classes[:CLASSES_SHOWN] if found else ()
    regions = found.regions[:REGIONS_SHOWN] if found else ()
    return Shown(page, queue, classes, regions, _pictures(list(_places(queue, classes, regions)), store))


def pairs_shown(row: ClassShift) -> tuple[tuple[str, str | None], ...]:
    """The pictures of one class: tonight's beside the reference image nearest to it, by their uris."""
    return tuple((pair.current, pair.reference) for pair in row.examples[:PICTURES_A_SIDE])


def sides_shown(row: Region) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The pictures of one region: tonight's, and the reference's, by their uris."""
    return row.current_images[:PICTURES_A_SIDE], row.reference_images[:PICTURES_A_SIDE]


def _places(queue: list[dict[str, Any]], classes: tuple[ClassShift, ...], regions: tuple[Region, ...]) -> Iterator[str]:
    """The uri of each place for a picture, the most important first; one image may have several places."""
    yield from (row["uri"] for row in queue)
    for row in classes[:ROWS_WITH_PICTURES]:
        yield from (uri for pair in pairs_shown(row) for uri in pair if uri)
    for region in regions[:ROWS_WITH_PICTURES]:
        yield from (uri for side in sides_shown(region) for uri in side)


def _pictures(places: list[str], store: Store) -> dict[str, str]:
    """Thumbnails of the places, as many of the first ones as the page can hold: each place holds its own copy."""
    copies = Counter(places)
    kept, bytes_left = {}, PICTURE_BYTES
    for uri, picture in zip(copies, thumbnails(store, list(copies)), strict=True):
        if picture and (cost := len(picture) * copies[uri]) <= bytes_left:
            kept[uri], bytes_left = picture, bytes_left - cost
    return kept
