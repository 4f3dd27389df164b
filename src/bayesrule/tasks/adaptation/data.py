"""Which items are past, new, or taken away, what is predicted, and the features of linear models.

::

    add          past D = the others,   new  D+ = the changed items
    remove       past D = all,          gone D- = the changed items (the test set loses their class)
    regulariser, model                  past D = all, nothing changes in the data
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesrule.data import DataBundle, Split
from bayesrule.errors import ConfigError
from bayesrule.seeding import generator

__all__ = [
    "ChangedBy",
    "Items",
    "Kind",
    "Labels",
    "changed_items",
    "items_of",
    "polynomial_features",
    "polynomial_size",
    "pool_images",
]

Kind = Literal["add", "remove", "regulariser", "model"]
ChangedBy = Literal["class", "random", "lambda_descend"]
Labels = Literal["class", "parity"]


@dataclass(frozen=True)
class Items:
    """Inputs with their labels.

    Attributes:
        input: Inputs or features, shape (N, ...).
        label: What is predicted, shape (N,).
        of_class: The class in the data set, shape (N,).
    """

    input: Tensor
    label: Tensor
    of_class: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def at(self, where: Tensor) -> Items:
        """Return the items of a mask, or at indices."""
        return Items(self.input[where], self.label[where], self.of_class[where])

    def through(self, features: Callable[[Tensor], Tensor]) -> Items:
        """Return the items with other inputs."""
        return Items(features(self.input), self.label, self.of_class)


def items_of(split: Split, labels: Labels) -> Items:
    """Return a split's items; `parity` predicts whether the class is odd."""
    batch = split.whole()
    target = batch["target"]
    return Items(batch["input"], target % 2 if labels == "parity" else target, target)


def changed_items(
    items: Items, by: ChangedBy, wanted: int, fraction: float, seed: int, data: DataBundle
) -> Tensor:
    """Return the mask of the new or removed items (not for ``lambda_descend``).

    Args:
        items: Training items.
        by: ``class`` or ``random``.
        wanted: The class.
        fraction: Of all items, at random.
        seed: The run's seed.
        data: Where the items are from, for messages.

    Raises:
        ConfigError: If no item, or every item, would change.
    """
    if by == "class":
        mask = items.of_class == wanted
        what = f"task.changed_class={wanted}"
    else:
        order = torch.randperm(len(items), generator=generator(seed, "changed"))
        mask = torch.zeros(len(items), dtype=torch.bool)
        mask[order[: round(fraction * len(items))]] = True
        what = f"task.changed_fraction={fraction}"
    if not mask.any() or mask.all():
        raise ConfigError(
            f"{what}: {int(mask.sum())} of {len(items)} training items of {data.name} would "
            "change; some must change, and some must stay"
        )
    return mask


def pool_images(inputs: Tensor, factor: int) -> Tensor:
    """Return inputs (N, C, H, W) with means over squares of `factor` by `factor` pixels."""
    return inputs if factor == 1 else F.avg_pool2d(inputs, factor)


def polynomial_features(inputs: Tensor, degree: int) -> Tensor:
    """Return (1, x, all products x_i x_j with i <= j) in float64, flat; the order nests degrees.

    Args:
        inputs: Shape (N, ...).
        degree: 1 or 2.
    """
    x = inputs.flatten(1).double()
    parts = [torch.ones(len(x), 1, dtype=x.dtype), x]
    if degree == 2:
        i, j = torch.triu_indices(x.shape[1], x.shape[1])
        parts.append(x[:, i] * x[:, j])
    return torch.cat(parts, 1)


def polynomial_size(n_inputs: int, degree: int) -> int:
    """Return the number of polynomial features."""
    return 1 + n_inputs + (n_inputs * (n_inputs + 1) // 2 if degree == 2 else 0)
