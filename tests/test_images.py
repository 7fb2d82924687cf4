"""Streams of images: in order, laid over each other, and the same whether they fit into a batch or not."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from builders import image, images
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.images import FAN_IN, Images, ObjectInfo, batches_of, in_order, merged, without

seeded = settings(derandomize=True, database=None, deadline=None)

# Few letters, among them those around the slash and some that only UTF-8 bytes put in order; few etags.
some_images = st.lists(
    st.builds(
        lambda key, etag: image(key, etag=etag), st.text("a-/.é\U00010000\uffff", max_size=3), st.sampled_from("xy")
    )
)
rows_at_once = st.integers(1, 5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of three, pieces of six, everything on disk."""
    for name, value in {"BATCH_ROWS": 3, "SORTED_ROWS": 6, "MEMORY_BYTES": 1}.items():
        monkeypatch.setattr(f"drivetrain.images.{name}", value)


def streamed(chosen: list[ObjectInfo], rows: int) -> Iterator[pa.RecordBatch]:
    """Images in their order, so many a batch."""
    in_turn = sorted(chosen, key=lambda each: each.uri.encode())
    for start in range(0, len(in_turn), rows):
        yield from batches_of(in_turn[start : start + rows])


def found(batches: Iterator[pa.RecordBatch]) -> list[tuple[str, str]]:
    return [(each.uri, each.etag) for each in Images(batches)]


def test_images_come_back_as_they_were_and_as_often_as_asked(small: None) -> None:
    listed = [image("1", size=5), ObjectInfo("/b/2", 0, "", None), ObjectInfo("/z", 7, "é", datetime.now(UTC))]
    kept = in_order(batches_of(listed))
    assert list(kept) == sorted(listed) == list(kept)
    assert (len(kept), kept.bytes) == (3, 12)


def test_no_image_is_a_listing_too() -> None:
    kept = in_order(batches_of([]))
    assert (len(kept), kept.bytes, list(kept), list(kept.batches())) == (0, 0, [], [])
    assert not kept


def test_what_is_read_from_two_sides_does_not_mix(small: None) -> None:
    kept = in_order(batches_of(images(40)))
    assert [pair[0] == pair[1] for pair in zip(kept, kept, strict=True)] == [True] * 40


def test_batches_are_even_however_they_came(small: None) -> None:
    kept = Images(batch for batch in streamed(images(10), 4))
    assert [len(batch) for batch in kept.batches()] == [3, 3, 3, 1]


def test_images_out_of_order_are_refused(small: None) -> None:
    first, second = images(2)
    with pytest.raises(AssertionError, match="order of their uris"):
        Images(batches_of([second, first]))
    with pytest.raises(AssertionError, match="order of their uris"):
        Images([*batches_of([second] * 3), *batches_of([first])])


@seeded
@given(some_images)
def test_any_order_becomes_that_of_the_bytes_of_the_uris(chosen: list[ObjectInfo]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BATCH_ROWS": 2, "SORTED_ROWS": 4, "MEMORY_BYTES": 1, "FAN_IN": 2}.items():
            patch.setattr(f"drivetrain.images.{name}", value)
        kept = list(in_order(batches_of(chosen)))
    assert [each.uri for each in kept] == sorted((each.uri for each in chosen), key=str.encode)
    assert sorted(kept) == sorted(chosen)


@seeded
@given(some_images, some_images, rows_at_once, rows_at_once)
def test_without_leaves_what_a_set_of_pairs_would(
    chosen: list[ObjectInfo], known: list[ObjectInfo], rows: int, known_rows: int
) -> None:
    pairs = {(each.uri, each.etag) for each in known}
    expected = sorted((each.uri, each.etag) for each in chosen if (each.uri, each.etag) not in pairs)
    assert sorted(found(without(streamed(chosen, rows), streamed(known, known_rows)))) == expected


@seeded
@given(st.lists(some_images, max_size=6), rows_at_once)
def test_merged_streams_are_one_in_order(several: list[list[ObjectInfo]], rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drivetrain.images.FAN_IN", 2)
        one = found(merged(streamed(chosen, rows) for chosen in several))
    assert sorted(one) == sorted((each.uri, each.etag) for chosen in several for each in chosen)


def test_of_many_streams_only_some_are_open_at_once() -> None:
    begun: list[int] = []
    ended: list[int] = []
    most = 0

    def stream(number: int) -> Iterator[pa.RecordBatch]:
        nonlocal most
        begun.append(number)
        most = max(most, len(begun) - len(ended))
        yield from streamed([image(f"{each:03d}-{number:03d}") for each in range(3)], 1)
        ended.append(number)

    one = found(merged(stream(number) for number in range(5 * FAN_IN)))
    assert len(one) == 3 * 5 * FAN_IN
    assert one == sorted(one)
    assert most == FAN_IN
