"""What an actor holds: shards of one run, from an image's object to its row.

Knows fetching, decoding, the learner, and a row. Does not know which shards there are or when a run is done. Each image
of a shard gets exactly one row: scored, or failed with its reason.
"""

import hashlib
import platform
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.config import Options
from drivetrain.errors import ImageError, LearnerError, StoreError
from drivetrain.export import LearnerInfo
from drivetrain.layout import Layout
from drivetrain.learner import Predictions, open_learner
from drivetrain.run import PartCounts, Run
from drivetrain.schema import round_mantissa, row_schema
from drivetrain.store import Store

FETCHERS = 16


@dataclass(frozen=True)
class Fetched:
    """One image's bytes, or the ImageError that came instead. ``verified``: the bytes match the store's MD5."""

    data: bytes
    verified: bool
    error: ImageError | None = None


class ShardScorer:
    """Scores shards of one run: what each actor holds. Loads the learner once, when it is made."""

    def __init__(
        self,
        options: Options,
        root: str,
        run_id: str,
        batch_size: int,
        *,
        vouched: bool = False,
        one_thread: bool = False,
        gpu: bool = False,
    ) -> None:
        self._store, layout = Store(options), Layout(root)
        self._run = Run.find(self._store, layout, run_id)
        record = self._run.record
        data = self._store.read(layout.export(record.model_id))
        settings = record.settings
        self._learner = open_learner(
            data,
            record.sha256,
            settings["embedding"],
            vouched=vouched,
            engine=settings["engine"],
            half=settings["precision"] == "float16",
            threads=1 if one_thread else None,
            gpu=gpu,
        )
        self._proved = settings["engine"] != "openvino"
        self._batch_size = batch_size
        self._fetchers = ThreadPoolExecutor(FETCHERS)

    def run(self, task: int) -> PartCounts:
        """Score one shard and write its part."""
        manifest = self._run.shard(task)
        images = manifest.to_pylist()
        rows = []
        for batch, fetched in self._batches(images):
            rows.extend(self._score(batch, fetched))
        schema = row_schema(self._run.record.embedding_size)
        return self._run.save_part(task, pa.Table.from_pylist(rows, schema=schema))

    def _batches(self, images: list[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], list[Fetched]]]:
        """Batches of images with their bytes; the next batch is fetched while one is worked on."""
        batches = [images[i : i + self._batch_size] for i in range(0, len(images), self._batch_size)]

        def order(batch: list[dict[str, Any]]) -> list[Future[Fetched]]:
            return [self._fetchers.submit(fetch, self._store, image) for image in batch]

        ahead = order(batches[0]) if batches else []
        for i, batch in enumerate(batches):
            current, ahead = ahead, order(batches[i + 1]) if i + 1 < len(batches) else []
            yield batch, [each.result() for each in current]

    def _score(self, batch: list[dict[str, Any]], fetched: list[Fetched]) -> list[dict[str, Any]]:
        max_pixels = int(self._run.record.settings["max_pixels"])
        rows, items, places = [], [], []
        for place, (image, got) in enumerate(zip(batch, fetched, strict=True)):
            row = self._blank(image, got)
            rows.append(row)
            if got.error:
                _fail(row, got.error)
                continue
            try:
                item, row["width"], row["height"] = self._learner.prepare(got.data, max_pixels)
            except ImageError as error:
                _fail(row, error)
                continue
            items.append(item)
            places.append(place)
        self._prove_here(items)
        for place, found in zip(places, self._learner.predict(items), strict=True):
            if isinstance(found, ImageError):
                _fail(rows[place], found)
            else:
                rows[place] |= outcome(self._learner.info, found)
        return rows

    def _prove_here(self, items: list[Any]) -> None:
        """Hold the engine against torch on this node's own processor, once. Raises LearnerError."""
        if self._proved or not items:
            return
        if reason := self._learner.prove(items[:8]).reason:
            raise LearnerError(
                f"On {platform.node()} the engine openvino does not give what it gave where the run began: {reason}. "
                "Use   --engine torch   for clusters of different machines."
            )
        self._proved = True

    def _blank(self, image: dict[str, Any], got: Fetched) -> dict[str, Any]:
        kept = {key: image[key] for key in ("uri", "etag", "size", "mtime", "split", "true_label")}
        return kept | {
            "content_hash": hashlib.sha256(got.data).hexdigest() if got.data else None,
            "verified": got.verified,
            "status": "ok",
            "attempts": 1,
            "model_id": self._run.record.model_id,
            "run_id": self._run.record.run_id,
        }


def fetch(store: Store, image: dict[str, Any]) -> Fetched:
    """Read one image and hold it against the manifest: its size, and its MD5 where the store's etag is one."""
    try:
        data = store.read(image["uri"])
    except FileNotFoundError as error:
        return Fetched(b"", False, ImageError("vanished", f"{type(error).__name__}: it was there when listed"))
    except PermissionError as error:
        return Fetched(b"", False, ImageError("denied", f"{type(error).__name__}: {error}"[:300]))
    except (OSError, StoreError) as error:
        return Fetched(b"", False, ImageError("unreachable", f"{type(error).__name__}: {error}"[:300]))
    if image["size"] is not None and len(data) != image["size"]:
        text = f"listed with {image['size']} bytes, read {len(data)}"
        return Fetched(data, False, ImageError("changed", text))
    etag = image["etag"] or ""
    looks_like_md5 = len(etag) == 32 and not set(etag) - set("0123456789abcdef")
    return Fetched(data, looks_like_md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() == etag)


def outcome(info: LearnerInfo, found: Predictions) -> dict[str, Any]:
    """The columns of a row that come from the learner, for one image."""
    embedding = None if found.embeddings is None else round_mantissa(found.embeddings[0]).tolist()
    columns: dict[str, Any] = {"embedding": embedding}
    outputs = found.outputs[0]
    if info.task == "regression":
        return columns | {"values": outputs.tolist()}
    top = int(outputs.argmax())
    columns |= {
        "label": info.vocab[top],
        "label_index": top,
        "labels": [info.vocab[top]],
        "confidence": float(outputs[top]),
        "probs": outputs.tolist(),
    }
    if found.chosen is not None:
        columns["labels"] = [word for word, yes in zip(info.vocab, found.chosen[0], strict=True) if yes]
        return columns
    second = float(np.partition(outputs, -2)[-2]) if len(outputs) > 1 else 0.0
    positive = outputs[outputs > 0]
    columns |= {
        "margin": float(outputs[top]) - second,
        "entropy": float(-(positive * np.log(positive)).sum()),
        "energy": float(found.energy[0]) if found.energy is not None else None,
    }
    return columns


def _fail(row: dict[str, Any], error: ImageError) -> None:
    row |= {"status": "failed", "error": error.reason, "error_text": str(error)}
