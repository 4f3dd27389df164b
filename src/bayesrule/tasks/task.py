"""What a task is: an outer loop that turns a configuration into metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bayesrule.config import Config, accepted, locate, root_dir
from bayesrule.runs import RunFolder
from bayesrule.tasks.history import History
from bayesrule.tasks.schedule import planned_steps
from bayesrule.tasks.signals import StopRequest

if TYPE_CHECKING:
    from bayesrule.data import DataBundle
    from bayesrule.posteriors import Posterior
    from bayesrule.tasks.evaluate import Evaluation
    from bayesrule.tasks.plan import ArmPlan
    from bayesrule.tasks.requirements import Requirements

__all__ = ["Context", "Outcome", "Task", "make_task"]


@dataclass
class Context:
    """What a task is given.

    Attributes:
        config: The run's configuration.
        folder: The run's folder; the task may leave files in it.
        history: Where rows of the history go.
        stop: The request to stop, by a signal.
        writer: Whether this process writes files (rank 0).
    """

    config: Config
    folder: RunFolder
    history: History
    stop: StopRequest
    writer: bool = True


@dataclass
class Outcome:
    """What a task gives back.

    Attributes:
        metrics: Summary metrics by name, ``<split>/<metric>@<rule>``.
        details: Further plain data for the record: data description, parameter count, curves.
    """

    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """An outer loop: what is done with q.

    A task that does not learn a network from ``config["data"]`` says itself what it needs
    (`requirements`) and how one step of it is tried (`dry_run`).
    """

    @abstractmethod
    def run(self, context: Context) -> Outcome:
        """Do the work, from the last checkpoint if there is one."""

    def check(self, config: Config) -> None:
        """Refuse options of other groups that have no meaning here, before anything is started.

        Raises:
            ConfigError: Naming the first one, and what there is instead.
        """
        del config

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return what one run needs, from declared numbers alone; nothing is loaded.

        Args:
            config: The run's configuration.
            counted: Parameter counts of models that were built before; may be filled.

        Raises:
            ConfigError: If the parts of the configuration do not fit each other.
        """
        from bayesrule.tasks.requirements import requirements_of_learning

        return requirements_of_learning(self, config, counted)

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Take one real step of an arm on random data and predict once.

        Args:
            plan: The arm; its sizes are those of `requirements`.
            memory: Bytes that may be used.

        Returns:
            What was made smaller, a line each.

        Raises:
            BayesruleError: If the step fails.
        """
        from bayesrule.tasks.dry_run import dry_learning

        return dry_learning(plan, memory)

    def evaluate_stored(
        self,
        config: Config,
        folder: RunFolder,
        data: DataBundle,
        posterior: Posterior,
        trained_on: Mapping[str, Any],
    ) -> Evaluation:
        """Return the metrics of a finished run's posterior on data of the kind that it learnt from.

        Args:
            config: The run's configuration; data and metrics may have changed.
            folder: The run's folder; nothing is written.
            data: The data to evaluate on, of the same input shape and outputs.
            posterior: What the run left.
            trained_on: The record's description of the training data.
        """
        from bayesrule.tasks.reevaluate import evaluate_network

        return evaluate_network(config, folder, data, posterior, trained_on)

    def planned_steps(self, trainer: Mapping[str, Any], n_train: int, trainings: int) -> int:
        """Return the optimiser steps of one run, from declared numbers alone.

        Args:
            trainer: The trainer's options.
            n_train: Number of training items.
            trainings: Trainings that the posterior takes (see `bayesrule.tasks.inference`).
        """
        return trainings * planned_steps(trainer, n_train)


def make_task(config: Config) -> Task:
    """Return the task of a configuration."""
    options = config["task"]
    target = locate(options["_target_"], "task._target_", root_dir())
    return target(**accepted(target, options))
