"""Stratified bootstrap: against scipy in one stratum, and what stratification must do."""

import numpy as np
import pytest
import scipy.stats

from bayesrule.runs.bootstrap import interquartile_mean, stratified_bootstrap


@pytest.mark.parametrize("n", [1, 3, 4, 10, 11, 40])
def test_interquartile_mean_is_the_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=n)
    assert interquartile_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25))


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_one_stratum_is_the_plain_percentile_bootstrap(statistic):
    values = np.random.default_rng(0).gamma(2.0, size=30)
    found = stratified_bootstrap([values[:, None]], statistic=statistic, resamples=20000)
    oracle = scipy.stats.bootstrap(
        (values,),
        np.mean if statistic == "mean" else interquartile_mean,
        method="percentile",
        n_resamples=5000,
        vectorized=False,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.low[0] == pytest.approx(oracle.low, abs=0.03)
    assert found.high[0] == pytest.approx(oracle.high, abs=0.03)


def test_strata_keep_their_runs():
    """Environments of different levels without noise: pooling would give a wide interval."""
    found = stratified_bootstrap([[[0.0]] * 5, [[10.0]] * 5], statistic="mean")
    assert found.estimate == found.low == found.high == [5.0]


def test_runs_are_resampled_as_wholes():
    """Two mirrored curves: their sum is constant, so that the band at both ends is the same."""
    found = stratified_bootstrap([[[0.0, 1.0], [1.0, 0.0]] * 3], statistic="mean")
    assert found.low[0] == pytest.approx(1.0 - found.high[1])
    assert found.estimate == [0.5, 0.5]


def test_coverage_of_the_interval():
    """Of 300 intervals for the mean of 2 x 12 normal runs, about 95 % hold it (here 90 to 98 %)."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        strata = [rng.normal(level, 1.0, size=(12, 1)) for level in (-1.0, 3.0)]
        found = stratified_bootstrap(strata, statistic="mean", resamples=200)
        hits += found.low[0] <= 1.0 <= found.high[0]
    assert 0.90 <= hits / 300 <= 0.98


def test_the_same_data_give_the_same_interval():
    runs = np.random.default_rng(0).normal(size=(5, 7))
    assert stratified_bootstrap([runs]) == stratified_bootstrap([runs])


@pytest.mark.parametrize("strata", [[], [[]], [[[1.0, 2.0]], [[1.0]]]])
def test_what_cannot_be_pooled_is_refused(strata):
    with pytest.raises(ValueError, match="need runs"):
        stratified_bootstrap(strata)
