"""What decoding loses without a word is flagged, and what loses nothing is not."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivetrain.learner.header import flags_of, look_at_header
from drivetrain.schema import FLAGS

RED = Image.new("RGB", (32, 24), (200, 30, 30))


def saved(image: Image.Image, form: str, **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **how)
    return sink.getvalue()


def turned(form: str, way: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = way
    return saved(RED, form, exif=exif)


def png_of_16_bit_colours() -> bytes:
    """Pillow can't write one: the bytes of an 8-bit RGB PNG of twice the width, told to be 16-bit."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(6 * 4) for _ in range(3))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


MANY = [Image.new("RGB", (32, 24), (i * 90, 0, 0)) for i in range(3)]
CASES: list[tuple[str, Callable[[], bytes], list[str]]] = [
    ("a.jpg", lambda: saved(RED, "JPEG"), []),
    ("a.JPEG", lambda: saved(RED, "JPEG"), []),
    ("a.png", lambda: saved(RED, "PNG"), []),
    ("a.tif", lambda: saved(RED, "TIFF"), []),
    ("a", lambda: saved(RED, "PNG"), []),
    ("night.2026", lambda: saved(RED, "PNG"), []),
    ("a.jpg", lambda: saved(RED.convert("CMYK"), "JPEG"), []),
    ("a.gif", lambda: saved(RED, "GIF"), []),
    ("a.png", lambda: saved(Image.fromarray(np.full((24, 32), 40000, np.uint16)), "PNG"), ["high_bit_depth"]),
    ("a.png", png_of_16_bit_colours, ["high_bit_depth"]),
    ("a.tif", lambda: saved(Image.fromarray(np.ones((24, 32), np.float32)), "TIFF"), ["high_bit_depth"]),
    ("a.png", lambda: saved(RED.convert("RGBA"), "PNG"), ["alpha"]),
    ("a.png", lambda: saved(RED.convert("P"), "PNG", transparency=0), ["alpha"]),
    ("a.webp", lambda: saved(Image.new("RGBA", (32, 24), (200, 30, 30, 90)), "WEBP"), ["alpha"]),
    ("a.gif", lambda: saved(MANY[0], "GIF", save_all=True, append_images=MANY[1:]), ["frames"]),
    ("a.png", lambda: saved(MANY[0], "PNG", save_all=True, append_images=MANY[1:]), ["frames"]),
    ("a.tif", lambda: saved(MANY[0], "TIFF", save_all=True, append_images=MANY[1:]), ["frames"]),
    ("a.jpg", lambda: turned("JPEG", 6), ["exif_orientation"]),
    ("a.png", lambda: turned("PNG", 3), ["exif_orientation"]),
    ("a.tif", lambda: turned("TIFF", 8), ["exif_orientation"]),
    ("a.jpg", lambda: turned("JPEG", 1), []),
    ("a.jpg", lambda: turned("JPEG", 9), []),
    ("a.jpg", lambda: saved(RED, "PNG"), ["wrong_suffix"]),
    ("a.jpg", lambda: saved(RED.convert("RGBA"), "PNG"), ["alpha", "wrong_suffix"]),
]


@pytest.mark.parametrize(("name", "make", "flags"), CASES)
def test_what_is_lost_is_flagged(name: str, make: Callable[[], bytes], flags: list[str]) -> None:
    Image.init()
    image, header = look_at_header(make(), 10_000)
    assert flags_of(header, f"s3://bucket/{name}") == flags
    image.load()


def test_every_flag_has_words_and_a_case() -> None:
    assert {flag for *_, flags in CASES for flag in flags} == set(FLAGS)


def test_a_look_at_the_frames_does_not_change_the_first() -> None:
    data = saved(MANY[2], "GIF", save_all=True, append_images=MANY[:2])
    looked, _ = look_at_header(data, 10_000)
    assert looked.convert("RGB").tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
