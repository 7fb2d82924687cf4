"""The images that a person should see first, and small pictures of them.

Knows ranks and thumbnails. Does not know why the night is looked at.
"""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageOps

from drivetrain.labelfiles import Chosen, ToLabel, to_csv
from drivetrain.schema import column
from drivetrain.store import Store

THUMBNAIL = 96
FETCHERS = 16
# So many times as many images as are wanted are looked at for those that lie apart.
CHOICE = 2
# Nearer than this share of the usual distance from the middle, two images show the same thing.
TOO_NEAR = 0.5

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


def review_queue(
    rows: pa.Table,
    moved: npt.NDArray[np.float64] | None,
    size: int,
    run_id: str,
    groups: npt.NDArray[np.int64] | None = None,
    whitened: npt.NDArray[np.float64] | None = None,
) -> pa.Table:
    """The ``size`` images that moved most, most first, and no ten copies of one.

    ``moved`` (n,): each row's distance in the direction in which the night moved, in standard deviations of the
    reference; None where there is none, and then those come first of which the learner is least sure, drawn at
    random by a hash of their uris where it is equally sure. ``groups`` (n,): of images that belong together only
    the one that moved most is taken, while there are others. ``whitened`` (n, k): of the images that moved, those
    are taken that lie apart from each other.
    """
    order = _least_sure(rows) if moved is None else np.argsort(-moved, kind="stable")
    if groups is not None and len(order):
        first = np.zeros(len(order), bool)
        first[np.unique(groups[order], return_index=True)[1]] = True
        order = np.concatenate([order[first], order[~first]])
    if whitened is not None and len(order) > size:
        order = apart(order[: CHOICE * size], whitened, size)
    order = order[:size]
    chosen = rows.take(pa.array(order))
    columns = {
        "rank": np.arange(1, len(order) + 1, dtype=np.int32),
        "uri": chosen["uri"],
        "moved": pa.nulls(len(order), pa.float32()) if moved is None else moved[order].astype(np.float32),
        "label": chosen["label"],
        "confidence": chosen["confidence"],
        "true_label": chosen["true_label"],
        "run_id": [run_id] * len(order),
    }
    return pa.table(columns, schema=QUEUE)


def _least_sure(rows: pa.Table) -> npt.NDArray[np.int64]:
    hashed = [hashlib.sha256(uri.encode()).digest()[:8] for uri in rows["uri"].to_pylist()]
    order: npt.NDArray[np.int64] = np.lexsort((np.array(hashed, "S8"), column(rows, "confidence")))
    return order


def apart(order: npt.NDArray[np.int64], whitened: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.int64]:
    """Of twice as many images as are wanted, in their order, those that are no near neighbours of one before them."""
    points = whitened[order]
    limit = np.median(np.linalg.norm(points - points.mean(axis=0), axis=1)) * TOO_NEAR
    kept: list[int] = []
    for place in range(len(order)):
        if not kept or np.linalg.norm(points[kept] - points[place], axis=1).min() > limit:
            kept.append(place)
    others = np.setdiff1d(np.arange(len(order)), kept)
    return order[np.concatenate([kept, others]).astype(np.int64)][:size]


def labelling_csv(queue: pa.Table, said: Mapping[str, tuple[str, ...]] | None = None, delimiter: str = ";") -> bytes:
    """The queue as a CSV that ``ImageDataLoaders.from_df`` takes once a person has filled in ``label``.

    ``said``: what the learner predicts of each uri, where that is not one label. ``label`` is empty but where the true
    one is known: a wrong prediction that nobody looked at would be learnt.
    """
    images = [
        ToLabel(
            row["uri"],
            row["true_label"],
            said.get(row["uri"], ()) if said is not None else predicted_of("single_label", row),
            row["confidence"],
            chosen=chosen_as(row["moved"]),
        )
        for row in queue.to_pylist()
    ]
    return to_csv(images, delimiter)


def chosen_as(moved: float | None) -> Chosen:
    """Why an image is in a review queue: it moved, or without a reference the learner is least sure of it."""
    return "unsure" if moved is None else "moved"


def predicted_of(task: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a learner says of an image as texts: one label, several of a multi-label learner, numbers of a regression.

    ``row``: its ``label``, ``labels`` and ``values``.
    """
    if task == "regression":
        return tuple(f"{value:.6g}" for value in row["values"] or ())
    if task == "multi_label":
        return tuple(row["labels"] or ())
    return (row["label"],) if row["label"] is not None else ()


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
