"""Losses of the rule: sums over data with a regulariser, as functions of one flat vector theta (P).

    lbar(theta) = sum_i loss_i(theta) + R(theta)         R = -log prior, up to a constant

A *sum*, not a mean: a mean loss would be a posterior tempered by 1/N. With a batch B of M items the
sum over data becomes (N/M) sum_{i in B}; R is kept as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

__all__ = ["DataLoss", "LinearModel", "function_loss", "gaussian_prior"]

Item = Callable[[Tensor, Tensor, Tensor], Tensor]


def gaussian_prior(prec: float) -> Callable[[Tensor], Tensor]:
    """Return R(theta) = prec/2 ||theta||^2, the regulariser of the prior N(0, I/prec)."""
    return lambda theta: 0.5 * prec * theta.square().sum()


class DataLoss:
    """lbar(theta) from the loss of one item, differentiated automatically.

    Args:
        item: loss_i(theta (P,), x_i, y_i), a 0-d tensor.
        x: Inputs, (N, ...).
        y: Targets, (N, ...).
        regulariser: R(theta), a 0-d tensor; None for 0.
    """

    def __init__(
        self,
        item: Item,
        x: Tensor,
        y: Tensor,
        regulariser: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.item, self.x, self.y = item, x, y
        self.regulariser = regulariser or (lambda theta: 0.0 * theta.sum())

    @property
    def n_data(self) -> int:
        """N."""
        return len(self.x)

    def _batch(self, batch: Tensor | None) -> tuple[Tensor, Tensor, float]:
        """Return the items of a batch (all for None), and N/M."""
        if batch is None:
            return self.x, self.y, 1.0
        return self.x[batch], self.y[batch], self.n_data / len(batch)

    def data_value(self, theta: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return sum_i loss_i(theta), scaled up from the batch."""
        x, y, factor = self._batch(batch)
        return factor * vmap(self.item, (None, 0, 0))(theta, x, y).sum()

    def value(self, theta: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return lbar(theta), its data part scaled up from the batch."""
        return self.data_value(theta, batch) + self.regulariser(theta)

    def grad(self, theta: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return grad lbar(theta), (P,)."""
        return grad(self.value)(theta, batch)

    def hess(self, theta: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return hess lbar(theta), (P, P)."""
        return hessian(self.value)(theta, batch)

    def data_grad(self, theta: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return the gradient of the data part, (P,)."""
        return grad(self.data_value)(theta, batch)

    def data_hess(self, theta: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return the Hessian of the data part, (P, P)."""
        return hessian(self.data_value)(theta, batch)

    def grad_regulariser(self, theta: Tensor) -> Tensor:
        """Return grad R(theta), (P,)."""
        return grad(self.regulariser)(theta)

    def hess_regulariser(self, theta: Tensor) -> Tensor:
        """Return hess R(theta), (P, P)."""
        return hessian(self.regulariser)(theta)

    def item_grads(self, theta: Tensor, batch: Tensor | None = None) -> tuple[Tensor, float]:
        """Return the gradients g_i of single items, (M, P), and N/M.

        Args:
            theta: One vector (P,), or one for each item (M, P).
            batch: Indices of the items.
        """
        x, y, factor = self._batch(batch)
        return vmap(grad(self.item), (0 if theta.ndim == 2 else None, 0, 0))(theta, x, y), factor


def function_loss(function: Callable[[Tensor], Tensor]) -> DataLoss:
    """Return a loss without data: lbar(theta) = function(theta)."""
    nothing = torch.zeros(1, dtype=torch.float64)
    return DataLoss(lambda theta, x, y: function(theta) + 0.0 * x * y, nothing, nothing)


class LinearModel(DataLoss):
    """A loss of f_i = x_i^T theta only, with expectations under Gaussians by quadrature.

    For theta ~ N(m, Sigma), f_i ~ N(x_i^T m, x_i^T Sigma x_i), so that with Gauss-Hermite nodes in
    one dimension::

        E[grad lbar] = sum_i x_i E[l'(f_i)] + prec m
        E[hess lbar] = sum_i x_i x_i^T E[l''(f_i)] + prec I

    Args:
        loss: l(f, y), elementwise.
        slope: l' = dl/df, elementwise.
        curvature: l'' = d^2 l/df^2, elementwise.
        x: Inputs (N, P).
        y: Targets (N,).
        prior_prec: R(theta) = prior_prec/2 ||theta||^2.
        nodes: Number of Gauss-Hermite nodes.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        slope: Callable[[Tensor, Tensor], Tensor],
        curvature: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        prior_prec: float,
        nodes: int = 64,
    ) -> None:
        super().__init__(
            lambda theta, x_i, y_i: loss(x_i @ theta, y_i), x, y, gaussian_prior(prior_prec)
        )
        self.loss, self.slope, self.curvature = loss, slope, curvature
        self.prior_prec = prior_prec
        at, weight = np.polynomial.hermite_e.hermegauss(nodes)
        self._nodes = torch.tensor(at, dtype=x.dtype)
        self._weights = torch.tensor(weight / weight.sum(), dtype=x.dtype)

    @classmethod
    def logistic(cls, x: Tensor, y: Tensor, prior_prec: float, nodes: int = 64) -> LinearModel:
        """Return logistic regression, l(f, y) = log(1 + e^f) - y f with y in {0, 1}."""
        return cls(
            lambda f, y: torch.nn.functional.softplus(f) - y * f,
            lambda f, y: torch.sigmoid(f) - y,
            lambda f, y: torch.sigmoid(f) * torch.sigmoid(-f),
            x,
            y,
            prior_prec,
            nodes,
        )

    @classmethod
    def squares(cls, x: Tensor, y: Tensor, prior_prec: float) -> LinearModel:
        """Return least squares, l(f, y) = (f - y)^2 / 2; two nodes integrate it exactly."""
        return cls(
            lambda f, y: 0.5 * (f - y).square(),
            lambda f, y: f - y,
            lambda f, y: torch.ones_like(f),
            x,
            y,
            prior_prec,
            nodes=2,
        )

    def _outputs(self, mean: Tensor, cov: Tensor, batch: Tensor | None) -> tuple[Tensor, ...]:
        """Return x, y, N/M and the outputs at all nodes, (M, nodes)."""
        x, y, factor = self._batch(batch)
        sd = ((x @ cov) * x).sum(-1).sqrt()
        f = (x @ mean).unsqueeze(-1) + sd.unsqueeze(-1) * self._nodes
        return x, y.unsqueeze(-1), torch.tensor(factor, dtype=x.dtype), f

    def expected_slopes(
        self, mean: Tensor, cov: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return E[l'(f_i)] and E[l''(f_i)] for each item of the batch, both (M,)."""
        _, y, _, f = self._outputs(mean, cov, batch)
        return self.slope(f, y) @ self._weights, self.curvature(f, y) @ self._weights

    def expected(
        self, mean: Tensor, cov: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return E_q[grad lbar] (P,) and E_q[hess lbar] (P, P) for q = N(mean, cov)."""
        x, _, factor = self._batch(batch)
        slopes, curvatures = self.expected_slopes(mean, cov, batch)
        eye = torch.eye(len(mean), dtype=mean.dtype)
        g = factor * (x.mT @ slopes) + self.prior_prec * mean
        return g, factor * (x.mT @ (curvatures.unsqueeze(-1) * x)) + self.prior_prec * eye

    def expected_value(self, mean: Tensor, cov: Tensor) -> Tensor:
        """Return E_q[lbar] for q = N(mean, cov)."""
        _, y, _, f = self._outputs(mean, cov, None)
        square = mean.square().sum() + cov.diagonal().sum()
        return (self.loss(f, y) @ self._weights).sum() + 0.5 * self.prior_prec * square
