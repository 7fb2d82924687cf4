"""From an image's bytes to the pixels that the network was trained on: fastai's valid-set transforms, rebuilt.

Knows Pillow, and how fastai opens, crops, pads and resizes on the valid set; gives the same pixels to the bit as the
learner's own item transforms, without their dispatch. Does not know the network. What it does not know is left to
fastai's own pipelines (`own.py`).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from drivetrain.errors import ImageError
from drivetrain.learner.header import Header, look_at_header, short

_PAD_MODES: dict[str, Literal["constant", "edge", "reflect"]] = {
    "zeros": "constant",
    "border": "edge",
    "reflection": "reflect",
}

Size = tuple[int, int]
Pixels = npt.NDArray[np.uint8]


class Step(Protocol):
    """One item transform as it acts on the valid set."""

    @property
    def size(self) -> Size:
        """Width and height of what comes out."""
        ...

    def __call__(self, image: Image.Image) -> Image.Image:
        """Transform one image."""
        ...


@dataclass(frozen=True)
class Resize:
    """fastai's Resize: ``crop`` to the target's shape from the middle, ``pad`` to it, or ``squish``."""

    size: Size
    method: Literal["crop", "pad", "squish"]
    pad_mode: str
    resample: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """Transform one image."""
        if self.method == "squish":
            return image.resize(self.size, Image.Resampling(self.resample))
        width, height = image.size
        across, down = width / self.size[0], height / self.size[1]
        scale = max(across, down) if self.method == "pad" else min(across, down)
        box = int(scale * self.size[0]), int(scale * self.size[1])
        corner = int(0.5 * (width - box[0])), int(0.5 * (height - box[1]))
        return _crop_pad(image, box, corner, self.pad_mode).resize(self.size, Image.Resampling(self.resample))


@dataclass(frozen=True)
class RandomResizedCrop:
    """fastai's RandomResizedCrop on the valid set: squish to a slightly larger size, then the middle of that."""

    size: Size
    larger: Size
    resample: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """Transform one image."""
        image = image.resize(self.larger, Image.Resampling(self.resample))
        return image if self.larger == self.size else _middle(image, self.size, "zeros")


@dataclass(frozen=True)
class CropPad:
    """fastai's CropPad, and RandomCrop on the valid set: the middle, padded where the image is too small."""

    size: Size
    pad_mode: str

    def __call__(self, image: Image.Image) -> Image.Image:
        """Transform one image."""
        return _middle(image, self.size, self.pad_mode)


def _middle(image: Image.Image, size: Size, pad_mode: str) -> Image.Image:
    corner = (image.size[0] - size[0]) // 2, (image.size[1] - size[1]) // 2
    return _crop_pad(image, size, corner, pad_mode)


def _crop_pad(image: Image.Image, box: Size, corner: Size, pad_mode: str) -> Image.Image:
    """Cut a box out of an image, and pad what lies outside of it."""
    width, height = image.size
    left, top = max(corner[0], 0), max(corner[1], 0)
    right, bottom = min(corner[0] + box[0], width), min(corner[1] + box[1], height)
    if (left, top, right, bottom) != (0, 0, width, height):
        image = image.crop((left, top, right, bottom))
    before = max(-corner[0], 0), max(-corner[1], 0)
    after = max(box[0] - width + corner[0], 0), max(box[1] - height + corner[1], 0)
    if any((*before, *after)):
        pixels = np.asarray(image)
        around = [(before[1], after[1]), (before[0], after[0]), (0, 0)][: pixels.ndim]
        image = Image.fromarray(np.pad(pixels, around, mode=_PAD_MODES[pad_mode]))
    return image


def random_resized_crop(size: Size, extra: float, resample: int) -> RandomResizedCrop:
    """The step that stands for fastai's RandomResizedCrop with its ``val_xtra``."""
    more = math.ceil(max(size) * extra / 8) * 8
    return RandomResizedCrop(size, (size[0] + more, size[1] + more), resample)


@dataclass(frozen=True)
class Decoder:
    """Makes pixels (height, width, channels) of an image's bytes: open as ``mode`` (RGB or L), then each step."""

    mode: Literal["RGB", "L"]
    steps: tuple[Step, ...]

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of what comes out, or None when they are the image's own."""
        channels = 3 if self.mode == "RGB" else 1
        return (self.steps[-1].size[1], self.steps[-1].size[0], channels) if self.steps else None

    def prepare(self, data: bytes, max_pixels: int) -> tuple[Pixels, Header]:
        """The pixels of one image, and its header. Raises ImageError with the reason why not."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image, header = open_image(data, max_pixels, self.mode)
            try:
                for step in self.steps:
                    image = step(image)
            except Exception as error:
                raise ImageError("learner", short(error)) from error
            pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None], header


def open_image(data: bytes, max_pixels: int, mode: str) -> tuple[Image.Image, Header]:
    """Decode an image as ``mode``, after a look at its header. Raises ImageError."""
    image, header = look_at_header(data, max_pixels)
    try:
        image.load()
        # Training saw it so: EXIF's orientation ignored, alpha dropped, the first frame of many.
        return image if image.mode == mode else image.convert(mode), header
    except Exception as error:
        raise ImageError("undecodable", short(error)) from error


def same_shapes(items: Sequence[Any]) -> list[list[int]]:
    """The places of the items that fit into one batch, for each shape."""
    groups: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(getattr(item, "shape", None), []).append(place)
    return list(groups.values())
