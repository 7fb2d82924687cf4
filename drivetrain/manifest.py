"""Which images there are, frozen before any work: listing, plans and shards.

Knows objects and how they are cut into shards. Does not know what is done with an image, and never lists twice: a plan
is created once, and the same command finds it again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from drivetrain.console import busy
from drivetrain.errors import SettingError
from drivetrain.images import Images, in_order
from drivetrain.layout import MANIFEST_FILE_SHARDS, Layout, PlanPaths
from drivetrain.root import to_json
from drivetrain.schema import IMAGE, MANIFEST
from drivetrain.several import several_at_once
from drivetrain.store import Store

SHARD_IMAGES = 512
SHARD_BYTES = 256 * 1024**2
# Fewer images than that in a shard cost more in parts than they win in actors kept busy.
SMALLEST_SHARD = 64
# An actor without a shard waits for the others: with many, at the end, only a little.
SHARDS_WANTED = 64

# fmt: off
OTHER_SUFFIXES = frozenset([
    "csv", "db", "doc", "docx", "gz", "htm", "html", "ipynb", "ini", "json", "jsonl", "log", "md", "parquet", "pdf",
    "pkl", "pt", "pth", "py", "rtf", "sqlite", "tar", "toml", "tsv", "txt", "xls", "xlsx", "xml", "yaml", "yml", "zip",
    "zst",
])
# fmt: on


Label = tuple[str, str | None]


@dataclass(frozen=True)
class Listing:
    """The images below a prefix, and how many other objects were passed over, by suffix."""

    images: Images
    skipped: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """A frozen choice of what to score. ``kind`` is ``night`` or ``plan``; ``late`` counts late arrivals of a night."""

    source: str
    kind: str
    name: str
    prefix: str
    digest: str
    images: int
    bytes: int
    shards: int
    late: int
    skipped: dict[str, int]
    created: str

    def paths(self, layout: Layout) -> PlanPaths:
        """Where the plan lies."""
        return layout.plan(self.source, self.kind, self.name)


def list_images(store: Store, prefix: str) -> Listing:
    """Every object below a prefix that may be an image: not hidden, and no known other suffix.

    Keys without a suffix count as images: a bad guess costs one error row, the other way round an image is lost.
    """
    skipped: Counter[str] = Counter()

    def kept() -> Iterator[pa.RecordBatch]:
        for batch in store.listed(prefix):
            why = [why_no_image(uri.removeprefix(prefix)) for uri in batch["uri"].to_pylist()]
            skipped.update(word for word in why if word)
            yield batch.filter(pa.array([word is None for word in why]))

    with busy(f"Listing {prefix}"):
        images = in_order(kept())
    return Listing(images, dict(skipped))


def why_no_image(key: str) -> str | None:
    """``hidden``, a known other suffix, or None for what may be an image. ``key`` is relative to the prefix."""
    parts = key.strip("/").split("/")
    if any(part.startswith((".", "_")) for part in parts):
        return "hidden"
    if key.endswith("/"):
        return "folder"
    suffix = parts[-1].rsplit(".", 1)[-1].lower() if "." in parts[-1] else ""
    return suffix if suffix in OTHER_SUFFIXES else None


def with_labels(images: Images, label_of: Callable[[str], Label | None]) -> Images:
    """The same images with the split and the true label that each uri has; None leaves both null."""

    def labelled() -> Iterator[pa.RecordBatch]:
        for batch in images.batches():
            labels = [label_of(uri) or (None, None) for uri in batch["uri"].to_pylist()]
            split, true_label = (pa.array(column, pa.string()) for column in zip(*labels, strict=True))
            columns = [*batch.select(["uri", "etag", "size", "mtime"]).columns, split, true_label]
            yield pa.RecordBatch.from_arrays(columns, schema=IMAGE)

    return Images(labelled())


def shards_of(images: Images) -> Iterator[pa.Table]:
    """The images of each shard: bounded by count and by bytes, small runs still cut for several actors.

    No image makes one empty shard. An image larger than a shard gets its own.
    """
    most = min(SHARD_IMAGES, max(SMALLEST_SHARD, -(-len(images) // SHARDS_WANTED)))
    shard: list[pa.RecordBatch] = []
    count = total = 0
    for batch in images.batches():
        # Not image by image: a search in the running sum of sizes says where the shard is full.
        sums = np.concatenate([[0], np.cumsum(batch["size"].fill_null(0).to_numpy())])
        start = 0
        while start < len(batch):
            fits = int(np.searchsorted(sums, sums[start] + SHARD_BYTES - total, "right")) - 1
            stop = min(max(fits, start), start + most - count)
            if stop == start and not count:
                stop += 1
            shard.append(batch.slice(start, stop - start))
            count, total = count + stop - start, total + int(sums[stop] - sums[start])
            if stop < len(batch):
                yield pa.Table.from_batches(shard)
                shard, count, total = [], 0, 0
            start = stop
    yield pa.Table.from_batches(shard, IMAGE)


def digest_of(images: Images) -> str:
    """The sha256 of the images: every uri, etag, size, split and true label, in the order of the uris.

    Column by column over Arrow's own buffers, since ten million rows as JSON take minutes. A column is three streams,
    which values are null, how long they are, and their bytes; each is hashed as if in one piece, so that how the
    images are cut into batches plays no part, and the three together leave no two lists of values alike.
    """
    names = ("uri", "etag", "size", "split", "true_label")
    hashes = {(name, part): hashlib.sha256() for name in names for part in ("nulls", "lengths", "bytes")}
    for batch in images.batches():
        for name in names:
            column = batch[name]
            hashes[name, "nulls"].update(column.is_null().to_numpy(zero_copy_only=False).tobytes())
            if pa.types.is_integer(column.type):
                hashes[name, "bytes"].update(column.fill_null(0).to_numpy().astype("<i8").tobytes())
                continue
            text = column.fill_null("")
            hashes[name, "lengths"].update(pc.binary_length(text).to_numpy().astype("<i4").tobytes())
            hashes[name, "bytes"].update(_text_bytes(text))
    return hashlib.sha256(b"".join(each.digest() for each in hashes.values())).hexdigest()


def _text_bytes(column: pa.StringArray) -> memoryview:
    """All strings of a column without nulls, one after the other."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[[column.offset, column.offset + len(column)]]
    return memoryview(data or b"")[ends[0] : ends[1]]


