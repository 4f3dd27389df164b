"""Two kinds of model: linear in their parameters, solved exactly; and networks, trained.

Both turn items into inputs, minimise an `Objective` from a start, and give outputs at weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesrule.config import Config, locate
from bayesrule.data import DataBundle
from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.likelihoods import Bernoulli, Categorical, Likelihood
from bayesrule.models import build_model, count_parameters
from bayesrule.optim import PosteriorOptimizer
from bayesrule.posteriors import FullGaussian, Params, PointMass, Posterior
from bayesrule.seeding import child_seed
from bayesrule.tasks.adaptation.data import polynomial_features, pool_images
from bayesrule.tasks.adaptation.objective import WEIGHT, Objective, Solver, hessian, solve
from bayesrule.tasks.finished import FinishedPhase
from bayesrule.tasks.problem import check_finite, make_optimizer
from bayesrule.tasks.schedule import learning_rate_factor

__all__ = ["Learner", "LinearLearner", "NetworkLearner", "check_optimizer", "full_batch_steps"]


class Learner(Protocol):
    """A model class with its way to be learnt.

    Attributes:
        likelihood: Links outputs to labels.
    """

    likelihood: Likelihood

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the model takes for inputs of the data set."""

    def start(self) -> Params:
        """Return the weights from which the base model is learnt."""

    def fit(self, objective: Objective, start: Params, phase: str) -> Params:
        """Return the minimiser of an objective, or what training from `start` gives."""

    def outputs(self, weights: Params, inputs: Tensor) -> Tensor:
        """Return f at the model's inputs, shape (N, C)."""

    def posterior(self, weights: Params, objective: Objective | None) -> Posterior:
        """Return what the run leaves: Laplace at the objective's minimiser, or a point."""


@dataclass
class LinearLearner:
    """f = W phi(x): pooled images, polynomial features, an exact solver, float64.

    Attributes:
        n_labels: Classes that are told apart; two of them take one logit.
        pool: Side of the squares that are averaged.
        degree: Of the polynomial.
        size: Number of features P.
        solver: ``newton`` or ``lbfgs``.
        tolerance: See `solve`.
        rehearsal: Whether a few inexact steps are enough.
    """

    n_labels: int
    pool: int
    degree: int
    size: int
    solver: Solver
    tolerance: float
    rehearsal: bool = False
    likelihood: Likelihood = field(init=False)

    def __post_init__(self) -> None:
        self.likelihood = Bernoulli() if self.n_labels == 2 else Categorical()

    @property
    def n_outputs(self) -> int:
        """C."""
        return 1 if self.n_labels == 2 else self.n_labels

    def features(self, inputs: Tensor) -> Tensor:
        """Return phi(x), shape (N, P)."""
        return polynomial_features(pool_images(inputs, self.pool), self.degree)

    def start(self) -> Params:
        """Return zeros."""
        return {WEIGHT: torch.zeros(self.n_outputs, self.size, dtype=torch.float64)}

    def fit(self, objective: Objective, start: Params, phase: str) -> Params:
        """Return the minimiser."""
        del phase
        if self.rehearsal:
            return {WEIGHT: solve(objective, start[WEIGHT], solver="lbfgs", tolerance=math.inf)}
        found = solve(objective, start[WEIGHT], solver=self.solver, tolerance=self.tolerance)
        return {WEIGHT: found}

    def outputs(self, weights: Params, inputs: Tensor) -> Tensor:
        """Return W phi, shape (N, C)."""
        return inputs @ weights[WEIGHT].mT

    def posterior(self, weights: Params, objective: Objective | None) -> Posterior:
        """Return N(W, hess L(W)^{-1}) where the Hessian is at hand."""
        if objective is None or self.solver == "lbfgs":
            return PointMass(weights)
        return FullGaussian(weights, hessian(objective, weights[WEIGHT]))


