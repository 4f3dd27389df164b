"""C1: an E-step of t-SVGP beside one of GPyTorch's NGD: the same q(u), in less time.

Both start from the prior with the same kernel, inducing inputs and likelihood. Steps are timed in
turns of a few, so that a machine's drifting speed hits all alike, in CPU seconds of one thread.
GPyTorch adds its jitter to k(x, x) as well; the comparison of q adds it on our side, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesrule.config import Config, cache_dir
from bayesrule.data import load_data
from bayesrule.posteriors.inducing import InducingGaussian, from_sites
from bayesrule.tasks.gp.gpytorch_svgp import GPyTorchSVGP
from bayesrule.tasks.gp.inference import Batch, DualSVGP
from bayesrule.tasks.gp.task import GaussianProcessTask
from bayesrule.tasks.history import History
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.task import Context, Outcome

__all__ = ["EStep"]

TURN = 4  # steps before the next method's turn
COMPARED = 10  # steps over which q is compared


@dataclass
class EStep(GaussianProcessTask):
    """Ratio of E-step times, GPyTorch's over ours, and the largest difference of q.

    Attributes:
        steps: Timed steps of each.
    """

    steps: int

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the sizes of the three E-steps that take turns."""
        found = super().requirements(config, counted)
        return replace(found, steps=3 * (self.steps + TURN) + 2 * COMPARED)

    def run(self, context: Context) -> Outcome:
        """Compare q over ten steps, then time."""
        config = context.config
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        inference = DualSVGP(config["posterior"]["lr"], "projected", config["posterior"]["clip"])
        schedule = self.schedule(config, inference)
        em = self.learner(config, data, inference, schedule, History(None))
        gap = self._gap(em.gp, em.inputs, em.targets, config)
        context.stop.check()
        theirs = GPyTorchSVGP(em.gp, len(em.targets), config["posterior"]["lr"])
        theirs.hold_kernel()
        rows = torch.arange(len(em.targets))
        with torch.no_grad():
            chol = em.gp.chol()
            kept = em.gp.features(chol, em.inputs)
        others = DualSVGP(config["posterior"]["lr"], "projected", config["posterior"]["clip"])
        for each in (inference, others):
            each.start(em.gp, chol, em.targets)

        @torch.no_grad()
        def cached() -> None:
            inference.step(em.gp, chol, Batch(rows, em.targets, *kept, 1.0, 0))

        @torch.no_grad()
        def uncached() -> None:
            L = em.gp.chol()
            phi, rest = em.gp.features(L, em.inputs)
            others.step(em.gp, L, Batch(rows, em.targets, phi, rest, 1.0, 0))

        seconds = _timed(
            {
                "ngd": lambda: theirs.e_step(em.inputs, em.targets),
                "cached": cached,
                "uncached": uncached,
            },
            self.steps,
        )
        metrics = {
            "estep/q_gap": gap,
            "estep/speedup_cached": seconds["ngd"] / seconds["cached"],
            "estep/speedup_uncached": seconds["ngd"] / seconds["uncached"],
            **{f"estep/{name}_ms": 1e3 * value for name, value in seconds.items()},
        }
        return Outcome(metrics, {"data": data.describe(), "parameters": len(chol)})

    def _gap(self, gp: object, inputs: Tensor, targets: Tensor, config: Config) -> float:
        """Return the largest difference in mean or covariance of q(v) over the steps."""
        lr = config["posterior"]["lr"]
        theirs = GPyTorchSVGP(gp, len(targets), lr)
        theirs.hold_kernel()
        ours = DualSVGP(lr, "projected", config["posterior"]["clip"])
        with torch.no_grad():
            chol = gp.chol()
            phi, rest = gp.features(chol, inputs)
            ours.start(gp, chol, targets)
        batch = Batch(torch.arange(len(targets)), targets, phi, rest + gp.jitter, 1.0, 0)
        largest = 0.0
        for _ in range(COMPARED):
            theirs.e_step(inputs, targets)
            with torch.no_grad():
                ours.step(gp, chol, batch)
                largest = max(largest, _difference(theirs.posterior(), from_sites(ours.sites)))
        return largest


def _difference(q: InducingGaussian, p: InducingGaussian) -> float:
    covariances = [each.half.mT @ each.half for each in (q, p)]
    gaps = (q.mean - p.mean, covariances[0] - covariances[1])
    return max(float(gap.abs().max()) for gap in gaps)


def _timed(steps: dict[str, Callable[[], None]], count: int) -> dict[str, float]:
    """Return median CPU seconds by name, taken in turns after a warm-up of one turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(1 + -(-count // TURN)):
        for name, step in steps.items():
            for _ in range(TURN):
                start = time.process_time()
                step()
                if turn:
                    times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}
