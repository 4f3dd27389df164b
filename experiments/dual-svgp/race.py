"""C4: the bound against CPU time, t-SVGP beside GPyTorch's SVGP, on the same mini-batches.

Three learners take turns: t-SVGP (one E-step, one M-step), GPyTorch's NGD with Adam on the kernel
in passes of their own (the paper's protocol), and the same with both from one backward pass
(GPyTorch's tutorial, the fastest it offers). Only the steps are timed; bounds are computed between
turns, on all training data, with the same function and draws for all.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesrule.config import Config, cache_dir
from bayesrule.data import load_data
from bayesrule.seeding import child_seed
from bayesrule.tasks.gp.em import ExpectationMaximisation
from bayesrule.tasks.gp.gpytorch_svgp import GPyTorchSVGP
from bayesrule.tasks.gp.inference import Batch, DualSVGP, elbo
from bayesrule.tasks.gp.model import GaussianProcess
from bayesrule.tasks.gp.task import GaussianProcessTask
from bayesrule.tasks.history import History
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.task import Context, Outcome

__all__ = ["Race"]


@dataclass
class Race(GaussianProcessTask):
    """Bound after equal CPU time.

    Attributes:
        every: Iterations of a turn, after which the bound is computed.
    """

    every: int

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the sizes; steps are those of three learners."""
        found = super().requirements(config, counted)
        return replace(found, steps=3 * found.steps)

    def run(self, context: Context) -> Outcome:
        """Let them take turns; compare where the first of two has used up its time."""
        config = context.config
        options = config["posterior"]
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        inference = DualSVGP(options["lr"], options["storage"], options["clip"])
        schedule = self.schedule(config, inference)
        em = self.learner(config, data, inference, schedule, History(None))
        start = em.gp
        learners: dict[str, Callable[[int], None]] = {}
        bounds: dict[str, Callable[[], float]] = {}
        for name, joint in (("separate", False), ("joint", True)):
            theirs = GPyTorchSVGP(copy.deepcopy(start), len(em.targets), options["lr"], self.lr)
            learners[name] = _their_iteration(theirs, em, joint=joint)
            bounds[name] = lambda theirs=theirs: _their_bound(theirs, em)
        em.start()
        learners["dual"] = _our_iteration(em)
        bounds["dual"] = em.bound
        curves = {name: {"seconds": [0.0], "elbo": [bound()]} for name, bound in bounds.items()}
        for first in range(0, self.iterations, self.every):
            for name, iterate in learners.items():
                began = time.process_time()
                for number in range(first, min(first + self.every, self.iterations)):
                    iterate(number)
                spent = time.process_time() - began
                curves[name]["seconds"].append(curves[name]["seconds"][-1] + spent)
                curves[name]["elbo"].append(bounds[name]())
            context.stop.check()
        metrics = {f"race/elbo_{name}": curve["elbo"][-1] for name, curve in curves.items()}
        for name in ("separate", "joint"):
            ends = [curves[each]["seconds"][-1] for each in ("dual", name)]
            ours, theirs_then = (_at(curves[each], min(ends)) for each in ("dual", name))
            metrics[f"race/gain_over_{name}"] = (ours - theirs_then) / len(em.targets)
            metrics[f"race/time_over_{name}"] = ends[0] / ends[1]
        details = {
            "data": data.describe(),
            "parameters": em.gp.n_inducing,
            "curves": {"race/elbo": curves},
        }
        return Outcome(metrics, details)


def _our_iteration(em: ExpectationMaximisation) -> Callable[[int], None]:
    def iterate(number: int) -> None:
        for step in range(number * em.schedule.cycle, (number + 1) * em.schedule.cycle):
            em.step(step)

    return iterate


def _their_iteration(
    theirs: GPyTorchSVGP, em: ExpectationMaximisation, *, joint: bool
) -> Callable[[int], None]:
    """Return an iteration of GPyTorch's on the batches of ours."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = em.batch_rows(step)
        return em.inputs[rows], em.targets[rows]

    def iterate(number: int) -> None:
        first = number * em.schedule.cycle
        if joint:
            theirs.em_step(*batch(first))
            return
        theirs.e_step(*batch(first))
        theirs.m_step(*batch(first + 1))

    return iterate


@torch.no_grad()
def _their_bound(theirs: GPyTorchSVGP, em: ExpectationMaximisation) -> float:
    """Return the bound on all data of GPyTorch's q, kernel and inducing inputs."""
    gp: GaussianProcess = theirs.gp
    gp.inducing.copy_(theirs.inducing)
    chol, q = gp.chol(), theirs.posterior()
    total = 0.0
    for number, rows in enumerate(torch.arange(len(em.targets)).split(em.chunk)):
        phi, rest = gp.features(chol, em.inputs[rows])
        draws = child_seed(em.seed, "bound", number)
        total += float(elbo(gp, q, Batch(rows, em.targets[rows], phi, rest, 1.0, draws))[0])
    return total - float(q.kl())


def _at(curve: dict[str, list[float]], seconds: float) -> float:
    """Return the bound at a time, between two known ones on a straight line."""
    xs, ys = curve["seconds"], curve["elbo"]
    for k in range(1, len(xs)):
        if seconds <= xs[k]:
            share = (seconds - xs[k - 1]) / (xs[k] - xs[k - 1])
            return ys[k - 1] + share * (ys[k] - ys[k - 1])
    return ys[-1]
