"""Paired statistics against published numbers, against scipy, and against their own null."""

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact, ttest_1samp

from drivetrain.paired import (
    images_needed,
    lost_more,
    mean_interval,
    more_than_elsewhere,
    newcombe,
    sign_test,
    signed_ranks,
    wilson,
)


def test_newcombe_gives_the_published_interval_of_cavo_2012() -> None:
    """Fagerland, Lydersen and Laake 2017, chapter 8: 59, 6, 16, 80 has -0.1186 to -0.0046, first less second."""
    low, high = newcombe(59, 6, 16, 80)
    assert (low, high) == pytest.approx((0.0046, 0.1186), abs=5e-5)


def test_newcombe_gives_the_interval_of_the_paper_for_a_positive_difference() -> None:
    """Newcombe 1998, method 10: 36, 12, 2, 0 has 0.0569 to 0.3404, first less second."""
    assert newcombe(36, 12, 2, 0) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def test_mcnemar_gives_the_published_exact_p_value() -> None:
    """The same table: the exact conditional test has p = 0.052479."""
    assert sign_test(6, 16) == pytest.approx(0.052479, abs=5e-7)


def test_newcombe_is_mirrored_when_the_two_change_places() -> None:
    low, high = newcombe(40, 9, 3, 8)
    assert newcombe(40, 3, 9, 8) == pytest.approx((-high, -low))


@pytest.mark.parametrize("cells", [(10, 0, 0, 0), (0, 0, 0, 5), (0, 3, 4, 0), (0, 1, 0, 0), (7, 0, 3, 0)])
def test_newcombe_holds_the_difference_at_every_edge(cells: tuple[int, int, int, int]) -> None:
    low, high = newcombe(*cells)
    _, lost, won, _ = cells
    assert -1 <= low <= (won - lost) / sum(cells) <= high <= 1


def test_newcombe_covers_the_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    shares = [0.7, 0.06, 0.10, 0.14]
    tables = rng.multinomial(150, shares, 500)
    held = [low <= 0.04 <= high for low, high in (newcombe(*map(int, table)) for table in tables)]
    assert 0.925 <= np.mean(held) <= 0.98


def test_tests_are_scipys() -> None:
    assert lost_more(9, 2) == pytest.approx(binomtest(9, 11, alternative="greater").pvalue)
    table = [[12, 38], [20, 430]]
    assert more_than_elsewhere(12, 50, 32, 500) == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5), "Newcombe 1998, Stat. Med. 17, 857"
    differences = np.random.default_rng(0).normal(0.1, 1, 40)
    interval = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert mean_interval(differences) == pytest.approx((interval.low, interval.high))


def test_pairs_that_do_not_differ_say_nothing() -> None:
    assert sign_test(0, 0) == lost_more(0, 0) == signed_ranks(np.zeros(5)) == 1
    assert mean_interval(np.array([0.5])) == (0.5, 0.5)


def test_the_images_needed_have_the_power_that_is_claimed() -> None:
    """With as many images, a difference of 2 points where the two differ on 10 % is found in 8 of 10 trials."""
    n = images_needed(0.02, differing=0.1)
    rng = np.random.default_rng(0)
    tables = rng.multinomial(n, [0.04, 0.06, 0.9], 2000)
    found = np.mean([sign_test(int(lost), int(won)) <= 0.05 for lost, won, _ in tables])
    assert 0.75 <= found <= 0.84
    assert images_needed(0.02, differing=0.0) == images_needed(0.02, differing=0.02) < n


def test_the_images_needed_for_a_mean_are_the_textbooks() -> None:
    assert images_needed(0.5, spread=1.0) == 32
