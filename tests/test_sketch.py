"""Totals add up however a run is cut, and a share of the images is the same one wherever it is asked for."""

import itertools
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import changed, some

from drivetrain.lens import Scores, learn
from drivetrain.sketch import CANDIDATES, Totals, candidates, chosen_by_hash, merged, totals_of

seeded = settings(derandomize=True, database=None, deadline=None, max_examples=50)
LENS = learn(some(300, 1), 0)


def night(number: int = 120) -> Scores:
    """Images of which some properties were measured, others not."""
    rng = np.random.default_rng(4)
    properties = rng.random((number, 6))
    properties[rng.random((number, 6)) < 0.2] = np.nan
    return changed(some(number, 2, shift=0.5), properties=properties)


NIGHT = night()


def same(left: Totals, right: Totals) -> None:
    for each in fields(Totals):
        np.testing.assert_allclose(getattr(left, each.name), getattr(right, each.name), atol=1e-9, err_msg=each.name)


@seeded
@given(st.lists(st.integers(0, 120), max_size=6))
def test_the_totals_of_the_parts_add_up_to_those_of_the_whole(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 120]
    parts = [NIGHT.take(np.arange(a, b)) for a, b in itertools.pairwise(edges)]
    same(merged([totals_of(LENS, part) for part in parts]), totals_of(LENS, NIGHT))


def test_totals_are_counts_of_all_images() -> None:
    totals = totals_of(LENS, NIGHT)
    assert totals.images == 120
    for name in ("labels", "regions", "confidence", "energy"):
        assert getattr(totals, name).sum() == 120, name
    np.testing.assert_array_equal(totals.labels, np.bincount(NIGHT.labels, minlength=4))
    counted, summed, _ = totals.properties
    np.testing.assert_array_equal(counted, (~np.isnan(NIGHT.properties)).sum(axis=0))
    np.testing.assert_allclose(summed / counted, np.nanmean(NIGHT.properties, axis=0))


def test_energies_beyond_all_of_the_reference_are_counted_in_the_open_bins() -> None:
    far = changed(NIGHT, energy=np.where(np.arange(120) < 50, -1e6, 1e6))
    energy = totals_of(LENS, far).energy
    assert (energy[0], energy[-1], energy[1:-1].sum()) == (50, 70, 0)


def test_images_without_confidence_are_counted_in_no_bin() -> None:
    nothing = np.full(120, np.nan)
    totals = totals_of(LENS, changed(NIGHT, confidence=nothing, energy=nothing))
    assert totals.confidence.sum() == totals.energy.sum() == 0
    assert totals.images == 120


def test_a_certain_image_is_in_the_last_bin_of_the_confidence() -> None:
    totals = totals_of(LENS, changed(NIGHT, confidence=np.ones(120)))
    assert totals.confidence[-1] == 120


def test_totals_come_back_from_json_as_they_were() -> None:
    totals = totals_of(LENS, NIGHT)
    again = Totals.from_json(totals.to_json())
    same(again, totals)
    assert again.images == 120 and isinstance(again.images, int)
    same(merged([again, totals]), merged([totals, totals]))


def test_totals_of_a_regression_come_back_and_add_up() -> None:
    nothing = np.full(120, np.nan)
    regressed = changed(
        NIGHT, outputs=NIGHT.outputs[:, :1], confidence=nothing, energy=nothing, labels=np.zeros(0, np.int64)
    )
    lens = learn(changed(some(300, 1), outputs=some(300, 1).outputs[:, :1], energy=np.full(300, np.nan)), 0)
    totals = totals_of(lens, regressed)
    assert len(totals.labels) == len(totals.energy) == 0
    same(merged([Totals.from_json(totals.to_json()), totals]), totals_of(lens, both(regressed)))


def both(scores: Scores) -> Scores:
    places = np.concatenate([np.arange(len(scores))] * 2)
    return scores.take(places)


def test_totals_without_a_value_are_refused() -> None:
    with pytest.raises(KeyError):
        Totals.from_json('{"images": 3}')


def test_nothing_to_merge_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        merged([])


# --- a share of the images ---

URIS = [f"s3://bucket/night/{place:06d}.jpg" for place in range(20_000)]


def test_the_same_images_are_chosen_whatever_their_order_and_part() -> None:
    chosen = {URIS[place] for place in chosen_by_hash(URIS, 0.1)}
    order = np.random.default_rng(0).permutation(len(URIS))
    mixed = [URIS[place] for place in order]
    assert {mixed[place] for place in chosen_by_hash(mixed, 0.1)} == chosen
    parts = [URIS[first : first + 700] for first in range(0, len(URIS), 700)]
    assert {part[place] for part in parts for place in chosen_by_hash(part, 0.1)} == chosen


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_about_the_share_that_was_asked_for_is_chosen(share: float) -> None:
    spread = np.sqrt(len(URIS) * share * (1 - share))
    assert abs(len(chosen_by_hash(URIS, share)) - share * len(URIS)) < 4 * spread


def test_a_smaller_share_is_part_of_a_larger_one_and_all_is_all() -> None:
    assert set(chosen_by_hash(URIS, 0.05)) < set(chosen_by_hash(URIS, 0.2))
    assert len(chosen_by_hash(URIS, 1.0)) == len(chosen_by_hash(URIS, 3.0)) == len(URIS)
    assert len(chosen_by_hash(URIS, 0.0)) == len(chosen_by_hash([], 0.5)) == 0


def test_candidates_are_the_images_that_lie_furthest_out() -> None:
    embeddings = NIGHT.embeddings.copy()
    planted = [3, 50, 119]
    embeddings[planted] += 20
    found = candidates(LENS, changed(NIGHT, embeddings=embeddings))
    assert set(found[:3]) == set(planted)
    assert len(found) == CANDIDATES
    assert len(candidates(LENS, NIGHT.take(np.arange(3)))) == 3
