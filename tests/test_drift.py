"""Statistics against scipy, scikit-learn and plain loops, against their own null, and on data that is hardly any."""

import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import binom, ks_2samp, kstest, norm
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from drivetrain.drift import (
    MAX_CURRENT,
    MAX_REFERENCE,
    Drift,
    FourierFeatures,
    Matrix,
    Scores,
    Whitened,
    area_under_roc,
    effect,
    ks_distance,
    largest_ks,
    measure,
    mmd,
    moved,
    share_distance,
    split_matrix,
)
from drivetrain.drift import tested_size as images_in_the_test

CLASSES = 3
DEPTH = 6
HEAD = np.random.default_rng(1).standard_normal((DEPTH, CLASSES))

seeded = settings(derandomize=True, database=None, deadline=None)
small_numbers = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12)


def scored(embeddings: Matrix) -> Scores:
    """What a linear head with a softmax would say of some embeddings."""
    logits = embeddings @ HEAD
    outputs = softmax(logits, axis=1)
    return Scores(embeddings, outputs, outputs.max(axis=1), logsumexp(logits, axis=1), outputs.argmax(axis=1))


def some(number: int, seed: int, shift: float = 0.0) -> Scores:
    """Images of one world, or of one that has moved along its first axis."""
    embeddings = np.random.default_rng([seed, 77]).standard_normal((number, DEPTH))
    embeddings[:, 0] += shift
    return scored(embeddings)


def held(reference: Scores, current: Scores, seed: int = 0, alpha: float = 0.01) -> Drift:
    return measure(reference, current, classes=CLASSES, alpha=alpha, seed=seed)


def splits_of(inside: npt.NDArray[np.float32]) -> list[npt.NDArray[np.bool_]]:
    return [row > 0 for row in inside]


def with_ties(values: Matrix) -> Matrix:
    return np.round(values)


# --- known numbers ---


@seeded
@given(small_numbers, small_numbers)
def test_ks_distance_is_scipys_ties_or_not(left: list[float], right: list[float]) -> None:
    expected = ks_2samp(left, right, method="asymp").statistic
    assert ks_distance(np.sort(left), np.sort(right)) == pytest.approx(expected, abs=1e-12)


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


def test_fourier_features_approximate_the_gaussian_kernel() -> None:
    reference = np.random.default_rng(3).standard_normal((120, 5)) * [1, 2, 5, 0.1, 30] + 4
    standard = (reference - reference.mean(axis=0)) / reference.std(axis=0)
    apart = np.linalg.norm(standard[:, None] - standard[None], axis=2)
    width = np.median(apart[np.triu_indices(len(apart), 1)])
    kernel = np.exp(-(apart**2) / (2 * width**2))
    wrong = [(found := FourierFeatures(reference, seed)(reference)) @ found.T - kernel for seed in range(20)]
    # A product of features has a variance below 1, so that the mean of 1024 is off by about 1 / 32, on no side.
    assert max(np.abs(each).max() for each in wrong) < 0.17
    assert np.abs(np.mean(wrong, axis=0)).max() < 0.04
    assert abs(np.mean(wrong)) < 0.01


def test_mmd_is_near_the_exact_one_of_the_gaussian_kernel() -> None:
    reference, current = some(200, 1).embeddings, some(100, 2, shift=2.0).embeddings
    features = FourierFeatures(reference, seed=0)
    value, _ = mmd(features(reference), features(current), split_matrix(200, 100, 2, np.random.default_rng(0)))
    mean, spread = reference.mean(axis=0), reference.std(axis=0)
    x, y = (reference - mean) / spread, (current - mean) / spread
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(len(x), 1)]
    gamma = 1 / (2 * np.median(apart) ** 2)
    exact = rbf_kernel(x, x, gamma).mean() + rbf_kernel(y, y, gamma).mean() - 2 * rbf_kernel(x, y, gamma).mean()
    assert value**2 == pytest.approx(exact, rel=0.2)


