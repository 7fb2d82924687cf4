"""The images that a person should see first, and small pictures of them.

Knows ranks and thumbnails. Does not know why the night is looked at.
"""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageOps

from drivetrain.store import Store

THUMBNAIL = 96
FETCHERS = 16

QUEUE = pa.schema(
    [
        ("rank", pa.int32()),
        ("uri", pa.string()),
        ("moved", pa.float32()),
        ("label", pa.string()),
        ("confidence", pa.float32()),
        ("true_label", pa.string()),
        ("run_id", pa.string()),
    ]
)


def review_queue(rows: pa.Table, moved: npt.NDArray[np.float64], size: int, run_id: str) -> pa.Table:
    """The ``size`` images that moved most, in that order.

    ``moved`` (n,): each row's distance in the direction in which the night moved, in standard deviations of the
    reference.
    """
    order = np.argsort(-moved, kind="stable")[:size]
    chosen = rows.take(pa.array(order))
    columns = {
        "rank": np.arange(1, len(order) + 1, dtype=np.int32),
        "uri": chosen["uri"],
        "moved": moved[order].astype(np.float32),
        "label": chosen["label"],
        "confidence": chosen["confidence"],
        "true_label": chosen["true_label"],
        "run_id": [run_id] * len(order),
    }
    return pa.table(columns, schema=QUEUE)


def thumbnails(store: Store, uris: Sequence[str]) -> list[str | None]:
    """Small JPEGs of images as data uris, None for one that can't be read: a page must not fail on a picture."""

    def one(uri: str) -> str | None:
        try:
            return thumbnail(store.read(uri))
        except Exception:
            return None

    with ThreadPoolExecutor(FETCHERS) as pool:
        return list(pool.map(one, uris))


def thumbnail(data: bytes) -> str:
    """A JPEG of at most 96 x 96 pixels as a data uri. Raises what Pillow raises."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (THUMBNAIL * 2, THUMBNAIL * 2))
        image = ImageOps.pad(opened.convert("RGB"), (THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, color="white")
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
