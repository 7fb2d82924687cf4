"""The labels that people gave a source's images: one file an import, the newest label of an image counts.

Knows uris and labels. Does not know runs, or who says what of an image but people.
"""

import pyarrow as pa

from drivetrain.layout import Layout
from drivetrain.store import Store

# ``imported``: when, in UTC, as ISO 8601 with microseconds, so that it sorts as text.
LABELS = pa.schema([("uri", pa.string()), ("label", pa.string()), ("imported", pa.string())])


def people_labels(store: Store, layout: Layout, source: str) -> dict[str, str]:
    """The newest label that people gave each image of a source, by uri; empty where nobody gave any."""
    folder = layout.labels(source)
    tables = [store.read_table(f"{folder}/{name}") for name in store.names(folder) if name.endswith(".parquet")]
    if not tables:
        return {}
    rows = pa.concat_tables(tables).sort_by("imported")
    return dict(zip(rows["uri"].to_pylist(), rows["label"].to_pylist(), strict=True))
