"""What is frozen before work: which objects are images, how they are cut, and that a plan is created once."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from builders import HALF_A_SHARD, PREFIX, frozen, image, images, listed
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.errors import SettingError
from drivetrain.images import Images, ObjectInfo
from drivetrain.layout import MANIFEST_FILE_SHARDS, Layout
from drivetrain.manifest import (
    OTHER_SUFFIXES,
    SHARD_BYTES,
    SHARD_IMAGES,
    SHARDS_WANTED,
    SMALLEST_SHARD,
    _text_bytes,
    check_prefix,
    copy_manifest,
    digest_of,
    find_plan,
    list_images,
    manifest_images,
    read_manifest,
    read_shard,
    shards_of,
    why_no_image,
)
from drivetrain.root import from_json, to_json
from drivetrain.schema import MANIFEST
from drivetrain.store import Store

seeded = settings(derandomize=True, database=None, deadline=None)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "root"))


# --- which objects are images ---


@pytest.mark.parametrize(
    "key",
    ["a.jpg", "a.JPEG", "x/y/a.png", "no-suffix", "x/no-suffix", "a.weird", "v1.2/a", "csv", "a.csv.jpg"],
)
def test_what_may_be_an_image_counts_as_one(key: str) -> None:
    assert why_no_image(f"/{key}") is None


@pytest.mark.parametrize("key", [".a.jpg", "_a.jpg", ".hidden/a.jpg", "x/_tmp/y/a.jpg", "x/.DS_Store", "_SUCCESS"])
def test_a_hidden_name_anywhere_below_the_prefix_is_no_image(key: str) -> None:
    assert why_no_image(f"/{key}") == "hidden"


@pytest.mark.parametrize("suffix", sorted(OTHER_SUFFIXES))
def test_a_known_other_suffix_is_no_image_in_either_case(suffix: str) -> None:
    assert why_no_image(f"/x/a.{suffix}") == suffix
    assert why_no_image(f"a.b.{suffix.upper()}") == suffix


def test_the_marker_object_of_a_folder_is_no_image() -> None:
    assert why_no_image("/x/y/") == "folder"


def test_a_listing_counts_what_it_passes_over_and_keeps_the_order_of_keys(tmp_path: Path) -> None:
    folder = tmp_path / "_below_a_hidden_name" / "images.csv"
    for key in ("b.jpg", "a/1.png", "a/notes.txt", "labels.csv", "more.csv", ".x.jpg", "_y/z.jpg", "scan"):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(b"12345")
    listing = list_images(Store(), str(folder))
    assert [found.uri.removeprefix(f"{folder}/") for found in listing.images] == ["a/1.png", "b.jpg", "scan"]
    assert listing.skipped == {"csv": 2, "hidden": 2, "txt": 1}
    assert {found.size for found in listing.images} == {5}
    assert all(found.etag and found.mtime for found in listing.images)


def test_a_prefix_with_nothing_below_it_lists_nothing(tmp_path: Path) -> None:
    listing = list_images(Store(), str(tmp_path / "nowhere"))
    assert (list(listing.images), listing.skipped) == ([], {})


# --- cutting ---


def cut(sizes: list[int]) -> list[int]:
    """The number of images in each shard."""
    return [len(shard) for shard in shards_of(listed([image(f"{i:06d}", size=size) for i, size in enumerate(sizes)]))]


@pytest.mark.parametrize(
    ("number", "shards"),
    [
        (1, [1]),
        (SMALLEST_SHARD, [SMALLEST_SHARD]),
        (SMALLEST_SHARD + 1, [SMALLEST_SHARD, 1]),
        (1000, [64] * 15 + [40]),
        (SHARDS_WANTED * 100, [100] * SHARDS_WANTED),
        (SHARDS_WANTED * SHARD_IMAGES + 1, [SHARD_IMAGES] * SHARDS_WANTED + [1]),
        (80 * SHARD_IMAGES, [SHARD_IMAGES] * 80),
    ],
)
def test_shards_are_bounded_by_count_and_a_small_run_is_cut_for_several_actors(number: int, shards: list[int]) -> None:
    assert cut([10] * number) == shards


@pytest.mark.parametrize("batch_rows", [1, 7, 64, 100])
def test_a_shard_is_filled_from_as_many_batches_as_it_takes(monkeypatch: pytest.MonkeyPatch, batch_rows: int) -> None:
    monkeypatch.setattr("drivetrain.images.BATCH_ROWS", batch_rows)
    assert cut([10] * 1000) == [64] * 15 + [40]


def test_shards_are_bounded_by_bytes() -> None:
    assert cut([HALF_A_SHARD] * 5) == [2, 2, 1]
    assert cut([HALF_A_SHARD, HALF_A_SHARD + 1, 10]) == [1, 2]


def test_an_image_larger_than_a_shard_gets_its_own() -> None:
    assert cut([10, SHARD_BYTES * 3, 10, 10]) == [1, 1, 2]
    assert cut([SHARD_BYTES * 3, 10]) == [1, 1]


@seeded
@given(st.lists(st.integers(0, SHARD_BYTES), max_size=300), st.integers(1, 40))
def test_every_image_is_in_exactly_one_shard_filled_as_far_as_it_goes(sizes: list[int], batch_rows: int) -> None:
    chosen = [image(f"{i:04d}", size=size) for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drivetrain.images.BATCH_ROWS", batch_rows)  # a shard may begin and end in any batch
        shards = [shard["size"].to_pylist() for shard in shards_of(listed(reversed(chosen)))]
    assert [size for shard in shards for size in shard] == sizes
    assert all(len(shard) <= SMALLEST_SHARD and sum(shard) <= SHARD_BYTES for shard in shards)
    assert all(shards) or not sizes
    for shard, following in pairwise(shards):
        assert len(shard) == SMALLEST_SHARD or sum(shard) + following[0] > SHARD_BYTES


# --- freezing ---


def test_a_plan_is_created_once_and_found_again(layout: Layout) -> None:
    store = Store()
    assert find_plan(store, layout, "shop", "night", "2026-01-02") is None
    first = frozen(store, layout, images(5), skipped={"csv": 2}, late=1)
    assert (first.images, first.bytes, first.shards, first.late, first.skipped) == (5, 5000, 1, 1, {"csv": 2})
    second = frozen(store, layout, images(9))
    assert second == first
    assert find_plan(store, layout, "shop", "night", "2026-01-02") == first
    kept = read_manifest(store, first.paths(layout).manifest(first.digest))
    assert kept["uri"].to_pylist() == [each.uri for each in images(5)]


def test_plans_of_other_names_kinds_and_sources_are_other_plans(layout: Layout) -> None:
    store = Store()
    frozen(store, layout, images(1))
    others = [{"name": "2026-01-03"}, {"kind": "plan"}, {"source": "shop-2"}]
    assert [frozen(store, layout, images(2), **other).images for other in others] == [2, 2, 2]


def test_a_plan_without_images_has_one_empty_shard(layout: Layout) -> None:
    store = Store()
    plan = frozen(store, layout, [])
    assert (plan.images, plan.bytes, plan.shards) == (0, 0, 1)
    folder = plan.paths(layout).manifest(plan.digest)
    empty = read_shard(store, folder, 0)
    assert len(empty) == 0
    assert empty.schema == MANIFEST
    assert len(read_manifest(store, folder)) == 0


def test_each_shard_is_read_back_alone_across_several_manifest_files(layout: Layout) -> None:
    store = Store()
    chosen = images(4 * MANIFEST_FILE_SHARDS + 5, size=HALF_A_SHARD)
    labels = {each.uri: ("held_out", f"class {i}") for i, each in enumerate(chosen)}
    plan = frozen(store, layout, chosen, labels=labels)
    folder = plan.paths(layout).manifest(plan.digest)
    assert plan.shards == 2 * MANIFEST_FILE_SHARDS + 3
    assert store.names(folder) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    rows = [row for shard in range(plan.shards) for row in read_shard(store, folder, shard).to_pylist()]
    assert [row["uri"] for row in rows] == [each.uri for each in chosen]
    assert [row["shard"] for row in rows] == [i // 2 for i in range(len(chosen))]
    assert [row["true_label"] for row in rows] == [f"class {i}" for i in range(len(chosen))]
    assert (rows[0]["mtime"], rows[0]["etag"], rows[0]["size"]) == (chosen[0].mtime, "e0", HALF_A_SHARD)
    assert read_manifest(store, folder).to_pylist() == rows
    assert read_manifest(store, folder, ["uri"]).column_names == ["uri"]


def test_a_copy_of_a_manifest_holds_the_same_rows(layout: Layout) -> None:
    store = Store()
    plan = frozen(store, layout, images(2 * MANIFEST_FILE_SHARDS + 2, size=SHARD_BYTES))
    folder, copy = plan.paths(layout).manifest(plan.digest), layout.run("r").manifest
    copy_manifest(store, folder, copy)
    assert read_manifest(store, copy).equals(read_manifest(store, folder))


def test_a_copy_is_gone_on_with_where_it_ended(layout: Layout) -> None:
    store = Store()
    plan = frozen(store, layout, images(2 * MANIFEST_FILE_SHARDS + 2, size=SHARD_BYTES))
    folder, copy = plan.paths(layout).manifest(plan.digest), layout.run("r").manifest
    store.create(f"{copy}/00001.parquet", store.read(f"{folder}/00001.parquet"))
    copy_manifest(store, folder, copy)
    assert read_manifest(store, copy).equals(read_manifest(store, folder))


def test_a_manifest_comes_back_as_the_images_that_it_was_made_of(layout: Layout) -> None:
    store, chosen = Store(), images(MANIFEST_FILE_SHARDS + 2, size=SHARD_BYTES)
    plan = frozen(store, layout, chosen, labels={chosen[1].uri: ("held_out", "cat")})
    batches = list(manifest_images(store, plan.paths(layout).manifest(plan.digest)))
    assert [len(batch) for batch in batches] == [MANIFEST_FILE_SHARDS, 2]
    again = Images(batches)
    assert list(again) == chosen
    assert digest_of(again) == plan.digest
    empty = frozen(store, layout, [], name="2026-01-03")
    assert list(manifest_images(store, empty.paths(layout).manifest(empty.digest))) == []


def test_labels_are_frozen_with_the_images_that_have_one() -> None:
    first, second, third = images(3)
    labelled = listed([first, second, third], {first.uri: ("trained", "cat"), third.uri: ("unknown", None)})
    table = pa.Table.from_batches(labelled.batches())
    assert table["split"].to_pylist() == ["trained", None, "unknown"]
    assert table["true_label"].to_pylist() == ["cat", None, None]
    assert list(labelled) == [first, second, third]


# --- the digest ---


def test_the_digest_does_not_depend_on_the_order_of_the_listing_or_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = digest_of(listed(images(200)))
    assert digest_of(listed(reversed(images(200)))) == digest
    monkeypatch.setattr("drivetrain.images.BATCH_ROWS", 7)
    assert len(list(listed(images(200)).batches())) == 29
    assert digest_of(listed(images(200))) == digest


@pytest.mark.parametrize(
    "changed",
    [image("00001.jpg", etag="e1"), image("00001.jpg", size=1001), image("00001.png")],
    ids=["etag", "size", "uri"],
)
def test_the_digest_changes_with_an_image(changed: ObjectInfo) -> None:
    first, second = images(2)
    assert digest_of(listed([first, changed])) != digest_of(listed([first, second]))


def test_the_digest_changes_when_the_same_letters_belong_to_other_images() -> None:
    pairs = [[image("1", etag="ab"), image("2", etag="c")], [image("1", etag="a"), image("2", etag="bc")]]
    assert len({digest_of(listed(pair)) for pair in pairs}) == 2


def test_the_bytes_of_a_column_are_those_of_its_slice() -> None:
    column = pa.array(["before", "été", "", "x", "after"]).slice(1, 3)
    assert bytes(_text_bytes(column)) == "étéx".encode()
    assert bytes(_text_bytes(pa.array(["", ""]))) == b""


def test_the_digest_does_not_change_with_the_time_of_an_image() -> None:
    (first,) = images(1)
    assert digest_of(listed([first._replace(mtime=None)])) == digest_of(listed([first]))


def test_the_digest_changes_with_a_split_and_with_a_true_label() -> None:
    (only,) = images(1)
    labels = [None, ("trained", None), ("held_out", None), ("held_out", ""), ("held_out", "cat"), ("held_out", "dog")]
    digests = {digest_of(listed([only], {only.uri: label} if label else None)) for label in labels}
    assert len(digests) == len(labels)


def test_the_digest_changes_with_a_missing_image() -> None:
    assert len({digest_of(listed(images(number))) for number in (0, 1, 2, 3)}) == 4


# --- words ---


def test_a_plan_of_another_prefix_is_refused_with_both_prefixes(layout: Layout) -> None:
    plan = frozen(Store(), layout, images(1))
    assert check_prefix(plan, PREFIX) is plan
    with pytest.raises(SettingError) as caught:
        check_prefix(plan, "/bucket/others")
    assert all(
        word in str(caught.value) for word in (PREFIX, "/bucket/others", "--name", "--source", "2026-01-02", "shop")
    )


def test_a_record_comes_back_as_it_was_and_a_missing_one_is_none(tmp_path: Path) -> None:
    store, record = Store(), {"b": [1, None], "a": "été"}
    uri = str(tmp_path / "x" / "record.json")
    assert from_json(store, uri) is None
    store.create(uri, to_json(record))
    found = from_json(store, uri)
    assert found == record
    assert list(found or {}) == ["b", "a"]
