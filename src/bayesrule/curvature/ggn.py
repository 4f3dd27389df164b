"""Generalised Gauss-Newton and Fisher matrices, exact.

All return the SUM over items of the per-item curvature::

    GGN     = sum_i J_i^T Lambda_i J_i            Lambda_i = d^2 nll / d f^2
    Fisher  = sum_i g_i g_i^T  ("empirical": g_i at the observed label)

For the likelihoods here (canonical links) the GGN is also the Fisher with exact label expectation.

Diagonals come from the hooks of `PerExampleRecorder` where every layer allows it: with the columns
r_im of R_i, R_i R_i^T = Lambda_i, the diagonal of the GGN is sum_i sum_m (J_i^T r_im)^2, squares of
per-example gradients of r_im^T f(x_i), one ordinary backward pass per column. Any other model is
differentiated item by item under `torch.func.vmap`, and full matrices always are. On one CPU thread
(`benchmarks/curvature_diagonals.py`) hooks take a fiftieth (GGN) and a three-hundredth (Fisher) of
the time item by item for an MLP 784-100-100-10, a half to a third for a LeNet-5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesrule.curvature.per_example import model_batches, per_example_gradients, trainable
from bayesrule.curvature.recorder import PerExampleRecorder
from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Likelihood
from bayesrule.posteriors.linear import (
    batch_size,
    eval_mode,
    forward_outputs,
    jacobians_by_name,
    slice_batch,
)
from bayesrule.posteriors.params import Params, flatten

__all__ = ["fisher_diag", "fisher_full", "ggn_diag", "ggn_full"]

Batches = Iterable[Mapping[str, Any]]
Method = Literal["auto", "hooks", "func"]
_MAX_JACOBIAN = 2**26
"""Largest number of Jacobian entries held at once; sets the default chunk."""


def _pieces(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    at: Mapping[str, Tensor],
    chunk_size: int | None,
) -> Iterable[tuple[Params, Tensor]]:
    """Yield (jac by name, R_BCM with R R^T = Lambda) for pieces of at most `chunk_size` items."""
    P = sum(p.numel() for p in at.values())
    C, seen = 0, False
    for input, target in model_batches(model, batches):
        B, start = batch_size(input), 0
        while start < B:
            # One item first: it tells the number of outputs, and with it the chunk.
            step = chunk_size or (max(1, _MAX_JACOBIAN // (C * P)) if C else 1)
            piece = slice_batch(input, start, start + step)
            jac, outputs_BC = jacobians_by_name(model, at, piece)
            C, seen = outputs_BC.shape[-1], True
            yield jac, likelihood.hessian_sqrt(outputs_BC, target[start : start + step])
            start += step
    if not seen:
        raise Unsupported("no items: a curvature needs at least one batch")


def ggn_full(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    *,
    params: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Return sum_i J_i^T Lambda_i J_i, dense (P, P), flattened in key order.

    Args:
        model: Network with one output vector per item; run in evaluation mode, left as it was.
        likelihood: Gives Lambda.
        batches: Mappings with ``input`` and ``target``.
        params: Where, and with respect to what; the trainable ones when None.
        chunk_size: Items at once; by default what keeps a Jacobian below 2**26 entries.

    Returns:
        Matrix of shape (P, P).
    """
    at = trainable(model) if params is None else params
    total: Tensor | None = None
    for jac, R_BCM in _pieces(model, likelihood, batches, at, chunk_size):
        half_BMP = R_BCM.mT @ flatten(jac, leading=2)
        rows = half_BMP.flatten(0, 1)
        total = rows.mT @ rows if total is None else total.addmm_(rows.mT, rows)
    assert total is not None
    return total


def ggn_diag(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    *,
    params: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    method: Method = "auto",
) -> Params:
    """Return diag( sum_i J_i^T Lambda_i J_i ), exact for any model, by parameter name.

    Args:
        model: As in `ggn_full`.
        likelihood: Gives Lambda.
        batches: Mappings with ``input`` and ``target``.
        params: Where, and with respect to what; the trainable ones when None.
        chunk_size: Items at once.
        method: ``hooks`` or ``func`` (see the module docstring); ``auto`` tries them in turn.

    Returns:
        Tensors of the parameters' shapes.

    Raises:
        Unsupported: There are no items, or ``hooks`` was asked for and cannot be.
    """
    at = trainable(model) if params is None else params
    total = {name: torch.zeros_like(p) for name, p in at.items()}

    def columns(outputs: Tensor, target: Tensor) -> list[Callable[[Tensor], Tensor]]:
        if outputs.ndim > 2:
            raise Unsupported("one output vector per item only")  # which the way by items says too
        R_BCM = likelihood.hessian_sqrt(outputs.detach(), target)
        return [partial(_weighted, r_BC) for r_BC in R_BCM.unbind(-1)]

    def by_items(piece: Batches) -> None:
        for jac, R_BCM in _pieces(model, likelihood, piece, at, chunk_size):
            for name, jac_BC in jac.items():
                half = torch.einsum("bcm,bc...->bm...", R_BCM, jac_BC)
                total[name] += half.square().sum((0, 1))

    _each_batch(model, batches, at, total, columns, by_items, chunk_size, method)
    return total


