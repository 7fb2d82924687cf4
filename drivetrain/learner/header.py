"""What an image file says of itself before it is decoded: format, size, and what the decoding will lose.

Knows Pillow's formats. Does not decode, and does not know what a learner does with the pixels.
"""

import io
import re
from typing import NamedTuple

from PIL import Image

from drivetrain.errors import ImageError

# Pillow opens more than photographs. EPS would call Ghostscript; the others are documents or run codecs of their own.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "AVIF", "JPEG2000", "DIB", "PCX")
# Formats under another's name: a phone's JPEG with a preview behind it, a bitmap without its first bytes.
_SAME = {"MPO": "JPEG", "DIB": "BMP"}
_ORIENTATION = 0x0112


class Header(NamedTuple):
    """An image's own width and height in pixels, its format in Pillow's words, and its flags (`schema.FLAGS`)."""

    width: int
    height: int
    form: str
    flags: tuple[str, ...]


def look_at_header(data: bytes, max_pixels: int) -> tuple[Image.Image, Header]:
    """An image that is not decoded yet, with its header: a file of 400 kB can ask for a gigabyte.

    Raises ImageError: ``empty``, ``too_large`` or ``undecodable``.
    """
    if not data:
        raise ImageError("empty", "the object has no bytes")
    try:
        # A format that this build of Pillow lacks makes Image.open fail on every file.
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        width, height = image.size
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", short(error)) from error
    except Exception as error:
        raise ImageError("undecodable", short(error)) from error
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels; max_pixels is {max_pixels}")
    return image, Header(width, height, _SAME.get(image.format or "", image.format or ""), _lost(image))


def flags_of(header: Header, uri: str) -> list[str]:
    """The flags of an image under its name: those of its header, and whether its suffix promises another format."""
    suffix = re.search(r"\.[A-Za-z0-9]+$", uri)
    promised = Image.EXTENSION.get(suffix.group().lower(), "") if suffix else ""
    differs = promised != "" and _SAME.get(promised, promised) != header.form
    return [*header.flags, "wrong_suffix"] if differs else list(header.flags)


def _lost(image: Image.Image) -> tuple[str, ...]:
    """What fastai's way of opening an image drops without a word."""
    tests = {
        "high_bit_depth": image.mode in ("I", "F") or ";16" in image.mode or _sixteen_bits(image),
        "alpha": image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
        "frames": _animated(image),
        "exif_orientation": _turned(image),
    }
    return tuple(name for name, yes in tests.items() if yes)


def _sixteen_bits(image: Image.Image) -> bool:
    """Pillow opens colours of 16 bits as RGB; only its instruction for the decoder tells."""
    tiles = getattr(image, "tile", [])
    return ";16" in repr(tiles[0][3]) if tiles else False


def _animated(image: Image.Image) -> bool:
    try:
        # A phone's second picture is a preview or a depth map.
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # a broken second frame; the first may be well
        return False


def _turned(image: Image.Image) -> bool:
    # Without this look Pillow would decode a PNG to find its EXIF behind the pixels.
    if "exif" not in image.info and image.format != "TIFF":
        return False
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # broken EXIF; the pixels may be well
        return False


def short(error: Exception) -> str:
    """An error in one line that does not change from run to run."""
    text = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "the file", str(error).strip())
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0][:300]}"
