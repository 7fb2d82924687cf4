"""Images changed on purpose, and scored: what the self-test plants into nights, and what behaviour tests look at.

Knows pixels of a few kinds of damage that cameras and pipelines do. Does not know what is made of the scores. Runs on
actors like any scoring: a task is one change of some images.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFilter

from drivetrain.errors import ImageError
from drivetrain.layout import Layout
from drivetrain.opened import open_as
from drivetrain.outcomes import outcome
from drivetrain.perturbations import Change, compressed, lit
from drivetrain.properties import properties_of
from drivetrain.schema import row_schema
from drivetrain.several import several_at_once
from drivetrain.store import Store

# Of a reference; each is scored once for each kind of damage.
PLANTED = 300
# Images that are fetched together, and that are in memory at a time.
TOGETHER = 16
# A change gives no image of more than so many times its pixels.
MOST_ENLARGED = 4


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 100))


def _noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _rotated(image: Image.Image) -> Image.Image:
    return image.rotate(15, Image.Resampling.BILINEAR)


DAMAGES: dict[str, Change] = {
    "darker (0.6 of the light)": partial(lit, light=0.6),
    "blurred (1 % of the width)": _blurred,
    "noise (20 of 255)": _noisy,
    "JPEG of quality 10": partial(compressed, quality=10),
    "rotated by 15 degrees": _rotated,
}


def damaged(data: bytes, damage: Change) -> bytes:
    """An image's bytes after a kind of damage, or another change, as PNG. Raises what Pillow raises."""
    with Image.open(io.BytesIO(data)) as opened:
        image = damage(opened.convert("RGB"))
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=1)
    return sink.getvalue()


@dataclass(frozen=True)
class Planting:
    """One task: some images, and the change that each gets. None leaves an image's bytes alone."""

    uris: tuple[str, ...]
    change: Change | None


@dataclass(frozen=True)
class PlantSettings:
    """What an actor needs to change images and score them with a learner of the root, as its runs are scored."""

    options: dict[str, Any]
    root: str
    sha256: str
    settings: Mapping[str, Any]
    embedding_size: int
    plantings: tuple[Planting, ...]
    vouched: bool
    one_thread: bool
    gpu: bool = False


class Planter:
    """Scores changed images with one learner: what each actor holds."""

    def __init__(self, settings: PlantSettings) -> None:
        self._store, self._about = Store(settings.options), settings
        self._max_pixels = int(settings.settings["max_pixels"])
        self._learner = open_as(
            self._store, Layout(settings.root), settings.sha256, settings.settings,
            vouched=settings.vouched, one_thread=settings.one_thread, gpu=settings.gpu,
        )  # fmt: skip

    def run(self, task: int, upcoming: int | None = None) -> pa.Table:
        """The rows of a task's images after its change, in their order; one that can't be scored has status failed.

        Raises OSError when the store refuses: an outage says nothing about an image.
        """
        planting, rows = self._about.plantings[task], []
        for first in range(0, len(planting.uris), TOGETHER):
            uris = planting.uris[first : first + TOGETHER]
            prepared = [
                self._prepared(uri, data, planting.change)
                for uri, data in zip(uris, several_at_once(self._bytes, uris), strict=True)
            ]
            rows += self._scored(prepared)
        return pa.Table.from_pylist(rows, schema=row_schema(self._about.embedding_size))

    def _bytes(self, uri: str) -> bytes | ImageError:
        try:
            return self._store.read(uri)
        except (FileNotFoundError, NotADirectoryError):
            return ImageError("vanished", "it is gone")
        except PermissionError as error:
            return ImageError("denied", str(error))

    def _prepared(self, uri: str, data: bytes | ImageError, change: Change | None) -> tuple[dict[str, Any], Any]:
        """The row so far, and what the learner makes of the changed bytes, None when that failed."""
        row: dict[str, Any] = {"uri": uri, "status": "ok"}
        try:
            if isinstance(data, ImageError):
                raise data
            most = self._max_pixels
            if change:
                # A change may enlarge an image, which was let in as it was.
                data, most = damaged(data, change), MOST_ENLARGED * self._max_pixels
            item, header = self._learner.prepare(data, most)
        except (ImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            return row | _failure(error), None
        row |= {"width": header.width, "height": header.height, "size": len(data)}
        return row | properties_of(item), item

    def _scored(self, prepared: list[tuple[dict[str, Any], Any]]) -> list[dict[str, Any]]:
        good = [(row, item) for row, item in prepared if item is not None]
        for (row, _), found in zip(good, self._learner.predict([item for _, item in good]), strict=True):
            row.update(_failure(found) if isinstance(found, ImageError) else outcome(self._learner.info, found))
        return [row for row, _ in prepared]

    def steps(self, task: int, first: int | None, without: frozenset[int]) -> Iterator[tuple[int | None, Any]]:
        """One step: a change is not looked into further."""
        yield 0, None
        yield None, self.run(task)


def _failure(error: Exception) -> dict[str, Any]:
    reason = error.reason if isinstance(error, ImageError) else "undecodable"
    return {"status": "failed", "error": reason, "error_text": str(error)}
