"""The models that are merged, trained as phases of one run, and their curvatures.

::

    theta_0 = argmin  sum over base data + delta/2 ||theta||^2,        H_0 = its curvature + delta
    theta_t = argmin  sum over task t    + 1/2 ||theta - theta_0||^2_{H_0}
    joint   = argmin  sum over tasks     + 1/2 ||theta - theta_0||^2_{H_0}

All are trained on means: a term beside the mean loss of N items is divided by N. Runs that differ
in the merging rule alone share what is trained: it is kept in the cache under a hash of everything
that it depends on (``$BAYESRULE_CACHE/merging``; safe to delete).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesrule.config import Config, cache_dir
from bayesrule.corrections import QuadraticAnchor
from bayesrule.curvature import trainable
from bayesrule.data import Union
from bayesrule.errors import ConfigError, CorruptFile
from bayesrule.optim import PosteriorOptimizer
from bayesrule.posteriors import GaussianPosterior, Params
from bayesrule.runs import canonical_json, load_verified, save_verified
from bayesrule.runs.identity import without_volatile
from bayesrule.tasks.merging.curvature import data_curvature, prior_precision
from bayesrule.tasks.merging.parts import Part, Parts
from bayesrule.tasks.merging.sources import describe_source, load_weights
from bayesrule.tasks.problem import Problem
from bayesrule.tasks.schedule import learning_rate_factor, planned_steps

__all__ = ["Ingredients", "Workshop", "ingredients", "planned_phases", "total_steps"]

_EVALUATION = ("alphas", "_target_")
_PHASES = ("base", "joint_training")
_TRAINER = ("epochs", "batch_size", "schedule")


@dataclass
class Ingredients:
    """What is merged.

    Attributes:
        base: theta_0.
        base_curvature: H_0, the prior precision included.
        models: theta_t.
        curvatures: H_t, of the tasks' data alone.
        joint: Trained on the first n tasks together, by n.
        without: Removal: trained anew without the task.
        grams: Gram matrices of the models' layers; empty where they are not needed.
        scores: Metrics of these models by name, once computed.
        path: The file that this is kept in; None: nowhere.
    """

    base: Params
    base_curvature: Params
    models: list[Params] = field(default_factory=list)
    curvatures: list[Params] = field(default_factory=list)
    joint: dict[int, Params] = field(default_factory=dict)
    without: Params | None = None
    grams: list[Params] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    path: Path | None = None

    def save(self) -> None:
        """Write the file, if there is one."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            state = {name: value for name, value in vars(self).items() if name != "path"}
            save_verified(state, self.path, keep_previous=False)


def planned_phases(
    options: Mapping[str, Any], base: int, tasks: Sequence[int], without: int | None = None
) -> list[tuple[str, int]]:
    """Return what each phase is (``base``, ``task`` or ``joint_training``) and its items.

    Args:
        options: The ``task`` group.
        base: Training items of the base model.
        tasks: Those of each task.
        without: Those of the model without the task, for removal.
    """
    loaded = {"base"} if options["base_from"] else set()
    loaded |= {"task"} if options["models_from"] else set()
    first = {"none": len(tasks) + 1, "all": len(tasks), "sequence": 1}[options["joint"]]
    joint = [sum(tasks[:n]) for n in range(first, len(tasks) + 1)]
    phases = [("base", base), *(("task", n) for n in tasks)]
    phases = [(kind, n) for kind, n in phases if kind not in loaded]
    phases += [("joint_training", n) for n in joint]
    return phases if without is None else [*phases, ("base", without)]


def phase_trainer(config: Config, kind: str) -> dict[str, Any]:
    """Return the trainer's options of a phase: those of the tasks, or the phase's own."""
    trainer = dict(config["trainer"])
    if kind in _PHASES:
        own = config["task"][kind]
        trainer |= {key: own[key] for key in _TRAINER if own[key] is not None}
    return trainer


