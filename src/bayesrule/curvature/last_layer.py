"""Exact GGN of the last linear layer, from its input features.

With features phi (extended by 1 for the bias) the logits are linear in the last layer's parameters,
J = I (x) phi~^T, so that SUM over items

    GGN[(o, i), (p, j)] = sum_n Lambda_n[o, p] phi~_n[i] phi~_n[j]

is the exact Hessian of the loss in those parameters, and the linearised prediction is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.curvature.per_example import model_batches
from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Likelihood
from bayesrule.posteriors.linear import eval_mode
from bayesrule.posteriors.params import Params

__all__ = ["last_layer_ggn", "last_layer_name"]


def _call(model: nn.Module, input: Any) -> Tensor:
    outputs = model(**input) if isinstance(input, Mapping) else model(input)
    result: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    return result


def _watched_call(model: nn.Module, input: Any) -> tuple[Tensor, list[tuple[str, Tensor, Tensor]]]:
    """Run the model; return its outputs and (name, input, output) of each linear layer in turn."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((name, args[0], output))

        return module.register_forward_hook(hook)

    handles = [watch(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    try:
        return _call(model, input), seen
    finally:
        for handle in handles:
            handle.remove()


def last_layer_name(model: nn.Module, input: Any) -> str:
    """Return the name of the linear layer whose outputs are the model's outputs.

    Args:
        model: Any module; run in evaluation mode, left as it was.
        input: A batch to run it on; one item is enough.

    Returns:
        The layer's module name ("" if the model is itself a linear layer).

    Raises:
        Unsupported: The model does not end in one linear layer.
    """
    first = {n: t[:1] for n, t in input.items()} if isinstance(input, Mapping) else input[:1]
    with eval_mode(model), torch.no_grad():
        outputs, seen = _watched_call(model, first)
    if not seen or not torch.equal(seen[-1][2].reshape(-1), outputs.reshape(-1)):
        raise Unsupported(
            f"{type(model).__name__} does not end in an nn.Linear layer, so it has no last-layer "
            "posterior; use structure 'diag' or 'kron'"
        )
    name = seen[-1][0]
    if sum(entry[0] == name for entry in seen) > 1:
        raise Unsupported(f"layer {name!r} is used more than once: it is not only the last layer")
    return name


def last_layer_ggn(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Iterable[Mapping[str, Any]],
) -> tuple[Params, Tensor]:
    """Return the last layer's parameters and their exact GGN, summed over items.

    Args:
        model: Network that ends in an `nn.Linear`; run in evaluation mode, left as it was.
        likelihood: Gives Lambda.
        batches: Mappings with ``input`` and ``target``.

    Returns:
        The parameters {"<layer>.weight": ..., "<layer>.bias": ...} and the (P, P) matrix over them,
        flattened in key order.

    Raises:
        Unsupported: The model does not end in one linear layer, or there are no items.
    """
    name: str | None = None
    total: Tensor | None = None
    for input, target in model_batches(model, batches):
        name = last_layer_name(model, input) if name is None else name
        with eval_mode(model), torch.no_grad():
            outputs, seen = _watched_call(model, input)
        features = seen[-1][1]
        if features.ndim != 2:
            raise Unsupported(
                f"the last layer {name!r} sees inputs of shape {tuple(features.shape)}; a "
                "last-layer posterior needs one feature vector per item"
            )
        if _linear(model, name).bias is not None:
            features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        Lambda_BOO = likelihood.hessian(outputs, target)
        part = torch.einsum("bop,bi,bj->oipj", Lambda_BOO, features, features)
        total = part if total is None else total + part
    if total is None or name is None:
        raise Unsupported("no items: a curvature needs at least one batch")
    return _arrange(model, name, total)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _arrange(model: nn.Module, name: str, total: Tensor) -> tuple[Params, Tensor]:
    """Reorder (o, i~) entries to weight row-major, then bias."""
    layer = _linear(model, name)
    prefix = f"{name}." if name else ""
    n_out, n_in = layer.weight.shape
    width = total.shape[1]
    index = torch.arange(n_out * width, device=total.device).reshape(n_out, width)
    order = index[:, :n_in].flatten()
    params: Params = {f"{prefix}weight": layer.weight.detach()}
    if layer.bias is not None:
        params[f"{prefix}bias"] = layer.bias.detach()
        order = torch.cat([order, index[:, n_in]])
    dense = total.reshape(n_out * width, n_out * width)
    return params, dense[order][:, order]
