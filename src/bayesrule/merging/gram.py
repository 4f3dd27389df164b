"""Gram matrices of the inputs of linear layers, which RegMean merges by: G = sum x x^T."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.posteriors import Params, eval_mode

__all__ = ["linear_grams"]


def linear_grams(model: nn.Module, inputs: Iterable[Any], names: Iterable[str]) -> Params:
    """Return G of every linear layer's weight, by parameter name, in double precision.

    Args:
        model: Any module; run in evaluation mode, left as it was.
        inputs: Batches of inputs: a tensor, or a mapping of keyword arguments.
        names: Parameters that are merged; others are left out.

    Returns:
        Matrices of shape (in, in), sums over all items (and positions).
    """
    wanted = set(names)
    grams: Params = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            grams[name] = grams.get(name, 0.0) + x.mT @ x

        return hook

    for path, module in model.named_modules():
        name = f"{path}.weight" if path else "weight"
        if isinstance(module, nn.Linear) and name in wanted:
            handles.append(module.register_forward_pre_hook(watch(name)))
    try:
        with torch.no_grad(), eval_mode(model):
            for batch in inputs:
                model(**batch) if isinstance(batch, Mapping) else model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return grams
