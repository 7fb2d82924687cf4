"""Images made worse on purpose, and scored: what the self-test plants into nights.

Knows pixels of a few kinds of damage that cameras and pipelines do. Does not know what is made of the scores. Runs on
actors like any scoring: a task is one kind of damage.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFilter

from drivetrain.errors import ImageError
from drivetrain.layout import Layout
from drivetrain.run import Run
from drivetrain.schema import row_schema
from drivetrain.shard import open_for_run, outcome, properties_of
from drivetrain.store import Store

# Of a reference; each is scored once for each kind of damage.
PLANTED = 300


def _darker(image: Image.Image) -> Image.Image:
    return image.point(lambda value: int(value * 0.6))


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 100))


def _noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _compressed(image: Image.Image) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=10)
    return Image.open(io.BytesIO(sink.getvalue()))


def _rotated(image: Image.Image) -> Image.Image:
    return image.rotate(15, Image.Resampling.BILINEAR)


DAMAGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "darker (0.6 of the light)": _darker,
    "blurred (1 % of the width)": _blurred,
    "noise (20 of 255)": _noisy,
    "JPEG of quality 10": _compressed,
    "rotated by 15 degrees": _rotated,
}


def damaged(data: bytes, damage: Callable[[Image.Image], Image.Image]) -> bytes:
    """An image's bytes after a kind of damage, as PNG. Raises what Pillow raises."""
    with Image.open(io.BytesIO(data)) as opened:
        image = damage(opened.convert("RGB"))
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=1)
    return sink.getvalue()


@dataclass(frozen=True)
class PlantSettings:
    """What an actor needs to plant damage into images of a committed run."""

    options: dict[str, Any]
    root: str
    run_id: str
    uris: tuple[str, ...]
    vouched: bool
    one_thread: bool


class Planter:
    """Scores damaged images of one run with its learner: what each actor holds."""

    def __init__(self, settings: PlantSettings) -> None:
        self._store, layout = Store(settings.options), Layout(settings.root)
        self._run = Run.find(self._store, layout, settings.run_id)
        self._uris = settings.uris
        self._learner = open_for_run(
            self._store, layout, self._run.record, vouched=settings.vouched, one_thread=settings.one_thread, gpu=False
        )

    def run(self, task: int, upcoming: int | None = None) -> pa.Table:
        """The rows of all images after one kind of damage; those that can't be read or scored are left out."""
        damage = list(DAMAGES.values())[task]
        items, headers, sizes = [], [], []
        for uri in self._uris:
            try:
                data = damaged(self._store.read(uri), damage)
                item, header = self._learner.prepare(data, int(self._run.record.settings["max_pixels"]))
            except (ImageError, OSError, ValueError):
                continue
            items.append(item)
            headers.append(header)
            sizes.append(len(data))
        return self._rows(items, headers, sizes)

    def _rows(self, items: Sequence[Any], headers: Sequence[Any], sizes: Sequence[int]) -> pa.Table:
        rows = []
        for item, header, size, found in zip(items, headers, sizes, self._learner.predict(items), strict=True):
            if isinstance(found, ImageError):
                continue
            about = {"uri": "", "status": "ok", "width": header.width, "height": header.height, "size": size}
            rows.append(about | properties_of(item) | outcome(self._learner.info, found))
        return pa.Table.from_pylist(rows, schema=row_schema(self._run.record.embedding_size))

    def steps(self, task: int, first: int | None, without: frozenset[int]) -> Iterator[tuple[int | None, Any]]:
        """One step: a kind of damage is not looked into further."""
        yield 0, None
        yield None, self.run(task)