def fisher_diag(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    *,
    params: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    method: Method = "auto",
) -> Params:
    """Return sum_i g_i^2, the diagonal Fisher, by parameter name.

    Args:
        model: Any module; run in evaluation mode, left as it was.
        likelihood: Gives the per-item loss.
        batches: Mappings with ``input`` and ``target``.
        params: Where, and with respect to what; the trainable ones when None.
        chunk_size: Items at once; None for whole batches.
        generator: Given: labels are drawn from the model (one Monte-Carlo Fisher draw per item).
            None: the observed labels (the empirical Fisher).
        method: As in `ggn_diag`.

    Returns:
        Tensors of the parameters' shapes.

    Raises:
        Unsupported: There are no items, or ``hooks`` was asked for and cannot be.
    """
    at = trainable(model) if params is None else params
    total = {name: torch.zeros_like(p) for name, p in at.items()}

    def losses(outputs: Tensor, target: Tensor) -> list[Callable[[Tensor], Tensor]]:
        if generator is not None:
            target = likelihood.sample(outputs.detach(), generator)
        return [lambda f_BC: likelihood.nll(f_BC, target).sum()]

    def by_items(piece: Batches) -> None:
        for g in _gradients(model, likelihood, piece, at, chunk_size, generator):
            for name, g_B in g.items():
                total[name] += g_B.square().sum(0)

    _each_batch(model, batches, at, total, losses, by_items, chunk_size, method)
    return total


def _weighted(r_BC: Tensor, f_BC: Tensor) -> Tensor:
    """Return sum_i r_i^T f_i."""
    return (f_BC.reshape(r_BC.shape) * r_BC).sum()


def _each_batch(
    model: nn.Module,
    batches: Batches,
    at: Mapping[str, Tensor],
    total: Params,
    scalars: Callable[[Tensor, Tensor], list[Callable[[Tensor], Tensor]]],
    by_items: Callable[[Batches], None],
    chunk_size: int | None,
    method: Method,
) -> None:
    """Add, over items and scalars of the outputs, the squared gradients to `total`.

    Args:
        model: The network.
        batches: Mappings with ``input`` and ``target``.
        at: Parameters.
        total: Running sums, changed in place.
        scalars: Outputs and targets -> functions of the outputs, each a sum over items.
        by_items: Does the same for one batch without hooks.
        chunk_size: Items at once.
        method: Which way.
    """
    if method not in ("auto", "hooks", "func"):
        raise ValueError(f"method must be 'auto', 'hooks' or 'func', got {method!r}")
    hooks, seen = method != "func", False
    for input, target in model_batches(model, batches):
        B, seen = batch_size(input), True
        if hooks:
            try:
                found = {name: torch.zeros_like(p) for name, p in at.items()}
                for start in range(0, B, chunk_size or B):
                    stop = start + (chunk_size or B)
                    piece = slice_batch(input, start, stop)
                    _add_squares(model, at, found, piece, target[start:stop], scalars)
                for name, term in found.items():
                    total[name] += term
                continue
            except Unsupported:
                if method == "hooks":
                    raise
                hooks = False
        by_items([{"input": input, "target": target}])
    if not seen:
        raise Unsupported("no items: a curvature needs at least one batch")


def _add_squares(
    model: nn.Module,
    at: Mapping[str, Tensor],
    total: Params,
    input: Any,
    target: Tensor,
    scalars: Callable[[Tensor, Tensor], list[Callable[[Tensor], Tensor]]],
) -> None:
    """Add the squared per-example gradients of each scalar by hooks: a pass for each."""
    theta = {name: p.detach().clone().requires_grad_() for name, p in at.items()}
    recorder = PerExampleRecorder(model, list(at))
    B, pending = batch_size(input), None
    with eval_mode(model), torch.enable_grad():
        while pending is None or pending:
            with recorder.recording():
                outputs = forward_outputs(model, theta, input)
                pending = scalars(outputs, target) if pending is None else pending
                mean = pending.pop()(outputs) / B
                torch.autograd.grad(mean, list(theta.values()), allow_unused=True)
            for name, square in recorder.mean_squares().items():
                total[name] += square.to(total[name].dtype) * B


def fisher_full(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    *,
    params: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return sum_i g_i g_i^T, dense (P, P); arguments as in `fisher_diag`."""
    at = trainable(model) if params is None else params
    P = sum(p.numel() for p in at.values())
    total = next(iter(at.values())).new_zeros(P, P)
    for g in _gradients(model, likelihood, batches, at, chunk_size, generator):
        g_BP = flatten(g, leading=1)
        total.addmm_(g_BP.mT, g_BP)
    return total


def _gradients(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    at: Mapping[str, Tensor],
    chunk_size: int | None,
    generator: torch.Generator | None,
) -> Iterable[Params]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return likelihood.nll(outputs, targets).sum()

    for input, target in model_batches(model, batches):
        if generator is not None:
            with torch.no_grad(), eval_mode(model):
                target = likelihood.sample(forward_outputs(model, at, input), generator)
        batch = {"input": input, "target": target}
        yield per_example_gradients(model, loss, batch, params=at, chunk_size=chunk_size)
