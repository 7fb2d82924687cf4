"""The order of the review queue, and a small picture of whatever Pillow can open."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from drivetrain.review import QUEUE, THUMBNAIL, labelling_csv, review_queue, thumbnail, thumbnails
from drivetrain.schema import row_schema
from drivetrain.store import Store

ORANGE = (230, 120, 30)


def rows(number: int) -> pa.Table:
    about = [
        {"uri": f"/x/{i}.jpg", "label": f"class {i}", "confidence": i / 16, "true_label": "cat" if i % 2 else None}
        for i in range(number)
    ]
    return pa.Table.from_pylist(about, schema=row_schema(0))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def decoded(uri: str | None) -> Image.Image:
    assert uri is not None
    start = "data:image/jpeg;base64,"
    assert uri.startswith(start)
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(start), validate=True)))
    image.load()
    return image


# --- the queue ---


def test_the_images_that_moved_most_come_first() -> None:
    queue = review_queue(rows(5), np.array([0.5, 3.0, -1.0, 2.0, 9.0]), 3, "run-1")
    assert queue.schema == QUEUE
    assert queue.to_pylist() == [
        {
            "rank": 1,
            "uri": "/x/4.jpg",
            "moved": 9,
            "label": "class 4",
            "confidence": 0.25,
            "true_label": None,
            "run_id": "run-1",
        },
        {
            "rank": 2,
            "uri": "/x/1.jpg",
            "moved": 3,
            "label": "class 1",
            "confidence": 0.0625,
            "true_label": "cat",
            "run_id": "run-1",
        },
        {
            "rank": 3,
            "uri": "/x/3.jpg",
            "moved": 2,
            "label": "class 3",
            "confidence": 0.1875,
            "true_label": "cat",
            "run_id": "run-1",
        },
    ]


def test_images_that_moved_alike_keep_their_order() -> None:
    queue = review_queue(rows(8), np.array([1.0, 0, 1, 0, 1, 0, 1, 0]), 6, "r")
    assert queue["uri"].to_pylist() == [f"/x/{i}.jpg" for i in (0, 2, 4, 6, 1, 3)]


def test_a_short_night_gives_a_short_queue() -> None:
    assert review_queue(rows(2), np.array([1.0, 2.0]), 100, "r")["rank"].to_pylist() == [1, 2]
    assert len(review_queue(rows(0), np.zeros(0), 100, "r")) == 0


def places(queue: pa.Table) -> list[int]:
    return [int(uri.rsplit("/", 1)[1].split(".")[0]) for uri in queue["uri"].to_pylist()]


def test_no_two_of_a_group_are_shown_while_there_are_others() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 5)[rng.permutation(50)]
    moved = rng.standard_normal(50)
    queue = review_queue(rows(50), moved, 10, "r", groups)
    assert sorted(groups[places(queue)]) == list(range(10))
    for place in places(queue):
        assert moved[place] == moved[groups == groups[place]].max(), "of each group the one that moved most"
    assert queue["moved"].to_pylist() == sorted(queue["moved"].to_pylist(), reverse=True)


def test_a_night_of_few_groups_still_fills_the_queue() -> None:
    queue = review_queue(rows(12), np.arange(12.0), 8, "r", np.arange(12) // 6)
    assert len(set(places(queue))) == 8
    assert set(places(queue)[:2]) == {11, 5}, "one of each group first"


def test_near_neighbours_make_room_for_images_that_lie_apart() -> None:
    """The ten that moved most show one thing, in ten pictures that no limit of near-duplicates ties together."""
    rng = np.random.default_rng(1)
    one_thing = np.tile(rng.standard_normal(16) * 2, (10, 1)) + 0.1 * rng.standard_normal((10, 16))
    others = rng.standard_normal((30, 16))
    moved = np.concatenate([np.linspace(9, 8, 10), np.linspace(7, 1, 30)])
    queue = review_queue(rows(40), moved, 10, "r", np.arange(40), np.concatenate([one_thing, others]))
    assert len(queue) == 10
    assert places(queue)[0] == 0, "the one that moved most stays"
    assert sum(place < 10 for place in places(queue)) == 1, places(queue)
    # Nobody who moved little is shown for being odd: twice as many as are wanted are looked at.
    assert max(places(queue)) < 20


def test_copies_fill_the_queue_when_there_is_nothing_else() -> None:
    queue = review_queue(rows(6), np.arange(6.0), 4, "r", np.zeros(6, np.int64), np.zeros((6, 3)))
    assert len(set(places(queue))) == 4


def test_without_a_reference_those_come_first_of_which_the_learner_is_least_sure() -> None:
    about = [{"uri": f"/x/{i:03d}.jpg", "confidence": 0.9 if i < 50 else 0.5} for i in range(60)]
    table = pa.Table.from_pylist(about, schema=row_schema(0))
    queue = review_queue(table, None, 30, "r")
    assert set(queue["uri"].to_pylist()[:10]) == {row["uri"] for row in about[50:]}
    assert queue["moved"].null_count == 30
    rest = queue["uri"].to_pylist()[10:]
    assert rest != sorted(rest) and max(rest) > "/x/040.jpg", "no end of the listing is preferred"
    none = review_queue(
        table.set_column(table.schema.get_field_index("confidence"), "confidence", pa.nulls(60)), None, 9, "r"
    )
    assert none["uri"].to_pylist() != [row["uri"] for row in about[:9]] and len(none) == 9
    assert {line.rsplit(",", 1)[-1] for line in labelling_csv(queue).decode().split()[1:]} == {"unsure"}


# --- to be labelled ---


def test_the_csv_has_the_true_label_where_it_is_known_and_else_none() -> None:
    queue = review_queue(rows(4), np.arange(4.0), 4, "r")
    lines = labelling_csv(queue).decode().splitlines()
    assert lines == [
        "fname,label,predicted,confidence,chosen",
        "/x/3.jpg,cat,class 3,0.1875,moved",
        "/x/2.jpg,,class 2,0.125,moved",
        "/x/1.jpg,cat,class 1,0.0625,moved",
        "/x/0.jpg,,class 0,0,moved",
    ]


def test_names_with_commas_come_back_and_an_empty_queue_has_a_header() -> None:
    odd = pa.Table.from_pylist([{"uri": '/x/a, "b".jpg', "label": "cat, small"}], schema=row_schema(0))
    frame = pd.read_csv(io.BytesIO(labelling_csv(review_queue(odd, np.ones(1), 4, "r"))))
    assert frame.to_dict("records")[0]["fname"] == '/x/a, "b".jpg'
    assert frame.to_dict("records")[0]["predicted"] == "cat, small"
    assert labelling_csv(review_queue(rows(0), np.zeros(0), 4, "r")) == b"fname,label,predicted,confidence,chosen\r\n"


def test_a_regression_has_no_prediction_in_it() -> None:
    nothing = pa.Table.from_pylist([{"uri": "/x/1.jpg"}], schema=row_schema(0))
    assert labelling_csv(review_queue(nothing, np.ones(1), 4, "r")).decode().splitlines()[1] == "/x/1.jpg,,,,moved"


@pytest.mark.slow
def test_fastai_trains_on_the_csv_once_its_labels_are_filled_in(tmp_path: Path) -> None:
    import learners
    from fastai.vision.all import ImageDataLoaders

    paths = learners.write_digits(tmp_path / "night", 0, 40)
    about = [{"uri": str(path), "label": str(i % 3), "confidence": 0.5} for i, path in enumerate(paths)]
    queue = review_queue(pa.Table.from_pylist(about, schema=row_schema(0)), np.arange(40.0), 30, "r")
    frame = pd.read_csv(io.BytesIO(labelling_csv(queue)), dtype=str, keep_default_na=False)
    assert set(frame["label"]) == {""}
    frame["label"] = frame["predicted"]
    dls = ImageDataLoaders.from_df(frame, path="/", valid_pct=0.2, seed=0, bs=8, num_workers=0)
    assert list(dls.vocab) == ["0", "1", "2"]
    assert len(dls.train_ds) + len(dls.valid_ds) == 30
    images, labels = dls.one_batch()
    assert images.shape == (8, 3, learners.SIZE, learners.SIZE) and len(labels) == 8


# --- thumbnails ---

FLAT = Image.new("RGB", (300, 300), ORANGE)
GREY = Image.new("L", (300, 300), 90)
PICTURES = {
    "jpeg": (encoded(FLAT, "JPEG"), ORANGE),
    "png": (encoded(FLAT), ORANGE),
    "webp": (encoded(FLAT, "WEBP"), ORANGE),
    "rgba": (encoded(FLAT.convert("RGBA")), ORANGE),
    "palette": (encoded(FLAT.convert("P")), None),
    "palette with transparency": (encoded(FLAT.quantize(4), "GIF", transparency=0), None),
    "cmyk": (encoded(FLAT.convert("CMYK"), "JPEG"), ORANGE),
    "grey": (encoded(GREY), (90, 90, 90)),
    "grey with alpha": (encoded(GREY.convert("LA")), (90, 90, 90)),
    "black and white": (encoded(GREY.convert("1")), None),
    "16 bit": (encoded(Image.fromarray(np.full((300, 300), 90 * 257, np.uint16))), None),
    "16 bit tiff": (encoded(Image.fromarray(np.full((300, 300), 90 * 257, np.uint16)), "TIFF"), None),
    "float tiff": (encoded(Image.fromarray(np.full((300, 300), 0.5, np.float32)), "TIFF"), None),
}


@pytest.mark.parametrize("kind", list(PICTURES))
def test_a_thumbnail_is_a_small_valid_jpeg_of_the_same_colour(kind: str) -> None:
    data, colour = PICTURES[kind]
    said = thumbnail(data)
    small = decoded(said)
    assert (small.format, small.mode) == ("JPEG", "RGB")
    assert max(small.size) <= THUMBNAIL
    assert len(said) < 8000
    if colour:
        np.testing.assert_allclose(np.asarray(small).reshape(-1, 3), [colour] * THUMBNAIL**2, atol=12)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (8, 8), (4000, 3000)])
def test_a_thumbnail_of_any_shape_is_small(size: tuple[int, int]) -> None:
    assert max(decoded(thumbnail(encoded(Image.new("L", size)))).size) <= THUMBNAIL


def test_a_wide_image_keeps_its_shape_on_white() -> None:
    pixels = np.asarray(decoded(thumbnail(encoded(Image.new("RGB", (400, 200), "black"), "JPEG")))).mean(axis=2)
    assert pixels[: THUMBNAIL // 4 - 8].min() > 240
    assert pixels[THUMBNAIL // 4 + 8 : 3 * THUMBNAIL // 4 - 8].max() < 15
    assert pixels[3 * THUMBNAIL // 4 + 8 :].min() > 240


def test_noise_makes_a_thumbnail_that_a_page_can_hold_a_hundred_of() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    assert len(thumbnail(encoded(Image.fromarray(noise)))) < 12_000


def test_a_picture_that_cannot_be_read_is_none_and_the_others_stay_in_their_places(tmp_path: Path) -> None:
    whole = encoded(FLAT)
    contents = {"good": whole, "cut short": whole[:120], "empty": b"", "text": b"no image", "bomb": bomb()}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    names = ["text", "good", "cut short", "missing", "good", "empty", "bomb"]
    found = thumbnails(Store(), [str(tmp_path / name) for name in names])
    assert [each is not None for each in found] == [name == "good" for name in names]
    assert decoded(found[1]).size == decoded(found[4]).size == (THUMBNAIL, THUMBNAIL)


def bomb() -> bytes:
    """A small file that says it is an image of 4 thousand million pixels."""
    data = bytearray(encoded(Image.new("1", (8, 8))))
    data[16:24] = (65_000).to_bytes(4, "big") * 2
    return bytes(data)


def test_no_pictures_are_no_thumbnails() -> None:
    assert thumbnails(Store(), []) == []
