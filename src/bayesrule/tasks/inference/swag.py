"""SWAG (Maddox et al., 2019): a low-rank Gaussian from the tail of an SGD trajectory.

Weights are collected at a constant learning rate in the last part of training; the moments and the
posterior N(mean, diag / 2 + D D^T / (2 (K - 1))) are `bayesrule.posteriors.SwagMoments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import nn

from bayesrule.errors import ConfigError
from bayesrule.posteriors import SwagMoments
from bayesrule.tasks.inference.base import Inference, Measure, Single, with_buffers
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.schedule import learning_rate_factor

__all__ = ["SWAG", "Trajectory"]


class Trajectory(pl.Callback):
    """Feeds the network's parameters to `SwagMoments`, every few steps from some step on.

    Args:
        model: The network.
        start: First step that is collected.
        every: Steps between collected weights.
        rank: Number of deviations kept.
    """

    def __init__(self, model: nn.Module, start: int, every: int, rank: int) -> None:
        self.model, self.start, self.every = model, start, every
        self.moments = SwagMoments(rank)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect at the chosen steps."""
        step = trainer.global_step
        if step >= self.start and (step - self.start) % self.every == 0:
            self.moments.collect(
                {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the moments."""
        return self.moments.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from saved moments."""
        self.moments.load_state_dict(state_dict)


class SWAG(Inference):
    """Stochastic weight averaging Gaussian.

    Args:
        base: The SGD run whose tail is collected.
        start: Fraction of all steps after which weights are collected.
        every: Fraction of all steps between collected weights.
        rank: Columns K of the deviation matrix.
        swag_lr: Learning rate while collecting, over the base's first one.
    """

    min_steps = 3  # two collected weights after a first step

    def __init__(self, base: Single, start: float, every: float, rank: int, swag_lr: float) -> None:
        self.base, self.start, self.every = base, start, every
        self.rank, self.swag_lr = rank, swag_lr
        self.vectors = rank + 2  # deviations, mean and mean of squares

    def optimizers(self) -> list[Mapping[str, Any]]:
        """Return the base's configuration."""
        return self.base.optimizers()

    def learn(self, problem: Problem, *, member: int = 0, measure: Measure | None = None) -> Learnt:
        """Train, collect, and average; running statistics are those of the last weights.

        Raises:
            ConfigError: If fewer than two weights would be collected.
        """
        total = problem.total_steps()
        start = max(1, round(self.start * total))
        every = max(1, round(self.every * total))
        count = len(range(start, total + 1, every))
        if count < 2:
            raise ConfigError(
                f"SWAG would collect {count} of the weights of {total} steps and needs two: train "
                "longer, or make posterior.start or posterior.every smaller"
            )
        model = problem.model(member)
        trajectory = Trajectory(model, start, every, self.rank)
        model, _ = self.base.train(
            problem, model, member, factor=self._factor(problem, start), callbacks=[trajectory]
        )
        return Learnt(model, with_buffers(trajectory.moments.posterior(), model))

    def _factor(self, problem: Problem, start: int) -> Callable[[int], float]:
        before = learning_rate_factor(problem.config["trainer"], start)
        return lambda step: before(step) if step < start else self.swag_lr
