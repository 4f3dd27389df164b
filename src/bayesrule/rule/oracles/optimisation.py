"""Least squares, gradient methods and Newton's methods, for the loss of the recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

__all__ = [
    "LogisticLoss",
    "gradient_descent",
    "laplace",
    "mixture_by_autograd",
    "newton",
    "online_newton",
    "ridge",
    "torch_optimiser",
    "variational_gaussian",
]


class LogisticLoss:
    """sum_i log(1 + exp(f_i)) - y_i f_i + prec/2 ||w||^2, f = X w, differentiated by hand."""

    def __init__(self, x: np.ndarray, y: np.ndarray, prec: float = 1.0) -> None:
        self.x, self.y, self.prec = x, y, prec

    def value(self, w: np.ndarray) -> float:
        """Return the loss."""
        f = self.x @ w
        return float(np.sum(np.logaddexp(0.0, f) - self.y * f) + 0.5 * self.prec * w @ w)

    def grad(self, w: np.ndarray) -> np.ndarray:
        """Return the gradient."""
        return self.x.T @ (_sigmoid(self.x @ w) - self.y) + self.prec * w

    def hess(self, w: np.ndarray) -> np.ndarray:
        """Return the Hessian."""
        p = _sigmoid(self.x @ w)
        return (self.x.T * (p * (1 - p))) @ self.x + self.prec * np.eye(len(w))


def _sigmoid(f: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(f))


def ridge(x: np.ndarray, y: np.ndarray, prec: float) -> list[np.ndarray]:
    """Return scikit-learn's ridge coefficients and X^T X + prec I."""
    from sklearn.linear_model import Ridge

    fit = Ridge(alpha=prec, fit_intercept=False, solver="cholesky").fit(x, y)
    return [fit.coef_, x.T @ x + prec * np.eye(x.shape[1])]


def gradient_descent(loss: LogisticLoss, w: np.ndarray, lr: float, n: int) -> list[np.ndarray]:
    """Return n iterates of w - lr grad."""
    iterates = []
    for _ in range(n):
        w = w - lr * loss.grad(w)
        iterates.append(w)
    return iterates


def newton(loss: LogisticLoss, w: np.ndarray, n: int) -> list[np.ndarray]:
    """Return n iterates of Newton's method, by a Cholesky solve."""
    from scipy.linalg import cho_factor, cho_solve

    iterates = []
    for _ in range(n):
        w = w - cho_solve(cho_factor(loss.hess(w)), loss.grad(w))
        iterates.append(w)
    return iterates


def online_newton(
    loss: LogisticLoss, w: np.ndarray, S: np.ndarray, rho: float, n: int
) -> list[np.ndarray]:
    """Return n iterates of S <- (1 - rho) S + rho hess, w <- w - rho S^-1 grad (both, in turn)."""
    iterates = []
    for _ in range(n):
        g, H = loss.grad(w), loss.hess(w)
        S = (1 - rho) * S + rho * H
        w = w - rho * np.linalg.solve(S, g)
        iterates += [w, S]
    return iterates


def laplace(loss: LogisticLoss) -> list[np.ndarray]:
    """Return the MAP by SciPy's trust-region method, and the Hessian there."""
    from scipy.optimize import minimize

    start = np.zeros(loss.x.shape[1])
    fit = minimize(
        loss.value,
        start,
        jac=loss.grad,
        hess=loss.hess,
        method="trust-exact",
        options={"gtol": 1e-12, "maxiter": 1000},
    )
    return [fit.x, loss.hess(fit.x)]


