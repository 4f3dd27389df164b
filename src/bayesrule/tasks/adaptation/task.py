"""task=adaptation: a base model is changed with few of its past data, beside learning anew.

Metrics, beside ``test/...@mean`` of the method at ``memory``:

    base/acc@mean, batch/acc@mean, ...nll@mean, .../norm     the two references
    m<q>/acc@mean, m<q>/nll@mean    the method with a memory of part q, for memory and each of sweep
    m<q>/norm_ratio, m<q>/distance  |w| / |w_batch|,   |w - w_batch| / |w_batch|
    m<q>/gradient_error             of the past's gradient at w_batch (linear models)
    m<q>/size                       past items kept, those that are removed not counted
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bayesrule.config import Config, cache_dir
from bayesrule.corrections.selection import Strategy
from bayesrule.data import DataBundle, load_data, planned_sizes, random_like
from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.models import count_parameters
from bayesrule.posteriors import Posterior, save_posterior
from bayesrule.posteriors.params import flatten
from bayesrule.runs import RunFolder
from bayesrule.tasks.adaptation.adapt import Asked, Fitted, adapt, scores, setting
from bayesrule.tasks.adaptation.data import ChangedBy, Kind, Labels, items_of, polynomial_size
from bayesrule.tasks.adaptation.learners import (
    Learner,
    LinearLearner,
    NetworkLearner,
    check_optimizer,
    full_batch_steps,
)
from bayesrule.tasks.adaptation.methods import MemoryWeight, Method, objective_of, uses_memory
from bayesrule.tasks.adaptation.objective import Solver
from bayesrule.tasks.evaluate import Evaluation, add_classification
from bayesrule.tasks.requirements import Requirements, meta_model
from bayesrule.tasks.signals import StopRequest
from bayesrule.tasks.step_memory import StepVectors, step_vectors
from bayesrule.tasks.task import Context, Outcome, Task

if TYPE_CHECKING:
    from bayesrule.tasks.plan import ArmPlan

__all__ = ["Adaptation"]

_DRY_ITEMS = 400
_DRY_STEPS = 2


@dataclass
class Adaptation(Task):
    """One adaptation by one method; the options are explained in ``conf/task/adaptation.yaml``."""

    kind: Kind
    method: Method
    memory: float
    sweep: Sequence[float]
    selection: Strategy
    memory_weight: MemoryWeight
    temperature: float
    labels: Labels
    changed_by: ChangedBy
    changed_class: int
    changed_fraction: float
    strength: float
    new_strength: float | None
    pool: int
    degree: int
    new_degree: int | None
    new_hidden: Sequence[int] | None
    weight_term: bool
    solver: Solver
    tolerance: float

    # ---------------------------------------------------------------------- the run

    def run(self, context: Context) -> Outcome:
        """Learn the base model, the batch solution and the method's; evaluate; save the last."""
        config = context.config
        self.check(config)
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        old, new = self._learners(
            config, data, context.folder.path / "checkpoints", context.stop, full_batch_steps
        )
        final, metrics, curves = self._adapt(config, data, old, new, context.stop)
        posterior = final.learner.posterior(final.weights, final.objective)
        save_posterior(posterior, context.folder.path)
        found = self._evaluate(config, final.learner, posterior, data)
        details = {
            "data": data.describe(),
            "parameters": flatten(final.weights).numel(),
            "curves": {**found.curves, **curves},
        }
        return Outcome({**found.metrics, **metrics}, details)

    def _adapt(
        self, config: Config, data: DataBundle, old: Learner, new: Learner, stop: StopRequest
    ) -> tuple[Fitted, dict[str, float], dict[str, Any]]:
        """Return what the run leaves, with metrics and curves."""
        train, test = items_of(data.train, self.labels), items_of(data.test, self.labels)
        own = setting(self._asked(config["seed"]), old, new, train, test, data)
        stop.check()
        everything = torch.arange(len(own.kept))
        objective = objective_of("batch", own.change, everything)
        batch = Fitted(new, new.fit(objective, own.change.start, "batch"), objective)
        stop.check()
        metrics = {
            **scores("base", old, own.base.weights, own.test),
            **scores("batch", new, batch.weights, own.test),
            "base/norm": float(flatten(own.base.weights).norm()),
            "batch/norm": float(flatten(batch.weights).norm()),
        }
        if self.method in ("batch", "frozen"):
            return (batch if self.method == "batch" else own.base), metrics, {}
        final, more, curves = adapt(
            own,
            self.method,
            self._parts(),
            batch.weights,
            strategy=self.selection,
            seed=config["seed"],
            memory_weight=self.memory_weight,
            temperature=self.temperature,
            after=stop.check,
        )
        return final, {**metrics, **more}, curves

    def _parts(self) -> list[float]:
        """Return the memories; a method without one has a memory of 0."""
        return [self.memory, *self.sweep] if uses_memory(self.method) else [0.0]

    def _asked(self, seed: int) -> Asked:
        return Asked(
            self.kind,
            self.changed_by,
            self.changed_class,
            self.changed_fraction,
            self.strength,
            self.strength if self.new_strength is None else self.new_strength,
            self.weight_term,
            seed,
        )

    # ------------------------------------------------------------------ beside the run

    def check(self, config: Config) -> None:
        """Refuse what has no meaning together, before anything is loaded."""
        data, network = config["data"], "model" in config
        if network != ("posterior" in config):
            raise ConfigError(
                "task=adaptation solves linear models exactly, with no model and no posterior, or "
                "trains a network with both: model=mlp posterior=adamw posterior.weight_decay=0"
            )
        if data["kind"] != "classification":
            raise ConfigError(
                f"task=adaptation predicts classes, and data={data['name']} is for {data['kind']}"
            )
        if network:
            check_optimizer(config["posterior"])
        trainer = config["trainer"]
        if trainer["devices"] * trainer["nodes"] > 1:
            raise ConfigError("trainer.devices: task=adaptation runs in one process")
        wrong = {
            "task.changed_class": (
                self.kind in ("add", "remove")
                and self.changed_by == "class"
                and self.changed_class >= data["n_outputs"],
                f"data={data['name']} has classes 0 to {data['n_outputs'] - 1}",
            ),
            "task.changed_by": (
                self.kind == "add" and self.changed_by == "lambda_descend",
                "new items have no curvature under a base model that was learnt without them",
            ),
            "task.new_strength": (
                self.kind == "regulariser" and self.new_strength in (None, self.strength),
                "kind=regulariser needs a strength other than task.strength",
            ),
            "task.new_hidden": (
                (self.kind == "model" and network) != (self.new_hidden is not None),
                "it is for kind=model of a network, which needs it",
            ),
            "task.new_degree": (
                (self.kind == "model" and not network) != (self.new_degree is not None),
                "it is for kind=model of a linear model, which needs it",
            ),
            "task.pool": (self.pool > 1 and self._cannot_pool(data["shape"]), self._pooling(data)),
            "task.degree": (network and self.degree != 1, "networks take the inputs themselves"),
        }
        for key, (is_set, reason) in wrong.items():
            if is_set:
                value = getattr(self, key.removeprefix("task."))
                raise ConfigError(f"{key}={value}: {reason}")
        nested = self._later_degree() <= self.degree
        if self.kind == "model" and not network and self.weight_term and not nested:
            raise ConfigError(
                f"task.new_degree={self.new_degree} is no part of degree {self.degree}, so there "
                "are no shared weights: task.weight_term=false"
            )

    def _cannot_pool(self, shape: Sequence[int]) -> bool:
        return len(shape) != 3 or any(side % self.pool for side in shape[1:])

    def _pooling(self, data: Mapping[str, Any]) -> str:
        return f"inputs of data={data['name']} have the shape {list(data['shape'])}"

    def _later_degree(self) -> int:
        return self.degree if self.new_degree is None else self.new_degree

    def _n_labels(self, n_classes: int) -> int:
        return 2 if self.labels == "parity" else n_classes

    def _features(self, shape: Sequence[int], degree: int) -> int:
        n_inputs = math.prod(shape)
        return polynomial_size(n_inputs // (self.pool**2), degree)

    def _learners(
        self,
        config: Config,
        data: DataBundle,
        folder: Path | None,
        stop: StopRequest,
        steps: Any,
    ) -> tuple[Learner, Learner]:
        """Return the base model's learner and the later one's; one object if they are equal."""
        n_labels = self._n_labels(data.n_outputs)
        if "model" not in config:
            old = self._linear(data, self.degree, n_labels)
            if self.kind != "model":
                return old, old
            return old, self._linear(data, self._later_degree(), n_labels)
        options = config["model"]
        count = steps(config["trainer"])

        def network(options: Mapping[str, Any], member: int) -> NetworkLearner:
            return NetworkLearner(
                config, options, data, n_labels, folder, stop.check, member, count
            )

        first = network(options, 0)
        if self.kind != "model":
            return first, first
        assert self.new_hidden is not None
        return first, network({**options, "hidden": list(self.new_hidden)}, 1)

    def _linear(self, data: DataBundle, degree: int, n_labels: int) -> LinearLearner:
        size = self._features(data.input_shape, degree)
        return LinearLearner(n_labels, self.pool, degree, size, self.solver, self.tolerance)

    def _evaluate(
        self, config: Config, learner: Learner, posterior: Posterior, data: DataBundle
    ) -> Evaluation:
        """Return the scores at the mean on the test items that count."""
        test = items_of(data.test, self.labels)
        if self.kind == "remove" and self.changed_by == "class":
            test = test.at(test.of_class != self.changed_class)
        weights = {name: w.to(learner.start()[name]) for name, w in posterior.mean.items()}
        outputs = learner.outputs(weights, learner.features(test.input))
        log_probs_NK = learner.likelihood.log_probs(outputs).cpu()
        out = Evaluation()
        add_classification(
            out,
            "test",
            "mean",
            log_probs_NK,
            test.label,
            n_outputs=log_probs_NK.shape[1],
            cfg=config["metrics"],
        )
        return out

    def evaluate_stored(
        self,
        config: Config,
        folder: RunFolder,
        data: DataBundle,
        posterior: Posterior,
        trained_on: Mapping[str, Any],
    ) -> Evaluation:
        """Evaluate the weights that a run left; the references are in its record."""
        del folder, trained_on
        old, new = self._learners(config, data, None, StopRequest(), full_batch_steps)
        return self._evaluate(config, old if self.method == "frozen" else new, posterior, data)

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the sizes of a run, from declared numbers alone.

        The steps of a linear model are its fits; Newton's method holds a dense Hessian, and both
        solvers the features of all items.
        """
        del counted
        self.check(config)
        data = random_like(config["data"], n_items=2)
        n_train = planned_sizes(config["data"])["train"]
        fits = 2 + (0 if self.method in ("batch", "frozen") else len(dict.fromkeys(self._parts())))
        n_labels = self._n_labels(data.n_outputs)
        if "model" in config:
            model = meta_model(config, replace(data, n_outputs=n_labels))
            return Requirements(
                n_train,
                fits * full_batch_steps(config["trainer"]),
                count_parameters(model),
                step_vectors(config["posterior"]),
            )
        C = 1 if n_labels == 2 else n_labels
        P = self._features(data.input_shape, max(self.degree, self._later_degree()))
        held = 2 * ((2 * C * P if self.solver == "newton" else 60) + 2 * n_train / C)  # float64
        return Requirements(n_train, fits, C * P, StepVectors(0.0, round(held, 1)))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Adapt on a few random items: two steps of each training, or an inexact fit."""
        del memory
        config = copy.deepcopy(plan.config)
        config["trainer"]["accelerator"] = "cpu"
        data = random_like(config["data"], seed=config["seed"], n_items=_DRY_ITEMS)
        old, new = self._learners(config, data, None, StopRequest(), lambda trainer: _DRY_STEPS)
        for learner in (old, new):
            if isinstance(learner, LinearLearner):
                learner.rehearsal = True
        final, metrics, _ = self._adapt(config, data, old, new, StopRequest())
        values = [metrics["batch/nll@mean"], float(flatten(final.weights).norm())]
        if not all(math.isfinite(value) for value in values):
            raise NonFiniteLoss("the weights or the NLL after a rehearsal are not finite")
        return [f"items {plan.n_train} -> {len(data.train)}"]
