"""The test for drift against its own null, against plain loops, and on nights that broke simpler tests."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score
from worlds import changed, frames, held, in_groups, scored, some

from drivetrain.drift import (
    ENOUGH_ACCEPTED,
    MAX_CURRENT,
    MAX_REFERENCE,
    MAX_SPLITS,
    REFERENCE_ERROR,
    Yardstick,
    area_under_roc,
    decide,
    effect,
    judged,
    moved,
    splits_for,
    widen,
)
from drivetrain.groups import whole_groups
from drivetrain.lens import PROPERTIES, Matrix, Scores, learn

seeded = settings(derandomize=True, database=None, deadline=None)
small_numbers = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12)


# --- known numbers ---


@seeded
@given(small_numbers, small_numbers)
def test_area_under_roc_is_scikit_learns_ties_or_not(positive: list[float], negative: list[float]) -> None:
    truth = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(truth, positive + negative)
    assert area_under_roc(np.array(positive), np.array(negative)) == pytest.approx(expected, abs=1e-12)


@seeded
@given(small_numbers, small_numbers)
def test_area_under_roc_is_mirrored_when_the_sides_change(positive: list[float], negative: list[float]) -> None:
    one, other = np.array(positive), np.array(negative)
    assert area_under_roc(one, other) + area_under_roc(other, one) == pytest.approx(1)


def test_each_statistic_is_the_distance_of_mean_features() -> None:
    reference, current = some(600, 1), some(100, 2, shift=0.3)
    lens = learn(reference, 0)
    found = held(reference, current)
    assert [each.name for each in found.statistics] == ["combined", "mmd", "bbsd", "confidence", "energy", "labels"]
    assert found.n_tested == 100
    before, now = lens.blocks(reference), lens.blocks(current)
    for name, block in before.items():
        expected = np.linalg.norm(now[name].mean(axis=0) - block.mean(axis=0))
        statistic = found.statistic(name)
        assert statistic and statistic.value == pytest.approx(expected, rel=1e-4), name
    confidence = found.statistic("confidence")
    assert confidence
    assert confidence.value == pytest.approx(abs(current.confidence.mean() - reference.confidence.mean()), rel=1e-4)


def test_the_null_is_that_of_a_plain_loop_over_splits() -> None:
    reference = frames(60, 2, 1)
    lens = learn(reference, 0)
    reference = in_groups(lens, reference)
    yardstick = Yardstick(reference, lens, 3)
    null = yardstick.null(20, 40)
    blocks, m = lens.blocks(yardstick.held), len(yardstick.held)
    rng = np.random.default_rng([3, 5, 20])
    # A night and the reference are two samples, a split and the whole are one and its part.
    scale = np.sqrt((1 / 20 + REFERENCE_ERROR / m) / (1 / 20 - 1 / m))
    for row in null.values:
        inside = whole_groups(yardstick.held.groups, 20, rng)
        looped = [np.linalg.norm(block[inside].mean(axis=0) - block.mean(axis=0)) * scale for block in blocks.values()]
        np.testing.assert_allclose(row, looped, rtol=1e-3, atol=1e-6)


def test_p_value_and_threshold_are_read_off_the_null() -> None:
    null = np.random.default_rng(0).gamma(5, 1, 1000)
    found = judged("x", 9.0, null, 0.05)
    assert found.p_value == (1 + (null >= 9.0).sum()) / 1001
    assert (null > found.threshold).mean() == pytest.approx(0.05, abs=0.002)
    assert found.null_mean == pytest.approx(null.mean())
    assert (found.null[0], found.null[20], found.null[-1]) == pytest.approx((null.min(), np.median(null), null.max()))
    assert judged("x", null.mean(), null, 0.05).score == pytest.approx(0)
    assert judged("x", found.threshold, null, 0.05).score == pytest.approx(1)


@pytest.mark.parametrize(
    ("alpha", "splits"), [(0.05, 1000), (0.01, 1000), (0.004, 2500), (1 / 365, 3650), (1e-9, MAX_SPLITS)]
)
def test_an_alpha_gets_ten_splits_beyond_its_threshold(alpha: float, splits: int) -> None:
    assert splits_for(alpha) == splits


def test_a_smaller_alpha_gets_more_splits() -> None:
    assert held(some(100, 1), some(20, 2), alpha=0.004).splits == 2500


def test_the_combined_statistic_is_the_larger_of_the_two_standardised_ones() -> None:
    reference, current = some(600, 1), some(100, 2, shift=0.4)
    lens = learn(reference, 0)
    yardstick = Yardstick(reference, lens, 0)
    found = decide(yardstick, current, alpha=0.01, seed=0)
    null = yardstick.null(100, 1000)
    columns = {name: null.values[:, null.names.index(name)] for name in ("mmd", "bbsd")}
    values = {name: found.statistic(name) for name in columns}
    scaled = [(values[name].value - each.mean()) / each.std() for name, each in columns.items()]  # type: ignore[union-attr]
    combined = found.statistic("combined")
    assert combined and combined.value == pytest.approx(max(scaled), rel=1e-6)
    of_null = np.maximum(*((each - each.mean()) / each.std() for each in columns.values()))
    assert combined.p_value == found.p_value == (1 + (of_null >= combined.value).sum()) / 1001


# --- its own null, and power ---


def test_nights_without_drift_alarm_as_often_as_was_asked_for() -> None:
    p_values: list[float] = []
    for world in range(5):
        reference = some(1000, world)
        yardstick = Yardstick(reference, learn(reference, world), world)
        nights = [some(150, 1000 * (world + 1) + night) for night in range(40)]
        p_values += [decide(yardstick, night, alpha=0.05, seed=0).p_value for night in nights]
    for level in (0.01, 0.05, 0.2):
        assert (np.array(p_values) <= level).sum() <= binom.ppf(0.999, len(p_values), level), level
    # Nor is the null so wide that nothing could ever be seen.
    assert np.mean(np.array(p_values) <= 0.5) > 0.25


def test_a_planted_mean_shift_gets_the_smallest_p_value_there_is() -> None:
    for seed in range(3):
        found = held(some(1000, seed), some(200, 50 + seed, shift=1.0), seed=seed)
        assert found.p_value == 1 / (1 + found.splits)
        assert found.effect > 0.7


def test_changed_class_shares_are_seen_by_the_labels() -> None:
    reference, pool = some(1000, 1), some(2000, 2)
    only_one_class = pool.take(np.flatnonzero(pool.labels == 0)[:100])
    found = held(reference, only_one_class).statistic("labels")
    assert found and found.p_value == 1 / 1001


def alarms(reference: Scores, nights: list[Scores], alpha: float = 0.01) -> int:
    yardstick = Yardstick(reference, learn(reference, 0), 0)
    return sum(decide(yardstick, night, alpha=alpha, seed=0).p_value <= alpha for night in nights)


def test_near_duplicates_alarm_in_most_nights_unless_they_are_grouped() -> None:
    """The failure that groups exist for: five frames of one source are one observation."""
    reference = frames(200, 5, 0)
    nights = [frames(40, 5, 100 + night) for night in range(30)]
    assert alarms(reference, nights) >= 20
    lens = learn(reference, 0)
    assert alarms(in_groups(lens, reference), [in_groups(lens, night) for night in nights]) <= 2


def test_groups_hide_no_shift() -> None:
    reference = frames(200, 5, 0)
    lens = learn(reference, 0)
    nights = []
    for number in range(5):
        night = frames(40, 5, 100 + number)
        nights.append(in_groups(lens, scored(night.embeddings + 0.8)))
    assert alarms(in_groups(lens, reference), nights) == 5


def test_one_source_that_sends_half_of_a_night_is_no_drift_of_the_others() -> None:
    lens = learn(some(1000, 0), 0)
    found = []
    for number in range(10):
        night = some(150, 200 + number)
        embeddings = np.concatenate([night.embeddings, np.tile(night.embeddings[:1], (150, 1))])
        found.append(in_groups(lens, scored(embeddings)))
    assert alarms(some(1000, 0), found) <= 1


# --- accepted nights ---

NULL = np.random.default_rng(0).normal(0, 1, 4000)


def test_fewer_than_20_accepted_nights_do_nothing() -> None:
    wild = [5.0, -5.0] * 9 + [5.0]
    assert len(wild) == ENOUGH_ACCEPTED - 1
    null, widened = widen(NULL, wild)
    assert widened == 1
    np.testing.assert_array_equal(null, NULL)
    assert widen(NULL, [*wild, 5.0])[1] > 1


def test_quiet_nights_do_not_narrow_the_null() -> None:
    null, widened = widen(NULL, [NULL.mean()] * 30)
    assert widened == 1
    np.testing.assert_allclose(null, NULL, atol=1e-12)
    lower, _ = widen(NULL, [-4.0] * 30)
    np.testing.assert_allclose(lower, NULL, atol=1e-12)


def test_nights_that_differ_stretch_the_null_by_the_ratio_of_the_spreads() -> None:
    nights = np.random.default_rng(1).normal(0, 1, 25)
    nights = (nights - nights.mean()) / nights.std(ddof=1) * 3 * NULL.std() + NULL.mean()
    null, widened = widen(NULL, nights.tolist())
    assert widened == pytest.approx(3 * np.sqrt(1 + 1 / 25))
    assert null.std() == pytest.approx(widened * NULL.std())
    assert null.mean() == pytest.approx(NULL.mean())


def test_nights_that_lie_higher_move_the_null() -> None:
    nights = [NULL.mean() + 1.5] * 20
    null, widened = widen(NULL, nights)
    assert widened == 1
    np.testing.assert_allclose(null, NULL + 1.5, atol=1e-9)


def test_a_source_whose_nights_differ_alarms_often_and_rarely_once_20_are_accepted() -> None:
    reference = some(1000, 0)
    yardstick = Yardstick(reference, learn(reference, 0), 0)

    def night(number: int) -> Scores:
        own = 0.12 * np.random.default_rng([number, 9]).standard_normal(16)
        return scored(some(200, 500 + number).embeddings + own)

    found = [decide(yardstick, night(number), alpha=0.01, seed=0) for number in range(25)]
    values = [each.value for decision in found if (each := decision.statistic("combined"))]
    assert len(values) == 25
    later = [night(number) for number in range(100, 140)]
    without = [decide(yardstick, each, alpha=0.01, seed=0) for each in later]
    knowing = [decide(yardstick, each, alpha=0.01, seed=0, accepted=values) for each in later]
    assert sum(each.p_value <= 0.01 for each in without) >= 20
    assert sum(each.p_value <= 0.01 for each in knowing) <= 3
    assert {(each.accepted, each.widened > 1) for each in knowing} == {(25, True)}
    far = decide(yardstick, some(200, 900, shift=2.0), alpha=0.01, seed=0, accepted=values)
    assert far.p_value <= 0.01, "what is far beyond any accepted night still alarms"


# --- seeds and sizes ---


def test_the_same_seed_measures_the_same_and_another_one_draws_others() -> None:
    reference, current = some(200, 1), some(100, 2, shift=0.2)
    once, again, other = (held(reference, current, seed=seed) for seed in (4, 4, 5))
    assert once == again
    for name in ("mmd", "bbsd"):
        assert once.statistic(name).null != other.statistic(name).null  # type: ignore[union-attr]


@pytest.mark.parametrize(("m", "n", "size"), [(5500, 1500, 1000), (250, 999, 50), (4, 9, 1), (500, 30, 30)])
def test_the_tested_size_is_bounded_by_the_night_a_fifth_of_the_reference_and_a_cap(m: int, n: int, size: int) -> None:
    reference = some(m, 1)
    yardstick = Yardstick(reference, learn(reference, 0), 0)
    assert len(yardstick.held) == min(m, MAX_REFERENCE)
    assert yardstick.size_for(n) == len(yardstick.drawn(some(n, 2), 0)) == size <= MAX_CURRENT


def test_a_decision_says_how_many_images_it_looked_at() -> None:
    found = held(some(300, 1), some(70, 2), seed=9, alpha=0.02)
    assert (found.n_reference, found.n_current, found.n_tested) == (300, 70, 60)
    assert (found.groups_reference, found.groups_tested) == (300, 60)
    assert (found.seed, found.alpha, found.splits) == (9, 0.02, 1000)
    assert asdict(found) == json.loads(json.dumps(asdict(found)), object_hook=_tuples)


def _tuples(found: dict[str, object]) -> dict[str, object]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


# --- the effect, and which images moved ---


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_the_effect_of_a_mean_shift_is_the_normal_distributions(shift: float) -> None:
    reference = some(4000, 1, depth=6)
    found = effect(learn(reference, 0), reference, some(2000, 2, shift, depth=6), 0)
    assert found == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.02)


def test_the_effect_goes_from_a_half_to_one() -> None:
    reference = some(1000, 1)
    lens = learn(reference, 0)
    quiet = [effect(lens, reference, some(300, seed), 0) for seed in range(100, 110)]
    assert min(quiet) >= 0.5 and max(quiet) < 0.58
    assert effect(lens, reference, some(300, 2, shift=12.0), 0) > 0.999


def test_near_duplicates_do_not_vote_for_each_others_direction() -> None:
    """With as many axes as this a direction that a copy helped to find would set an image apart without any shift."""
    reference = some(2560, 1, depth=64)
    lens = learn(reference, 0)
    alone, grouped = [], []
    for seed in range(12):
        night = frames(16, 6, seed, depth=64)
        alone.append(effect(lens, reference, night, seed))
        grouped.append(effect(lens, reference, in_groups(lens, night), seed))
    assert np.mean(alone) > 0.75
    assert np.mean(grouped) < 0.6


def test_planted_images_come_first() -> None:
    reference, current = some(1000, 1), some(300, 2)
    planted = np.random.default_rng(0).permutation(300)[:60]
    embeddings = current.embeddings.copy()
    embeddings[planted, 2] += 15.0
    of_current, of_reference = moved(learn(reference, 0), reference, scored(embeddings), 0)
    assert set(np.argsort(-of_current)[:60]) == set(planted)
    assert (of_current.shape, of_reference.shape) == ((300,), (1000,))


def lit(scores: Scores, seed: int, noise: float = 0.05) -> Scores:
    """The same images with a brightness that partly follows their first axis; the other properties are not known."""
    properties = np.full((len(scores), len(PROPERTIES)), np.nan)
    drawn = np.random.default_rng([seed, 79]).standard_normal(len(scores))
    properties[:, 0] = 0.5 + 0.05 * scores.embeddings[:, 0] + noise * drawn
    return changed(scores, properties=properties)


def test_darkened_images_that_the_network_hardly_tells_come_first_by_their_brightness() -> None:
    """Brightness follows an axis of the embeddings; darkening changes it and leaves the embeddings where they are."""
    reference, current = lit(some(1000, 1), 3), lit(some(300, 2), 4)
    dark = np.random.default_rng(0).permutation(300)[:60]
    properties = current.properties.copy()
    properties[dark, 0] -= 0.2
    of_current, of_reference = moved(learn(reference, 0), reference, changed(current, properties=properties), 0)
    assert np.isin(np.argsort(-of_current)[:50], dark).mean() > 0.9
    assert of_reference.std() == pytest.approx(1, abs=0.1)
    blind, _ = moved(learn(reference, 0), some(1000, 1), some(300, 2), 0)
    assert np.isin(np.argsort(-blind)[:50], dark).mean() < 0.5, "embeddings alone don't tell"


def test_what_follows_from_the_embeddings_counts_once() -> None:
    """Brightness that an axis of the embeddings tells to the last bit adds nothing but noise."""
    reference, current = lit(some(1000, 1), 3, noise=1e-9), lit(some(300, 2, shift=3.0), 4, noise=1e-9)
    of_current, of_reference = moved(learn(reference, 0), reference, current, 0)
    assert of_reference.std() == pytest.approx(1, abs=0.05)
    assert of_current.mean() == pytest.approx(3, abs=0.3)


def test_one_huge_image_is_no_more_than_the_last_and_properties_all_alike_say_nothing() -> None:
    reference, current = lit(some(1000, 1), 3), lit(some(300, 2), 4)
    properties = current.properties.copy()
    properties[7, 0] = 1e9
    far, _ = moved(learn(reference, 0), reference, changed(current, properties=properties), 0)
    assert np.isfinite(far).all() and abs(far[7]) < 6
    same, _ = moved(learn(reference, 0), some(1000, 1), some(300, 2), 0)
    alike = changed(reference, properties=np.where(np.isnan(reference.properties), np.nan, 0.5))
    unknown = changed(current, properties=np.full_like(properties, np.nan))
    for before, night in ((alike, current), (reference, unknown)):
        np.testing.assert_allclose(moved(learn(reference, 0), before, night, 0)[0], same)


def test_how_far_an_image_moved_is_in_standard_deviations_of_the_reference() -> None:
    reference = some(2000, 1)
    of_current, of_reference = moved(learn(reference, 0), reference, some(1000, 2, shift=3.0), 0)
    assert of_reference.mean() == pytest.approx(0, abs=0.1)
    assert of_reference.std() == pytest.approx(1, abs=0.05)
    assert of_current.mean() == pytest.approx(3, abs=0.2)


def test_no_image_votes_for_the_direction_that_it_is_measured_along() -> None:
    reference, current = some(640, 1, depth=64), some(40, 2, depth=64)
    assert effect(learn(reference, 0), reference, current, 0) < 0.6


def test_images_of_one_group_moved_nowhere() -> None:
    """There is no other half to learn a direction from, and that is no crash."""
    reference = some(100, 1)
    one = some(50, 2, shift=9.0).grouped(np.zeros(50, np.int64))
    of_current, _ = moved(learn(reference, 0), reference, one, 0)
    assert np.isfinite(of_current).all()


# --- hardly any data ---


def plain(embeddings: Matrix, outputs: Matrix) -> Scores:
    base = scored(np.zeros((len(outputs), 2)))
    return changed(
        base,
        embeddings=embeddings,
        outputs=outputs,
        confidence=outputs.max(axis=1),
        energy=np.zeros(len(outputs)),
        labels=outputs.argmax(axis=1).astype(np.int64),
    )


def test_constant_columns_and_one_class_are_no_drift() -> None:
    def same(n: int) -> Scores:
        return plain(np.full((n, 4), 0.25), np.tile([0.25, 0.75], (n, 1)))

    # 64 splits without rounding: each value ties with all of its null, and a tie is no evidence.
    found = held(same(320), same(64))
    assert {each.p_value for each in found.statistics} == {1}
    assert found.effect == 0.5


def test_one_image_of_a_class_that_the_reference_never_showed_is_no_drift() -> None:
    """Scaled by next to no spread, one shoe that looks like a T-shirt alarmed on 8 of 100 quiet nights."""
    rng = np.random.default_rng(3)

    def softmax(n: int) -> Matrix:
        rare, shoe = rng.uniform(0, 0.01, n), rng.uniform(0.1, 0.9, n)
        return np.column_stack([rare, shoe * (1 - rare), (1 - shoe) * (1 - rare)])

    reference = plain(rng.standard_normal((300, 4)), softmax(300))
    night = plain(rng.standard_normal((50, 4)), np.concatenate([softmax(49), [[0.9, 0.05, 0.05]]]))
    assert held(reference, night).p_value > 0.05
    many = plain(night.embeddings, np.concatenate([softmax(40), np.tile([0.9, 0.05, 0.05], (10, 1))]))
    assert held(reference, many).p_value == 1 / 1001, "ten of fifty are"


def test_one_constant_column_among_others_hides_no_shift() -> None:
    reference, current = some(1000, 1), some(200, 2, shift=1.0)
    wider = [changed(s, embeddings=np.column_stack([np.full(len(s), 7.0), s.embeddings])) for s in (reference, current)]
    found = held(*wider)
    assert found.p_value == 1 / 1001
    assert found.effect == pytest.approx(held(reference, current).effect, abs=0.01)


def test_a_learner_of_one_class_is_measured_by_its_embeddings() -> None:
    reference, current = (plain(s.embeddings, np.ones((len(s), 1))) for s in (some(1000, 1), some(200, 2, 1.0)))
    assert held(reference, current).p_value == 1 / 1001


def without_embeddings(scores: Scores) -> Scores:
    return changed(scores, embeddings=np.zeros((len(scores), 0)))


def test_without_embeddings_the_softmax_decides_alone() -> None:
    found = held(without_embeddings(some(1000, 1)), without_embeddings(some(200, 2, shift=2.0)))
    assert found.statistic("mmd") is None
    assert found.p_value == 1 / 1001


def test_without_embeddings_the_effect_is_read_off_the_outputs() -> None:
    # The verdict would say "but by little" of a night whose effect nobody measured.
    assert held(without_embeddings(some(1000, 1)), without_embeddings(some(200, 2, shift=2.0))).effect > 0.6


def test_energy_that_is_not_there_is_left_out() -> None:
    reference, current = some(400, 1), some(80, 2)
    nothing = [changed(s, energy=np.full(len(s), np.nan)) for s in (reference, current)]
    found = held(*nothing)
    assert [each.name for each in found.statistics] == ["combined", "mmd", "bbsd", "confidence", "labels"]
    assert found.p_value == held(reference, current).p_value, "energy never decides"
    # One image without an energy in a night is a night without energies, and no crash.
    of_one = changed(current, energy=np.where(np.arange(80) == 3, np.nan, current.energy))
    assert [each.name for each in held(reference, of_one).statistics] == [each.name for each in found.statistics]


def test_a_regression_has_values_and_no_labels() -> None:
    def regressed(s: Scores) -> Scores:
        nothing = np.full(len(s), np.nan)
        return changed(
            s, outputs=s.embeddings[:, :1] * 3, confidence=nothing, energy=nothing, labels=np.zeros(0, np.int64)
        )

    found = held(regressed(some(1000, 1)), regressed(some(200, 2, 1.0)))
    assert [each.name for each in found.statistics] == ["combined", "mmd", "bbsd"]
    assert found.p_value == 1 / 1001


def test_a_class_that_the_reference_never_hints_at_does_not_drown_the_others() -> None:
    rng = np.random.default_rng(0)

    def sure(n: int) -> Scores:
        outputs = rng.dirichlet([3, 2, 0.001], n)
        outputs[:, 2] = 1e-9 * rng.random(n)
        return plain(np.zeros((n, 0)), outputs)

    reference = sure(1000)
    scale = learn(reference, 0).scale
    assert scale.max() <= 10 * scale.min() * (1 + 1e-9)
    assert held(reference, sure(200)).p_value > 0.01


@pytest.mark.parametrize(("m", "n"), [(2, 2), (2, 50), (3, 2), (5, 1000)])
def test_the_fewest_images_are_measured_without_a_crash(m: int, n: int) -> None:
    found = held(some(m, 1), some(n, 2))
    assert 0 < found.p_value <= 1
    assert 0.5 <= found.effect <= 1


def test_fewer_than_two_images_are_an_error_that_counts_them() -> None:
    lens = learn(some(100, 1), 0)
    with pytest.raises(ValueError, match="at least 2 reference images, found 1"):
        Yardstick(some(1, 1), lens, 0)
    with pytest.raises(ValueError, match="at least 2 images, found 1"):
        decide(Yardstick(some(100, 1), lens, 0), some(1, 2), alpha=0.01, seed=0)
