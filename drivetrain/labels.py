"""The labels that people gave a source's images: one file an import, the newest label of an image counts.

Knows uris and labels, and which images were drawn at random to be labelled. Does not know runs, or who says what of an
image but people.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from drivetrain.layout import Layout
from drivetrain.schema import parquet_bytes
from drivetrain.store import Store

# ``imported``: when, in UTC, as ISO 8601 with microseconds, so that it sorts as text.
LABELS = pa.schema([("uri", pa.string()), ("label", pa.string()), ("imported", pa.string())])
DRAWN = pa.schema([("uri", pa.string())])


def people_labels(store: Store, layout: Layout, source: str) -> dict[str, str]:
    """The newest label that people gave each image of a source, by uri; empty where nobody gave any."""
    folder = layout.labels(source)
    tables = [store.read_table(f"{folder}/{name}") for name in store.names(folder) if name.endswith(".parquet")]
    if not tables:
        return {}
    rows = pa.concat_tables(tables).sort_by([("imported", "ascending"), ("label", "ascending")])
    return dict(zip(rows["uri"].to_pylist(), rows["label"].to_pylist(), strict=True))


def keep_labels(store: Store, layout: Layout, source: str, labels: Mapping[str, str]) -> int:
    """Keep labels of people, by uri, in one new file; how many of them say something new of their image.

    What is known already is not written again: the same labels a second time make no file.
    """
    known = people_labels(store, layout, source)
    new = sorted((uri, label) for uri, label in labels.items() if known.get(uri) != label)
    if new:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        uris, words = zip(*new, strict=True)
        data = parquet_bytes(pa.table({"uri": uris, "label": words, "imported": [now] * len(new)}, schema=LABELS))
        store.create(f"{layout.labels(source)}/{hashlib.sha256(data).hexdigest()}.parquet", data)
    return len(new)


def drawn_images(store: Store, layout: Layout, source: str, kind: str, name: str) -> frozenset[str]:
    """The uris of a plan's images that were drawn at random to be labelled, by whichever queue."""
    folder = layout.drawn(source, kind, name)
    tables = [store.read_table(f"{folder}/{each}") for each in store.names(folder) if each.endswith(".parquet")]
    return frozenset(uri for table in tables for uri in table["uri"].to_pylist())


def keep_drawn(store: Store, layout: Layout, source: str, kind: str, name: str, uris: Sequence[str]) -> None:
    """Keep which images of a plan were drawn at random, so that their labels are known as such when they come back."""
    data = parquet_bytes(pa.table({"uri": sorted(uris)}, schema=DRAWN))
    store.create(f"{layout.drawn(source, kind, name)}/{hashlib.sha256(data).hexdigest()}.parquet", data)
