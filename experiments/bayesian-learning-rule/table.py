"""The table: every recipe of the rule beside its oracle, and stochastic variational inference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from bayesrule.config import Config
from bayesrule.rule import Approximations, problems
from bayesrule.rule.mixture_model import UnitMixture
from bayesrule.rule.oracles.inference import mixture_elbo, stochastic_mixture
from bayesrule.rule.recipe import GROUPS
from bayesrule.rule.recipes import RECIPES
from bayesrule.rule.recipes.inference import svi_rates
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["RuleTable"]

PRIOR = problems.GMM_PRIOR
BATCH = 15
SWEEPS = 500


class RuleTable(Task):
    """Deviations of all recipes from one start, and the bounds that SVI and CAVI reach.

    ``table/<recipe>`` is the largest deviation of the rule's iterates from the oracle's,
    ``table/<group>`` the largest deviation over its tolerance. ``svi/gap`` is the evidence lower
    bound that 500 sweeps of coordinate ascent reach from the same start, less that of the
    stochastic rule (``svi/elbo``), and ``svi/worst_step`` the largest relative fall of the bound in
    a sweep of the full-batch rule with rho = 1.

    Args:
        svi_steps: Steps of the stochastic rule.
    """

    def __init__(self, svi_steps: int) -> None:
        self.svi_steps = svi_steps

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the number of iterates; there is no network."""
        iterates = len(RECIPES) * problems.N_ITERATES
        return Requirements(0, iterates + self.svi_steps, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Run the recipes and a few steps of SVI."""
        metrics = _deviations(plan.config["seed"]) | _bounds(plan.config["seed"], 2, 2)
        assert all(value == value for value in metrics.values())
        return ["2 steps of stochastic variational inference"]

    def run(self, context: Context) -> Outcome:
        """Compute; a matter of seconds, so nothing is checkpointed."""
        seed = context.config["seed"]
        metrics = _deviations(seed)
        context.stop.check()
        metrics |= _bounds(seed, self.svi_steps, SWEEPS)
        details: dict[str, Any] = {
            "parameters": 0,
            "recipes": [recipe.describe() for recipe in RECIPES],
        }
        return Outcome(metrics, details)


def _deviations(seed: int) -> dict[str, float]:
    found = {recipe.id: recipe.residual(seed) for recipe in RECIPES}
    metrics = {f"table/{name}": value for name, value in found.items()}
    for group in GROUPS:
        ratios = [found[one.id] / one.tolerance for one in RECIPES if one.group == group]
        metrics[f"table/{group.replace(' ', '_')}"] = max(ratios)
    return metrics


def _bounds(seed: int, steps: int, sweeps: int) -> dict[str, float]:
    """Return how the stochastic rule's bound ends, and whether the full rule's ever falls."""
    x, start = problems.iris()[0], problems.svi_start(seed)
    data = x.numpy()
    stochastic = UnitMixture(Approximations(minibatch=True), x, PRIOR, start)
    state: list[torch.Tensor] = []
    batches = problems.batches(seed, len(x), BATCH, steps)
    for batch, rho in zip(batches, svi_rates(steps), strict=True):
        state = stochastic.step(rho, batch)
    bound = mixture_elbo(data, *(part.numpy() for part in state), PRIOR)
    everything = [np.arange(len(x))] * sweeps
    ascended = stochastic_mixture(data, start, PRIOR, everything, [1.0] * sweeps)[-3:]
    best = mixture_elbo(data, *ascended, PRIOR)

    full = UnitMixture(Approximations(), x, PRIOR, start)
    bounds = []
    for _ in range(min(50, sweeps)):
        bounds.append(mixture_elbo(data, *(part.numpy() for part in full.step(1.0)), PRIOR))
    falls = [before - after for before, after in itertools.pairwise(bounds)]
    worst = max(falls) / abs(best)
    return {
        "svi/gap": best - bound,
        "svi/elbo": bound,
        "svi/worst_step": max(worst, 0.0),
    }
