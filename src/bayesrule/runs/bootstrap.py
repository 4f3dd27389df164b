"""Stratified bootstrap intervals, for curves over several environments and few seeds.

Runs are resampled with replacement within each stratum, whole runs at a time, so that every
environment keeps its number of runs and a curve stays a curve. With R resamples the 95 % interval
is that between the 2.5 and 97.5 percentiles of the statistic over all runs pooled.

The interquartile mean is the mean of the middle half of the pooled values: less noisy than the
median, and not carried by one lucky run. Source: Agarwal et al., "Deep reinforcement learning at
the edge of the statistical precipice" (NeurIPS 2021).

Verdicts do not rest on these intervals but on paired t tests by seed (`bayesrule.runs.statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bayesrule.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BootstrapCurve", "interquartile_mean", "stratified_bootstrap"]

Statistic = Literal["mean", "iqm"]


@dataclass(frozen=True)
class BootstrapCurve:
    """A statistic at each of m points with its 95 % interval.

    Attributes:
        estimate: The statistic of the runs themselves.
        low: Lower end.
        high: Upper end.
    """

    estimate: list[float]
    low: list[float]
    high: list[float]


def _interquartile_mean(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean of the middle half along the first axis."""
    import numpy as np

    cut = len(values) // 4
    ordered = np.sort(values, axis=0)
    middle: np.ndarray[Any, Any] = ordered[cut : len(values) - cut].mean(axis=0)
    return middle


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the values without the lowest and the highest quarter (rounded down)."""
    import numpy as np

    return float(_interquartile_mean(np.asarray(values, dtype=np.float64)))


def stratified_bootstrap(
    strata: Sequence[Sequence[Sequence[float]]],
    *,
    statistic: Statistic = "iqm",
    resamples: int = 2000,
    seed: int = 0,
) -> BootstrapCurve:
    """Return a statistic over all runs with its stratified bootstrap interval, point by point.

    Args:
        strata: Per environment the runs, each a sequence of m values (comparable across
            environments, see the scores of an environment's configuration).
        statistic: ``mean`` or ``iqm``.
        resamples: R.
        seed: Seed of the resampling: the same data give the same interval.

    Raises:
        ValueError: For no runs, or runs of different lengths.
    """
    import numpy as np

    arrays = [np.asarray(runs, dtype=np.float64) for runs in strata if len(runs)]
    if not arrays or len({array.shape[1:] for array in arrays}) > 1 or arrays[0].ndim != 2:
        raise ValueError("need runs, all with the same number of points")
    reduce = _interquartile_mean if statistic == "iqm" else _mean
    stream = numpy_generator(seed, "bootstrap")
    found = np.empty((resamples, arrays[0].shape[1]))
    for place in range(resamples):
        drawn = [array[stream.integers(0, len(array), len(array))] for array in arrays]
        found[place] = reduce(np.concatenate(drawn))
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    estimate = reduce(np.concatenate(arrays))
    return BootstrapCurve(estimate.tolist(), low.tolist(), high.tolist())


def _mean(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    mean: np.ndarray[Any, Any] = values.mean(axis=0)
    return mean
