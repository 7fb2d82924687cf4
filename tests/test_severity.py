"""Accuracy without labels: on classifiers whose accuracy is known, and nothing where nothing can be said."""

import numpy as np
import pytest
from scipy.special import softmax
from worlds import changed, frames, in_groups, some

from drivetrain.findings import Accuracy
from drivetrain.lens import Matrix, Scores, learn
from drivetrain.severity import OfClass, by_class, estimate, novel_share

CLASSES = 5


def classified(number: int, seed: int, noise: float = 1.0, signal: float = 1.0) -> tuple[Scores, float]:
    """Images of a classifier that is as sure as it should be of usual ones, and its true accuracy.

    It is worse the more noise is on the images, and the fainter what it looks for is on them.
    """
    rng = np.random.default_rng([seed, 11])
    truth = rng.integers(0, CLASSES, number)
    seen: Matrix = 2.6 * signal * np.eye(CLASSES)[truth] + rng.standard_normal((number, CLASSES)) * noise
    outputs = softmax(2.6 * seen, axis=1)
    scores = changed(
        some(number, seed),
        embeddings=np.column_stack([seen, rng.standard_normal((number, 11))]),
        outputs=outputs,
        confidence=outputs.max(axis=1),
        labels=outputs.argmax(axis=1).astype(np.int64),
        truth=truth.astype(np.int64),
    )
    return scores, float((scores.labels == truth).mean())


def unlabelled(scores: Scores) -> Scores:
    return changed(scores, truth=np.full(len(scores), -1))


def estimated(reference: Scores, night: Scores, effect: float = 0.6) -> Accuracy:
    found = estimate(learn(reference, 0), reference, unlabelled(night), effect, 0)
    assert found is not None
    return found


@pytest.mark.parametrize(("noise", "signal", "off"), [(1, 1, 0.03), (1.1, 1, 0.03), (1.2, 1, 0.05), (1, 0.85, 0.03)])
def test_the_estimate_is_near_the_true_accuracy(noise: float, signal: float, off: float) -> None:
    """More noise makes this classifier surer than it should be, which no estimate without labels can know."""
    reference, before = classified(2000, 1)
    for seed in range(2):
        night, true = classified(1000, 50 + seed, noise, signal)
        found = estimated(reference, night)
        assert found.reference == pytest.approx(before)
        assert found.estimate is not None and found.low is not None and found.high is not None
        assert found.low <= found.estimate <= found.high
        assert found.estimate == pytest.approx(true, abs=off)


def test_the_range_holds_the_true_accuracy_of_usual_nights() -> None:
    reference, _ = classified(1000, 1)
    held = 0
    for seed in range(12):
        night, true = classified(400, 150 + seed)
        found = estimated(reference, night)
        assert found.low is not None and found.high is not None
        held += found.low <= true <= found.high
    # 95 of 100; the night's own accuracy varies beside the estimate, so a few less are seen.
    assert held >= 9


def test_more_noise_is_a_lower_estimate() -> None:
    reference, _ = classified(2000, 1)
    found = [estimated(reference, classified(1000, 60, noise)[0]).estimate for noise in (1.0, 1.2, 1.4)]
    assert found == sorted(found, key=lambda each: -(each or 0))
    assert (found[0] or 0) - (found[-1] or 0) > 0.03


def test_a_quiet_night_is_as_good_as_the_reference() -> None:
    reference, before = classified(2000, 1)
    assert estimated(reference, classified(2000, 70)[0]).estimate == pytest.approx(before, abs=0.03)


def test_few_images_make_a_wide_range() -> None:
    reference, _ = classified(2000, 1)
    few, many = (estimated(reference, classified(n, 80)[0]) for n in (60, 3000))
    assert few.high is not None and few.low is not None and many.high is not None and many.low is not None
    assert few.high - few.low > 2 * (many.high - many.low)


