"""No image can stop a run: each odd or broken file is one row, on a real actor, and the reasons are few."""

import gc
import io
import math
import random
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from drivetrain import Config, score_images
from drivetrain.errors import REASONS, ImageError
from drivetrain.learner import open_learner
from drivetrain.root import open_root
from drivetrain.run import Run

pytestmark = pytest.mark.thorough

MOST_REASONS = 10
FAST: dict[str, dict[str, Any]] = {"PNG": {"compress_level": 1}}


def photo(form: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (96, 64)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(sink, form)
    return sink.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG of 69 bytes that says how large it is and has no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flipped(data: bytes, seed: int) -> bytes:
    chance, spoilt = random.Random(seed), bytearray(data)
    for _ in range(20):
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
    return bytes(spoilt)


def encoded(image: Image.Image, form: str, **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **how)
    return sink.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (96, 64), (9, 99, 199)), "JPEG", exif=exif)


def text_bomb() -> bytes:
    """A PNG whose comment unfolds to 64 MiB."""
    comment = PngInfo()
    comment.add_text("comment", "x" * 2**26, zip=True)
    return encoded(Image.new("RGB", (96, 64)), "PNG", pnginfo=comment)


def animation() -> bytes:
    frames = [Image.new("RGB", (64, 64), (i * 40, 0, 0)) for i in range(5)]
    sink = io.BytesIO()
    frames[0].save(sink, "GIF", save_all=True, append_images=frames[1:])
    return sink.getvalue()


# What becomes of each file: None when it is scored.
FILES: dict[str, tuple[bytes, str | None]] = {
    "plain.jpg": (photo(), None),
    "empty.jpg": (b"", "empty"),
    "half.jpg": (photo()[: len(photo()) // 2], "undecodable"),
    "half.png": (photo("PNG")[: len(photo("PNG")) // 2], "undecodable"),
    "text.jpg": (b"no image at all", "undecodable"),
    "page.jpg": (b"<html><body>404</body></html>", "undecodable"),
    "cmyk.jpg": (photo(mode="CMYK"), None),
    "gray16.png": (photo("PNG", "I;16"), None),
    "palette.png": (photo("PNG", "P"), None),
    "bilevel.tif": (photo("TIFF", "1"), None),
    "animated.gif": (animation(), None),
    "claims_a_lot.png": (claims(50_000, 50_000), "too_large"),
    "claims_too_much.png": (claims(2**31 - 1, 2**31 - 1), "too_large"),
    "line.png": (photo("PNG", size=(1, 10_000)), None),
    "wide.jpg": (photo(size=(65_500, 8)), None),
    "dot.png": (photo("PNG", size=(1, 1)), None),
    "a_png.jpg": (photo("PNG"), None),
    "drawing.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "undecodable"),
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "undecodable"),
    "turned.jpg": (turned(), None),
    "float.tif": (encoded(Image.new("F", (96, 64), 0.5), "TIFF"), None),
    "clear.png": (photo("PNG", "RGBA"), None),
    "comment.png": (text_bomb(), "undecodable"),
    "no\nline end?#.jpg": (photo(), None),
}


# The largest images that max_pixels lets in.
LARGEST = {
    "jpeg": ("JPEG", "RGB"),
    "png": ("PNG", "RGB"),
    "alpha": ("PNG", "RGBA"),
    "gray": ("PNG", "L"),
    "bilevel": ("TIFF", "1"),
}
MOST_BYTES = 500 * 2**20


def test_each_odd_file_is_one_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    learners.write_digits(folder, 0, 5)
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    flips = {
        f"flip{seed:03}.{form.lower()}": flipped(photo(form), seed) for seed in range(40) for form in ("JPEG", "PNG")
    }
    for name, data in flips.items():
        (folder / name).write_bytes(data)
    train = tmp_path / "train"
    learners.write_digits(train, 1000, 1100, by_label=True)
    exported = learners.exported(learners.digits_learner(train, epochs=1), tmp_path / "export.pkl")
    config = Config(
        root=str(tmp_path / "root"), learner=exported.path, images=str(folder), source="odd", name="odd", actors=1
    )
    result = score_images(config)
    # It would be counted by itself: an image that ends its actor gets its row too.
    assert "crashed" not in result["reasons"] and "died" not in capfd.readouterr().err
    rows = Run.find(*open_root(config), result["run_id"]).rows(["uri", "status", "error"]).to_pylist()
    found = {Path(row["uri"]).name: row["error"] for row in rows}
    assert len(rows) == len(found) == 5 + len(FILES) + len(flips)
    assert {name: found[name] for name in FILES} == {name: reason for name, (_, reason) in FILES.items()}
    print(f"{len(rows)} rows, {len(result['reasons'])} reasons: {result['reasons']}")
    assert set(result["reasons"]) <= set(REASONS)


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def test_no_image_takes_much_memory(tmp_path: Path) -> None:
    learn = learners.from_df_learner(learners.write_photos(tmp_path / "photos", 12))
    export = learners.exported(learn, tmp_path / "export.pkl")
    learner = open_learner(Path(export.path).read_bytes(), export.sha256).as_stored()
    most = Config().max_pixels
    side = math.isqrt(most)
    largest = {
        f"largest {name}": encoded(Image.effect_noise((side, side), 50).convert(mode), form, **FAST.get(form, {}))
        for name, (form, mode) in LARGEST.items()
    }
    odd = {name: data for name, (data, _) in FILES.items()} | largest
    found = {}
    for name, data in odd.items():
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before, began = resident("VmRSS"), time.monotonic()
        with suppress(ImageError):
            learner.predict([learner.prepare(data, most)[0]])
        found[name] = (resident("VmHWM") - before, time.monotonic() - began)
    (name, (size, _)), slowest = max(found.items(), key=lambda each: each[1]), max(each[1] for each in found.values())
    print(f"{len(odd)} files: at most {size / 2**20:.0f} MiB above those before ({name}), at most {slowest:.1f} s")
    assert size <= MOST_BYTES, found


def test_reasons_are_few() -> None:
    assert len(REASONS) <= MOST_REASONS
