"""Which images there are, frozen before any work: listing, plans and shards.

Knows objects and how they are cut into shards. Does not know what is done with an image, and never lists twice: a plan
is created once, and the same command finds it again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.console import busy
from drivetrain.errors import SettingError
from drivetrain.layout import MANIFEST_FILE_SHARDS, Layout, PlanPaths
from drivetrain.root import to_json
from drivetrain.schema import MANIFEST
from drivetrain.store import ObjectInfo, Store

SHARD_IMAGES = 512
SHARD_BYTES = 256 * 1024**2
# Fewer images than that in a shard cost more in parts than they win in actors kept busy.
SMALLEST_SHARD = 64
SHARDS_WANTED = 16

# fmt: off
OTHER_SUFFIXES = frozenset([
    "csv", "db", "doc", "docx", "gz", "htm", "html", "ipynb", "ini", "json", "jsonl", "log", "md", "parquet", "pdf",
    "pkl", "pt", "pth", "py", "rtf", "sqlite", "tar", "toml", "tsv", "txt", "xls", "xlsx", "xml", "yaml", "yml", "zip",
    "zst",
])
# fmt: on


@dataclass(frozen=True)
class Listing:
    """The images below a prefix, and how many other objects were passed over, by suffix."""

    images: tuple[ObjectInfo, ...]
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
    images = []
    with busy(f"Listing {prefix}"):
        for found in store.find(prefix):
            why = why_no_image(found.uri.removeprefix(prefix))
            if why:
                skipped[why] += 1
            else:
                images.append(found)
    return Listing(tuple(images), dict(skipped))


def why_no_image(key: str) -> str | None:
    """``hidden``, a known other suffix, or None for what may be an image. ``key`` is relative to the prefix."""
    parts = key.strip("/").split("/")
    if any(part.startswith((".", "_")) for part in parts):
        return "hidden"
    if key.endswith("/"):
        return "folder"
    suffix = parts[-1].rsplit(".", 1)[-1].lower() if "." in parts[-1] else ""
    return suffix if suffix in OTHER_SUFFIXES else None


def frozen_table(images: Iterable[ObjectInfo], labels: dict[str, tuple[str, str | None]] | None = None) -> pa.Table:
    """The manifest of some images, cut into shards.

    ``labels`` gives an image's split and true label by its uri; without it both are null.
    """
    rows = sorted(images, key=lambda image: image.uri)
    shards = _cut([image.size for image in rows])
    split = [labels[image.uri][0] if labels and image.uri in labels else None for image in rows]
    true = [labels[image.uri][1] if labels and image.uri in labels else None for image in rows]
    columns = {
        "shard": shards,
        "uri": [image.uri for image in rows],
        "etag": [image.etag for image in rows],
        "size": [image.size for image in rows],
        "mtime": [image.mtime for image in rows],
        "split": split,
        "true_label": true,
    }
    return pa.table(columns, schema=MANIFEST)


def _cut(sizes: list[int]) -> list[int]:
    """The shard of each image: bounded by count and by bytes, small runs still cut for several actors."""
    most = min(SHARD_IMAGES, max(SMALLEST_SHARD, -(-len(sizes) // SHARDS_WANTED)))
    shards, shard, count, total = [], 0, 0, 0
    for size in sizes:
        if count and (count >= most or total + size > SHARD_BYTES):
            shard, count, total = shard + 1, 0, 0
        shards.append(shard)
        count, total = count + 1, total + size
    return shards


def digest_of(manifest: pa.Table) -> str:
    """The sha256 of what a manifest holds, shards apart."""
    digest = hashlib.sha256()
    for row in manifest.select(["uri", "etag", "size", "split", "true_label"]).to_pylist():
        digest.update(json.dumps(list(row.values()), ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def freeze(
    store: Store,
    layout: Layout,
    manifest: pa.Table,
    *,
    source: str,
    kind: str,
    name: str,
    prefix: str,
    skipped: dict[str, int],
    late: int = 0,
) -> Plan:
    """Create the plan, or find the one that another writer created first. What a plan names never changes."""
    digest = digest_of(manifest)
    sizes = manifest["size"].to_pylist()
    shards = manifest["shard"][-1].as_py() + 1 if len(manifest) else 1
    now = datetime.now(UTC).isoformat(timespec="seconds")
    plan = Plan(source, kind, name, prefix, digest, len(manifest), sum(sizes), shards, late, skipped, now)
    paths = plan.paths(layout)
    write_manifest(store, paths.manifest(digest), manifest, shards)
    store.create(paths.plan, to_json(asdict(plan)))
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


def write_manifest(store: Store, folder: str, manifest: pa.Table, shards: int) -> None:
    """Write a manifest: 64 shards a file, one row group a shard, so that an actor reads its own rows only."""
    shard_column = manifest["shard"].to_numpy()
    for number, first in enumerate(range(0, shards, MANIFEST_FILE_SHARDS)):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, MANIFEST, compression="zstd") as writer:
            for shard in range(first, min(first + MANIFEST_FILE_SHARDS, shards)):
                start, stop = shard_column.searchsorted([shard, shard + 1])
                writer.write_table(manifest.slice(start, stop - start), row_group_size=max(1, int(stop - start)))
        store.create(f"{folder}/{number:05d}.parquet", sink.getvalue().to_pybytes())


def read_shard(store: Store, folder: str, shard: int) -> pa.Table:
    """The manifest's rows of one shard."""
    with store.open(f"{folder}/{shard // MANIFEST_FILE_SHARDS:05d}.parquet") as file:
        return pq.ParquetFile(file).read_row_group(shard % MANIFEST_FILE_SHARDS)


def read_manifest(store: Store, folder: str, columns: list[str] | None = None) -> pa.Table:
    """A whole manifest, or some of its columns."""
    names = [name for name in store.names(folder) if name.endswith(".parquet")]
    tables = [store.read_table(f"{folder}/{name}", columns) for name in names]
    return pa.concat_tables(tables) if tables else MANIFEST.empty_table()


def copy_manifest(store: Store, source: str, target: str) -> None:
    """Give a run its own copy of a frozen manifest, so that a run's folder says all of it."""
    for name in store.names(source):
        store.create(f"{target}/{name}", store.read(f"{source}/{name}"))
