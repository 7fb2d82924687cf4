"""What an actor holds: shards of one run, from an image's object to its row.

Knows fetching, decoding, the learner, and a row. Does not know which shards there are or when a run is done. Each image
of a shard gets exactly one row: scored, or failed with its reason.
"""

import hashlib
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import pyarrow as pa

from drivetrain.cluster import cores_of_actor
from drivetrain.errors import ImageError, StoreError
from drivetrain.fetch import Fetched, Fetcher, Outage, most_bytes
from drivetrain.layout import Layout
from drivetrain.learner import flags_of
from drivetrain.opened import open_as
from drivetrain.outcomes import outcome
from drivetrain.properties import properties_of
from drivetrain.run import PartCounts, Run
from drivetrain.schema import row_schema
from drivetrain.several import several_at_once
from drivetrain.store import Store

FETCHERS = 16
# Two batches of images are in memory at a time, whatever their size.
BATCH_BYTES = 64 * 1024**2
# With so many bytes of pixels, or one image more, the network is asked: without a Resize a batch would take gigabytes.
PIXEL_BYTES = 64 * 1024**2
# Of an image that ends its process: in its batch, after the images before it, and as the first one of all.
MAX_ATTEMPTS = 3
# Seconds before a shard is tried again that the store handed out nothing of; each image was asked for several times.
OUTAGE_WAITS = (5.0, 20.0)


@dataclass(frozen=True)
class Prepared:
    """An image's row so far, and what the learner makes of its bytes, None when that failed."""

    row: dict[str, Any]
    item: Any


Arriving = tuple[dict[str, Any], "Future[Fetched]"]


@dataclass(frozen=True)
class _Ordered:
    """The rows of a shard that are there already, and its batches, the first of which is on its way.

    ``ready``: the first images of all, as far as they are prepared already.
    """

    kept: list[dict[str, Any]]
    batches: list[list[dict[str, Any]]]
    first: deque[Arriving]
    ready: deque[Prepared] = field(default_factory=deque)


