"""Changes of an image that should not matter to a learner: mild ones, such as cameras and pipelines make every day.

Knows pixels. Does not know who looks at the image afterwards. What a change uncovers at the border is filled with the
mirror image of what lies beside it, since a black edge would be a sign that no camera makes.
"""

import io
import math
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

Change = Callable[[Image.Image], Image.Image]


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """The image as a JPEG of some quality gives it back."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(io.BytesIO(sink.getvalue()))


def lit(image: Image.Image, light: float) -> Image.Image:
    """The image with so many times its light; what would be brighter than white is white."""
    return image.point(lambda value: int(value * light))


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """The image turned counter-clockwise about its middle."""
    margin = math.ceil(max(image.size) * math.sin(math.radians(abs(degrees)))) + 1
    wide = _mirrored(image, margin).rotate(degrees, Image.Resampling.BILINEAR)
    return wide.crop((margin, margin, margin + image.width, margin + image.height))


def moved(image: Image.Image, right: float = 0.0, down: float = 0.0) -> Image.Image:
    """The image moved by shares of its sides, by a pixel at least where it is moved at all."""
    across, along = (
        int(math.copysign(max(1, round(abs(share) * side)), share)) if share else 0
        for share, side in ((right, image.width), (down, image.height))
    )
    margin = max(abs(across), abs(along))
    left, top = margin - across, margin - along
    return _mirrored(image, margin).crop((left, top, left + image.width, top + image.height))


def resized(image: Image.Image, share: float, *, back: bool) -> Image.Image:
    """The image with sides of another length, or brought back to its own from there."""
    width, height = (max(1, round(side * share)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC) if back else small


def _mirrored(image: Image.Image, margin: int) -> Image.Image:
    pixels = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    return Image.fromarray(pixels)


# Each takes an RGB image. A name goes on "12 of 200 answers turn once the image is".
PERTURBATIONS: dict[str, Change] = {
    "compressed to JPEG quality 90": partial(compressed, quality=90),
    "compressed to JPEG quality 70": partial(compressed, quality=70),
    "compressed to JPEG quality 50": partial(compressed, quality=50),
    "20 % darker": partial(lit, light=0.8),
    "20 % brighter": partial(lit, light=1.2),
    "turned left by 5 degrees": partial(turned, degrees=5),
    "turned right by 5 degrees": partial(turned, degrees=-5),
    "moved right by 4 %": partial(moved, right=0.04),
    "moved down by 4 %": partial(moved, down=0.04),
    "resized to 75 % and back": partial(resized, share=0.75, back=True),
    "enlarged to 150 %": partial(resized, share=1.5, back=False),
}
# An image of another size is another image to a learner that does not bring all of them to one.
OF_ANOTHER_SIZE = "enlarged to 150 %"
