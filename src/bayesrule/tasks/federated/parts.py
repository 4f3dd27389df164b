"""From a configuration to the parts of a federated run: algorithm, prior, partition, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesrule.config import accepted, locate
from bayesrule.data import DataBundle, Split
from bayesrule.data import partitions as schemes
from bayesrule.errors import ConfigError
from bayesrule.federated import Algorithm, FedLapFunc
from bayesrule.posteriors import DiagonalGaussian, IsotropicGaussian, NaturalGaussian
from bayesrule.posteriors.linear import forward_outputs
from bayesrule.posteriors.params import Params
from bayesrule.seeding import child_seed, numpy_generator
from bayesrule.tasks.problem import as_doubles

__all__ = [
    "make_algorithm",
    "make_memory",
    "make_prior",
    "partition_of",
    "weights_of",
    "with_memory",
]


def weights_of(model: nn.Module) -> Params:
    """Return a copy of the weights that are learnt, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def make_algorithm(options: Mapping[str, Any]) -> Algorithm:
    """Return the algorithm that ``federated=`` names, without what depends on data or network."""
    target: Any = locate(options["_target_"], "federated._target_")
    made: Algorithm = target(**accepted(target, dict(options)))
    return made


def make_prior(model: nn.Module, options: Mapping[str, Any]) -> NaturalGaussian:
    """Return p_0 = N(0, I/delta) in the family of the algorithm's messages."""
    zero = {name: torch.zeros_like(w) for name, w in weights_of(model).items()}
    delta = float(options["prior_prec"])
    if options["family"] == "isotropic":
        return IsotropicGaussian(zero, delta)
    return DiagonalGaussian(zero, {n: torch.full_like(t, delta) for n, t in zero.items()})


def partition_of(data: DataBundle, options: Mapping[str, Any], *, seed: int) -> list[np.ndarray]:
    """Return the positions in the training split that each client holds.

    Args:
        data: A classification set (`by_value` takes any).
        options: The task's options.
        seed: The run's seed.

    Raises:
        ConfigError: The data cannot be shared out like this.
    """
    labels = data.train.targets.numpy()
    K, scheme = options["clients"], options["partition"]
    child = child_seed(seed, "clients")
    if scheme == "iid":
        return schemes.iid(labels, K, seed=child)
    if scheme == "dirichlet":
        return schemes.dirichlet_clients(
            labels, K, seed=child, mix=options["mix"], size=options["size"], even=options["even"]
        )
    if scheme == "dirichlet_classes":
        return schemes.dirichlet_classes(labels, K, seed=child, mix=options["mix"])
    if scheme == "shards":
        return schemes.shards(
            labels,
            K,
            seed=child,
            classes_per_client=options["classes_per_client"],
            items_per_class=options["items_per_class"],
        )
    inputs = data.train.whole()["input"].flatten(1)
    column = options["column"]
    if column is None or column >= inputs.shape[1]:
        raise ConfigError(
            f"task.column={column}: task.partition=column shares rows out by the value of one of "
            f"the {inputs.shape[1]} columns of the inputs"
        )
    parts = schemes.by_value(inputs[:, column].numpy())
    if len(parts) != K:
        raise ConfigError(
            f"task.clients={K}: column {column} has {len(parts)} values, one for each client"
        )
    return parts


def make_memory(
    splits: Sequence[Split], items: int, *, seed: int, double: bool
) -> tuple[Tensor, ...]:
    """Return the inputs M_k that each client shares: `items` of its own, drawn at random."""
    memory = []
    for k, split in enumerate(splits):
        rng = numpy_generator(seed, "memory", k)
        rows = np.sort(rng.permutation(len(split))[: min(items, len(split))])
        batch = split.batch(torch.from_numpy(rows))
        memory.append((as_doubles(batch) if double else batch)["input"])
    return tuple(memory)


def with_memory(algorithm: Algorithm, model: nn.Module, memory: tuple[Tensor, ...]) -> Algorithm:
    """Return FedLap-Func with its network and memory; other algorithms as they are."""
    if not isinstance(algorithm, FedLapFunc):
        return algorithm

    def outputs(w: Params, inputs: Tensor) -> Tensor:
        return forward_outputs(model, w, inputs)

    return replace(algorithm, outputs=outputs, memory=memory)
