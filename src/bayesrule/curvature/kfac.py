"""Kronecker-factored curvature (KFAC) of linear and convolution layers, by hooks.

For a layer with inputs a (bias apart), outputs s = W a + b, and the columns r_m of R_i with
R_i R_i^T = Lambda_i, let g_im = d (r_m^T f(x_i)) / d s. The GGN block of W is
sum_i sum_m (g_im g_im^T) (x) (a_i a_i^T), approximated (SUM over the N items) by

    H_W ~ G (x) A,     G = sum_i sum_m g_im g_im^T,    A = (1/N) sum_i a_i a_i^T
    H_b = G            (exact)

Exact for one item, and for a single layer whose Lambda is the same for all items (squared error).
Weights shared over T positions (convolutions, token-wise linear layers; Eschenhagen et al. 2023,
arXiv:2311.00636): ``expand`` takes every position as an item, A over N T, G summed over positions;
``reduce`` takes a averaged and g summed over positions first. H_b sums g over positions first in
both, which is exact. For another curvature than the GGN of the likelihood, see `ggn`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesrule.curvature.layer_rules import unfold
from bayesrule.curvature.per_example import model_batches
from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Likelihood
from bayesrule.posteriors.linear import batch_size, eval_mode

__all__ = ["kfac"]

Sharing = Literal["expand", "reduce"]


@dataclass
class _Layer:
    """One covered layer: which parameters it has, and what its last forward pass left."""

    name: str
    module: nn.Linear | nn.Conv2d
    weight: str | None
    bias: str | None
    input_factor: Tensor | None = None
    output: Tensor | None = None


def kfac(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Iterable[Mapping[str, Any]],
    *,
    names: Collection[str] | None = None,
    sharing: Sharing = "expand",
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the Kronecker factors of the GGN at the model's own parameters.

    Args:
        model: Network with one output vector per item, whose trainable parameters all belong to
            `nn.Linear` or `nn.Conv2d` layers; run in evaluation mode, left as it was.
        likelihood: Gives Lambda.
        batches: Mappings with ``input`` and ``target``.
        names: Parameters to cover; the trainable ones when None. They must require gradients.
        sharing: What to do with weights shared over positions.

    Returns:
        Parameter name -> (G, A) with H ~ G (x) A over the row-major entries of the parameter, in
        the order of `model.named_parameters()`; a bias has A = 1, of shape (1, 1).

    Raises:
        Unsupported: A trainable parameter lies in another kind of layer (named), a layer is used
            twice in one pass, or the outputs are sequences.
    """
    wanted = _wanted(model, names)
    layers = _layers(model, wanted)
    G: dict[str, Tensor] = {}
    A: dict[str, Tensor] = {}
    n_items = 0
    with eval_mode(model), _watching(layers, sharing):
        for input, target in model_batches(model, batches):
            n_items += batch_size(input)
            _forget(layers)
            outputs = _forward(model, input)
            R_BCM = likelihood.hessian_sqrt(outputs.detach(), target)
            seen = [layer for layer in layers if layer.output is not None]
            for layer in seen:
                if layer.weight is not None and layer.input_factor is not None:
                    _add(A, layer.weight, layer.input_factor)
            f_BC = outputs.reshape(R_BCM.shape[:2])
            for m in range(R_BCM.shape[-1]):
                grads = torch.autograd.grad(
                    f_BC,
                    [layer.output for layer in seen if layer.output is not None],
                    R_BCM[..., m],
                    retain_graph=m + 1 < R_BCM.shape[-1],
                    allow_unused=True,
                )
                for layer, g in zip(seen, grads, strict=True):
                    if g is not None:
                        _add_output_factors(G, layer, g.detach(), sharing)
    if n_items == 0:
        raise Unsupported("no items: a curvature needs at least one batch")
    _forget(layers)
    return _collect(model, wanted, layers, G, A, n_items)


def _forward(model: nn.Module, input: Any) -> Tensor:
    with torch.enable_grad():
        outputs = model(**input) if isinstance(input, Mapping) else model(input)
    outputs = outputs if isinstance(outputs, Tensor) else outputs.logits
    if outputs.ndim > 2:
        raise Unsupported(
            f"KFAC needs one output vector per item; {type(model).__name__} returns "
            f"{tuple(outputs.shape)}"
        )
    return outputs