def freeze(
    store: Store,
    layout: Layout,
    images: Images,
    *,
    source: str,
    kind: str,
    name: str,
    prefix: str,
    skipped: dict[str, int],
    late: int = 0,
) -> Plan:
    """Create the plan, or find the one that another writer created first. What a plan names never changes."""
    digest = digest_of(images)
    folder = layout.plan(source, kind, name).manifest(digest)
    shards = write_manifest(store, folder, images)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    plan = Plan(source, kind, name, prefix, digest, len(images), images.bytes, shards, late, skipped, now)
    if store.create(plan.paths(layout).plan, to_json(asdict(plan))):
        return plan
    found = find_plan(store, layout, source, kind, name)
    assert found is not None
    return found


def find_plan(store: Store, layout: Layout, source: str, kind: str, name: str) -> Plan | None:
    """The plan of that name, or None."""
    try:
        return Plan(**json.loads(store.read(layout.plan(source, kind, name).plan)))
    except FileNotFoundError:
        return None


def check_prefix(plan: Plan, prefix: str) -> Plan:
    """Raises SettingError when a plan of that name froze another prefix than the one asked for now."""
    if plan.prefix != prefix:
        raise SettingError(
            f"The plan {plan.name!r} of source {plan.source!r} froze the images of {plan.prefix}\n"
            f"and this command names {prefix}. Give another --name, or another --source."
        )
    return plan


def write_manifest(store: Store, folder: str, images: Images) -> int:
    """Cut images into shards and write them. Returns the number of shards.

    64 shards a file, one row group a shard, so that an actor reads its own rows only.
    """

    def write(file: tuple[int, list[pa.Table]]) -> int:
        number, shards = file
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, MANIFEST, compression="zstd") as writer:
            for shard, rows in enumerate(shards, number * MANIFEST_FILE_SHARDS):
                column = pa.array(np.full(len(rows), shard, np.int32))
                numbered = rows.add_column(0, MANIFEST.field("shard"), column)
                writer.write_table(numbered, row_group_size=max(1, len(rows)))
        store.create(f"{folder}/{number:05d}.parquet", sink.getvalue().to_pybytes())
        return len(shards)

    return sum(several_at_once(write, enumerate(_files(shards_of(images)))))


def _files(shards: Iterator[pa.Table]) -> Iterator[list[pa.Table]]:
    while file := list(islice(shards, MANIFEST_FILE_SHARDS)):
        yield file


def read_shard(store: Store, folder: str, shard: int) -> pa.Table:
    """The manifest's rows of one shard."""
    with store.open(f"{folder}/{shard // MANIFEST_FILE_SHARDS:05d}.parquet") as file:
        return pq.ParquetFile(file).read_row_group(shard % MANIFEST_FILE_SHARDS)


def shard_sizes(store: Store, folder: str) -> list[int]:
    """How many images each shard of a manifest has, from the files' footers."""

    def sizes(name: str) -> list[int]:
        with store.open(f"{folder}/{name}") as file:
            about = pq.ParquetFile(file).metadata
        return [about.row_group(group).num_rows for group in range(about.num_row_groups)]

    names = [name for name in store.names(folder) if name.endswith(".parquet")]
    return [size for each in several_at_once(sizes, names) for size in each]


def read_manifest(store: Store, folder: str, columns: list[str] | None = None) -> pa.Table:
    """A whole manifest, or some of its columns."""
    names = [name for name in store.names(folder) if name.endswith(".parquet")]
    tables = [store.read_table(f"{folder}/{name}", columns) for name in names]
    return pa.concat_tables(tables) if tables else MANIFEST.empty_table()


def manifest_images(store: Store, folder: str) -> Iterator[pa.RecordBatch]:
    """The images of a manifest as batches in the order of their uris, one batch a file."""
    for name in store.names(folder):
        if name.endswith(".parquet") and len(table := store.read_table(f"{folder}/{name}", IMAGE.names)):
            yield pa.concat_batches(table.to_batches()).cast(IMAGE)


def copy_manifest(store: Store, source: str, target: str) -> None:
    """Give a run its own copy of a frozen manifest, so that a run's folder says all of it.

    What is there already was copied by an earlier command; each file is created in one piece.
    """
    frozen, there = several_at_once(store.names, (source, target))
    missing = sorted(set(frozen) - set(there))
    several_at_once(lambda name: store.create(f"{target}/{name}", store.read(f"{source}/{name}")), missing)