@dataclass
class NetworkLearner:
    """A network, trained on the full batch by the optimiser that the posterior names.

    Attributes:
        config: The run's configuration.
        options: The model's options.
        data: The data set.
        n_labels: Outputs.
        folder: Where finished trainings are kept for a run that is killed; None: nowhere.
        stop: Called between steps.
        member: Separates the initialisations of two models in one run.
        steps: Of one training.
    """

    config: Config
    options: Mapping[str, Any]
    data: DataBundle
    n_labels: int
    folder: Path | None
    stop: Callable[[], None]
    member: int
    steps: int
    likelihood: Likelihood = field(default_factory=Categorical)

    def __post_init__(self) -> None:
        trainer = self.config["trainer"]
        gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        self.dtype = torch.float64 if trainer["precision"] == "64-true" else torch.float32
        seed = self.config["seed"]
        self.model = build_model(
            self.options,
            input_shape=self.data.input_shape,
            n_outputs=self.n_labels,
            seed=child_seed(seed, "member", self.member) if self.member else seed,
        ).to(self.device, self.dtype)
        if any(_depends_on_mode(module) for module in self.model.modules()):
            raise ConfigError(
                "task=adaptation compares one function at several weights, so the model has no "
                "dropout and no batch normalisation: model.dropout=0 model.norm=none"
            )

    def features(self, inputs: Tensor) -> Tensor:
        """Return the inputs where the network is."""
        return inputs.to(self.device, self.dtype)

    def start(self) -> Params:
        """Return the fresh network's weights."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def fit(self, objective: Objective, start: Params, phase: str) -> Params:
        """Take full-batch steps on L / (number of its items), which only scales it.

        Raises:
            NonFiniteLoss: If the loss is not finite.
        """
        size = objective.size
        like = next(self.model.parameters())  # labels and weights of items follow the network
        objective = replace(objective, terms=tuple(term.to(like) for term in objective.terms))
        self.model.load_state_dict(dict(start))
        options, trainer = self.config["posterior"], self.config["trainer"]
        seed = child_seed(self.config["seed"], "noise", phase)
        optimizer = make_optimizer(self.model, options, n_train=size, seed=seed, sync="auto")
        kept = self.folder and FinishedPhase(
            self.folder / phase / "finished.pt", self.model, optimizer, ()
        )
        if not (kept and kept.restore()):
            self._train(objective, optimizer, learning_rate_factor(trainer, self.steps))
            if kept:
                kept.save(0)
        return self.start()

    def _train(
        self,
        objective: Objective,
        optimizer: PosteriorOptimizer,
        factor: Callable[[int], float],
    ) -> None:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = objective.value(self.model) / objective.size
            loss.backward()
            return loss

        for step in range(self.steps):
            loss = optimizer.step(closure)
            assert loss is not None
            if not torch.isfinite(loss):
                raise NonFiniteLoss(
                    f"the objective is {float(loss)} at step {step + 1}: training diverged; try a "
                    "smaller posterior.lr"
                )
            schedule.step()
            self.stop()
        optimizer.zero_grad()  # the next training's optimiser shares the parameters
        check_finite(self.model, self.steps)

    @torch.no_grad()
    def outputs(self, weights: Params, inputs: Tensor) -> Tensor:
        """Return the network's logits."""
        found: Tensor = functional_call(self.model, weights, (inputs,))
        return found

    def posterior(self, weights: Params, objective: Objective | None) -> Posterior:
        """Return the point mass at the weights."""
        return PointMass({name: w.cpu() for name, w in weights.items()})

    def count(self) -> int:
        """Return the number of parameters."""
        return count_parameters(self.model)


def _depends_on_mode(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return dropout or isinstance(module, nn.modules.batchnorm._BatchNorm)


def full_batch_steps(trainer: Mapping[str, Any]) -> int:
    """Return the steps of one training: an epoch is one step."""
    return min(trainer["epochs"], trainer["max_steps"] or trainer["epochs"])


def check_optimizer(options: Mapping[str, Any]) -> None:
    """Refuse posteriors that are not point estimates by one optimiser without weight decay.

    Raises:
        ConfigError: Saying which ones are.
    """
    target: Any = locate(options["_target_"], "posterior._target_")
    if not (isinstance(target, type) and issubclass(target, PosteriorOptimizer)):
        reason = "trains by another one"
    elif target.observes or get_type_hints(target.posterior)["return"] is not PointMass:
        reason = "learns something else, or needs more than gradients"
    elif options.get("weight_decay"):
        raise ConfigError(
            "posterior.weight_decay: the regulariser of task=adaptation is task.strength, so set "
            "posterior.weight_decay=0"
        )
    else:
        return
    name = getattr(target, "__name__", str(target))
    raise ConfigError(
        f"task=adaptation adapts point estimates of one optimiser, and {name} {reason}: use "
        "posterior=adamw, sgd or sam"
    )
