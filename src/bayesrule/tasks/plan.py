"""What a paper's runs would need, from its configurations and declared numbers alone.

Every run is composed and every model built on the meta device, so a plan proves that nothing in a
paper is misspelt or of a wrong shape; `bayesrule.tasks.dry_run` goes further and takes steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bayesrule.config import Config
from bayesrule.data import DataBundle, complete, planned_sizes, random_like
from bayesrule.errors import ConfigError
from bayesrule.models import build_model, count_parameters
from bayesrule.runs import Paper, PlannedRun, canonical_json
from bayesrule.tasks.availability import Availability, availability
from bayesrule.tasks.inference import make_inference
from bayesrule.tasks.schedule import processes
from bayesrule.tasks.step_memory import StepVectors, step_vectors
from bayesrule.tasks.study import configurations
from bayesrule.tasks.task import make_task

__all__ = ["ArmPlan", "data_sets", "plan_arm", "plan_paper", "select"]


@dataclass(frozen=True)
class ArmPlan:
    """What the runs of one arm of a study need.

    Attributes:
        study: The study.
        arm: The arm.
        runs: Number of runs (seeds).
        config: The configuration of the first of them.
        n_train: Training items.
        steps: Optimiser steps of one run.
        parameters: P, the number of parameters.
        vectors: Vectors of P numbers that a training step takes.
        kept: Further vectors that the posterior's method keeps meanwhile.
        itemsize: Bytes of a number.
        shards: Processes that share one copy of all this (1 unless sharded).
    """

    study: str
    arm: str
    runs: int
    config: Config
    n_train: int
    steps: int
    parameters: int
    vectors: StepVectors
    kept: int
    itemsize: int
    shards: int

    @property
    def memory(self) -> float:
        """Bytes per device: parameters, gradients, state, what a step holds, what is kept."""
        numbers = self.parameters * (self.vectors.total + self.kept)
        return numbers * self.itemsize / self.shards

    @property
    def data(self) -> list[str]:
        """Names of the data sets, companions included."""
        cfg = self.config["data"]
        return [cfg["name"], *cfg.get("ood", [])]

    @property
    def place(self) -> str:
        """Processes, accelerator, strategy and precision in words."""
        cfg = self.config["trainer"]
        count = cfg["devices"] * cfg["nodes"]
        strategy = [] if cfg["strategy"] == "auto" else [cfg["strategy"]]
        return ", ".join([f"{count} x {cfg['accelerator']}", *strategy, cfg["precision"]])


def select(paper: Paper, scale: str, studies: Sequence[str] | None = None) -> list[PlannedRun]:
    """Return the runs of a scale, of some studies only if asked.

    Raises:
        ConfigError: If there is no such study, or nothing is run at that scale.
    """
    unknown = [name for name in studies or () if name not in paper.studies]
    if unknown:
        raise ConfigError(
            f"{paper.key} has no study {unknown[0]!r} (one of: {', '.join(paper.studies)})"
        )
    planned = [run for run in paper.planned(scale) if not studies or run.study in studies]
    if not planned:
        raise ConfigError(f"{', '.join(studies or ())} of {paper.key} is not run at scale {scale}")
    return planned


def plan_paper(
    paper: Paper,
    scale: str,
    studies: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> list[ArmPlan]:
    """Plan all runs of a paper at one scale, one entry per study and arm.

    Args:
        paper: The paper.
        scale: ``smoke``, ``cpu`` or ``paper``.
        studies: Only these.
        overrides: Further overrides of every run.

    Raises:
        ConfigError: If an arm does not compose, or a model does not fit its data; the message names
            study and arm.
    """
    planned = select(paper, scale, studies)
    configs = configurations(paper, planned, overrides)
    grouped: dict[tuple[str, str], list[Config]] = {}
    for run, config in zip(planned, configs, strict=True):
        grouped.setdefault((run.study, run.arm), []).append(config)
    counted: dict[str, int] = {}
    arms = []
    for (study, arm), members in grouped.items():
        try:
            arms.append(plan_arm(study, arm, members, counted))
        except ConfigError as error:
            raise ConfigError(f"{paper.key}/{study}, arm {arm}: {error}") from error
    return arms


def plan_arm(
    study: str, arm: str, configs: Sequence[Config], counted: dict[str, int] | None = None
) -> ArmPlan:
    """Plan the runs of one arm, which differ in the seed only.

    Args:
        study: The study's name.
        arm: The arm's name.
        configs: Their configurations.
        counted: Parameter counts of models that were built before; filled here.

    Raises:
        ConfigError: If the model does not fit the data, the batch the processes, or the posterior's
            parts each other.
    """
    config = configs[0]
    trainer = config["trainer"]
    inference = make_inference(config["posterior"])
    world = processes(trainer)
    data = random_like(config["data"], n_items=2)
    n_train = planned_sizes(config["data"])["train"]
    counted = {} if counted is None else counted
    parts = [config["model"], list(data.input_shape), data.n_outputs]
    key = canonical_json(parts)
    if key not in counted:
        counted[key] = count_parameters(meta_model(config, data))
    vectors = [step_vectors(options) for options in inference.optimizers()]
    return ArmPlan(
        study=study,
        arm=arm,
        runs=len(configs),
        config=config,
        n_train=n_train,
        steps=make_task(config).planned_steps(trainer, n_train, inference.trainings),
        parameters=counted[key],
        vectors=max(vectors, key=lambda each: each.total),
        kept=inference.vectors,
        itemsize=8 if trainer["precision"] == "64-true" else 4,
        shards=world if trainer["strategy"] == "fsdp" else 1,
    )


def meta_model(config: Config, data: DataBundle) -> nn.Module:
    """Build the configuration's model without memory."""
    return build_model(
        config["model"],
        input_shape=data.input_shape,
        n_outputs=data.n_outputs,
        seed=config["seed"],
        device="meta",
    )


def data_sets(arms: Sequence[ArmPlan]) -> dict[str, Availability]:
    """Return, by name, whether each data set that the arms need is on this machine."""
    options: dict[str, dict[str, Any]] = {}
    for plan in arms:
        own, *companions = plan.data
        options.setdefault(own, complete(plan.config["data"]))
        for name in companions:
            options.setdefault(name, complete({"name": name}))
    return {name: availability(cfg) for name, cfg in options.items()}
