"""Gradients of each item's loss: by `torch.func`, the reference, or by hooks, the fast path.

Training code that has a closure uses `PerExampleRecorder` around it instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from bayesrule.curvature.recorder import PerExampleRecorder
from bayesrule.posteriors.linear import (
    Input,
    batch_size,
    eval_mode,
    forward_outputs,
    slice_batch,
)
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
    method: Literal["func", "hooks"] = "func",
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
        method: ``"func"`` for any model, item by item under `vmap`; ``"hooks"`` for the layers of
            `layer_rules`, from one backward pass.

    Returns:
        Gradients by name, each (B, *shape).

    Raises:
        Unsupported: With ``"hooks"``, a layer that has no rule.
    """
    at = trainable(model) if params is None else {n: p.detach() for n, p in params.items()}
    if method == "hooks":
        return _by_hooks(model, loss_fn, batch, at, chunk_size)
    if method != "func":
        raise ValueError(f"method must be 'func' or 'hooks', got {method!r}")

    def loss(theta: Params, item: Input, target: Tensor) -> Tensor:
        return loss_fn(forward_outputs(model, theta, add_axis(item)), target.unsqueeze(0)).sum()

    with eval_mode(model), torch.no_grad():  # no graph of the model's other parameters
        gradients: Params = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=chunk_size)(
            at, batch["input"], batch["target"]
        )
    return gradients


def _by_hooks(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batch: Mapping[str, Any],
    at: Mapping[str, Tensor],
    chunk_size: int | None,
) -> Params:
    theta = {name: tensor.clone().requires_grad_() for name, tensor in at.items()}
    recorder = PerExampleRecorder(model, list(at), statistic="gradients")
    B = batch_size(batch["input"])

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return loss_fn(output.unsqueeze(0), target.unsqueeze(0)).sum()

    with eval_mode(model), torch.enable_grad(), recorder.recording():
        for start in range(0, B, chunk_size or B):
            stop = start + (chunk_size or B)
            outputs = forward_outputs(model, theta, slice_batch(batch["input"], start, stop))
            mean = vmap(loss)(outputs, batch["target"][start:stop]).sum() / B
            torch.autograd.grad(mean, list(theta.values()), allow_unused=True)
    return recorder.gradients()


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
