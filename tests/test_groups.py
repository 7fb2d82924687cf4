"""Which images belong together, and drawing them whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import frames, some

from drivetrain.errors import SettingError
from drivetrain.groups import by_pattern, capped, near_duplicates, usual_size, whole_groups
from drivetrain.lens import Indices, learn

seeded = settings(derandomize=True, database=None, deadline=None, max_examples=60)
some_groups = st.lists(st.integers(0, 6), min_size=1, max_size=30).map(lambda found: np.array(found, np.int64))


def together(numbers: Indices) -> set[frozenset[int]]:
    """Which places bear the same number."""
    return {frozenset(np.flatnonzero(numbers == each).tolist()) for each in np.unique(numbers)}


# --- a pattern ---

URIS = ["s3://b/camera-1/a.jpg", "s3://b/camera-2/a.jpg", "s3://b/camera-1/b.jpg", "s3://b/camera-12/a.jpg"]


@pytest.mark.parametrize("pattern", ["camera-([0-9]+)/", "camera-[0-9]+/", "(camera-[0-9]+)/([a-z])"])
def test_a_pattern_groups_by_its_first_group_or_by_all_that_it_matches(pattern: str) -> None:
    assert together(by_pattern(URIS, pattern)) == {frozenset({0, 2}), frozenset({1}), frozenset({3})}


def test_images_in_which_a_pattern_finds_nothing_are_groups_of_their_own() -> None:
    found = by_pattern([*URIS, "s3://b/other/a.jpg", "s3://b/other/b.jpg"], "camera-([0-9]+)/")
    assert together(found) == {frozenset(each) for each in ({0, 2}, {1}, {3}, {4}, {5})}


def test_a_group_of_a_pattern_that_takes_no_part_finds_nothing() -> None:
    found = by_pattern(["/x/1.jpg", "/camera-1/1.jpg", "/camera-1/2.jpg", "/x/2.jpg"], r"/(camera-\d)?.*jpg")
    assert together(found) == {frozenset({0}), frozenset({1, 2}), frozenset({3})}


def test_a_pattern_that_finds_nothing_at_all_is_a_setting_error_with_an_example() -> None:
    with pytest.raises(SettingError, match=r"group_by = 'patient' finds nothing in any uri; the first is 's3://b/cam"):
        by_pattern(URIS, "patient")
    assert len(by_pattern([], "patient")) == 0


# --- near-duplicates ---


def test_copies_with_a_little_noise_are_found_and_nothing_else_is() -> None:
    scores = frames(150, 4, 3)
    lens = learn(scores, 0)
    found = near_duplicates(lens.whiten_wide(scores))
    assert np.unique(found, return_counts=True)[1].tolist() == [4] * 150
    # The same source, as the builder of the frames made it: nearest to each other.
    for group in list(together(found))[:20]:
        embeddings = scores.embeddings[list(group)]
        assert np.abs(embeddings - embeddings.mean(axis=0)).max() < 0.2


def test_independent_images_are_groups_of_their_own() -> None:
    scores = some(1500, 1, depth=32)
    assert len(np.unique(near_duplicates(learn(scores, 0).whiten_wide(scores)))) == 1500


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 12])
def test_few_dimensions_make_no_neighbours_of_independent_images(depth: int) -> None:
    """Nearness alone would tie nearly all images of a small embedding into one group, and every night to unknown."""
    scores = some(2000, 1, depth=depth)
    white = learn(scores, 0).whiten_wide(scores)
    assert len(np.unique(near_duplicates(white))) > 1850
    copies = near_duplicates(np.concatenate([white, white + 1e-7]))
    np.testing.assert_array_equal(copies[:2000], copies[2000:])


def test_a_chain_of_near_images_is_one_group_over_blocks_of_the_computation() -> None:
    """A video: each frame is near the next, the first one is not near the last one."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((1200, 32))
    steps = 0.2 * rng.standard_normal((40, 32))
    places = rng.permutation(1200)[:40]
    points[places] = points[places[0]] + np.cumsum(steps, axis=0)
    found = near_duplicates(points)
    assert len(np.unique(found[places])) == 1
    assert (found == found[places[0]]).sum() == 40
    assert np.linalg.norm(points[places[0]] - points[places[-1]]) > 4


def test_exact_copies_are_one_group() -> None:
    points = np.random.default_rng(0).standard_normal((50, 16)) * 1e3
    found = near_duplicates(np.concatenate([points, points]))
    assert together(found) == {frozenset({place, place + 50}) for place in range(50)}


@pytest.mark.parametrize("number", [0, 1])
def test_hardly_any_images_are_groups_of_their_own(number: int) -> None:
    assert near_duplicates(np.zeros((number, 3))).tolist() == list(range(number))


# --- drawing ---


@seeded
@given(some_groups, st.integers(1, 5), st.integers(0, 3))
def test_no_group_gives_more_than_its_cap_and_smaller_ones_stay_whole(groups: Indices, most: int, seed: int) -> None:
    places = capped(groups, most, np.random.default_rng(seed))
    assert len(np.unique(places)) == len(places)
    before, now = (dict(zip(*np.unique(each, return_counts=True), strict=True)) for each in (groups, groups[places]))
    assert now == {group: min(size, most) for group, size in before.items()}


def test_which_images_of_a_large_group_are_kept_is_chance() -> None:
    groups = np.zeros(10, np.int64)
    drawn = np.concatenate([capped(groups, 2, np.random.default_rng(seed)) for seed in range(500)])
    # Each is drawn with probability 1/5: 100 of 500, five standard deviations either way.
    assert (np.abs(np.bincount(drawn, minlength=10) - 100) < 5 * np.sqrt(500 * 0.2 * 0.8)).all()


@seeded
@given(some_groups, st.integers(1, 30), st.integers(0, 3))
def test_groups_are_drawn_whole_but_for_the_last_one(groups: Indices, n: int, seed: int) -> None:
    places = whole_groups(groups, n, np.random.default_rng(seed))
    assert len(places) == len(np.unique(places)) == min(n, len(groups))
    drawn = groups[places]
    changes = np.flatnonzero(np.diff(drawn)) + 1
    runs = np.split(drawn, changes)
    assert len({run[0] for run in runs}) == len(runs), "a group stands together"
    for run in runs[:-1]:
        assert len(run) == (groups == run[0]).sum()


def test_each_group_is_drawn_as_often_as_any_other() -> None:
    groups = np.repeat(np.arange(10), 3)
    drawn = [whole_groups(groups, 6, np.random.default_rng(seed)) for seed in range(500)]
    counted = np.bincount(np.concatenate([np.unique(groups[each]) for each in drawn]), minlength=10)
    assert (np.abs(counted - 100) < 5 * np.sqrt(500 * 0.2 * 0.8)).all()


@pytest.mark.parametrize(
    ("sizes", "usual"), [([1] * 100, 1), ([1] * 89 + [50] * 11, 50), ([1] * 95 + [900] * 5, 1), ([5] * 10, 5), ([], 1)]
)
def test_the_usual_size_is_one_that_nine_of_ten_groups_do_not_exceed(sizes: list[int], usual: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    assert usual_size(groups) == usual
