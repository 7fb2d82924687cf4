"""What happens to a batch of pixels before the network: division, fastai's resampling on the valid set, normalisation.

Knows tensors, and how fastai's batch transforms cut and resample where they do not augment. Does not know an image.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import grid_sample, interpolate


@dataclass(frozen=True)
class Middle:
    """The crop of fastai's RandomResizedCropGPU on the valid set: the middle, no narrower or wider than ``ratio``.

    ``ratio``: least and greatest width over height; ``share``: how much of both sides is kept then.
    """

    ratio: tuple[float, float]
    share: float

    def cut(self, images: torch.Tensor) -> torch.Tensor:
        """The middle of images (n, channels, height, width)."""
        height, width = sides(images)
        least, greatest = self.ratio
        down, across = height, width
        if width / height < least:
            down = int(width / least)
        elif width / height > greatest:
            across = int(height * greatest)
        down, across = int(down * self.share), int(across * self.share)
        top, left = (height - down) // 2, (width - across) // 2
        return images[..., top : top + down, left : left + across]


@dataclass(frozen=True)
class Resample:
    """One batch transform as it acts on the valid set: fastai's affine_coord without any turn, of the ``middle``.

    ``size``: the new height and width, or None for the image's own.
    """

    size: tuple[int, int] | None
    mode: Literal["bilinear", "nearest", "bicubic"]
    pad_mode: Literal["zeros", "border", "reflection"]
    align_corners: bool
    middle: Middle | None = None

    def acts_on(self, height: int, width: int) -> bool:
        """Whether images of that size change; resampled in place they keep their pixels, up to rounding."""
        return self.size is not None or self._smoothing(height, width, height, width) is not None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Resample images (n, channels, height, width)."""
        if self.middle is not None:
            images = self.middle.cut(images)
        height, width = sides(images)
        if not self.acts_on(height, width):
            return images
        down, across = self.size or (height, width)
        if smoothing := self._smoothing(height, width, down, across):
            small = math.floor(height * (1 / smoothing)), math.floor(width * (1 / smoothing))
            images = interpolate(images, size=small, mode="area")
        grid = self._grid(down, across).to(images.device).expand(images.shape[0], -1, -1, -1)
        return grid_sample(images, grid, self.mode, self.pad_mode, self.align_corners)

    def _grid(self, down: int, across: int) -> torch.Tensor:
        """Where each new pixel lies in an image from -1 to 1: (1, down, across, 2), as torch's affine_grid has it.

        OpenVINO has no affine_grid.
        """
        rows, columns = (self._places(count) for count in (down, across))
        return torch.stack((columns.expand(down, -1), rows[:, None].expand(-1, across)), dim=2)[None]

    def _places(self, count: int) -> torch.Tensor:
        if count == 1:
            return torch.zeros(1)
        places = torch.linspace(-1, 1, count)
        return places if self.align_corners else places * ((count - 1) / count)

    def _smoothing(self, height: int, width: int, down: int, across: int) -> float | None:
        """By how much fastai shrinks images by areas first; None where it does not.

        It compares the height with the new width, and the width with two: the learner was trained so.
        """
        if self.mode != "bilinear":
            return None
        factor = min(height / across, width / 2) / 2
        longest = max(down, across)
        # The grid ends in the middle of the outermost pixels, or at their outer edge.
        zoom = 1.0 if self.align_corners else longest / max(longest - 1, 1)
        return factor if factor > 1 and factor > zoom else None


def sides(images: torch.Tensor) -> tuple[int, int]:
    """Height and width of a batch, as numbers to a tracer too: an engine gets images of one size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        height, width = (int(each) for each in images.shape[-2:])
    return height, width


@dataclass(frozen=True)
class Front:
    """What happens to a batch of pixels before the network: divided by ``divisor``, each step, then (x - mean) / std.

    ``mean`` and ``std`` have the shape (1, channels, 1, 1), or are None.
    """

    divisor: float
    mean: torch.Tensor | None
    std: torch.Tensor | None
    steps: tuple[Resample, ...] = ()
