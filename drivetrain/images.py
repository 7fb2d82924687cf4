"""Many images in little memory: batches of Arrow columns in the order of their uris, on disk once they are many.

Knows the columns of an image, their order, and how two streams of images are laid over each other. Does not know where
images come from or what becomes of them. Ten million images are 1.3 GB as columns and some 4 GB as Python objects; so
they pass through here batch by batch, and whatever needs them twice keeps them compressed in a temporary file, some
30 bytes an image.

Order is that of the uris' UTF-8 bytes, as in a bucket; Python and Arrow sort strings alike.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.schema import IMAGE

BATCH_ROWS = 16_384
# What is sorted in memory at once: some 30 MB of columns, thrice while Arrow sorts.
SORTED_ROWS = 16 * BATCH_ROWS
# A night of 100,000 images never touches the disk.
MEMORY_BYTES = 4 * 1024**2
# Streams that are merged at once. Each holds a batch, of up to a manifest's file.
FAN_IN = 16


class ObjectInfo(NamedTuple):
    """One listed object. ``etag`` is the store's, or for a local file its mtime in nanoseconds and its size."""

    uri: str
    size: int
    etag: str
    mtime: datetime | None


class Images:
    """Images in the order of their uris, to be gone through as often as needed. Make them with `in_order`.

    ``bytes`` is the sum of their sizes. The temporary file goes with the object.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._count, self.bytes, last = 0, 0, ""
        self._file = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115  # it lives as long as the object
        with pa.ipc.new_file(self._file, IMAGE, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
            for batch in _pieces(batches, BATCH_ROWS):
                assert last <= _first(batch) and _ascends(batch), "images must come in the order of their uris"
                last = _last(batch)
                self._count += len(batch)
                self.bytes += pc.sum(batch["size"]).as_py() or 0
                file.write_batch(batch)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ObjectInfo]:
        """One by one, for what can't be done by columns."""
        for batch in self.batches():
            columns = (batch[name].to_pylist() for name in ObjectInfo._fields)
            yield from map(ObjectInfo._make, zip(*columns, strict=True))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All images as batches of the schema IMAGE; no batch is empty."""
        reader = pa.ipc.open_file(self._file)
        return (reader.get_batch(number) for number in range(reader.num_record_batches))


def batches_of(found: Iterable[ObjectInfo]) -> Iterator[pa.RecordBatch]:
    """Listed objects as batches of the schema IMAGE, without split and true label, as they come."""
    rest = iter(found)
    while some := list(islice(rest, BATCH_ROWS)):
        columns = dict(zip(ObjectInfo._fields, zip(*some, strict=True), strict=True))
        nothing = pa.nulls(len(some), pa.string())
        yield pa.RecordBatch.from_pydict({**columns, "split": nothing, "true_label": nothing}, schema=IMAGE)


def in_order(batches: Iterable[pa.RecordBatch]) -> Images:
    """Images that come in any order, sorted by uri.

    Pieces are sorted in memory. A piece that goes on where the one before ended continues its run, so that a bucket,
    which lists in order, makes one run and is written once; several runs are merged.
    """
    runs = [Images(run) for run in _runs(map(_sorted, _pieces(batches, SORTED_ROWS)))]
    return runs[0] if len(runs) == 1 else Images(merged([run.batches() for run in runs]))


def merged(streams: Iterable[Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Streams of batches of the schema IMAGE that are each in order, as one.

    Only FAN_IN of them are begun at a time: the manifests of hundreds of nights are never in memory at once.
    """
    waiting = list(streams)
    while len(waiting) > FAN_IN:
        waiting = [*waiting[FAN_IN:], _kept(waiting[:FAN_IN])]
    return _merged(waiting)


def without(
    batches: Iterable[pa.RecordBatch],
    known: Iterator[pa.RecordBatch],
    by: Callable[[pa.RecordBatch], pa.Array] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The images whose uri and etag together, or ``by`` (`uris`), are not among the known ones.

    Both streams must be in order. Only known batches that overlap the batch at hand are looked at, and only those that
    reach beyond it are kept.
    """
    by = by or _keys
    upcoming = next(known, None)
    held: list[pa.RecordBatch] = []
    for batch in filter(len, batches):
        keys, last = by(batch), _last(batch)
        new = np.ones(len(batch), dtype=bool)
        for each in held:
            new &= ~_among(keys, by(each))
        held = [each for each in held if _last(each) >= last]
        while upcoming is not None and _first(upcoming) <= last:
            new &= ~_among(keys, by(upcoming))
            if _last(upcoming) >= last:
                held.append(upcoming)
            upcoming = next(known, None)
        if new.any():
            yield batch.filter(pa.array(new))


def _pieces(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of so many; only the last may be shorter, and none is empty."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        rest = batch
        while count + len(rest) >= rows:
            yield pa.concat_batches([*held, rest.slice(0, rows - count)])
            rest, held, count = rest.slice(rows - count), [], 0
        if len(rest):
            held.append(rest)
            count += len(rest)
    if held:
        yield pa.concat_batches(held)


def _runs(pieces: Iterable[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Ascending pieces, grouped while each begins where the one before ended, or later."""
    run, last = 0, ""

    def run_of(piece: pa.RecordBatch) -> int:
        nonlocal run, last
        run += _first(piece) < last
        last = _last(piece)
        return run

    return (group for _, group in groupby(pieces, run_of))


def _kept(streams: list[Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Streams merged into a temporary file when the first batch is asked for."""
    yield from Images(_merged(streams)).batches()


def _merged(streams: list[Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Of the batches at hand everything up to the smallest last uri is complete: sort that and pass it on."""
    heads = [(batch, stream) for stream in streams if (batch := next(stream, None)) is not None]
    while heads:
        bound = min(_last(batch) for batch, _ in heads)
        ready: list[pa.RecordBatch] = []
        left: list[tuple[pa.RecordBatch, Iterator[pa.RecordBatch]]] = []
        for batch, stream in heads:
            stop = pc.sum(pc.less_equal(batch["uri"], bound)).as_py()
            ready.append(batch.slice(0, stop))
            rest = batch.slice(stop) if stop < len(batch) else next(stream, None)
            if rest is not None:
                left.append((rest, stream))
        heads = left
        yield _sorted(pa.concat_batches(ready))


def _sorted(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch if _ascends(batch) else batch.sort_by([("uri", "ascending"), ("etag", "ascending")])


def _ascends(batch: pa.RecordBatch) -> bool:
    uris = batch["uri"]
    return len(uris) < 2 or bool(pc.all(pc.less_equal(uris[:-1], uris[1:])).as_py())


def _first(batch: pa.RecordBatch) -> str:
    return str(batch["uri"][0].as_py())


def _last(batch: pa.RecordBatch) -> str:
    return str(batch["uri"][-1].as_py())


def _keys(batch: pa.RecordBatch) -> pa.Array:
    # No store's listing can hold a NUL: two pairs never make the same key.
    return pc.binary_join_element_wise(batch["uri"], batch["etag"].fill_null(""), "\0")


def uris(batch: pa.RecordBatch) -> pa.Array:
    """An image is its uri, whatever lies there: a way for `without` to compare."""
    return batch["uri"]


def _among(keys: pa.Array, known: pa.Array) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = pc.is_in(keys, known).to_numpy(zero_copy_only=False)
    return found