def ingredients(
    problem: Problem, parts: Parts, *, grams: bool, cache: Path | None = None
) -> Ingredients:
    """Return the trained models, from the cache if they were trained before.

    Args:
        problem: The problem; its configuration says how to train.
        parts: The data.
        grams: Whether Gram matrices are needed.
        cache: Folder of the cache.
    """
    config = without_volatile(problem.config)
    key: dict[str, Any] = {
        name: config[name] for name in ("seed", "data", "model", "posterior", "trainer")
    }
    key["task"] = {k: v for k, v in config["task"].items() if k not in _EVALUATION}
    key |= {"parts": parts.describe(), "metrics": config["metrics"]}
    sources = [config["task"]["base_from"], *config["task"]["models_from"]]
    key["sources"] = [describe_source(each) for each in sources if each is not None]
    name = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:24]
    path = (cache or cache_dir() / "merging") / f"{name}.pt"
    workshop = Workshop(problem, parts)
    try:
        made = replace(Ingredients(**load_verified(path)), path=path)
    except (FileNotFoundError, CorruptFile):
        made = replace(workshop.make(), path=path)
        made.save()
    if grams and not made.grams:
        made.grams = workshop.grams(made)
        made.save()
    return made


class Workshop:
    """Trains the models of a merge, one phase each.

    Args:
        problem: Data, model, likelihood and the training routine.
        parts: Which data each model learns.
    """

    def __init__(self, problem: Problem, parts: Parts) -> None:
        self.problem, self.parts = problem, parts
        self.options = problem.config["task"]
        self._member = 0

    def make(self) -> Ingredients:
        """Train all models and compute their curvatures."""
        base_part, delta = self.parts.base, float(self.options["base_prior"])
        sources = self.options["models_from"] or [None] * len(self.parts.tasks)
        ridge = self._ridge(delta)
        model, optimizer = self._model(
            "base", "base", base_part, None, ridge, self.options["base_from"]
        )
        theta = _learnt(model)
        data = self.curvature(model, optimizer, base_part, ridge)
        H0 = {name: h + delta for name, h in data.items()}
        made = Ingredients(theta, H0)
        anchor = QuadraticAnchor(theta, H0) if self.options["anchor"] else None
        for part, source in zip(self.parts.tasks, sources, strict=True):
            phase = f"task-{part.name}"
            model, optimizer = self._model(phase, "task", part, theta, anchor, source)
            made.models.append(_learnt(model))
            made.curvatures.append(self.curvature(model, optimizer, part, anchor))
        for n in self._joint_counts():
            split = Union([part.train for part in self.parts.tasks[:n]])
            part = Part(f"joint{n}", split)
            made.joint[n] = _learnt(self._fit(part.name, "joint_training", part, theta, anchor)[0])
        if self.parts.without is not None:
            fitted = self._fit("without", "base", self.parts.without, None, ridge)
            made.without = _learnt(fitted[0])
        return made

    def grams(self, made: Ingredients) -> list[Params]:
        """Return the Gram matrices of the trained models, on their tasks."""
        model, found = self.problem.model(), []
        for part, params in zip(self.parts.tasks, made.models, strict=True):
            model.load_state_dict(params, strict=False)
            G, _ = data_curvature(self.problem, model, part.train, "gram", None, part.name)
            found.append(G)
        return found

    def _joint_counts(self) -> list[int]:
        n = len(self.parts.tasks)
        return {"none": [], "all": [n], "sequence": list(range(1, n + 1))}[self.options["joint"]]

    def _ridge(self, delta: float) -> QuadraticAnchor | None:
        """Return delta/2 ||theta||^2, over what is learnt."""
        if delta == 0.0:
            return None
        zero = {name: torch.zeros_like(p) for name, p in trainable(self.problem.model()).items()}
        return QuadraticAnchor(zero, delta)

    def _model(
        self,
        phase: str,
        kind: str,
        part: Part,
        start: Params | None,
        anchor: QuadraticAnchor | None,
        source: str | None,
    ) -> tuple[nn.Module, PosteriorOptimizer | None]:
        """Return a model that was trained before, or train it."""
        if source is None:
            return self._fit(phase, kind, part, start, anchor)
        model = self.problem.model()
        model.load_state_dict(load_weights(source, model), strict=False)
        return model, None

    def _fit(
        self,
        phase: str,
        kind: str,
        part: Part,
        start: Params | None,
        anchor: QuadraticAnchor | None,
    ) -> tuple[nn.Module, PosteriorOptimizer]:
        """Train one model on a part, from `start` or anew, with a quadratic beside the loss."""
        config = self.problem.config
        trainer = phase_trainer(config, kind)
        posterior = dict(config["posterior"])
        if kind in _PHASES and self.options[kind]["lr"] is not None:
            posterior["lr"] = self.options[kind]["lr"]
        local = replace(
            self.problem,
            config={**config, "trainer": trainer, "posterior": posterior},
            data=replace(self.problem.data, train=part.train),
        )
        model = local.model()
        if start is not None:
            model.load_state_dict(start, strict=False)
        optimizer = local.optimizer(model, posterior, self._member)
        local.fit(
            model,
            optimizer,
            phase,
            member=self._member,
            factor=learning_rate_factor(trainer, local.total_steps()),
            penalty=_penalty(anchor, len(part.train)),
        )
        self.problem = replace(self.problem, history_length=local.history_length)
        self._member += 1
        return model, optimizer

    # ---------------------------------------------------------------- curvature

    def curvature(
        self,
        model: nn.Module,
        optimizer: PosteriorOptimizer | None,
        part: Part,
        beside: QuadraticAnchor | None,
    ) -> Params:
        """Return the diagonal curvature of the summed loss of a part's data alone.

        Args:
            model: The network at the part's solution.
            optimizer: What learnt it; None where it was trained before.
            part: The data.
            beside: The quadratic that was beside the loss, for ``curvature=posterior``.
        """
        kind = self.options["curvature"]
        if kind == "posterior":
            assert optimizer is not None  # refused by `Merging.check`
            own = prior_precision(self.problem.config["posterior"], len(part.train))
            return _of_posterior(optimizer, model, own or 0.0, beside)
        limit = self.options["curvature_items"]
        return data_curvature(self.problem, model, part.train, kind, limit, part.name)[0]


