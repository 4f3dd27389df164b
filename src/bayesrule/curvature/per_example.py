"""Gradients of each item's loss, by `torch.func`: the reference that faster paths are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from bayesrule.posteriors.linear import Input, eval_mode, forward_outputs
from bayesrule.posteriors.params import Params

__all__ = ["per_example_gradients", "trainable"]


def trainable(model: nn.Module) -> Params:
    """Return the parameters that take gradients, detached, by name (tied weights once)."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def add_axis(tree: Any) -> Any:
    """Return one item (a tensor, or a mapping of tensors) as a batch of one."""
    if isinstance(tree, Mapping):
        return {name: tensor.unsqueeze(0) for name, tensor in tree.items()}
    return tree.unsqueeze(0)


def per_example_gradients(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batch: Mapping[str, Any],
    *,
    params: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
) -> Params:
    """Return g_b = d loss(f(x_b; theta), y_b) / d theta for every item b.

    The sum over items of the per-item losses is not divided by anything. The model is run in
    evaluation mode, as statistics over the batch would couple the items.

    Args:
        model: Any module; left as it was.
        loss_fn: Loss of a batch of one, such as `likelihood.loss` or `nn.CrossEntropyLoss()`.
        batch: Mapping with ``input`` and ``target``, B items.
        params: Where to differentiate, and with respect to what; the trainable ones when None.
        chunk_size: Items at once; None for all (memory B P).

    Returns:
        Gradients by name, each (B, *shape).
    """
    at = trainable(model) if params is None else {n: p.detach() for n, p in params.items()}

    def loss(theta: Params, item: Input, target: Tensor) -> Tensor:
        return loss_fn(forward_outputs(model, theta, add_axis(item)), target.unsqueeze(0)).sum()

    with eval_mode(model), torch.no_grad():  # no graph of the model's other parameters
        gradients: Params = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=chunk_size)(
            at, batch["input"], batch["target"]
        )
    return gradients


def model_batches(model: nn.Module, batches: Any) -> Iterator[tuple[Any, Tensor]]:
    """Yield (input, target) of every batch on the model's device."""
    device = next(iter(model.parameters())).device
    for batch in batches:
        input, target = batch["input"], batch["target"]
        if isinstance(input, Mapping):
            input = {name: tensor.to(device) for name, tensor in input.items()}
        else:
            input = input.to(device)
        yield input, torch.as_tensor(target).to(device)