class _Room:
    """Room for the pixels that threads decode ahead. The image whose turn it is always has room, or all would wait."""

    def __init__(self) -> None:
        self._changed, self._held, self._taken, self._closed = Condition(), 0, 0, False

    def fill(self, turn: int, prepare: Any, *arguments: Any) -> Prepared:
        """Prepare an image once there is room; the turns are 0, 1, 2 and so on."""
        with self._changed:
            self._changed.wait_for(lambda: self._held < PIXEL_BYTES or turn <= self._taken or self._closed)
        prepared: Prepared = prepare(*arguments)
        with self._changed:
            self._held += _size(prepared)
        return prepared

    def take(self, filled: "Future[Prepared]") -> Prepared:
        """The image whose turn it is."""
        prepared = filled.result()
        with self._changed:
            self._held -= _size(prepared)
            self._taken += 1
            self._changed.notify_all()
        return prepared

    def close(self) -> None:
        """Nobody takes any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class ShardScorer:
    """Scores shards of one run: what each actor holds. Loads the learner once, when it is made."""

    def __init__(
        self,
        store: Store,
        root: str,
        run_id: str,
        batch_size: int,
        *,
        vouched: bool = False,
        one_thread: bool = False,
        gpu: bool = False,
    ) -> None:
        self._store, layout = store, Layout(root)
        self._run = Run.find(self._store, layout, run_id)
        record = self._run.record
        settings = record.settings
        self._learner = open_as(
            self._store, layout, record.sha256, settings, vouched=vouched, one_thread=one_thread, gpu=gpu
        )
        self._max_pixels = int(settings["max_pixels"])
        self._fetcher = Fetcher(self._store, self._run.paths.record, most_bytes(self._max_pixels))
        self._before = Run.find(self._store, layout, record.retry_of) if record.retry_of else None
        self._batch_size = batch_size
        self._expected: tuple[int, Future[_Ordered]] | None = None
        self._readers, self._fetchers = ThreadPoolExecutor(1), ThreadPoolExecutor(FETCHERS)
        self._writer = ThreadPoolExecutor(1)
        # An actor with one CPU decodes between two passes of the network; one with a GPU uses its share of the cores.
        self._decoders = ThreadPoolExecutor(cores_of_actor()) if gpu and self._learner.decodes_in_threads else None

    def run(self, task: int, upcoming: int | None = None) -> PartCounts:
        """Score one shard and write its part; fetch the first images of the upcoming one while at it.

        Raises StoreError when the store hands out nothing, some time after the first try; there is no part then.
        """
        for wait in OUTAGE_WAITS:
            try:
                return self._score_shard(task, upcoming)
            except Outage:
                time.sleep(wait)
                self._fetcher.hope()
        return self._score_shard(task, upcoming)

    def steps(
        self, task: int, first: int | None, without: frozenset[int]
    ) -> Iterator[tuple[int | None, PartCounts | None]]:
        """Score one shard image by image, and say before each which one of the shard it is: one of them ends processes.

        The images in ``without`` are not looked at again, and get the reason ``crashed``.
        """
        images, rows = self._to_score(task)
        for step in sorted(range(len(images)), key=lambda step: (step != first, step)):
            if step in without:
                rows.append(self._crashed(images[step]))
                continue
            yield step, None
            rows += self._score([self._prepare(images[step], self._fetch(images[step]))])
        yield None, self._save(task, rows)

    def _crashed(self, image: dict[str, Any]) -> dict[str, Any]:
        row = self._blank(image, Fetched(b"", False))
        _fail(row, ImageError("crashed", "the process that scored it ended, three times"))
        return row | {"attempts": MAX_ATTEMPTS}

    def _save(self, shard: int, rows: list[dict[str, Any]]) -> PartCounts:
        """Write the part of a shard, its rows in the order of the manifest, which is that of the uris' bytes."""
        schema = row_schema(self._run.record.embedding_size)
        rows.sort(key=lambda row: row["uri"].encode())
        return self._run.save_part(shard, pa.Table.from_pylist(rows, schema=schema))

    def _to_score(self, shard: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The images of a shard that are to be scored, and the rows that are there already."""
        images = self._run.shard(shard).to_pylist()
        if self._before is None:
            return images, []
        before = {row["uri"]: row for row in self._before.part(shard).to_pylist()}
        kept = [row | {"run_id": self._run.record.run_id} for row in before.values() if row["status"] == "ok"]
        failed = [
            image | {"attempts": before[image["uri"]]["attempts"] + 1}
            for image in images
            if before[image["uri"]]["status"] != "ok"
        ]
        return several_at_once(self._as_it_is_now, failed), kept

    def _as_it_is_now(self, image: dict[str, Any]) -> dict[str, Any]:
        """A failed image, with what the store says of it today: it may have been replaced since it was listed."""
        with suppress(OSError, StoreError):
            now = self._store.about(image["uri"])
            return image | {"etag": now.etag, "size": now.size, "mtime": now.mtime}
        return image

    def _score_shard(self, task: int, upcoming: int | None) -> PartCounts:
        expected, self._expected = self._expected, None
        ordered = expected[1].result() if expected and expected[0] == task else self._order_shard(task)
        rows = list(ordered.kept)
        for batch in self._batches(self._prepared(ordered, upcoming)):
            rows.extend(self._score(batch))
            # Else its pixels would stay while those of the next one are decoded.
            batch.clear()
        saving = self._writer.submit(self._save, task, rows)
        self._prepare_while(saving)
        return saving.result()

    def _prepare_while(self, saving: "Future[PartCounts]") -> None:
        """Prepare first images of the next shard while a part is on its way: a bucket answers late."""
        expected = self._expected and self._expected[1]
        if expected is None or not expected.done() or expected.exception():
            return
        ordered, pixels = expected.result(), 0
        for image, fetched in ordered.first:
            # An exception is an outage, which the shard meets in its own turn.
            if saving.done() or pixels >= PIXEL_BYTES or not fetched.done() or fetched.exception():
                return
            ordered.ready.append(self._prepare(image, fetched))
            pixels += _size(ordered.ready[-1])

    def _order_shard(self, shard: int) -> _Ordered:
        """Read a shard's manifest, cut it into batches, and begin to fetch the first."""
        images, kept = self._to_score(shard)
        batches = cut(images, self._batch_size)
        return _Ordered(kept, batches, self._order(batches[0]) if batches else deque())

    def _order(self, batch: list[dict[str, Any]]) -> deque[Arriving]:
        """Begin to fetch a batch."""
        return deque((image, self._fetch(image)) for image in batch)

    def _fetch(self, image: dict[str, Any]) -> "Future[Fetched]":
        """Begin to fetch an image."""
        return self._fetchers.submit(self._fetcher.read, image)

    def _arriving(self, ordered: _Ordered, upcoming: int | None) -> Iterator[Arriving]:
        """The images of a shard in turn; a batch further is on its way by then, at the end that of the next shard."""
        ahead = ordered.first
        for following in [*ordered.batches[1:], None]:
            current, ahead = ahead, self._order(following) if following else deque()
            if following is None and upcoming is not None:
                self._expected = (upcoming, self._readers.submit(self._order_shard, upcoming))
            while current:
                yield current.popleft()

    def _batches(self, each_prepared: Iterator[Prepared]) -> Iterator[list[Prepared]]:
        """Prepared images, as many as a batch holds, or fewer that have PIXEL_BYTES. Who takes them lets them go."""
        batch: list[Prepared] = []
        size = 0
        for prepared in each_prepared:
            batch.append(prepared)
            size += _size(prepared)
            del prepared
            if len(batch) >= self._batch_size or size >= PIXEL_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _prepared(self, ordered: _Ordered, upcoming: int | None) -> Iterator[Prepared]:
        """Prepared images in turn; with a GPU a batch of them is decoded ahead, as far as there is room."""
        arriving, ready = self._arriving(ordered, upcoming), ordered.ready
        if self._decoders is None:
            yield from (ready.popleft() if ready else self._prepare(*each) for each in arriving)
            return
        room, ahead = _Room(), deque[Future[Prepared]]()
        try:
            for turn, (image, got) in enumerate(arriving):
                how = (_itself, ready.popleft()) if ready else (self._prepare, image, got)
                ahead.append(self._decoders.submit(room.fill, turn, *how))
                if len(ahead) > self._batch_size:
                    yield room.take(ahead.popleft())
            while ahead:
                yield room.take(ahead.popleft())
        finally:
            for each in ahead:
                each.cancel()
            room.close()

    def _prepare(self, image: dict[str, Any], arriving: Future[Fetched]) -> Prepared:
        """An image's row so far, and its pixels unless it failed."""
        got = arriving.result()
        row = self._blank(image, got)
        if got.error:
            _fail(row, got.error)
            return Prepared(row, None)
        try:
            item, header = self._learner.prepare(got.data, self._max_pixels)
        except ImageError as error:
            _fail(row, error)
            return Prepared(row, None)
        row |= {"width": header.width, "height": header.height, "flags": flags_of(header, image["uri"])}
        row |= properties_of(item)
        return Prepared(row, item)

    def _score(self, batch: list[Prepared]) -> list[dict[str, Any]]:
        good = [each for each in batch if each.item is not None]
        items = [each.item for each in good]
        for each, found in zip(good, self._learner.predict(items), strict=True):
            if isinstance(found, ImageError):
                _fail(each.row, found)
            else:
                each.row.update(outcome(self._learner.info, found))
        return [each.row for each in batch]

    def _blank(self, image: dict[str, Any], got: Fetched) -> dict[str, Any]:
        kept = {key: image[key] for key in ("uri", "etag", "size", "mtime", "split", "true_label")}
        return kept | {
            "content_hash": hashlib.sha256(got.data).hexdigest() if got.data else None,
            "verified": got.verified,
            "status": "ok",
            "attempts": image.get("attempts", 1),
            "model_id": self._run.record.model_id,
            "run_id": self._run.record.run_id,
        }


def _itself(prepared: Prepared) -> Prepared:
    return prepared


def _size(prepared: Prepared) -> int:
    """The bytes of an image's pixels. What fastai's own pipelines make are tensors, which have it too."""
    return int(getattr(prepared.item, "nbytes", 0))


def cut(images: list[dict[str, Any]], most: int) -> list[list[dict[str, Any]]]:
    """Cut images into batches of at most ``most`` images and BATCH_BYTES, which bounds what is read ahead."""
    batches: list[list[dict[str, Any]]] = []
    total = 0
    for image in images:
        size = image["size"] or 0
        if not batches or len(batches[-1]) >= most or total + size > BATCH_BYTES:
            batches.append([])
            total = 0
        batches[-1].append(image)
        total += size
    return batches


def _fail(row: dict[str, Any], error: ImageError) -> None:
    row |= {"status": "failed", "error": error.reason, "error_text": str(error)}
