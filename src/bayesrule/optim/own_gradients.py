"""Which gradients an optimiser knows of, so that it can refuse those of another backward pass.

A framework that accumulates over batches runs backward passes outside of a step: their gradients
were taken at the mean and would be mixed with gradients taken at a sample.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor

__all__ = ["OwnGradients"]


class OwnGradients:
    """The gradient tensors of all parameters as they were when last remembered."""

    def __init__(self) -> None:
        self._known: dict[Tensor, tuple[weakref.ref[Tensor], int]] = {}

    def remember(self, params: Iterable[Tensor]) -> None:
        """Take the gradients that are there as known."""
        self._known = {
            param: (weakref.ref(param.grad), param.grad._version)
            for param in params
            if param.grad is not None
        }

    def refuse_foreign(self, params: Iterable[Tensor]) -> None:
        """Check that no parameter has a gradient that is new or was changed.

        Raises:
            RuntimeError: If one has.
        """
        for param in params:
            grad = param.grad
            if grad is not None and not self._is_known(param, grad):
                raise RuntimeError(
                    "gradients from a backward pass outside this step are still in the parameters "
                    "(gradient accumulation outside the closure?). Call zero_grad() first, and "
                    "split a batch into micro-batches inside the closure."
                )

    def _is_known(self, param: Tensor, grad: Tensor) -> bool:
        if param not in self._known:
            return False
        known, version = self._known[param]
        return known() is grad and version == grad._version
