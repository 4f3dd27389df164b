"""C2: the bound as a function of the kernel, with the sites (or moments) of another kernel fixed.

q is learnt by E-steps at theta_old. Then, at every theta of a grid around it, the bound is computed
for each way of storing q, and for a q that is learnt again at that theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesrule.config import Config, cache_dir
from bayesrule.data import load_data
from bayesrule.posteriors.inducing import InducingGaussian
from bayesrule.tasks.gp.em import ExpectationMaximisation, Schedule
from bayesrule.tasks.gp.inference import (
    SGPR,
    Batch,
    DualSVGP,
    NaturalSVGP,
    SparseInference,
    elbo,
)
from bayesrule.tasks.gp.task import GaussianProcessTask
from bayesrule.tasks.history import History
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.task import Context, Outcome

__all__ = ["MStepBounds"]

TOLERANCE = 1e-6  # of "at least as tight as"
STORAGES = ("projected", "per_datum", "unprojected", "whitened", "moments")


@dataclass
class MStepBounds(GaussianProcessTask):
    """Compares storages on a grid of kernels.

    Attributes:
        factors: Factors on variance and on lengthscale, the two sides of the grid.
        variances: Variances of the curve (the paper's figure), at the old lengthscale.
        again: E-steps of the q that is learnt again at a grid point.
    """

    factors: Sequence[float]
    variances: Sequence[float]
    again: int

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the sizes; steps count those of q at every point."""
        found = super().requirements(config, counted)
        points = len(self.factors) ** 2 + len(self.variances)
        return replace(found, steps=self.e_steps + points * self.again)

    def schedule(self, config: Config, inference: SparseInference) -> Schedule:
        """Return E-steps alone."""
        return Schedule(1, self.e_steps, 0, self.lr)

    def run(self, context: Context) -> Outcome:
        """Learn, move the kernel, compare."""
        config = context.config
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        methods = self._learnt(config, data)
        gp = next(iter(methods.values())).gp
        old = gp.kernel.outputscale.item(), gp.kernel.base_kernel.lengthscale.detach().clone()
        grid = [
            self._bounds(methods, old[0] * a, old[1] * b, config)
            for a in self.factors
            for b in self.factors
        ]
        context.stop.check()
        curve = [self._bounds(methods, value, old[1], config) for value in self.variances]
        metrics = _compared(grid)
        curves = {
            "bound/variance": {
                "variance": list(self.variances),
                "old": old[0],
                **{name: [point[name] for point in curve] for name in curve[0]},
            }
        }
        details = {"data": data.describe(), "parameters": gp.n_inducing, "curves": curves}
        return Outcome(metrics, details)

    def _learnt(self, config: Config, data: Any) -> dict[str, ExpectationMaximisation]:
        """Return a learner per storage, after the same E-steps, ready for M-steps."""
        options = config["posterior"]
        lr, clip = options["lr"], options["clip"]
        learners = {}
        for storage in STORAGES:
            inference = (
                NaturalSVGP(lr, storage == "whitened", clip)
                if storage in ("whitened", "moments")
                else DualSVGP(lr, storage, clip)
            )
            schedule = self.schedule(config, inference)
            em = self.learner(config, data, inference, schedule, History(None))
            em.start()
            for step in range(schedule.total):
                em.step(step)
            with torch.no_grad():
                inference.freeze(em.gp.chol())
            learners[storage] = em
        return learners

    @torch.no_grad()
    def _bounds(
        self,
        methods: dict[str, ExpectationMaximisation],
        variance: float,
        lengthscale: Tensor,
        config: Config,
    ) -> dict[str, float]:
        """Return the bound of every storage and of the optimal q at one kernel."""
        found = {}
        for storage, em in methods.items():
            em.gp.kernel.outputscale = variance
            em.gp.kernel.base_kernel.lengthscale = lengthscale
            chol, batch = _seen(em)
            q = em.inference.posterior(em.gp, chol, lambda batch=batch: batch.phi)
            found[storage] = _value(em, q, batch)
        # the last learner's kernel is at this point, too: learn q again from the prior
        best = DualSVGP(config["posterior"]["lr"], "projected", config["posterior"]["clip"])
        best.start(em.gp, chol, em.targets)
        for _ in range(self.again):
            best.step(em.gp, chol, batch)
        found["optimal"] = _value(em, best.posterior(em.gp, chol, lambda: batch.phi), batch)
        if type(em.gp.observation.likelihood).__name__ == "GaussianLikelihood":
            exact = SGPR()
            exact.start(em.gp, chol, em.targets)
            found["collapsed"] = _value(em, exact.posterior(em.gp, chol, lambda: batch.phi), batch)
        return found


def _seen(em: ExpectationMaximisation) -> tuple[Tensor, Batch]:
    chol = em.gp.chol()
    phi, rest = em.gp.features(chol, em.inputs)
    return chol, Batch(torch.arange(len(em.targets)), em.targets, phi, rest, 1.0, 0)


def _value(em: ExpectationMaximisation, q: InducingGaussian, batch: Batch) -> float:
    expected, kl = elbo(em.gp, q, batch)
    return float(expected - kl)


def _compared(grid: list[dict[str, float]]) -> dict[str, float]:
    """Return, by storage, how often it is at least as tight as the others, and its mean gap."""
    metrics = {"bound/points": float(len(grid))}
    for storage in STORAGES:
        gaps = [point["optimal"] - point[storage] for point in grid]
        metrics[f"bound/gap_{storage}"] = sum(gaps) / len(gaps)
    for storage in ("projected", "per_datum"):
        for other in ("whitened", "moments"):
            wins = [point[storage] >= point[other] - TOLERANCE for point in grid]
            metrics[f"bound/{storage}_over_{other}"] = sum(wins) / len(wins)
            ratio = metrics[f"bound/gap_{storage}"] / metrics[f"bound/gap_{other}"]
            metrics[f"bound/gap_ratio_{storage}_{other}"] = ratio
    if "collapsed" in grid[0]:
        gaps = [abs(p["per_datum"] - p["collapsed"]) / abs(p["collapsed"]) for p in grid]
        metrics["bound/collapsed_gap"] = max(gaps)
    return metrics