def test_copies_make_the_range_no_narrower() -> None:
    """Five frames of each of 60 sources say what 60 images say."""
    reference = changed(frames(500, 1, 1), truth=frames(500, 1, 1).labels)
    lens = learn(reference, 0)
    night = frames(60, 5, 2)
    widths = []
    for each in (night, in_groups(lens, night)):
        found = estimate(lens, reference, each, 0.5, 0)
        assert found and found.high is not None and found.low is not None
        widths.append(found.high - found.low)
    assert widths[1] > 1.3 * widths[0]


def test_novel_images_say_nothing_and_why() -> None:
    reference, before = classified(1000, 1)
    night, _ = classified(300, 2)
    strange = changed(night, embeddings=night.embeddings + 30)
    found = estimated(reference, strange)
    assert (found.estimate, found.low, found.high) == (None, None, None)
    assert found.novel == 1 and "100% of the images look like nothing in the reference" in found.why
    assert found.reference == pytest.approx(before)


def test_images_that_are_nearly_always_told_apart_say_nothing() -> None:
    reference, _ = classified(1000, 1)
    night, _ = classified(300, 2)
    assert estimated(reference, night, effect=0.84).estimate is not None
    found = estimated(reference, night, effect=0.93)
    assert found.estimate is None and "the new one is told in 93%" in found.why


def test_of_a_quiet_night_about_one_in_a_hundred_images_is_novel() -> None:
    reference = some(2000, 1)
    assert novel_share(learn(reference, 0), reference, some(2000, 2)) == pytest.approx(0.01, abs=0.01)


def test_fewer_than_100_labelled_images_say_nothing_at_all() -> None:
    reference, _ = classified(1000, 1)
    night, _ = classified(300, 2)
    lens = learn(reference, 0)
    for known, there in ((99, False), (100, True)):
        some_known = changed(reference, truth=np.where(np.arange(1000) < known, reference.truth, -1))
        assert (estimate(lens, some_known, night, 0.5, 0) is not None) == there, known


def test_no_images_and_no_confidence_say_nothing() -> None:
    reference, _ = classified(1000, 1)
    lens = learn(reference, 0)
    assert estimate(lens, reference, reference.take(np.zeros(0, np.int64)), 0.5, 0) is None
    nothing = changed(reference, confidence=np.full(1000, np.nan))
    assert estimate(lens, nothing, nothing, 0.5, 0) is None


def test_the_same_seed_gives_the_same_range() -> None:
    reference, _ = classified(1000, 1)
    night, _ = classified(300, 2)
    assert estimated(reference, night) == estimated(reference, night)


def test_each_predicted_class_has_its_own_estimate() -> None:
    reference, _ = classified(3000, 1)
    night, _ = classified(3000, 2)
    # Of class 0 the night holds what the learner is unsure of alone.
    unsure = (night.labels != 0) | (night.confidence < 0.9)
    night = night.take(np.flatnonzero(unsure))
    found = by_class(reference, night, CLASSES, 0)
    for label in range(CLASSES):
        ours, theirs = night.labels == label, reference.labels == label
        true, each = float((night.truth[ours] == label).mean()), found[label]
        assert each.reference == pytest.approx((reference.truth[theirs] == label).mean())
        assert each.estimate == pytest.approx(true, abs=0.12)
        assert each.low is not None and each.high is not None and each.estimate is not None
        assert each.low <= each.estimate <= each.high and each.high - each.low < 0.3
    assert (found[0].estimate or 0) < (found[1].estimate or 0) - 0.1


def test_a_class_of_too_few_images_has_none() -> None:
    reference, _ = classified(1000, 1)
    night, _ = classified(500, 2)
    few_known = changed(reference, truth=np.where(reference.labels == 2, -1, reference.truth))
    assert by_class(few_known, night, CLASSES, 0)[2] == OfClass()
    few_now = night.take(np.flatnonzero((night.labels != 3) | (np.cumsum(night.labels == 3) <= 39)))
    found = by_class(reference, few_now, CLASSES, 0)[3]
    assert found.estimate is None and found.low is None and found.reference is not None
