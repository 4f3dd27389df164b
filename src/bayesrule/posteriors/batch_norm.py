"""Batch normalisation's running statistics, estimated anew for one parameter vector.

The running mean and variance that training leaves belong to the weights that training visited:
relaxed or perturbed ones, of the last few hundred batches. A network with other weights (a draw, a
mode, an average) has other activations. Here its own statistics are estimated in one pass over
data, layer by layer with the weights at hand (Izmailov et al., 2018, sec. 3.1)::

    mean <- average over batches of the batch mean,   var <- average of the unbiased batch variance
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesrule.posteriors.linear import batch_size, eval_mode, forward_outputs, move_input
from bayesrule.posteriors.params import Params

__all__ = ["reestimate_batch_norm"]


def reestimate_batch_norm(
    model: nn.Module,
    state: Mapping[str, Tensor],
    batches: Callable[[], Iterable[Mapping[str, Any]]],
) -> Params:
    """Return `state` with running statistics estimated under its own parameters.

    The model is run in evaluation mode (no dropout) but for its batch normalisations; it is left as
    it was. A last batch of less than half the size of the first is not used: its variance is noise.

    Args:
        model: Any module; without batch normalisation the state comes back as it is.
        state: Parameters and buffers by name; what is missing comes from the model.
        batches: Gives mappings with ``input``.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    if not norms:
        return dict(state)
    buffers: Params = {}
    for name, module in norms.items():
        assert module.running_mean is not None
        assert module.running_var is not None
        assert module.num_batches_tracked is not None
        prefix = f"{name}." if name else ""
        buffers[f"{prefix}running_mean"] = torch.zeros_like(module.running_mean)
        buffers[f"{prefix}running_var"] = torch.ones_like(module.running_var)
        buffers[f"{prefix}num_batches_tracked"] = torch.zeros_like(module.num_batches_tracked)
    device = next(iter(buffers.values())).device
    momenta = {module: module.momentum for module in norms.values()}
    largest = 0
    with eval_mode(model), torch.no_grad():
        try:
            for module in norms.values():
                module.train()
                module.momentum = None  # a plain average over batches
            for batch in batches():
                size = batch_size(batch["input"])
                largest = largest or size
                if 2 * size >= largest:
                    # functional_call hands the buffers over, and the layers update them in place
                    forward_outputs(model, {**state, **buffers}, move_input(batch["input"], device))
        finally:
            for module, momentum in momenta.items():
                module.momentum = momentum
    return {**state, **buffers}
