"""The statistics of the paper's tasks, against scipy."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.paper.reporting.statistics import (
    Interval,
    mean_interval,
    ranks,
    spearman,
    spearman_interval,
    t_quantile,
)

VALUES = st.lists(st.integers(-4, 4), min_size=3, max_size=30)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 200])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_t_quantile(probability: float, freedom: int) -> None:
    """Catches the normal quantile in its place, one-sided for two-sided, freedom off by one."""
    assert t_quantile(probability, freedom) == pytest.approx(
        stats.t.ppf(probability, freedom), rel=1e-9
    )


def test_mean_interval() -> None:
    """Catches the population's deviation for the sample's, and a missing root of n."""
    values = [0.89, 0.9, 0.87, 0.91, 0.88]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert mean_interval(values)[:3] == pytest.approx((np.mean(values), low, high))
    assert mean_interval([0.5])[0] == 0.5
    assert math.isnan(mean_interval([0.5]).low)
    assert math.isnan(mean_interval([]).estimate)


@given(VALUES)
@settings(max_examples=50)
def test_ranks_share_ties(values: list[int]) -> None:
    """Catches ties in the order of their place, and ranks from 0."""
    np.testing.assert_array_equal(ranks(values), stats.rankdata(values))


@given(VALUES, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_spearman(x: list[int], random) -> None:
    """Catches Pearson's correlation of the values, and the formula that is wrong with ties."""
    y = [value + random.randint(-3, 3) for value in x]
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_of_a_constant_is_not_a_number() -> None:
    """Catches 0 for a correlation that is not defined."""
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman_interval([1, 1, 1, 1], [1, 2, 3, 4]).estimate)


def test_spearman_interval() -> None:
    """Catches an interval that is not on atanh's scale, or of another variance.

    scipy's Fisher interval is Pearson's, of variance 1 / (n - 3); of the ranks, and with 1.06 times
    the variance, it is this one.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    found = spearman_interval(x.tolist(), y.tolist())
    fisher = stats.pearsonr(stats.rankdata(x), stats.rankdata(y)).confidence_interval(0.95)
    middle = math.atanh(found.estimate)
    for end, expected in zip((found.low, found.high), fisher, strict=True):
        assert math.atanh(end) - middle == pytest.approx(
            math.sqrt(1.06) * (math.atanh(expected) - middle), rel=1e-6
        )
    assert math.isnan(spearman_interval([1, 2, 3], [1, 2, 3]).low)
    assert spearman_interval([1, 2, 3, 4], [1, 2, 3, 4]).estimate == 1.0


def test_spearman_interval_covers() -> None:
    """Catches an interval that misses the truth more often than it says: 300 normal samples with
    rho = 0.5, whose Spearman correlation is 6 / pi asin(rho / 2); at 95 %, fewer than 260 covered
    has a probability under 1e-6.
    """
    rng = np.random.default_rng(1)
    truth = 6 / math.pi * math.asin(0.25)
    covered = 0
    for _ in range(300):
        x = rng.normal(size=30)
        y = 0.5 * x + math.sqrt(0.75) * rng.normal(size=30)
        _, low, high, _ = spearman_interval(x.tolist(), y.tolist())
        covered += low <= truth <= high
    assert covered >= 260


def test_how_intervals_are_shown() -> None:
    """Catches a lopsided interval shown as if it were even, and NaN in a table."""
    assert Interval(0.5, 0.4, 0.6, 5).show(100) == "50.0 ± 10.0"
    assert Interval(0.8, 0.5, 0.9, 5).show(digits=2) == "0.80 [0.50, 0.90]"
    assert Interval(0.5, math.nan, math.nan, 1).show() == "0.5"
    assert mean_interval([]).show() == "-"