def test_mmd_and_its_null_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    reference, current = (rng.standard_normal((n, 7)).astype(np.float32) for n in (23, 5))
    inside = split_matrix(23, 5, 40, rng)
    value, null = mmd(reference, current, inside)
    assert value == pytest.approx(np.linalg.norm(current.mean(axis=0) - reference.mean(axis=0)), rel=1e-5)
    looped = [np.linalg.norm(reference[s].mean(axis=0) - reference[~s].mean(axis=0)) for s in splits_of(inside)]
    np.testing.assert_allclose(null, looped, rtol=1e-4)


@pytest.mark.parametrize("change", [np.asarray, with_ties], ids=["distinct", "ties"])
def test_largest_ks_and_its_null_are_those_of_a_plain_loop(change: Callable[[Matrix], Matrix]) -> None:
    rng = np.random.default_rng(6)
    reference, current = (change(rng.standard_normal((n, 3))) for n in (29, 6))
    inside = split_matrix(29, 6, 40, rng)

    def largest(one: Matrix, other: Matrix) -> float:
        return max(float(ks_2samp(a, b, method="asymp").statistic) for a, b in zip(one.T, other.T, strict=True))

    value, null = largest_ks(reference, current, inside)
    assert value == pytest.approx(largest(reference, current), abs=1e-9)
    np.testing.assert_allclose(null, [largest(reference[s], reference[~s]) for s in splits_of(inside)], atol=1e-5)


def test_share_distance_and_its_null_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(7)
    reference, current = rng.integers(0, 3, 31), rng.integers(1, 4, 6)
    inside = split_matrix(31, 6, 40, rng)

    def variation(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
        return sum(abs(float((one == c).mean()) - float((other == c).mean())) for c in range(5)) / 2

    value, null = share_distance(reference, current, inside, classes=5)
    assert value == pytest.approx(variation(reference, current), abs=1e-9)
    np.testing.assert_allclose(null, [variation(reference[s], reference[~s]) for s in splits_of(inside)], atol=1e-5)


def test_each_split_is_a_random_choice_of_n_images() -> None:
    inside = split_matrix(20, 5, 2000, np.random.default_rng(0))
    assert ((inside > 0).sum(axis=1) == 5).all()
    np.testing.assert_allclose(inside.sum(axis=1), 1, rtol=1e-6)
    # Each image is chosen with probability 1/4: 500 of 2000 splits, six standard deviations either way.
    assert (np.abs((inside > 0).sum(axis=0) - 500) < 6 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_a_measurement_is_put_together_from_the_statistics_of_all_images() -> None:
    reference, current = some(600, 1), some(100, 2, shift=0.3)
    drift = held(reference, current)
    assert [each.name for each in drift.statistics] == ["combined", "mmd", "bbsd", "confidence", "energy", "labels"]
    assert drift.n_tested == 100
    columns = zip(reference.outputs.T, current.outputs.T, strict=True)
    value_of = {each.name: each.value for each in drift.statistics}
    assert value_of["bbsd"] == pytest.approx(max(ks_2samp(a, b).statistic for a, b in columns), abs=1e-9)
    for name in ("confidence", "energy"):
        expected = ks_2samp(getattr(reference, name), getattr(current, name)).statistic
        assert value_of[name] == pytest.approx(expected, abs=1e-9)
    shares = [np.bincount(each.labels, minlength=CLASSES) / len(each) for each in (reference, current)]
    assert value_of["labels"] == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2, abs=1e-9)


def test_p_value_and_threshold_are_read_off_the_null() -> None:
    drift = held(some(600, 1), some(100, 2, shift=0.2), alpha=0.05)
    for each in drift.statistics:
        null = np.array(each.null)
        assert len(null) == drift.splits == 1000
        assert each.p_value == (1 + (null >= each.value).sum()) / 1001
        assert (null > each.threshold).mean() == pytest.approx(0.05, abs=0.002)
        assert each.null_mean == pytest.approx(null.mean())
    assert drift.p_value == drift.statistics[0].p_value


def test_a_smaller_alpha_gets_more_splits() -> None:
    assert held(some(100, 1), some(20, 2), alpha=0.004).splits == 2500


def test_the_combined_statistic_is_the_larger_of_the_two_standardised_ones() -> None:
    drift = held(some(600, 1), some(100, 2, shift=0.4))
    found = {each.name: each for each in drift.statistics}
    nulls = {name: np.array(found[name].null) for name in ("mmd", "bbsd")}
    value = max((found[name].value - null.mean()) / null.std() for name, null in nulls.items())
    null = np.maximum(*((null - null.mean()) / null.std() for null in nulls.values()))
    assert found["combined"].value == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(found["combined"].null, null, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_the_effect_of_a_mean_shift_is_the_normal_distributions(shift: float) -> None:
    assert effect(some(4000, 1), some(2000, 2, shift), 0) == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.02)


def test_the_effect_without_a_shift_is_near_chance_and_never_below() -> None:
    found = [effect(some(1000, seed), some(300, seed + 100), 0) for seed in range(10)]
    assert min(found) >= 0.5
    assert max(found) < 0.55


def test_label_shares_are_those_of_all_images_not_of_the_tested_ones() -> None:
    reference, current = some(100, 1), some(300, 2, shift=1.0)
    drift = held(reference, current)
    assert drift.n_tested == 20
    expected = [(float((reference.labels == c).mean()), float((current.labels == c).mean())) for c in range(CLASSES)]
    np.testing.assert_allclose(drift.label_shares, expected)
    np.testing.assert_allclose(np.sum(drift.label_shares, axis=0), 1)


def test_whitened_reference_has_unit_variance_along_each_axis() -> None:
    reference = some(500, 1).embeddings @ np.random.default_rng(0).standard_normal((DEPTH, DEPTH)) + 9
    white = Whitened(reference)(reference)
    np.testing.assert_allclose(np.cov(white.T), np.eye(DEPTH), atol=1e-8)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-8)