def variational_gaussian(
    x: np.ndarray, y: np.ndarray, prec: float, nodes: int = 64
) -> list[np.ndarray]:
    """Return mean and precision of the Gaussian of smallest E_q[lbar] - H(q), by BFGS.

    Over m and a triangular C with Sigma = C C^T. The expectations' gradients are those of the
    quadrature formula itself, d/dv E[l(mu + sqrt(v) z)] = E[l'(f) z] / (2 sqrt(v)): no theorem of
    Bonnet or Price.
    """
    from scipy.optimize import minimize

    P = x.shape[1]
    rows, cols = np.tril_indices(P)
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()

    def objective(params: np.ndarray) -> tuple[float, np.ndarray]:
        m, C = params[:P], np.zeros((P, P))
        C[rows, cols] = params[P:]
        half = x @ C
        sd = np.sqrt(np.sum(half**2, 1))
        f = (x @ m)[:, None] + sd[:, None] * z
        slopes = _sigmoid(f) - y[:, None]
        by_mean = slopes @ weights
        by_var = (slopes * z) @ weights / (2 * sd)
        diagonal = np.diag(C)
        value = np.sum((np.logaddexp(0.0, f) - y[:, None] * f) @ weights)
        value += 0.5 * prec * (m @ m + np.sum(C**2)) - np.sum(np.log(np.abs(diagonal)))
        grad_C = 2 * x.T @ (by_var[:, None] * half) + prec * C - np.diag(1 / diagonal)
        return float(value), np.concatenate([x.T @ by_mean + prec * m, grad_C[rows, cols]])

    start = np.concatenate([np.zeros(P), np.eye(P)[rows, cols] * 0.3])
    fit = minimize(
        objective, start, jac=True, method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-9, "maxcor": 50},
    )  # fmt: skip
    C = np.zeros((P, P))
    C[rows, cols] = fit.x[P:]
    return [fit.x[:P], np.linalg.inv(C @ C.T)]


def torch_optimiser(
    make: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    w: np.ndarray,
    batches: Sequence[torch.Tensor],
) -> list[np.ndarray]:
    """Return the iterates of a `torch.optim` optimiser on a fixed stream of batches.

    Args:
        make: Returns the optimiser of a list of parameters.
        loss: loss(w, batch), scaled up from the batch.
        w: Start.
        batches: Indices, one tensor a step.
    """
    param = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = make([param])
    iterates = []
    for batch in batches:
        optimizer.zero_grad()
        loss(param, batch).backward()
        optimizer.step()
        iterates.append(param.detach().numpy().copy())
    return iterates


def mixture_by_autograd(
    loss: Callable[[torch.Tensor], torch.Tensor],
    weights: np.ndarray,
    means: np.ndarray,
    precisions: np.ndarray,
    rho: float,
    n: int,
) -> list[np.ndarray]:
    """Return iterates of the mixture's rule with values at the means, all derivatives automatic.

    S_k <- S_k + rho hess d(m_k), m_k <- m_k - rho S_k^-1 grad d(m_k), d = lbar + log q, and
    log(pi_k / pi_K) <- the same - rho (d(m_k) - d(m_K)); log q is PyTorch's MixtureSameFamily.
    """
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

    pi, m, S = (torch.from_numpy(a.copy()) for a in (weights, means, precisions))
    iterates = []
    for _ in range(n):
        q = MixtureSameFamily(Categorical(probs=pi), MultivariateNormal(m, precision_matrix=S))

        def d(theta: torch.Tensor, q: MixtureSameFamily = q) -> torch.Tensor:
            return loss(theta) + q.log_prob(theta)

        values, new_m, new_S = [], [], []
        for m_k, S_k in zip(m, S, strict=True):
            at = m_k.clone().requires_grad_()
            value = d(at)
            grad = torch.autograd.grad(value, at)[0]
            hess = torch.autograd.functional.hessian(d, m_k)
            new_S.append(S_k + rho * hess)
            new_m.append(m_k - rho * torch.linalg.inv(new_S[-1]) @ grad)
            values.append(value.detach())
        logits = pi.log() - rho * (torch.stack(values) - values[-1])
        pi, m, S = torch.softmax(logits, 0), torch.stack(new_m), torch.stack(new_S)
        iterates += [pi.numpy().copy(), m.numpy().copy(), S.numpy().copy()]
    return iterates
