"""task=merging: train (or load) the models, merge them by one rule over scaling factors, evaluate.

Metrics of factor a on test set s: ``alpha<a>/<s>/nll@mean`` (one set: ``alpha<a>/nll@mean``), and
their mean over sets, ``alpha<a>/nll@mean``. ``tuned/...`` is the factor with the least NLL on
validation items (on the tests where there are none), ``spread/acc`` the best accuracy over the
factors less that at the last.
``base/...``, ``joint/...``, ``without/...`` and ``models/...`` are the models that are merged and
compared with. ``test/...`` is the tuned model on the base data's test items, as in any other task:
for the Bayesian rule under its own posterior, N(m, Hbar^-1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bayesrule.config import Config
from bayesrule.data import DataBundle, Split, planned_sizes
from bayesrule.data.catalogue import complete
from bayesrule.errors import ConfigError
from bayesrule.merging import METHODS, MergeOptions, merge
from bayesrule.models import count_parameters
from bayesrule.posteriors import (
    DiagonalGaussian,
    Params,
    PointMass,
    Posterior,
    eval_mode,
    forward_log_probs,
    save_posterior,
)
from bayesrule.tasks.evaluate import Evaluation, add_classification, evaluate
from bayesrule.tasks.inference import Single, make_inference
from bayesrule.tasks.merging.parts import Parts, make_parts
from bayesrule.tasks.merging.training import Ingredients, ingredients, planned_phases, total_steps
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.task import Context, Outcome, Task

if TYPE_CHECKING:
    from bayesrule.tasks.plan import ArmPlan

__all__ = ["Merged", "Merging", "distance", "log_probs"]

_OF_DATA = ("max_length", "train_size", "test_size", "val_fraction", "split_seed", "image_size")
_SCORES = ("nll", "acc", "ece", "brier")
_OF_MODELS = ("nll", "acc")


@dataclass(frozen=True)
class Merged:
    """One merged model.

    Attributes:
        alpha: The scaling factor.
        params: Its parameters.
        precision: Hbar, where the rule has a posterior.
        report: What the rule reports.
    """

    alpha: float
    params: Params
    precision: Params | None
    report: dict[str, Any]

    def posterior(self) -> Posterior:
        """Return N(m, Hbar^-1), or the point m."""
        if self.precision is None:
            return PointMass(self.params)
        return DiagonalGaussian(self.params, self.precision)


@dataclass
class Merging(Task):
    """Merges fine-tuned models into one, or removes a task from one.

    Attributes:
        parts: What the models learn, see `parts`.
        base_size: Training rows of the base model (class_groups, mislabelled).
        group_size: Classes of a task (class_groups).
        sets: Data sets of the tasks (data_sets).
        set_sizes: Their training rows; empty: as ``data.train_size``.
        bad_class: Class of the rows that carry a wrong label (mislabelled).
        bad_label: That label.
        bad_size: Number of those rows.
        base_prior: Precision delta of the base model's prior, of the summed loss.
        anchor: Whether tasks are fitted beside 1/2 ||theta - theta_0||^2_{H_0}.
        curvature: Kind of H_t, see `bayesrule.merging.curvature_file`.
        curvature_items: Items that it is computed from; None: all.
        alphas: Scaling factors; the last is the one that ``spread`` looks at.
        joint: Whether models of all tasks together are trained, and which.
        base: Training of the base model; None for what is as for the tasks.
        joint_training: Training on tasks together, likewise.
        base_from: A run, folder or hub id that the base model comes from; None: it is trained.
        models_from: The same for the tasks' models, one each; empty: they are trained.
    """

    parts: str
    base_size: int
    group_size: int
    sets: list[str]
    set_sizes: list[int]
    bad_class: int
    bad_label: int
    bad_size: int
    base_prior: float
    anchor: bool
    curvature: str
    curvature_items: int | None
    alphas: list[float]
    joint: str
    base: dict[str, Any]
    joint_training: dict[str, Any]
    base_from: str | None = None
    models_from: list[str] = field(default_factory=list)

    def check(self, config: Config) -> None:
        """Refuse what cannot be merged, before anything is trained.

        Raises:
            ConfigError: Naming it.
        """
        if not isinstance(make_inference(config["posterior"]), Single):
            name = str(config["posterior"]["_target_"]).rpartition(".")[2]
            raise ConfigError(
                f"task=merging trains each model by one optimiser, and {name} builds on other "
                "trainings: choose posterior=adamw, sgd, ivon, vogn or another optimiser"
            )
        if config["model"].get("tune") == "lora":
            raise ConfigError(
                "model.tune=lora: adapters are merged in their product, not their factors; train "
                "them with task=lora and merge the folders by `bayesrule merge`"
            )
        if config["task"]["parts"] == "data_sets" and not config["task"]["sets"]:
            raise ConfigError("task.sets: name the data sets of the tasks, such as [sst2,imdb]")
        if len(config["task"]["set_sizes"]) not in (0, len(config["task"]["sets"])):
            raise ConfigError("task.set_sizes: give one number of rows for each of task.sets")
        if config["task"]["models_from"] and not config["task"]["base_from"]:
            raise ConfigError("task.models_from: say in task.base_from which model they come from")
        if config["task"]["base_from"] and config["task"]["curvature"] == "posterior":
            raise ConfigError(
                "task.curvature=posterior is what an optimiser learnt in this run; with "
                "task.base_from choose ggn, sampled or observed"
            )
        if config["trainer"]["devices"] * config["trainer"]["nodes"] > 1:
            raise ConfigError("task=merging runs in one process: set trainer.devices=1")

    # ------------------------------------------------------------------ run

    def run(self, context: Context) -> Outcome:
        """Train what is not in the cache, merge, evaluate, save the tuned model."""
        self.check(context.config)
        problem = Problem.from_context(context)

        def load(name: str) -> DataBundle:
            config = {**context.config, "data": self.other_data(context.config, name)}
            return Problem.from_context(replace(context, config=config)).data

        parts = make_parts(context.config["task"], problem.data, load)
        if (given := len(self.models_from)) not in (0, len(parts.tasks)):
            raise ConfigError(f"task.models_from: {given} models for {len(parts.tasks)} tasks")
        method = METHODS[context.config["merge"]["method"]]
        made = ingredients(problem, parts, grams=method.curvature == "gram")
        outcome = self.evaluate(problem, parts, made)
        outcome.details |= {
            "data": problem.data.describe(),
            "parts": parts.describe(),
            "parameters": count_parameters(problem.model(), trainable_only=True),
            "steps": self._steps(context.config, parts),
        }
        return outcome

    def other_data(self, config: Config, name: str) -> dict[str, Any]:
        """Return the data options of another set: its own, with the sizes of ``data=``."""
        own = complete({"name": name})
        given = {k: v for k, v in config["data"].items() if k in _OF_DATA and k in own}
        given = {k: v for k, v in given.items() if v is not None}
        if self.set_sizes:
            given["train_size"] = self.set_sizes[self.sets.index(name)]
        return {**own, **given}

    def _steps(self, config: Config, parts: Parts) -> int:
        without = None if parts.without is None else len(parts.without.train)
        tasks = [len(part.train) for part in parts.tasks]
        return total_steps(
            config, planned_phases(config["task"], len(parts.base.train), tasks, without)
        )

    # ------------------------------------------------------------------ evaluation

    def merged(self, config: Config, made: Ingredients, alpha: float, *, sign: int = 1) -> Merged:
        """Return the model of one scaling factor.

        Args:
            config: Its ``merge`` group says the rule.
            made: What is merged.
            alpha: The factor, common to all models.
            sign: -1 for removal.
        """
        options = dict(config["merge"])
        name = options.pop("method")
        method = METHODS[name]
        if name == "dare":
            options["seed"] = config["seed"]
        scaled = [sign * alpha] * len(made.models) if method.scaled else None
        grams = method.curvature == "gram"
        curvatures = made.grams if grams else made.curvatures
        params, precision, report = merge(
            name,
            made.models,
            base=made.base if method.base or name == "fisher" else None,
            curvatures=curvatures if method.curvature != "none" else (),
            base_curvature=made.base_curvature if method.base_curvature else None,
            options=MergeOptions(alphas=scaled, **options),
        )
        return Merged(alpha, params, precision, report)

    def evaluate(self, problem: Problem, parts: Parts, made: Ingredients) -> Outcome:
        """Return the metrics of all factors and of the models that are compared with."""
        config, sign = problem.config, -1 if parts.removal else 1
        method = METHODS[config["merge"]["method"]]
        model = problem.model()
        out = Evaluation()
        out.metrics |= self._reference_scores(problem, model, parts, made)
        best: tuple[float, Merged] | None = None
        for alpha in self.alphas if method.scaled else [1.0]:
            one = self.merged(config, made, alpha, sign=sign)
            name = f"alpha{alpha:g}" if method.scaled else "tuned"
            self.score(problem, model, one.params, name, parts.tests, out)
            if made.without is not None:
                out.metrics[f"{name}/distance"] = distance(one.params, made.without)
            if "floored" in one.report:
                out.metrics[f"{name}/floored"] = float(one.report["floored"])
            val = self._val_nll(problem, model, one.params, parts)
            if best is None or val < best[0]:
                best = val, one
        assert best is not None
        self._tuned(out, best, scaled=method.scaled)
        return self._finish(problem, model, best[1], out)

    def _reference_scores(
        self, problem: Problem, model: nn.Module, parts: Parts, made: Ingredients
    ) -> dict[str, float]:
        """Return the metrics of the models that others are compared with, computed once."""
        if not made.scores:
            out = Evaluation()
            for name, params in self.references(parts, made).items():
                self.score(problem, model, params, name, parts.tests, out)
            made.scores = out.metrics
            made.save()
        return made.scores

    def references(self, parts: Parts, made: Ingredients) -> dict[str, Params]:
        """Return the models that merged ones are compared with, by name."""
        found = {"base": made.base}
        found |= {f"models/{part.name}": m for part, m in zip(parts.tasks, made.models)}
        if made.joint:
            found["joint"] = made.joint[max(made.joint)]
        if made.without is not None:
            found["without"] = made.without
        return found

    def score(
        self,
        problem: Problem,
        model: nn.Module,
        params: Params,
        name: str,
        tests: Mapping[str, Split],
        out: Evaluation,
    ) -> None:
        """Add the metrics of one model on all tests, and their means, to `out`."""
        cfg = problem.config["metrics"]
        means: dict[str, list[float]] = {}
        for test, split in tests.items():
            found = Evaluation()
            add_classification(
                found,
                test,
                "mean",
                log_probs(problem, model, params, split),
                split.targets,
                n_outputs=problem.data.n_outputs,
                cfg=cfg,
                full=False,
            )
            for score in _OF_MODELS if name.startswith("models/") else _SCORES:
                value = found.metrics[f"{test}/{score}@mean"]
                means.setdefault(score, []).append(value)
                if len(tests) > 1:
                    out.metrics[f"{name}/{test}/{score}@mean"] = value
        for score, values in means.items():
            out.metrics[f"{name}/{score}@mean"] = sum(values) / len(values)

    def _val_nll(self, problem: Problem, model: nn.Module, params: Params, parts: Parts) -> float:
        """Return the mean NLL over validation sets; that of the tests where there are none."""
        found = []
        for split in (parts.vals or parts.tests).values():
            logs = log_probs(problem, model, params, split)
            found.append(float(problem.likelihood.nll(logs, split.targets).mean()))
        return sum(found) / len(found)

    def _tuned(self, out: Evaluation, best: tuple[float, Merged], *, scaled: bool) -> None:
        if not scaled:
            return
        chosen, last = f"alpha{best[1].alpha:g}/", f"alpha{self.alphas[-1]:g}/"
        for name, value in list(out.metrics.items()):
            if name.startswith(chosen):
                out.metrics["tuned/" + name.removeprefix(chosen)] = value
        out.metrics["tuned/alpha"] = best[1].alpha
        accuracies = [out.metrics[f"alpha{a:g}/acc@mean"] for a in self.alphas]
        out.metrics["spread/acc"] = max(accuracies) - out.metrics[f"{last}acc@mean"]

    def _finish(self, problem: Problem, model: nn.Module, best: Merged, out: Evaluation) -> Outcome:
        """Evaluate and save the tuned model as the run's posterior."""
        q = best.posterior()
        model.load_state_dict(best.params, strict=False)
        if problem.writer:
            save_posterior(q, problem.folder.path)
        found = evaluate(problem, Learnt(model, q))
        out.metrics |= found.metrics
        return Outcome(out.metrics, {"curves": found.curves, "merge": best.report})

    # ------------------------------------------------------------------ beside the run

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Any:
        """Return the sizes of a run: steps of all phases, and a vector a model and curvature."""
        self.check(config)
        found = super().requirements(config, counted)
        options, n = config["task"], found.n_train
        base, without = options["base_size"], None
        if options["parts"] == "class_groups":
            count = -(-config["data"]["n_outputs"] // options["group_size"])
            tasks = [max(1, (n - base) // count)] * count
        elif options["parts"] == "mislabelled":
            tasks, without = [options["bad_size"]], base
            base += options["bad_size"]
        else:
            base, names = n, options["sets"]
            tasks = [planned_sizes(self.other_data(config, name))["train"] for name in names]
        steps = total_steps(config, planned_phases(options, base, tasks, without))
        return replace(found, steps=steps, kept=found.kept + 2 * (len(tasks) + 1))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Take a step of every training on random data, merge, and predict once."""
        from bayesrule.tasks.merging.dry import dry_merging

        return dry_merging(self, plan, memory)


def log_probs(problem: Problem, model: nn.Module, params: Params, split: Split) -> Tensor:
    """Return the log-probabilities (N, K) of a model with other parameters."""
    with torch.no_grad(), eval_mode(model):
        found = [
            forward_log_probs(model, params, batch["input"], problem.likelihood)  # type: ignore[arg-type]
            for batch in problem.batches(split)
        ]
    return torch.cat(found)


def distance(left: Params, right: Params) -> float:
    """Return the Euclidean distance of two models."""
    return float(sum((left[n] - right[n]).double().square().sum() for n in left)) ** 0.5
