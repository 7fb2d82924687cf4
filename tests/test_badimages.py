"""No image can stop a run: each odd or broken file is one row, on a real actor, and the reasons are few."""

import io
import random
import struct
import zlib
from pathlib import Path

import learners
import numpy as np
import pytest
from PIL import Image

from drivetrain import Config, score_images
from drivetrain.errors import REASONS
from drivetrain.root import open_root
from drivetrain.run import Run

pytestmark = pytest.mark.thorough

MOST_REASONS = 10


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
    "no\nline end?#.jpg": (photo(), None),
}


def test_each_odd_file_is_one_row(tmp_path: Path) -> None:
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
    rows = Run.find(*open_root(config), result["run_id"]).rows(["uri", "status", "error"]).to_pylist()
    found = {Path(row["uri"]).name: row["error"] for row in rows}
    assert len(rows) == len(found) == 5 + len(FILES) + len(flips)
    assert {name: found[name] for name in FILES} == {name: reason for name, (_, reason) in FILES.items()}
    print(f"{len(rows)} rows, {len(result['reasons'])} reasons: {result['reasons']}")
    assert set(result["reasons"]) <= set(REASONS)


def test_reasons_are_few() -> None:
    assert len(REASONS) <= MOST_REASONS
