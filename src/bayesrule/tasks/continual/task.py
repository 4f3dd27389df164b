"""task=continual: a configuration becomes a stream, a correction and a learner, and metrics."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from bayesrule.config import Config
from bayesrule.data import DataBundle, Split, Stream, planned_sizes, random_like
from bayesrule.data.scenarios import make_scenario
from bayesrule.data.views import View
from bayesrule.errors import ConfigError, NonFiniteLoss, Unsupported
from bayesrule.models import build_model, count_parameters
from bayesrule.posteriors import Posterior, save_posterior
from bayesrule.runs import RunFolder, canonical_json
from bayesrule.tasks.continual.loop import StreamLearner, base_of, make_correction
from bayesrule.tasks.continual.scores import Scores
from bayesrule.tasks.dry_run import DryProblem, dry_config
from bayesrule.tasks.evaluate import Evaluation
from bayesrule.tasks.history import History
from bayesrule.tasks.inference import make_inference
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.problem import Learnt, Problem, make_likelihood
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.schedule import planned_steps
from bayesrule.tasks.signals import StopRequest
from bayesrule.tasks.step_memory import step_vectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["ContinualLearning"]

DRY_TASKS = 2


class ContinualLearning(Task):
    """Learns the experiences of ``scenario=`` in turn, with what ``correction=`` carries over.

    Args:
        optimizer_state: ``fresh``: a new optimiser per experience; ``kept``: its state goes on.
        own_statistics: Whether each task keeps its batch-normalisation statistics.
        pictures: Stored images of each memory that the record keeps.
    """

    def __init__(
        self,
        *,
        optimizer_state: Literal["fresh", "kept"],
        own_statistics: bool,
        pictures: int = 0,
    ) -> None:
        self.optimizer_state, self.own_statistics = optimizer_state, own_statistics
        self.pictures = pictures

    def check(self, config: Config) -> None:
        """Refuse options that mean nothing here, before anything starts.

        Raises:
            ConfigError: Naming the first of them.
        """
        base_of(config["posterior"])
        trainer, metrics, data = config["trainer"], config["metrics"], config["data"]
        refused = {
            "data.kind": data["kind"] != "classification"
            and "task=continual makes tasks of classes: choose a classification set",
            "data.ood": data.get("ood")
            and "task=continual does not score out-of-distribution companions: leave it empty",
            "trainer.devices": trainer["devices"] * trainer["nodes"] > 1
            and "the past is kept by one process: use one device",
            "trainer.epochs": config["scenario"]["online"] is not None
            and trainer["epochs"] > 1
            and "scenario.online shows every item once: use trainer.epochs=1",
            "callbacks.patience": config["callbacks"]["patience"] is not None
            and "task=continual does not stop early: leave it null",
            **{
                f"metrics.{name}": metrics[name] and f"task=continual has no {what}: leave it false"
                for name, what in {
                    "curvature": "one training set to compare curvatures on",
                    "train_split": "one training split",
                    "own_norms": "training data of the past (task.own_statistics keeps statistics)",
                }.items()
            },
        }
        for key, reason in refused.items():
            if reason:
                group, _, name = key.partition(".")
                raise ConfigError(f"{key}={config[group][name]}: {reason}")

    # ---------------------------------------------------------------------- plan

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the sizes of a run: steps over all experiences, one network for all heads."""
        self.check(config)
        counted = {} if counted is None else counted
        inference, _ = base_of(config["posterior"])
        correction = make_correction(config["correction"])
        data = random_like(config["data"], n_items=2)
        n_train = planned_sizes(config["data"])["train"]
        sizes = make_scenario(config["scenario"]).sizes(data.n_outputs, n_train)
        key = canonical_json([config["model"], list(data.input_shape), sizes.n_outputs])
        if key not in counted:
            model = build_model(
                config["model"],
                input_shape=data.input_shape,
                n_outputs=sizes.n_outputs,
                seed=config["seed"],
                device="meta",
            )
            counted[key] = count_parameters(model)
        items = [correction.n_train(sizes.n_train, t) for t in range(len(sizes.n_train))]
        return Requirements(
            n_train=max(items),
            steps=sum(planned_steps(config["trainer"], n) for n in items),
            parameters=counted[key],
            vectors=step_vectors(inference.options),
            kept=inference.vectors + correction.vectors,
        )

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Take one step of the first two experiences on random data, absorb and predict.

        Raises:
            NonFiniteLoss: If a loss, a parameter or a score is not finite.
        """
        config, notes = dry_config(plan, memory)
        data = _random_classes(config)
        stream = make_scenario(config["scenario"]).stream(data, seed=config["seed"])
        short = replace(stream, experiences=stream.experiences[:DRY_TASKS])
        if len(short) < len(stream):
            notes.append(f"experiences {len(stream)} -> {len(short)}")
        last = replace(short.experiences[-1], last=True)
        short = replace(short, experiences=(*short.experiences[:-1], last))
        with DryProblem.temporary(plan, config, data) as problem:
            learner = self._learner(problem, short)
            learner.check()
            learner.run()
        finite = learner.scores.summary()
        if not any(name.startswith("test/nll@") for name in finite):
            raise NonFiniteLoss("the predictions after two experiences are not finite")
        return notes

    # ----------------------------------------------------------------------- run

    def run(self, context: Context) -> Outcome:
        """Learn the stream, save what predicts at its end, sum up the scores."""
        self.check(context.config)
        problem = Problem.from_context(context)
        stream = make_scenario(context.config["scenario"]).stream(
            problem.data, seed=context.config["seed"]
        )
        learner = self._learner(problem, stream)
        learner.check()
        learner.run()
        save_posterior(learner.final(), context.folder.path)
        details = {
            "data": problem.data.describe(),
            "stream": stream.describe(),
            "parameters": count_parameters(learner.model),
            "steps": learner.steps,
            "continual": {**learner.scores.details(), **self._pictures(learner)},
        }
        return Outcome(learner.scores.summary(), details)

    def _pictures(self, learner: StreamLearner) -> dict[str, Any]:
        """Return some stored images of each memory as bytes, black to white over each memory."""
        if not self.pictures or len(learner.stream.input_shape) != 3:
            return {}
        found = []
        for memory in learner.correction.stored():
            x = memory.input[: self.pictures].float().cpu()
            low, high = x.amin(), x.amax()
            pixels = ((x - low) / (high - low).clamp_min(1e-12) * 255.0).round().to(torch.uint8)
            found.append(
                {
                    "pixels": base64.b64encode(pixels.numpy().tobytes()).decode(),
                    "shape": list(pixels.shape[1:]),
                    "targets": memory.target[: self.pictures].tolist(),
                    "columns": list(memory.columns),
                }
            )
        return {"pictures": found}

    def _learner(self, problem: Problem, stream: Stream) -> StreamLearner:
        return StreamLearner(
            problem,
            stream,
            make_correction(problem.config["correction"]),
            keep_state=self.optimizer_state == "kept",
            own_statistics=self.own_statistics,
        )

    def evaluate_stored(
        self,
        config: Config,
        folder: RunFolder,
        data: DataBundle,
        posterior: Posterior,
        trained_on: Mapping[str, Any],
    ) -> Evaluation:
        """Return the scores of a finished run's posterior on every task of a stream of `data`.

        Raises:
            Unsupported: If tasks are predicted by posteriors or statistics of their own, of which
                the run's folder has the last alone.
        """
        if make_correction(config["correction"]).alone or self.own_statistics:
            what = "statistics" if self.own_statistics else "posterior"
            raise Unsupported(
                f"each task of run {folder.id} was predicted with a {what} of its own, and the "
                "last alone is stored; `bayesrule runs show` has the metrics of all"
            )
        stream = make_scenario(config["scenario"]).stream(data, seed=config["seed"])
        problem = Problem(
            config, folder, data, make_likelihood(data, 1.0), History(None), StopRequest()
        )
        model = build_model(
            config["model"],
            input_shape=trained_on["input_shape"],
            n_outputs=stream.n_outputs,
            seed=config["seed"],
        )
        network = make_inference(config["posterior"]).network(model)
        if config["trainer"]["precision"] == "64-true":
            network.double()
        network.load_state_dict(posterior.mean_state(), strict=False)
        return Scores(stream).evaluation(problem, Learnt(network, posterior))


def _random_classes(config: Config) -> DataBundle:
    """Return random inputs with as many items of every class as a dry run's batches need."""
    n_classes = int(config["data"]["n_outputs"])
    n_items = config["trainer"]["batch_size"] * max(4, n_classes)
    data = random_like(config["data"], seed=config["seed"], n_items=n_items)

    def balanced(split: Split) -> Split:
        return View(split, torch.arange(len(split)) % n_classes)

    return replace(
        data,
        train=balanced(data.train),
        val=None if data.val is None else balanced(data.val),
        test=balanced(data.test),
    )