# --- its own null, and power ---


def test_nights_without_drift_have_uniform_p_values_and_few_false_alarms() -> None:
    nights = [held(some(300, seed), some(60, 1000 + seed), seed) for seed in range(60)]
    for name in ("combined", "mmd", "bbsd", "confidence", "energy"):
        p_values = np.array([night.statistic(name).p_value for night in nights])  # type: ignore[union-attr]
        alarms = int((p_values <= 0.05).sum())
        assert alarms <= binom.ppf(0.999, 60, 0.05), name
        assert kstest(p_values, "uniform").pvalue > 0.005, name
        assert abs(p_values.mean() - 0.5) < 3 * np.sqrt(1 / 12 / 60), name


def test_a_mean_shift_gets_the_smallest_p_value_there_is() -> None:
    for seed in range(5):
        drift = held(some(500, seed), some(100, 50 + seed, shift=1.0), seed)
        assert drift.p_value == 1 / (1 + drift.splits)
        assert drift.effect > 0.7


def test_changed_class_shares_are_seen_by_the_labels() -> None:
    reference, pool = some(500, 1), some(2000, 2)
    only_one_class = pool.take(np.flatnonzero(pool.labels == 0)[:100])
    found = held(reference, only_one_class).statistic("labels")
    assert found is not None
    assert found.p_value == 1 / 1001
    assert found.value == pytest.approx((reference.labels != 0).mean(), abs=1e-6)


# --- seeds and sizes ---


def test_the_same_seed_measures_the_same_and_another_one_draws_others() -> None:
    reference, current = some(200, 1), some(100, 2, shift=0.2)
    once, again, other = (held(reference, current, seed) for seed in (4, 4, 5))
    assert once == again
    for name in ("mmd", "bbsd"):
        assert once.statistic(name).null != other.statistic(name).null  # type: ignore[union-attr]
    for one, two in zip(moved(reference, current, 4), moved(reference, current, 4), strict=True):
        np.testing.assert_array_equal(one, two)


