"""Optuna's samplers over our dimensions, without memory: a draw follows from seed and number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bayesrule.config.space import Dimension, Points

if TYPE_CHECKING:
    import optuna

__all__ = ["distribution", "make_sampler"]


def distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """Return a dimension as Optuna describes it."""
    from optuna import distributions

    if dimension.kind == "choice":
        return distributions.CategoricalDistribution(dimension.choices)
    low, high = dimension.low, dimension.high
    if dimension.kind == "int":
        step = int(dimension.step or 1)
        return distributions.IntDistribution(int(low), int(high), dimension.log, step)
    return distributions.FloatDistribution(low, high, dimension.log, dimension.step)


def make_sampler(
    points: Points | None, dimensions: Sequence[Dimension], *, seed: Sequence[int], startup: int
) -> optuna.samplers.BaseSampler:
    """Return the sampler for one draw of one trial.

    Args:
        points: Fixed points; None: TPE (Bergstra et al. 2011), which learns from the trials.
        dimensions: The space.
        seed: What this draw's random numbers follow from.
        startup: Random trials before TPE learns.
    """
    import numpy as np
    import optuna

    if points is not None:
        return _fixed_points(points)
    number = int(np.random.SeedSequence(list(seed)).generate_state(1)[0])
    return optuna.samplers.TPESampler(
        seed=number, n_startup_trials=startup, multivariate=False, constant_liar=True
    )


def _fixed_points(points: Points) -> optuna.samplers.BaseSampler:
    """Return a sampler that gives trial n the values of point n."""
    import optuna

    class FixedPoints(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, name: str, dist: Any) -> Any:
            return points(trial.number)[name]

    return FixedPoints()
