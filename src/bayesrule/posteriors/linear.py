"""Jacobians of a network and its linearisation at the posterior mean (GLM predictive).

    f_lin(x; theta) = f(x; m) + J(x) (theta - m),     J(x) = d f(x; theta)/d theta at theta = m
    theta ~ N(m, Sigma)   =>   f_lin(x) ~ N( f(x; m), J Sigma J^T )

Exact for models linear in theta; the right predictive for Gauss-Newton Laplace posteriors
(Immer et al. 2021, arXiv:2008.08400, eq. 9). Networks are run in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from bayesrule.errors import Unsupported
from bayesrule.posteriors.base import Posterior
from bayesrule.posteriors.params import Params

__all__ = [
    "Input",
    "batch_size",
    "eval_mode",
    "forward_outputs",
    "jacobians_by_name",
    "linearise",
]

Input = Tensor | Mapping[str, Tensor]
_MAX_JACOBIAN = 2**26
"""Largest number of Jacobian entries held at once; sets the default chunk."""


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Run in evaluation mode; every module's own mode is restored on leaving, also on errors."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


def forward_outputs(model: nn.Module, state: Mapping[str, Tensor], input: Input) -> Tensor:
    """Return the model's outputs with `state` in place of its own tensors.

    Names that `state` lacks come from the model. The model is not changed. A mapping is passed as
    keyword arguments (Hugging Face batches); an output object with `.logits` is reduced to them.

    Args:
        model: Any module.
        state: Parameters and buffers by name.
        input: A tensor, or a mapping of keyword arguments.

    Returns:
        Outputs of shape (B, ...).
    """
    args, kwargs = ((), dict(input)) if isinstance(input, Mapping) else ((input,), {})
    output = functional_call(model, dict(state), args, kwargs)
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise Unsupported(
        f"{type(model).__name__} returns {type(output).__name__}; expected a tensor or an object "
        "with a tensor `.logits`"
    )


def batch_size(input: Input) -> int:
    """Return B, the length of the leading axis of the input."""
    first = next(iter(input.values())) if isinstance(input, Mapping) else input
    return first.shape[0]


def slice_batch(input: Input, start: int, stop: int) -> Input:
    """Return items start..stop of the input."""
    if isinstance(input, Mapping):
        return {name: tensor[start:stop] for name, tensor in input.items()}
    return input[start:stop]


def move_input(input: Any, device: torch.device) -> Any:
    """Return the input on another device."""
    if isinstance(input, Mapping):
        return {name: tensor.to(device) for name, tensor in input.items()}
    return input.to(device)


def add_axis(input: Any) -> Any:
    """Return one item as a batch of one."""
    if isinstance(input, Mapping):
        return {name: tensor.unsqueeze(0) for name, tensor in input.items()}
    return input.unsqueeze(0)


def jacobians_by_name(
    model: nn.Module,
    params: Mapping[str, Tensor],
    input: Input,
    *,
    buffers: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
) -> tuple[Params, Tensor]:
    """Return J_bcp = d f_c(x_b) / d theta_p for the parameters in `params`, by reverse mode.

    Parameters of the model that are not in `params` are held at their values (frozen layers).

    Args:
        model: Any module; run in evaluation mode, restored afterwards.
        params: Where to differentiate, and with respect to what.
        input: B items.
        buffers: State held fixed in place of the model's own.
        chunk_size: Items differentiated at once; None for all.

    Returns:
        Jacobian by name, each (B, C, *shape), and the outputs (B, C).

    Raises:
        Unsupported: The outputs of one item are not a vector (sequence models).
    """
    differentiated = {name: tensor.detach() for name, tensor in params.items()}
    fixed = dict(buffers or {})

    def single(theta: Params, item: Input) -> tuple[Tensor, Tensor]:
        output = forward_outputs(model, {**fixed, **theta}, add_axis(item))[0]
        if output.ndim > 1:
            raise Unsupported(
                f"Jacobians need one output vector per item; {type(model).__name__} returns "
                f"{tuple(output.shape)} per item (a sequence?). Use a sampling rule such as 'mc16'"
            )
        output = output.reshape(-1)
        return output, output

    with eval_mode(model), torch.no_grad():  # no graph of the model's other parameters
        jac, outputs_BC = vmap(
            jacrev(single, has_aux=True), in_dims=(None, 0), chunk_size=chunk_size
        )(differentiated, input)
    return jac, outputs_BC


def linearise(
    model: nn.Module, posterior: Posterior, input: Input, *, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of the outputs, linearised at the posterior mean.

    Args:
        model: Any module with one output vector per item.
        posterior: Posterior with a covariance, over all or some of the model's parameters.
        input: B items.
        chunk_size: Items at once; by default as many as keep a Jacobian below 2**26 entries.

    Returns:
        mean_BC = f(x; m) and cov_BCC = J Sigma J^T.
    """
    mean, B = posterior.mean, batch_size(input)
    with eval_mode(model), torch.no_grad():
        first = forward_outputs(model, posterior.mean_state(), slice_batch(input, 0, 1))
    C = max(1, first[0].numel())
    chunk = chunk_size or max(1, min(B, _MAX_JACOBIAN // (C * posterior.num_params)))
    means, covs = [], []
    for start in range(0, B, chunk):
        piece = slice_batch(input, start, start + chunk)
        jac, outputs_BC = jacobians_by_name(model, mean, piece, buffers=posterior.buffers)
        means.append(outputs_BC)
        covs.append(posterior.functional_variance(jac))
    return torch.cat(means), torch.cat(covs)
