"""From a posterior's configuration to a learnt posterior: one training, or several.

A configuration whose ``_target_`` is an optimiser is learnt by one training (`Single`). Composite
ones (ensembles, Laplace, SWAG, dropout) have a class here and a part that they build on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bayesrule.config import accepted, locate
from bayesrule.errors import ConfigError
from bayesrule.models import learnt_state
from bayesrule.optim import PosteriorOptimizer
from bayesrule.posteriors import Posterior
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.schedule import learning_rate_factor

__all__ = ["Inference", "Single", "make_inference", "with_buffers"]

Measure = Callable[[Learnt], dict[str, float]]


class Inference(ABC):
    """A way to learn q on a problem.

    Attributes:
        trainings: Trainings of a network that one `learn` takes.
        min_steps: Fewest steps of a training that give a posterior.
        vectors: Vectors of P numbers that are kept beside those of the training (collected
            weights, finished members); curvature factors are not counted.
    """

    trainings: int = 1
    min_steps: int = 1
    vectors: int = 0

    @abstractmethod
    def learn(self, problem: Problem, *, member: int = 0, measure: Measure | None = None) -> Learnt:
        """Train and return the posterior.

        Args:
            problem: Data, model, likelihood and the training routine.
            member: Index of the training among several of one run (an ensemble's member).
            measure: Evaluates a posterior during training.
        """

    @abstractmethod
    def optimizers(self) -> list[Mapping[str, Any]]:
        """Return the configurations of the optimisers that train."""

    def network(self, model: nn.Module) -> nn.Module:
        """Return the network that draws of q are put into, given the freshly built one."""
        return model


class Single(Inference):
    """One training by one optimiser; the posterior is the optimiser's.

    Args:
        options: The optimiser's configuration with its ``_target_``.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def learn(self, problem: Problem, *, member: int = 0, measure: Measure | None = None) -> Learnt:
        """Train one network."""
        model, optimizer = self.train(problem, problem.model(member), member, measure=measure)
        return Learnt(model, with_buffers(optimizer.posterior(model), model))

    def optimizers(self) -> list[Mapping[str, Any]]:
        """Return the one optimiser's configuration."""
        return [self.options]

    def train(
        self,
        problem: Problem,
        model: nn.Module,
        member: int = 0,
        *,
        measure: Measure | None = None,
        **fit: Any,
    ) -> tuple[nn.Module, PosteriorOptimizer]:
        """Train a given network and return it with its optimiser.

        Args:
            problem: The problem.
            model: Trained in place.
            member: See `Inference.learn`.
            measure: Evaluates a posterior during training.
            **fit: Further options of `Problem.fit`.
        """
        optimizer = problem.optimizer(model, self.options, member)
        fit.setdefault(
            "factor", learning_rate_factor(problem.config["trainer"], problem.total_steps())
        )

        def current() -> dict[str, float]:
            assert measure is not None
            return measure(Learnt(model, with_buffers(optimizer.posterior(model), model)))

        problem.fit(
            model,
            optimizer,
            f"member{member}" if member else "train",
            member=member,
            measure=current if measure is not None else None,
            remake=lambda sharded: problem.optimizer(sharded, self.options, member),
            **fit,
        )
        return model, optimizer


def with_buffers(posterior: Posterior, model: nn.Module) -> Posterior:
    """Return the posterior with the rest of the model's state beside its draws.

    These are the running statistics, and the parameters that q is not over (frozen ones, all but
    the last layer): a stored posterior with its configuration is the whole network. The weights of
    a pretrained checkpoint that stay as they are belong to the configuration.
    """
    persistent = set(learnt_state(model))
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = set(posterior.names)
    return posterior.with_buffers(
        {name: t.detach().clone() for name, t in state.items() if name in persistent - own}
    )


def make_inference(options: Mapping[str, Any], key: str = "posterior") -> Inference:
    """Return the inference that a posterior's configuration describes.

    Raises:
        ConfigError: If a part is composite where one training is needed.
    """
    target: Any = locate(options["_target_"], f"{key}._target_")
    if isinstance(target, type) and issubclass(target, PosteriorOptimizer):
        return Single(options)
    parts = {
        name: make_inference(value, f"{key}.{name}")
        for name, value in options.items()
        if isinstance(value, Mapping)
    }
    base = parts.get("base")
    if base is not None and not isinstance(base, Single):
        raise ConfigError(
            f"{key}.base: {target.__name__} builds on one training by an optimiser (such as "
            f"{key}.base=sgd), not on {type(base).__name__}"
        )
    made: Inference = target(**accepted(target, {**options, **parts}))
    return made
