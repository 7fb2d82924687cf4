"""The rule of behaviour tests: known numbers, how often it cries wolf, and what it can see."""

import numpy as np
import pytest
from scipy.stats import binomtest

from drivetrain.perturbations import PERTURBATIONS
from drivetrain.stability import ALPHA, FEWEST_IMAGES, holm, judged, near, paired_interval

NAMES = list(PERTURBATIONS)


def marks(n: int, turned: list[int]) -> np.ndarray:
    found = np.ones(n, bool)
    found[turned] = False
    return found


def all_stable(n: int) -> dict[str, np.ndarray]:
    return {name: np.ones(n, bool) for name in NAMES}


def one_turns(n: int, turned: int) -> dict[str, np.ndarray]:
    return all_stable(n) | {NAMES[2]: marks(n, list(range(turned)))}


def test_holm_gives_the_numbers_of_its_paper() -> None:
    """Holm (1979), as R's p.adjust gives them."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0


def test_the_p_value_is_that_of_the_images_on_which_the_two_differ() -> None:
    n = 100
    mine = one_turns(n, 12)
    beside = one_turns(n, 0) | {NAMES[2]: marks(n, [10, 11, 20, 21, 22])}
    found = {each.perturbation: each for each in judged(mine, beside)}[NAMES[2]]
    # Images 0 to 9 are lost, 20 to 22 won, on 10 and 11 both turn.
    assert found.p_value == binomtest(10, 13, alternative="greater").pvalue
    assert found.adjusted_p == pytest.approx(found.p_value * len(NAMES))
    assert (found.stable, found.champion_stable, found.difference) == (88, 95, -0.07)


def test_only_the_change_that_breaks_it_fails() -> None:
    found = judged(one_turns(200, 12), all_stable(200))
    assert [each.perturbation for each in found if not each.passed] == [NAMES[2]]


def test_a_learner_that_is_more_stable_than_the_champion_passes() -> None:
    assert all(each.passed for each in judged(all_stable(200), one_turns(200, 60)))


@pytest.mark.parametrize(
    ("n", "turned", "passed"), [(2000, 39, True), (2000, 40, False), (200, 7, True), (200, 8, False)]
)
def test_a_difference_must_be_sure_and_two_points(n: int, turned: int, passed: bool) -> None:
    """39 of 2,000 is sure, and less than two points; 7 of 200 is more, and not sure."""
    assert all(each.passed for each in judged(one_turns(n, turned), all_stable(n))) == passed


@pytest.mark.parametrize("champion", [None, all_stable(FEWEST_IMAGES - 1)])
def test_too_few_images_pass_nothing(champion: dict[str, np.ndarray] | None) -> None:
    assert not any(each.passed for each in judged(all_stable(FEWEST_IMAGES - 1), champion))
    enough = all_stable(FEWEST_IMAGES)
    assert all(each.passed for each in judged(enough, champion and enough))


@pytest.mark.parametrize(("turned", "passed"), [(20, True), (21, False)])
def test_without_a_champion_nine_of_ten_must_stay(turned: int, passed: bool) -> None:
    found = {each.perturbation: each for each in judged(one_turns(200, turned), None)}
    assert found[NAMES[2]].passed == passed and found[NAMES[0]].passed
    assert found[NAMES[2]].difference is None and found[NAMES[2]].p_value is None


def two_learners(rng: np.random.Generator, n: int, less: float = 0.0) -> tuple[dict, dict]:
    """Answers of two learners to the same images, some of which break easily for both; one more on the third change."""
    breaks = rng.beta(0.3, 2.7, n)
    mine = {name: rng.random(n) >= breaks for name in NAMES}
    mine[NAMES[2]] &= rng.random(n) >= less
    return mine, {name: rng.random(n) >= breaks for name in NAMES}


@pytest.mark.parametrize("n", [30, 200, 1000])
def test_two_equal_learners_seldom_fail(n: int) -> None:
    """At most ALPHA of the times over all 11 changes together; the limit leaves room for 400 draws."""
    rng = np.random.default_rng([n, 1])
    failed = sum(not all(each.passed for each in judged(*two_learners(rng, n))) for _ in range(400))
    assert failed <= ALPHA * 400, failed


def test_without_holm_they_would_fail_often() -> None:
    """The trial above can tell: the same draws, each change at its own p-value."""
    rng = np.random.default_rng([200, 1])
    failed = 0
    for _ in range(400):
        found = judged(*two_learners(rng, 200))
        failed += any(each.p_value is not None and each.p_value <= ALPHA for each in found)
    assert failed > 2 * ALPHA * 400


@pytest.mark.parametrize(("n", "less", "seen"), [(200, 0.15, 0.8), (1000, 0.06, 0.8)])
def test_a_learner_that_is_worse_is_seen(n: int, less: float, seen: float) -> None:
    """What docs/behaviour.md says that it sees in 8 of 10 trials."""
    rng = np.random.default_rng([n, 2])
    found = 0
    for _ in range(200):
        failed = [each.perturbation for each in judged(*two_learners(rng, n, less)) if not each.passed]
        found += NAMES[2] in failed
    assert found >= seen * 200, found


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.1)])
def test_the_interval_holds_the_difference_in_nineteen_of_twenty(lost: float, won: float) -> None:
    rng = np.random.default_rng([int(100 * lost), 3])
    held = 0
    for _ in range(1000):
        drawn = rng.random(200)
        mine, beside = drawn >= lost, (drawn < 1 - won)
        low, high = paired_interval(mine, beside)
        held += low <= won - lost <= high
    assert 930 <= held <= 1000


def test_values_are_near_by_their_own_size_or_the_usual_one() -> None:
    expected = np.array([[100.0, 0.0], [100.0, 1.0], [0.0, 2.0]])
    inside = np.array([[104.9, 0.04], [95.1, 0.96], [3.3, 2.09]])
    outside = np.array([[105.1, 0.0], [100.0, 1.06], [3.4, 2.0]])
    assert near(inside, expected).all()
    assert not near(outside, expected).any()
    assert not near(np.full((3, 2), np.nan), expected).any(), "what was not scored did not stay"
