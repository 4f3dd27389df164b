"""The recorder of optimisers that learn from the gradient of each example."""

from __future__ import annotations

from torch import Tensor, nn

from bayesrule.curvature import PerExampleRecorder
from bayesrule.curvature.recorder import Statistic
from bayesrule.errors import Unsupported

__all__ = ["recorder_of"]


def recorder_of(
    optimizer: str, model: nn.Module | None, params: list[Tensor], statistic: Statistic
) -> PerExampleRecorder:
    """Return a recorder for the parameters.

    Args:
        optimizer: Name of the optimiser, for messages.
        model: The network that its ``model=`` was given.
        params: The parameters that are learnt.
        statistic: What to record.

    Raises:
        ValueError: If a parameter is not in the model.
        Unsupported: If there is no model, or a layer has no such statistic.
    """
    if model is None:
        raise Unsupported(
            f"{optimizer} needs the gradient of each example, which hooks on the network's layers "
            f"take: pass model=, as in {optimizer}(model.parameters(), lr, ess, model=model)."
        )
    names = {id(p): name for name, p in model.named_parameters()}
    for index, param in enumerate(params):
        if id(param) not in names:
            raise ValueError(f"parameter {index} of the optimiser is not in model=")
    return PerExampleRecorder(model, [names[id(p)] for p in params], statistic=statistic)
