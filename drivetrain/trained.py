"""What the owner of a learner said that it was trained on, beside the images that its reference marks.

Knows names as a labels file has them. Does not know which image a name means. That something was said at all is kept
too: `rescore` gives a new learner the old one's splits, which says nothing of what the new one was trained on.
"""

import hashlib
from collections.abc import Iterable

import pyarrow as pa

from drivetrain.layout import Layout
from drivetrain.schema import parquet_bytes
from drivetrain.store import Store

NAMES = pa.schema([("name", pa.string())])


def keep_trained(store: Store, layout: Layout, model_id: str, run_id: str, names: Iterable[str]) -> None:
    """Keep that a reference's splits are what its learner's owner said of it.

    ``names``: of images that the learner was trained on as well, and that the reference does not hold.
    """
    rows = sorted(set(names))
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    data = parquet_bytes(pa.table({"name": rows}, schema=NAMES))
    store.create(f"{layout.trained(model_id, run_id)}/{digest}.parquet", data)


def trained_files(store: Store, layout: Layout, model_id: str, run_id: str) -> list[str]:
    """The files kept of a reference, each named by what it holds; empty where nobody said what was trained on."""
    folder = layout.trained(model_id, run_id)
    return [f"{folder}/{name}" for name in store.names(folder) if name.endswith(".parquet")]


def trained_names(store: Store, layout: Layout, model_id: str, run_id: str) -> set[str]:
    """The names of all images that the learner was trained on and its reference does not hold."""
    files = trained_files(store, layout, model_id, run_id)
    return {name for file in files for name in store.read_table(file)["name"].to_pylist()}
