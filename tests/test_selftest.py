"""The self-test sees what is there to be seen, nothing where nothing was planted, and is quiet on quiet nights."""

import numpy as np
import pytest
from scipy.stats import binom
from worlds import changed, frames, in_groups, scored, some

from drivetrain.findings import SelfTest
from drivetrain.lens import Scores, learn
from drivetrain.selftest import MORE_OF_A_CLASS, QUIET_NIGHTS, SHARES, SIZES, self_test

REFERENCE = some(1500, 1)


def run(reference: Scores = REFERENCE, alpha: float = 0.05, **planted: Scores) -> SelfTest:
    found = self_test(reference, learn(reference, 0), planted, alpha=alpha, seed=0)
    assert found is not None
    return found


def smallest(found: SelfTest, shift: str) -> dict[int, float | None]:
    return {each.n: each.share for each in found.seen if each.shift == shift}


@pytest.fixture(scope="module")
def found() -> SelfTest:
    weak = scored(some(300, 5).embeddings + 0.4)
    return run(strong=some(300, 4, shift=8.0), weak=weak, nothing=some(300, 6))


def test_a_strong_shift_is_seen_at_a_small_share(found: SelfTest) -> None:
    assert all(share is not None and share <= 0.1 for share in smallest(found, "strong").values())


def test_a_weak_shift_needs_a_larger_share(found: SelfTest) -> None:
    (strong, weak) = (next(iter(smallest(found, name).values())) for name in ("strong", "weak"))
    assert strong is not None and weak is not None
    assert strong < weak <= 1


def test_images_to_which_nothing_was_done_are_not_seen(found: SelfTest) -> None:
    assert set(smallest(found, "nothing").values()) == {None}


def test_quiet_nights_alarm_about_as_often_as_was_asked_for(found: SelfTest) -> None:
    assert found.trials == QUIET_NIGHTS
    # Nights of one reference share its chance, so that they vary more than single ones would.
    assert found.false_alarms <= binom.ppf(0.999, QUIET_NIGHTS, 0.1)
    assert found.alpha == 0.05


def test_it_says_the_shares_that_it_tried_for_each_size_and_shift(found: SelfTest) -> None:
    assert {each.shift for each in found.seen} == {"strong", "weak", "nothing", MORE_OF_A_CLASS}
    assert {each.n for each in found.seen} <= set(SIZES)
    assert {each.share for each in found.seen} <= {*SHARES, None}
    # Of 1,500 images a night's fifth of the yardstick is 210: 200 can be tried, 1,000 can't, and more are cut to that.
    assert {each.n for each in found.seen} == {200, 5000}


def test_one_class_alone_is_seen(found: SelfTest) -> None:
    assert all(share is not None for share in smallest(found, MORE_OF_A_CLASS).values())


def test_no_image_is_held_against_itself() -> None:
    """Were nights drawn from the yardstick, no quiet night would ever alarm, whatever alpha."""
    assert run(alpha=0.5).false_alarms > QUIET_NIGHTS * 0.1


def test_near_duplicates_do_not_make_it_nervous() -> None:
    reference = frames(300, 5, 1)
    lens = learn(reference, 0)
    grouped = self_test(in_groups(lens, reference), lens, {}, alpha=0.01, seed=0)
    assert grouped and grouped.false_alarms <= binom.ppf(0.999, QUIET_NIGHTS, 0.03)


def test_a_regression_has_no_class_to_have_more_of() -> None:
    nothing = np.full(300, np.nan)
    reference = changed(
        some(300, 1), outputs=some(300, 1).embeddings[:, :1], confidence=nothing, energy=nothing,
        labels=np.zeros(0, np.int64),
    )  # fmt: skip
    assert run(reference).seen == ()


def test_a_reference_of_fewer_than_100_images_is_not_tested() -> None:
    few = REFERENCE.take(np.arange(99))
    assert self_test(few, learn(REFERENCE, 0), {}, alpha=0.05, seed=0) is None


def test_a_seed_gives_the_same_again() -> None:
    few = REFERENCE.take(np.arange(300))
    assert run(few) == run(few)
