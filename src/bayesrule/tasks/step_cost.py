"""What a step of a posterior costs beside a reference optimiser's, interleaved in one process.

Both train their own copy of the model on the same batches, in turns of a few steps, so that a
machine's drifting speed hits both alike; the figure is the ratio of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bayesrule.config import compose
from bayesrule.errors import ConfigError
from bayesrule.models import count_parameters
from bayesrule.optim import PosteriorOptimizer
from bayesrule.tasks.inference import Single, make_inference
from bayesrule.tasks.module import forward
from bayesrule.tasks.problem import Problem
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["StepCost", "state_bytes"]

TURN = 5  # steps before the other optimiser's turn


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimiser's state (what it saves), per-parameter tensors only.

    Working memory (gradients, noise, the kept mean) comes on top, for any optimiser.
    """
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim > 0
    )


class StepCost(Task):
    """Ratio of step times and of state memory, ours over the reference's.

    Args:
        reference: Name of the reference posterior, with its default options.
        steps: Steps of each that are timed.
    """

    def __init__(self, reference: str, steps: int) -> None:
        self.reference, self.steps = reference, steps

    def planned_steps(self, trainer: Mapping[str, Any], n_train: int, trainings: int) -> int:
        """Return the steps of both optimisers, warm-up included."""
        return 2 * (self.steps + TURN)

    def run(self, context: Context) -> Outcome:
        """Time both, five steps in turn, after a warm-up of one turn.

        Raises:
            ConfigError: If the posterior is not learnt by one optimiser.
        """
        options = context.config["posterior"]
        if not isinstance(make_inference(options), Single):
            name = str(options["_target_"]).rpartition(".")[2]
            raise ConfigError(
                f"task=step_cost times the steps of one optimiser, and {name} trains by another "
                "one: time that one (posterior=adamw, ivon, sam or sgd)"
            )
        problem = Problem.from_context(context)
        other = compose([f"posterior={self.reference}"])["posterior"]
        models = [problem.model(), problem.model()]
        optimizers = [
            problem.optimizer(models[0], options),
            problem.optimizer(models[1], other),
        ]
        times: list[list[float]] = [[], []]
        size = context.config["trainer"]["batch_size"]
        total = self.steps + TURN
        step = 0
        while step < total:
            for side in (0, 1):
                for k in range(TURN):
                    first = ((step + k) * size) % max(1, len(problem.data.train) - size)
                    batch = problem.data.train.batch(torch.arange(first, first + size))
                    seconds = _timed_step(problem, models[side], optimizers[side], batch)
                    if step >= TURN:
                        times[side].append(seconds)
            step += TURN
            context.stop.check()
        ours, theirs = (statistics.median(each) for each in times)
        memory = [state_bytes(each) for each in optimizers]
        return Outcome(
            {
                "cost/step_ratio": ours / theirs,
                "cost/state_ratio": memory[0] / memory[1] if memory[1] else float("nan"),
                "cost/step_ms": 1e3 * ours,
                "cost/reference_step_ms": 1e3 * theirs,
            },
            {"data": problem.data.describe(), "parameters": count_parameters(models[0])},
        )


def _timed_step(
    problem: Problem, model: nn.Module, optimizer: PosteriorOptimizer, batch: dict[str, Any]
) -> float:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = problem.likelihood.loss(forward(model, batch["input"]), batch["target"])
        loss.backward()
        return loss

    start = time.perf_counter()
    optimizer.step(closure)
    return time.perf_counter() - start
