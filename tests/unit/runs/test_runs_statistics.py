import math

import numpy as np
import pytest
import scipy.stats

from bayesrule.runs.statistics import (
    least_squares_slope,
    mean_interval,
    p_greater,
    p_less,
    ranks,
    spearman,
)


@pytest.mark.parametrize("n", [2, 3, 5, 17])
@pytest.mark.parametrize("offset", [0.0, 3.0, -1e6])
def test_interval_and_p_against_scipy(n, offset):
    values = (offset + np.random.default_rng(n).normal(size=n)).tolist()
    interval = mean_interval(values)
    oracle = scipy.stats.ttest_1samp(values, offset + 0.3, alternative="less")
    low, high = scipy.stats.t.interval(
        0.95, n - 1, loc=np.mean(values), scale=scipy.stats.sem(values)
    )
    assert interval.ci95 == pytest.approx((low, high), rel=1e-9)
    assert interval.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert interval.sd == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert interval.half_width == pytest.approx((high - low) / 2, rel=1e-9)
    assert p_less(interval, offset + 0.3) == pytest.approx(oracle.pvalue, rel=1e-9)
    oracle = scipy.stats.ttest_1samp(values, offset + 0.3, alternative="greater")
    assert p_greater(interval, offset + 0.3) == pytest.approx(oracle.pvalue, rel=1e-9)


def test_paired_differences_against_scipy():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=6), rng.normal(size=6) + 0.2
    interval = mean_interval((left - right).tolist())
    oracle = scipy.stats.ttest_rel(left, right, alternative="less")
    assert p_less(interval) == pytest.approx(oracle.pvalue, rel=1e-10)
    ends = scipy.stats.ttest_rel(left, right).confidence_interval(0.95)
    assert interval.ci95 == pytest.approx((ends.low, ends.high), rel=1e-10)
    assert interval.effect_size == pytest.approx(
        (left - right).mean() / (left - right).std(ddof=1), rel=1e-10
    )


def test_equal_values_are_exact():
    for value in (0.1, -0.3, 1e-320, 1.7e308, 0.0):
        interval = mean_interval([value] * 7)
        assert interval.mean == value
        assert interval.sd == 0
        assert interval.ci95 == (value, value)
        assert interval.effect_size is None
        assert p_less(interval, value) == 1.0
        assert p_less(interval, math.nextafter(value, math.inf)) == 0.0
        assert p_greater(interval, value) == 1.0
        assert p_greater(interval, math.nextafter(value, -math.inf)) == 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e307])
def test_extreme_magnitudes_neither_overflow_nor_vanish(scale):
    base = [1.0, 2.0, 4.0, 8.0]
    interval, reference = mean_interval([scale * x for x in base]), mean_interval(base)
    assert interval.mean / scale == pytest.approx(reference.mean, rel=1e-12)
    assert interval.sd / scale == pytest.approx(reference.sd, rel=1e-12)


def test_one_value_has_no_interval():
    interval = mean_interval([0.4])
    assert (interval.mean, interval.sd, interval.n, interval.ci95) == (0.4, 0.0, 1, None)
    assert interval.half_width is None
    with pytest.raises(ValueError, match="two values"):
        p_less(interval)
    for wrong in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(wrong)


def test_coverage_of_the_interval_is_95_percent():
    rng = np.random.default_rng(1)
    draws = rng.normal(loc=2.0, size=(4000, 4))
    inside = sum(
        low <= 2.0 <= high for low, high in (mean_interval(r).ci95 for r in draws.tolist())
    )
    # binomial: 4 standard deviations around 0.95
    assert abs(inside / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_spearman_and_slope_against_scipy(seed):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.normal(size=8))
    y = rng.integers(0, 4, size=8).astype(float)  # ties
    assert ranks(y.tolist()) == scipy.stats.rankdata(y).tolist()
    assert spearman(x.tolist(), y.tolist()) == pytest.approx(
        scipy.stats.spearmanr(x, y).statistic, abs=1e-12
    )
    assert least_squares_slope(x.tolist(), y.tolist()) == pytest.approx(
        scipy.stats.linregress(x, y).slope, abs=1e-12
    )


def test_limits_of_trends():
    assert spearman([1, 2, 4], [9.0, 4.0, 1.0]) == pytest.approx(-1.0, abs=1e-15)
    assert spearman([1, 2, 4], [5.0, 5.0, 5.0]) == 0.0
    assert least_squares_slope([0, 1, 2], [1.0, 3.0, 5.0]) == 2.0
    with pytest.raises(ValueError, match="equal"):
        least_squares_slope([1, 1], [0, 1])