def _learnt(model: nn.Module) -> Params:
    return {name: tensor.clone() for name, tensor in trainable(model).items()}


def _penalty(anchor: QuadraticAnchor | None, n: int) -> Callable[[nn.Module], Any] | None:
    return None if anchor is None else (lambda model: anchor.value(model) / n)


def _of_posterior(
    optimizer: PosteriorOptimizer, model: nn.Module, own: float, beside: QuadraticAnchor | None
) -> Params:
    """Return what the optimiser learnt of the data's curvature.

    That is its precision, less its own prior's and less that of the quadratic beside the loss. The
    latter is in the gradients that IVON and BBB learn from, and not in the examples that VOGN
    watches.
    """
    q = optimizer.posterior(model)
    if not isinstance(q, GaussianPosterior):
        raise ConfigError(
            "task.curvature=posterior needs an optimiser that learns a Gaussian (ivon, vogn, bbb); "
            f"{type(optimizer).__name__} leaves a {type(q).__name__}"
        )
    found = {name: s - own for name, s in q.precision_diag().items()}
    if beside is not None and not optimizer.observes:
        ones = {name: torch.ones_like(s) for name, s in found.items()}
        held = beside.precision_times(ones)  # S is diagonal
        found = {name: s - held[name] for name, s in found.items()}
    return {name: s.clamp_min(0.0) for name, s in found.items()}


def total_steps(config: Config, phases: Sequence[tuple[str, int]]) -> int:
    """Return the optimiser steps of all phases; see `planned_phases`."""
    return sum(planned_steps(phase_trainer(config, kind), n) for kind, n in phases)
