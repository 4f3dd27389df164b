"""One head of a network with several: a likelihood of some of the outputs.

::

    p(y | f) = base( y | f[columns] )

A multi-head network is a network with all heads' outputs side by side; task s uses the columns of
its own. Slicing comes before the link, so that other heads get no gradient and no curvature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesrule.likelihoods.base import Likelihood

__all__ = ["Head"]


class Head(Likelihood):
    """A likelihood of the outputs in `columns`; targets count within the head, from 0.

    Args:
        base: The likelihood of the head's own outputs.
        columns: Positions of the head among the network's outputs (last axis).
    """

    def __init__(self, base: Likelihood, columns: Sequence[int]) -> None:
        self.base, self.columns = base, tuple(columns)
        self.ignore_index = base.ignore_index

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The base's."""
        return self.base.kind

    def own(self, outputs: Tensor) -> Tensor:
        """Return the head's outputs, of shape (..., len(columns))."""
        first, last = self.columns[0], self.columns[-1] + 1
        if self.columns == tuple(range(first, last)):  # a view, not a gather
            return outputs[..., first:last]
        return outputs[..., list(self.columns)]

    def _widen(self, rows: Tensor, like: Tensor, axis: int) -> Tensor:
        """Return `rows` of the head within zeros of all outputs, along `axis`."""
        shape = list(rows.shape)
        shape[axis] = like.shape[-1]
        index = torch.tensor(self.columns, device=rows.device)
        return rows.new_zeros(shape).index_copy(axis, index, rows)

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the base's nll of the head."""
        return self.base.nll(self.own(outputs), targets)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return E[y | f] of the head."""
        return self.base.predict(self.own(outputs))

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return d nll / d f for all outputs; zero outside the head."""
        return self._widen(self.base.residual(self.own(outputs), targets), outputs, -1)

    def hessian(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return Lambda for all outputs; zero outside the head."""
        own = self.base.hessian(self.own(outputs), targets)
        return self._widen(self._widen(own, outputs, -2), outputs, -1)

    def hessian_sqrt(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return R_BCM with R R^T = Lambda; zero rows outside the head."""
        return self._widen(self.base.hessian_sqrt(self.own(outputs), targets), outputs, -2)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw targets within the head."""
        return self.base.sample(self.own(outputs), generator)

    def log_probs(self, outputs: Tensor) -> Tensor:
        """Return log p(y = k | f) over the head's classes."""
        return self.base.log_probs(self.own(outputs))

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of y given the head's outputs."""
        return self.base.moments(self.own(outputs))

    def integrate(self, mean_BC: Tensor, cov_BCC: Tensor) -> Tensor:
        """Return log E[p(y = k | f)] for the head's marginal of f ~ N(mean, cov)."""
        columns = list(self.columns)
        return self.base.integrate(mean_BC[..., columns], cov_BCC[..., columns, :][..., columns])