@seeded
@given(st.integers(2, 10**7), st.integers(2, 10**7))
def test_the_tested_size_is_bounded_by_the_night_a_fifth_of_the_reference_and_a_cap(m: int, n: int) -> None:
    size = images_in_the_test(m, n)
    assert size == max(1, min(n, m // 5, MAX_REFERENCE // 5, MAX_CURRENT))


@pytest.mark.parametrize(("m", "n", "size"), [(5000, 10**6, 1000), (10**6, 10**6, 1000), (250, 999, 50), (4, 9, 1)])
def test_the_tested_size_of_known_cases(m: int, n: int, size: int) -> None:
    assert images_in_the_test(m, n) == size


def test_a_drift_says_how_many_images_it_looked_at() -> None:
    drift = held(some(100, 1), some(70, 2), seed=9, alpha=0.02)
    assert (drift.n_reference, drift.n_current, drift.n_tested) == (100, 70, 20)
    assert (drift.seed, drift.alpha, len(drift.statistics[0].null)) == (9, 0.02, 1000)


def test_the_record_is_json_with_the_null_in_quantiles() -> None:
    drift = held(some(100, 1), some(20, 2))
    record = json.loads(json.dumps(drift.record()))
    assert record["p_value"] == drift.p_value
    for each, statistic in zip(record["statistics"], drift.statistics, strict=True):
        assert each["name"] == statistic.name
        assert each["null"][0] == min(statistic.null)
        assert each["null"][20] == pytest.approx(np.median(statistic.null))
        assert each["null"][-1] == max(statistic.null)


# --- which images moved ---


def test_planted_images_come_first() -> None:
    reference, current = some(1000, 1), some(300, 2)
    planted = np.random.default_rng(0).permutation(300)[:60]
    embeddings = current.embeddings.copy()
    embeddings[planted, 2] += 15.0
    of_current, of_reference = moved(reference, scored(embeddings), 0)
    assert set(np.argsort(-of_current)[:60]) == set(planted)
    assert of_current.shape == (300,)
    assert of_reference.shape == (1000,)


def test_how_far_an_image_moved_is_in_standard_deviations_of_the_reference() -> None:
    of_current, of_reference = moved(some(2000, 1), some(1000, 2, shift=3.0), 0)
    assert of_reference.mean() == pytest.approx(0, abs=0.1)
    assert of_reference.std() == pytest.approx(1, abs=0.05)
    assert of_current.mean() == pytest.approx(3, abs=0.2)


def test_no_image_votes_for_the_direction_that_it_is_measured_along() -> None:
    # With more axes than images a direction that an image helped to find would set the image apart without any shift.
    rng = np.random.default_rng(0)
    reference, current = (rng.standard_normal((n, 64)) for n in (640, 40))
    no_outputs = [np.zeros((n, 1)) for n in (640, 40)]
    sides = [
        Scores(each, out, out[:, 0], out[:, 0], np.zeros(0, np.int64))
        for each, out in zip((reference, current), no_outputs, strict=True)
    ]
    assert effect(sides[0], sides[1], 0) < 0.6


# --- hardly any data ---


def scores_with(embeddings: Matrix, outputs: Matrix, energy: float = 0.0) -> Scores:
    n = len(outputs)
    return Scores(embeddings, outputs, outputs.max(axis=1), np.full(n, energy), outputs.argmax(axis=1))


def test_constant_columns_and_one_class_are_no_drift() -> None:
    def same(n: int) -> Scores:
        return scores_with(np.full((n, 4), 0.3), np.tile([0.2, 0.8], (n, 1)))

    # 64 splits without rounding: each value ties with all of its null, and a tie is no evidence.
    drift = held(same(320), same(64))
    assert {each.p_value for each in drift.statistics} == {1}
    assert drift.effect == 0.5
    assert drift.label_shares[1] == (1, 1)


def test_one_constant_column_among_others_hides_no_shift() -> None:
    reference, current = some(500, 1), some(100, 2, shift=1.0)
    with_constant = [
        Scores(np.column_stack([np.full(len(s), 7.0), s.embeddings]), s.outputs, s.confidence, s.energy, s.labels)
        for s in (reference, current)
    ]
    drift = held(*with_constant)
    assert drift.p_value == 1 / 1001
    assert drift.effect == pytest.approx(held(reference, current).effect, abs=1e-3)


def test_a_learner_of_one_class_is_measured_by_its_embeddings() -> None:
    reference, current = (scores_with(s.embeddings, np.ones((len(s), 1))) for s in (some(500, 1), some(100, 2, 1.0)))
    drift = measure(reference, current, classes=1, alpha=0.01, seed=0)
    assert drift.p_value == 1 / 1001
    assert drift.label_shares == ((1, 1),)


def without_embeddings(scores: Scores) -> Scores:
    return Scores(np.zeros((len(scores), 0)), scores.outputs, scores.confidence, scores.energy, scores.labels)


def test_without_embeddings_the_softmax_decides_alone() -> None:
    drift = held(without_embeddings(some(500, 1)), without_embeddings(some(100, 2, shift=2.0)))
    assert drift.statistic("mmd") is None
    assert drift.p_value == 1 / 1001


def test_without_embeddings_the_effect_is_read_off_the_outputs() -> None:
    # The verdict would say "but by little" of a night whose effect nobody measured.
    assert held(without_embeddings(some(500, 1)), without_embeddings(some(100, 2, shift=2.0))).effect > 0.6


def test_energy_that_is_not_there_is_left_out() -> None:
    reference, current = some(200, 1), some(40, 2)
    nothing = [
        Scores(s.embeddings, s.outputs, s.confidence, np.full(len(s), np.nan), s.labels) for s in (reference, current)
    ]
    drift = held(*nothing)
    assert [each.name for each in drift.statistics] == ["combined", "mmd", "bbsd", "confidence", "labels"]
    assert drift.p_value == held(reference, current).p_value, "energy never decides"


def test_a_regression_has_values_and_no_labels() -> None:
    def regressed(scores: Scores) -> Scores:
        nothing = np.full(len(scores), np.nan)
        return Scores(scores.embeddings, scores.embeddings[:, :1] * 3, nothing, nothing, np.zeros(0, np.int64))

    drift = measure(regressed(some(500, 1)), regressed(some(100, 2, 1.0)), classes=0, alpha=0.01, seed=0)
    assert [each.name for each in drift.statistics] == ["combined", "mmd", "bbsd"]
    assert drift.label_shares == ()
    assert drift.p_value == 1 / 1001


def test_more_columns_than_enter_the_test_keep_those_that_vary_most() -> None:
    rng = np.random.default_rng(0)
    outputs = [rng.random((n, 150)) * 1e-6 for n in (500, 100)]
    outputs[0][:, 149], outputs[1][:, 149] = rng.random(500), rng.random(100) + 0.5
    sides = [scores_with(np.zeros((len(each), 0)), each) for each in outputs]
    found = measure(*sides, classes=150, alpha=0.01, seed=0).statistic("bbsd")
    assert found is not None
    assert found.value == pytest.approx(ks_2samp(outputs[0][:, 149], outputs[1][:, 149]).statistic, abs=1e-9)


@pytest.mark.parametrize(("m", "n"), [(2, 2), (2, 50), (3, 2), (5, 1000)])
def test_the_fewest_images_are_measured_without_a_crash(m: int, n: int) -> None:
    drift = held(some(m, 1), some(n, 2))
    assert 0 < drift.p_value <= 1
    assert 0.5 <= drift.effect <= 1


@pytest.mark.parametrize(("m", "n"), [(1, 100), (100, 1), (0, 0)])
def test_fewer_than_two_images_are_an_error_that_counts_them(m: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 images on both sides, found {m} and {n}"):
        held(some(m, 1), some(n, 2))
