"""Generalised Gauss-Newton and Fisher matrices, exact, from chunked Jacobians.

All return the SUM over items of the per-item curvature::

    GGN     = sum_i J_i^T Lambda_i J_i            Lambda_i = d^2 nll / d f^2
    Fisher  = sum_i g_i g_i^T  ("empirical": g_i at the observed label)

For the likelihoods here (canonical links) the GGN is also the Fisher with exact label expectation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.curvature.per_example import model_batches, per_example_gradients, trainable
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
) -> Params:
    """Return diag( sum_i J_i^T Lambda_i J_i ), exact for any model, by parameter name.

    Args:
        model: As in `ggn_full`.
        likelihood: Gives Lambda.
        batches: Mappings with ``input`` and ``target``.
        params: Where, and with respect to what; the trainable ones when None.
        chunk_size: Items at once.

    Returns:
        Tensors of the parameters' shapes.
    """
    at = trainable(model) if params is None else params
    total = {name: torch.zeros_like(p) for name, p in at.items()}
    for jac, R_BCM in _pieces(model, likelihood, batches, at, chunk_size):
        for name, jac_BC in jac.items():
            half = torch.einsum("bcm,bc...->bm...", R_BCM, jac_BC)
            total[name] += half.square().sum((0, 1))
    return total


def fisher_diag(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    *,
    params: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
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

    Returns:
        Tensors of the parameters' shapes.
    """
    at = trainable(model) if params is None else params
    total = {name: torch.zeros_like(p) for name, p in at.items()}
    for g in _gradients(model, likelihood, batches, at, chunk_size, generator):
        for name, g_B in g.items():
            total[name] += g_B.square().sum(0)
    return total


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