def _wanted(model: nn.Module, names: Collection[str] | None) -> dict[int, str]:
    """Return id -> name of the parameters to cover."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in names or ():
        if name not in own:
            raise Unsupported(f"{type(model).__name__} has no trainable parameter {name!r}")
    return {id(p): name for name, p in own.items() if names is None or name in names}


def _layers(model: nn.Module, wanted: Mapping[int, str]) -> list[_Layer]:
    """Return the covered layers; every wanted parameter must belong to exactly one."""
    layers, owner = [], dict[int, str]()
    for name, module in model.named_modules():
        mine = {n: p for n, p in module.named_parameters(recurse=False) if id(p) in wanted}
        if not mine:
            continue
        where = name or type(model).__name__
        if type(module) not in (nn.Linear, nn.Conv2d):
            raise Unsupported(
                f"KFAC covers nn.Linear and nn.Conv2d; layer {where!r} is {type(module).__name__} "
                f"with trainable {', '.join(mine)}. Freeze it, or use structure 'diag'"
            )
        for n, p in mine.items():
            if id(p) in owner:
                raise Unsupported(
                    f"KFAC cannot share a weight: {where}.{n} is also a parameter of "
                    f"{owner[id(p)]!r}"
                )
            owner[id(p)] = where
        assert isinstance(module, nn.Linear | nn.Conv2d)
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise Unsupported(
                f"KFAC covers convolutions with one group; layer {where!r} has "
                f"groups={module.groups}"
            )
        names = {n: wanted[id(p)] for n, p in mine.items()}
        layers.append(_Layer(where, module, names.get("weight"), names.get("bias")))
    if not layers:
        raise Unsupported(f"{type(model).__name__} has no trainable parameters")
    return layers


@contextmanager
def _watching(layers: list[_Layer], sharing: Sharing) -> Iterator[None]:
    """Record input factors and outputs of the layers by forward hooks; removed on leaving."""

    def watch(layer: _Layer) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if layer.output is not None:
                raise Unsupported(
                    f"layer {layer.name!r} is used more than once in one forward pass; KFAC has no "
                    "factors for that"
                )
            layer.input_factor = _input_factor(layer, args[0].detach(), sharing)
            layer.output = output
            # A later in-place operation (nn.ReLU(inplace=True)) must not move the node.
            return output.clone()

        return layer.module.register_forward_hook(hook)

    handles = [watch(layer) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        _forget(layers)


def _forget(layers: list[_Layer]) -> None:
    for layer in layers:
        layer.input_factor = layer.output = None


def _positions(layer: _Layer, input: Tensor) -> Tensor:
    """Return the inputs that meet the weight matrix, (B, T, in)."""
    if isinstance(layer.module, nn.Conv2d):
        return unfold(layer.module, input).mT
    return input.reshape(input.shape[0], -1, input.shape[-1])


def _gradient_positions(layer: _Layer, g: Tensor) -> Tensor:
    """Return output gradients by position, (B, T, out)."""
    if isinstance(layer.module, nn.Conv2d):
        return g.flatten(start_dim=2).mT
    return g.reshape(g.shape[0], -1, g.shape[-1])


def _input_factor(layer: _Layer, input: Tensor, sharing: Sharing) -> Tensor:
    """Return the batch's part of N A."""
    a_BTI = _positions(layer, input)
    if sharing == "reduce":
        a_BI = a_BTI.mean(1)
        return a_BI.mT @ a_BI
    rows = a_BTI.flatten(0, 1)
    return rows.mT @ rows / a_BTI.shape[1]


def _add_output_factors(G: dict[str, Tensor], layer: _Layer, g: Tensor, sharing: Sharing) -> None:
    g_BTO = _gradient_positions(layer, g)
    summed_BO = g_BTO.sum(1)
    exact = summed_BO.mT @ summed_BO
    if layer.bias is not None:
        _add(G, layer.bias, exact)
    if layer.weight is not None:
        rows = g_BTO.flatten(0, 1)
        _add(G, layer.weight, exact if sharing == "reduce" else rows.mT @ rows)


def _add(total: dict[str, Tensor], name: str, term: Tensor) -> None:
    total[name] = total[name] + term if name in total else term


def _collect(
    model: nn.Module,
    wanted: Mapping[int, str],
    layers: list[_Layer],
    G: dict[str, Tensor],
    A: dict[str, Tensor],
    n_items: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    biases = {layer.bias for layer in layers}
    factors = {}
    for name, p in model.named_parameters():
        if id(p) not in wanted:
            continue
        rows, numel = p.shape[0], p.numel()
        zero = p.detach().new_zeros(rows, rows)  # a layer that the loss does not reach
        if name in biases:
            factors[name] = (G.get(name, zero), torch.ones_like(zero[:1, :1]))
        else:
            cols = numel // rows
            a = A[name] / n_items if name in A else p.detach().new_zeros(cols, cols)
            factors[name] = (G.get(name, zero), a)
    return factors
