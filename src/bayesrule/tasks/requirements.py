"""What one run needs, from its configuration and declared numbers alone.

A task answers for itself (`Task.requirements`); what is here is the answer of every task that
learns a network from a data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from bayesrule.config import Config
from bayesrule.data import DataBundle, planned_sizes, random_like
from bayesrule.models import build_model, count_parameters
from bayesrule.runs import canonical_json
from bayesrule.tasks.inference import make_inference
from bayesrule.tasks.step_memory import StepVectors, step_vectors

if TYPE_CHECKING:
    from bayesrule.tasks.task import Task

__all__ = ["Requirements", "meta_model", "requirements_of_learning"]


@dataclass(frozen=True)
class Requirements:
    """Sizes of one run.

    Attributes:
        n_train: Training items; 0 where nothing is learnt from data.
        steps: Steps of the run.
        parameters: P, the number of parameters that are learnt.
        frozen: Parameters beside them that stay as they are.
        vectors: Vectors of P numbers that a training step takes.
        kept: Further vectors that the posterior's method keeps meanwhile.
    """

    n_train: int
    steps: int
    parameters: int
    vectors: StepVectors
    kept: int = 0
    frozen: int = 0


def requirements_of_learning(
    task: Task, config: Config, counted: dict[str, int] | None = None
) -> Requirements:
    """Return the sizes of a run that learns from ``config["data"]``.

    Args:
        task: Gives the number of steps (`Task.planned_steps`).
        config: The configuration.
        counted: Parameter counts of models that were built before; filled here.

    Raises:
        ConfigError: If the model does not fit the data, or the posterior's parts each other.
    """
    inference = make_inference(config["posterior"])
    data = random_like(config["data"], n_items=2)
    n_train = planned_sizes(config["data"])["train"]
    counted = {} if counted is None else counted
    key = canonical_json([config["model"], list(data.input_shape), data.n_outputs])
    if key not in counted:
        model = meta_model(config, data)
        counted[key] = count_parameters(model, trainable_only=True)
        counted[f"{key} frozen"] = count_parameters(model) - counted[key]
    vectors = [step_vectors(options) for options in inference.optimizers()]
    return Requirements(
        n_train=n_train,
        steps=task.planned_steps(config["trainer"], n_train, inference.trainings),
        parameters=counted[key],
        vectors=max(vectors, key=lambda each: each.total),
        kept=inference.vectors,
        frozen=counted[f"{key} frozen"],
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
