"""What is said to have changed is what was changed, and nothing is said of a quiet night."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency
from worlds import CLASSES, VOCAB, changed, frames, in_groups, scored, some

from drivetrain import why
from drivetrain.drift import MAX_REFERENCE, moved
from drivetrain.findings import ClassShift
from drivetrain.lens import PROPERTIES, Lens, Scores, learn
from drivetrain.sketch import totals_of
from drivetrain.why import EXAMPLES, SHOWN_CLASSES, effective, holm, share_p_value

seeded = settings(derandomize=True, database=None, deadline=None)
REFERENCE = some(2000, 1)
LENS = learn(REFERENCE, 0)
URIS = [f"/reference/{place}" for place in range(5000)], [f"/night/{place}" for place in range(5000)]


# --- p-values ---


@pytest.mark.parametrize(
    ("raw", "corrected"),
    [
        # Worked out by hand: the k-th smallest of n times n - k + 1, never less than the one before it.
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.5, 0.001], [0.5, 0.002]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_of_known_cases(raw: list[float], corrected: list[float]) -> None:
    assert holm(raw) == pytest.approx(corrected)


@seeded
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_corrects_no_less_than_is_right_and_no_more_than_bonferroni(raw: list[float]) -> None:
    found = holm(raw)
    for p, corrected in zip(raw, found, strict=True):
        assert p <= corrected <= min(1, p * len(raw)) + 1e-12
    order = np.argsort(raw, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()


@pytest.mark.parametrize(("before", "m", "now", "n"), [(300, 1000, 360, 1000), (10, 200, 25, 300), (5, 5000, 9, 1000)])
def test_a_changed_share_has_the_p_value_of_the_two_sample_z_test(before: int, m: int, now: int, n: int) -> None:
    # Pearson's chi-squared without Yates' correction is the square of that z.
    expected = chi2_contingency([[before, m - before], [now, n - now]], correction=False).pvalue
    assert share_p_value(before / m, now / n, m, n) == pytest.approx(expected, rel=1e-6)


def test_shares_that_stay_say_nothing() -> None:
    assert share_p_value(0.3, 0.3, 1000, 1000) == 1
    assert share_p_value(0.0, 0.0, 1000, 1000) == 1
    assert share_p_value(1.0, 1.0, 1000, 1000) == 1


def test_copies_count_as_one_image_and_a_million_as_5000() -> None:
    assert effective(some(300, 1), 300) == 300
    assert effective(some(300, 1), 10**6) == MAX_REFERENCE
    copies = frames(160, 5, 1)
    assert effective(in_groups(learn(copies, 0), copies), 800) == pytest.approx(160)


# --- classes ---


def classes(night: Scores, reference: Scores = REFERENCE, lens: Lens = LENS) -> tuple[ClassShift, ...]:
    totals = totals_of(lens, reference), totals_of(lens, night)
    return why.classes(lens, reference, night, totals, VOCAB, 0.01, 0)


def moved_class(label: int, seed: int) -> Scores:
    """A night in which the images of one class look otherwise, and are taken for the same class."""
    night = some(600, seed)
    embeddings = night.embeddings.copy()
    # Across the head: no logit changes.
    across = np.linalg.svd(np.column_stack([_head(), np.ones((16, 1))]).T)[2][-1]
    embeddings[night.labels == label] += 2.0 * across
    found = scored(embeddings)
    np.testing.assert_array_equal(found.labels, night.labels)
    return found


def _head() -> Any:
    from worlds import HEAD

    return HEAD


@pytest.mark.parametrize("label", range(CLASSES))
def test_the_only_class_that_moved_comes_first(label: int) -> None:
    first, *others = classes(moved_class(label, 20 + label))
    assert first.label == VOCAB[label]
    assert first.p_value is not None and first.p_value < 0.01
    assert first.moved is not None and first.moved > 1
    assert all(each.p_value is None or each.p_value > 0.01 for each in others)


def test_the_only_class_that_came_more_often_comes_first() -> None:
    pool = some(4000, 3)
    more = np.concatenate([np.arange(500), 500 + np.flatnonzero(pool.labels[500:] == 2)[:100]])
    first, *others = classes(pool.take(more))
    assert first.label == VOCAB[2]
    assert first.current_share > first.reference_share
    assert first.share_p_value < 0.01 <= min(each.share_p_value for each in others) * CLASSES


def test_of_quiet_nights_hardly_a_class_is_said_to_have_moved() -> None:
    found = [each for seed in range(15) for each in classes(some(400, 100 + seed))]
    # Corrected over the classes: of 15 nights less than one has one at .01.
    assert sum(each.p_value is not None and each.p_value <= 0.01 for each in found) <= 2
    assert sum(each.share_p_value <= 0.01 for each in found) <= 2


def test_copies_move_no_class() -> None:
    reference, nights = frames(300, 5, 1), [frames(60, 5, 20 + seed) for seed in range(8)]
    lens = learn(reference, 0)
    grouped = in_groups(lens, reference)
    found = [each for night in nights for each in classes(in_groups(lens, night), grouped, lens)]
    assert sum(each.p_value is not None and each.p_value <= 0.01 for each in found) <= 1
    assert sum(each.share_p_value <= 0.01 for each in found) <= 1


def test_a_class_of_too_few_images_is_listed_and_not_tested() -> None:
    night = some(600, 5)
    few = night.take(np.flatnonzero((night.labels != 1) | (np.cumsum(night.labels == 1) <= 9)))
    (found,) = (each for each in classes(few) if each.label == VOCAB[1])
    assert (found.n_current, found.moved, found.p_value, found.accuracy) == (9, None, None, None)
    assert found.share_p_value < 0.01


def test_shares_and_numbers_are_those_of_all_images() -> None:
    night = some(600, 5)
    found = {each.label: each for each in classes(night)}
    for place, word in enumerate(VOCAB):
        assert found[word].n_current == (night.labels == place).sum()
        assert found[word].reference_share == pytest.approx((REFERENCE.labels == place).mean())
    assert sum(each.current_share for each in found.values()) == pytest.approx(1)


def test_a_regression_has_no_classes() -> None:
    nothing = np.zeros(0, np.int64)
    assert classes(changed(some(100, 2), labels=nothing), changed(REFERENCE, labels=nothing)) == ()


def test_examples_are_the_images_of_the_class_that_moved_most_beside_the_nearest_of_the_reference() -> None:
    night = moved_class(1, 11)
    far, _ = moved(LENS, REFERENCE, night, 0)
    with_them = why.with_examples(classes(night), LENS, REFERENCE, night, URIS, far, VOCAB)
    assert len(with_them) == CLASSES <= SHOWN_CLASSES
    white = LENS.whiten(REFERENCE), LENS.whiten(night)
    for each in with_them:
        label = VOCAB.index(each.label)
        assert len(each.examples) == EXAMPLES
        ours = np.flatnonzero(night.labels == label)
        places = [int(pair.current.rsplit("/", 1)[1]) for pair in each.examples]
        assert sorted(far[places], reverse=True) == pytest.approx(sorted(far[ours], reverse=True)[:EXAMPLES])
        for pair, place in zip(each.examples, places, strict=True):
            theirs = np.flatnonzero(REFERENCE.labels == label)
            nearest = theirs[np.linalg.norm(white[0][theirs] - white[1][place], axis=1).argmin()]
            assert pair.reference == f"/reference/{nearest}"


def test_a_class_that_the_reference_never_saw_has_examples_and_no_nearest() -> None:
    without = REFERENCE.take(np.flatnonzero(REFERENCE.labels != 0))
    lens = learn(without, 0)
    night = some(300, 5)
    found = why.with_examples(classes(night, without, lens), lens, without, night, URIS, np.zeros(300), VOCAB)
    assert found[0].label == VOCAB[0] and found[0].reference_share == 0
    assert {pair.reference for pair in found[0].examples} == {None}


# --- regions ---


def regions(night: Scores) -> Any:
    totals = totals_of(LENS, REFERENCE), totals_of(LENS, night)
    return why.regions(LENS, REFERENCE, night, totals, URIS, VOCAB)


def test_the_region_that_grew_comes_first_with_its_images() -> None:
    rng = np.random.default_rng(0)
    for region in (0, 7, 20):
        night = some(500, 30 + region)
        of_region = REFERENCE.embeddings[LENS.regions(LENS.whiten(REFERENCE)) == region]
        planted = of_region[rng.integers(0, len(of_region), 60)] + 0.05 * rng.standard_normal((60, 16))
        night = scored(np.concatenate([night.embeddings, planted]))
        first, *others = regions(night)
        assert first.number == region
        assert first.current_share > 2 * first.reference_share
        assert first.p_value < 0.01
        assert sum(each.p_value < 0.01 for each in others) <= 1
        where = LENS.regions(LENS.whiten(night)), LENS.regions(LENS.whiten(REFERENCE))
        assert {where[0][int(uri.rsplit("/", 1)[1])] for uri in first.current_images} == {region}
        assert {where[1][int(uri.rsplit("/", 1)[1])] for uri in first.reference_images} == {region}
        usual = np.bincount(REFERENCE.labels[where[1] == region]).argmax()
        assert first.label == VOCAB[usual]


def test_regions_of_quiet_nights_did_not_change() -> None:
    found = [each for seed in range(15) for each in regions(some(400, 300 + seed))]
    assert len(found) == 15 * len(LENS.centres)
    assert sum(each.p_value <= 0.01 for each in found) <= 2
    assert sum(each.current_share for each in regions(some(400, 1))) == pytest.approx(1)


# --- causes ---


def looking(number: int, seed: int, **changes: float) -> Scores:
    """Images with properties; ``changes``: by how many standard deviations some are off."""
    spread = {"brightness": (0.5, 0.1), "contrast": (0.2, 0.05), "sharpness": (0.1, 0.02), "pixels": (18, 1),
              "aspect": (0.3, 0.2), "compression": (1, 0.5)}  # fmt: skip
    rng = np.random.default_rng([seed, 5])
    columns = [
        spread[name][0] + spread[name][1] * (changes.get(name, 0) + rng.standard_normal(number)) for name in PROPERTIES
    ]
    return changed(some(number, seed), properties=np.column_stack(columns))


def causes(night: Scores, reference: Scores) -> Any:
    return why.causes(reference, night, (totals_of(LENS, reference), totals_of(LENS, night)))


def test_darker_is_said_with_its_size() -> None:
    (cause,) = causes(looking(500, 2, brightness=-1.4), looking(1000, 1))
    assert cause.name == "brightness"
    assert cause.words.startswith("darker by 1.") and cause.words.endswith(" sd")
    assert cause.change == pytest.approx(-1.4, abs=0.15)
    assert (cause.reference, cause.current) == pytest.approx((0.5, 0.36), abs=0.02)
    assert cause.p_value < 1e-6


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"brightness": 1.0}, "brighter"),
        ({"contrast": -1.0}, "lower in contrast"),
        ({"sharpness": -1.0}, "blurrier"),
        ({"sharpness": 1.0}, "sharper or noisier"),
        ({"pixels": -1.0}, "smaller"),
        ({"aspect": 1.0}, "wider"),
        ({"compression": -1.0}, "more compressed"),
    ],
)
def test_each_property_has_its_words(change: dict[str, float], word: str) -> None:
    (cause,) = causes(looking(500, 2, **change), looking(1000, 1))
    assert cause.words.startswith(f"{word} by ")


def test_sizes_are_said_in_pixels_and_not_in_their_logarithm() -> None:
    (cause,) = causes(looking(500, 2, pixels=-2.0), looking(1000, 1))
    assert (cause.reference, cause.current) == pytest.approx((2**18, 2**16), rel=0.1)


def test_the_largest_change_comes_first() -> None:
    found = causes(looking(500, 2, brightness=-0.5, sharpness=2.0, pixels=-1.0), looking(1000, 1))
    assert [each.name for each in found] == ["sharpness", "pixels", "brightness"]


def test_nothing_is_named_on_a_quiet_night() -> None:
    reference = looking(1000, 1)
    assert [cause for seed in range(20) for cause in causes(looking(300, 40 + seed), reference)] == []


def test_a_small_change_is_no_cause_however_certain() -> None:
    assert causes(looking(5000, 2, brightness=-0.15), looking(5000, 1)) == ()


def test_images_that_are_all_of_one_size_have_no_cause_until_it_changes() -> None:
    def of_size(scores: Scores, pixels: float) -> Scores:
        properties = scores.properties.copy()
        properties[:, PROPERTIES.index("pixels")] = pixels
        return changed(scores, properties=properties)

    reference = of_size(looking(1000, 1), 18.0)
    assert causes(of_size(looking(300, 2), 18.0), reference) == ()
    (cause,) = causes(of_size(looking(300, 2), 17.0), reference)
    assert cause.words.startswith("smaller by ") and np.isfinite(cause.change)


def test_what_was_not_measured_is_no_cause() -> None:
    assert causes(some(300, 2), some(1000, 1)) == ()
    assert causes(some(300, 2), looking(1000, 1)) == ()


# --- histograms and map ---


def test_the_shares_of_a_histogram_add_up_to_1_on_both_sides() -> None:
    night = some(400, 2, shift=1.0)
    found = {each.name: each for each in why.histograms(LENS, (totals_of(LENS, REFERENCE), totals_of(LENS, night)))}
    assert set(found) == {"confidence", "energy"}
    for each in found.values():
        assert sum(each.reference) == pytest.approx(1)
        assert sum(each.current) == pytest.approx(1)
        assert len(each.edges) == len(each.reference) + 1 == len(each.current) + 1
        assert np.isfinite(each.edges).all() and (np.diff(each.edges) > 0).all()


def test_there_is_no_histogram_of_what_is_not_there() -> None:
    nothing = changed(some(400, 2), confidence=np.full(400, np.nan), energy=np.full(400, np.nan))
    assert why.histograms(LENS, (totals_of(LENS, REFERENCE), totals_of(LENS, nothing))) == ()


def test_the_maps_axes_are_the_references_whatever_the_night_is() -> None:
    quiet, far = (why.map_of(LENS, REFERENCE, night, 0) for night in (some(300, 2), some(300, 3, shift=50)))
    assert (quiet.low, quiet.high) == (far.low, far.high)
    inside = np.array(quiet.reference)
    within = (inside >= quiet.low).all(axis=1) & (inside <= quiet.high).all(axis=1)
    assert within.mean() > 0.97
    assert (len(quiet.current), len(quiet.reference)) == (300, why.POINTS)
    assert 0 < quiet.explained[1] <= quiet.explained[0] < 1


def test_a_reference_of_one_axis_has_a_map() -> None:
    reference = some(12, 1)
    found = why.map_of(learn(reference, 0), reference, some(5, 2), 0)
    assert np.array(found.current).shape == (5, 2)
