"""What a paper's runs would need, from its configurations and declared numbers alone.

Every run is composed and every model built on the meta device, so a plan proves that nothing in a
paper is misspelt or of a wrong shape; `bayesrule.tasks.dry_run` goes further and takes steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bayesrule.config import Config
from bayesrule.errors import ConfigError
from bayesrule.runs import Paper, PlannedRun
from bayesrule.tasks.availability import Availability, resources
from bayesrule.tasks.schedule import processes
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.study import configurations
from bayesrule.tasks.task import make_task

__all__ = ["ArmPlan", "needed", "plan_arm", "plan_paper", "select"]


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
        parameters: P, the number of parameters that are learnt.
        vectors: Vectors of P numbers that a training step takes.
        kept: Further vectors that the posterior's method keeps meanwhile.
        itemsize: Bytes of a number.
        shards: Processes that share one copy of all this (1 unless sharded).
        frozen: Parameters beside them that stay as they are.
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
    frozen: int = 0

    @property
    def memory(self) -> float:
        """Bytes per device: parameters, gradients, state, what a step holds, what is kept."""
        numbers = self.parameters * (self.vectors.total + self.kept) + self.frozen
        return numbers * self.itemsize / self.shards

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
    world = processes(trainer)
    found = make_task(config).requirements(config, counted)
    return ArmPlan(
        study=study,
        arm=arm,
        runs=len(configs),
        config=config,
        n_train=found.n_train,
        steps=found.steps,
        parameters=found.parameters,
        vectors=found.vectors,
        kept=found.kept,
        itemsize=8 if trainer["precision"] == "64-true" else 4,
        shards=world if trainer["strategy"] == "fsdp" else 1,
        frozen=found.frozen,
    )


def needed(arms: Sequence[ArmPlan]) -> dict[str, Availability]:
    """Return, by name, whether each data set or environment of the arms is on this machine."""
    found: dict[str, Availability] = {}
    for plan in arms:
        found |= resources(plan.config, found)
    return found
