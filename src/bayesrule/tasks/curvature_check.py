"""How well the posterior's learnt precision agrees with a directly computed GGN diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesrule.curvature import ggn_diag
from bayesrule.errors import Unsupported
from bayesrule.posteriors import DiagonalGaussian
from bayesrule.tasks.problem import Learnt, Problem

__all__ = ["compare_precision"]


def compare_precision(problem: Problem, learnt: Learnt) -> dict[str, float]:
    """Return rank and log-linear correlation of q's precision with the GGN diagonal at the mean.

    The GGN is summed over the training items, so for an exact posterior with ess = N the precision
    is GGN + prior; correlations do not depend on the prior's scale or on ess.

    Returns:
        ``curvature/spearman`` over all parameters, ``curvature/pearson_log`` of the logarithms over
        parameters whose GGN is positive.

    Raises:
        Unsupported: If the posterior has no diagonal precision.
    """
    q = learnt.posterior
    if not isinstance(q, DiagonalGaussian):
        raise Unsupported(
            f"metrics.curvature=true compares a diagonal precision; {type(q).__name__} has none"
        )
    with torch.no_grad():
        for name, param in learnt.model.named_parameters():
            param.copy_(q.mean[name])
    diag = ggn_diag(learnt.model, problem.likelihood, problem.train_batches())
    ours = torch.cat([q.precision[name].reshape(-1).double() for name in q.names])
    theirs = torch.cat([diag[name].reshape(-1).double() for name in q.names])
    positive = theirs > 0
    return {
        "curvature/spearman": _pearson(_ranks(ours), _ranks(theirs)),
        "curvature/pearson_log": _pearson(ours[positive].log(), theirs[positive].log()),
    }


def _ranks(x: Tensor) -> Tensor:
    """Return average ranks, ties shared."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - 0.5 * (counts.double() - 1))[inverse]


def _pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])
