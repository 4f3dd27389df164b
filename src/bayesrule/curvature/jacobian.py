"""Jacobians of the outputs with respect to the parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from bayesrule.curvature.per_example import trainable
from bayesrule.posteriors.linear import Input, jacobians_by_name
from bayesrule.posteriors.params import flatten

__all__ = ["jacobians", "jacobians_by_name"]


def jacobians(
    model: nn.Module,
    params: Mapping[str, Tensor] | None,
    input: Input,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """Return J_bcp = d f_c(x_b) / d theta_p with all parameters flattened in key order.

    Args:
        model: Any module with one output vector per item; run in evaluation mode, left as it was.
        params: Where to differentiate, and with respect to what; the trainable ones when None.
        input: B items.
        chunk_size: Items at once; None for all (memory B C P).

    Returns:
        jac_BCP of shape (B, C, P). `jacobians_by_name` keeps the parameters apart.
    """
    at = trainable(model) if params is None else params
    jac, _ = jacobians_by_name(model, at, input, chunk_size=chunk_size)
    return flatten(jac, leading=2)
