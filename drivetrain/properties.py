"""How an image looks as the network sees it: its light, and how much it jumps.

Knows pixels. Does not know where an image comes from, or what its numbers are held against.
"""

from typing import Any

import numpy as np
from PIL import Image

LEVELS = np.arange(256) / 255


def properties_of(item: Any) -> dict[str, float]:
    """How an image looks as the network sees it: mean and spread of its light (0 to 1), and how much it jumps.

    ``sharpness`` is the spread of what is left of each pixel when half of its neighbours' mean is taken off half of it.
    Nothing for a learner whose pixels fastai's own pipelines make. Counted in histograms, which cost least.
    """
    if not isinstance(item, np.ndarray) or item.dtype != np.uint8 or item.ndim != 3 or min(item.shape[:2]) < 3:
        return {}
    light = Image.fromarray(item if item.shape[2] == 3 else item[:, :, 0]).convert("L")
    brightness, contrast = _spread(light.histogram())
    return {"brightness": brightness, "contrast": contrast, "sharpness": _spread(_jumps(light).histogram())[1]}


def _jumps(light: Image.Image) -> Image.Image:
    """An eighth of what each pixel differs by from its four neighbours together, around 128; none for the border.

    To the bit what Pillow's filter with that kernel gives, for a third of its time.
    """
    width, height = light.size
    # In one dimension, where numpy need not turn at the end of each row; what it makes of the border is cut off.
    pixels = np.asarray(light).reshape(-1).astype(np.int16)
    last = len(pixels) - width
    jumps = pixels[width:last] << 2
    for step in (1, -1, width, -width):
        jumps -= pixels[width + step : last + step]
    jumps += 8 * 128 + 4  # half of the 8, to round
    jumps >>= 3
    np.minimum(jumps, 255, out=jumps)
    return Image.fromarray(jumps.astype(np.uint8).reshape(height - 2, width)[:, 1:-1])


def _spread(histogram: list[int]) -> tuple[float, float]:
    """Mean and standard deviation of 8-bit values from their histogram, both in 0..1."""
    counts = np.array(histogram, dtype=np.float64)
    mean = float(counts @ LEVELS / counts.sum())
    return mean, float(np.sqrt(counts @ (LEVELS - mean) ** 2 / counts.sum()))
