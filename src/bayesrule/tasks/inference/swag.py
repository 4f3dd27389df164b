"""SWAG (Maddox et al., 2019): a low-rank Gaussian from the tail of an SGD trajectory.

Weights w_i are collected at a constant learning rate in the last part of training::

    mean  = average of w_i
    diag  = average of w_i^2 - mean^2
    D     = last K columns of (w_i - running mean)
    q     = N(mean, diag / 2 + D D^T / (2 (K - 1)))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from bayesrule.posteriors import LowRankGaussian
from bayesrule.tasks.inference.base import Inference, Measure, Single, with_buffers
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.schedule import learning_rate_factor

__all__ = ["SWAG", "TrajectoryMoments"]


class TrajectoryMoments(pl.Callback):
    """Collects first and second moments and the last deviations of the parameters.

    Args:
        model: The network.
        start: First step that is collected.
        every: Steps between collected weights.
        rank: Number of deviations kept.
    """

    def __init__(self, model: nn.Module, start: int, every: int, rank: int) -> None:
        self.model, self.start, self.every, self.rank = model, start, every, rank
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}
        self.deviations: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect at the chosen steps."""
        step = trainer.global_step
        if step >= self.start and (step - self.start) % self.every == 0:
            self.collect()

    def collect(self) -> None:
        """Add the current parameters to the moments."""
        self.count += 1
        deviation = {}
        for name, param in self.model.named_parameters():
            w = param.detach().clone()
            if self.count == 1:
                self.mean[name], self.square[name] = w, w.square()
            else:
                self.mean[name] += (w - self.mean[name]) / self.count
                self.square[name] += (w.square() - self.square[name]) / self.count
            deviation[name] = w - self.mean[name]
        self.deviations = [*self.deviations, deviation][-self.rank :]

    def posterior(self) -> LowRankGaussian:
        """Return N(mean, diag / 2 + D D^T / (2 (K - 1)))."""
        variance = {
            name: 0.5 * (self.square[name] - self.mean[name].square()).clamp_min(1e-30)
            for name in self.mean
        }
        k = len(self.deviations)
        scale = (2.0 * max(1, k - 1)) ** -0.5
        factors = {
            name: scale * torch.stack([d[name] for d in self.deviations]) for name in self.mean
        }
        return LowRankGaussian({n: m.clone() for n, m in self.mean.items()}, variance, factors)

    def state_dict(self) -> dict[str, Any]:
        """Return the moments."""
        return {
            "count": self.count,
            "mean": self.mean,
            "square": self.square,
            "deviations": self.deviations,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from saved moments."""
        self.count = int(state_dict["count"])
        self.mean, self.square = dict(state_dict["mean"]), dict(state_dict["square"])
        self.deviations = [dict(d) for d in state_dict["deviations"]]


class SWAG(Inference):
    """Stochastic weight averaging Gaussian.

    Args:
        base: The SGD run whose tail is collected.
        start: Fraction of all steps after which weights are collected.
        every: Fraction of all steps between collected weights.
        rank: Columns K of the deviation matrix.
        swag_lr: Learning rate while collecting, over the base's first one.
    """

    def __init__(self, base: Single, start: float, every: float, rank: int, swag_lr: float) -> None:
        self.base, self.start, self.every = base, start, every
        self.rank, self.swag_lr = rank, swag_lr

    def learn(self, problem: Problem, *, member: int = 0, measure: Measure | None = None) -> Learnt:
        """Train, collect, and average; running statistics are those of the last weights."""
        total = problem.total_steps()
        start = max(1, round(self.start * total))
        every = max(1, round(self.every * total))
        model = problem.model(member)
        moments = TrajectoryMoments(model, start, every, self.rank)
        model, _ = self.base.train(
            problem, model, member, factor=self._factor(problem, start), callbacks=[moments]
        )
        return Learnt(model, with_buffers(moments.posterior(), model))

    def _factor(self, problem: Problem, start: int) -> Callable[[int], float]:
        before = learning_rate_factor(problem.config["trainer"], start)
        return lambda step: before(step) if step < start else self.swag_lr
