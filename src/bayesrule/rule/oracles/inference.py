"""Exact Bayes, Kalman smoothing, EM, coordinate ascent and explicit natural gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "coordinate_ascent",
    "em_by_sklearn",
    "explicit_gaussian_natural_gradient",
    "explicit_mixture_natural_gradient",
    "mixture_elbo",
    "rts_smoother",
    "stochastic_mixture",
    "variational_newton",
    "variational_regression",
]


def rts_smoother(
    m0: np.ndarray,
    P0: np.ndarray,
    A: np.ndarray,
    Q: np.ndarray,
    H: np.ndarray,
    R: np.ndarray,
    y: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return smoothed means and covariances, and those of the filter's last state.

    The Kalman filter and the Rauch-Tung-Striebel smoother in their covariance form.
    """
    means: list[np.ndarray] = []
    covs: list[np.ndarray] = []
    predicted = []
    m, P = m0, P0
    for t, observed in enumerate(y):
        if t:
            m, P = A @ means[-1], A @ covs[-1] @ A.T + Q
        predicted.append((m, P))
        gain = P @ H.T @ np.linalg.inv(H @ P @ H.T + R)
        means.append(m + gain @ (observed - H @ m))
        covs.append(P - gain @ H @ P)
    smooth_m, smooth_P = [means[-1]], [covs[-1]]
    for t in reversed(range(len(y) - 1)):
        m_next, P_next = predicted[t + 1]
        G = covs[t] @ A.T @ np.linalg.inv(P_next)
        smooth_m.append(means[t] + G @ (smooth_m[-1] - m_next))
        smooth_P.append(covs[t] + G @ (smooth_P[-1] - P_next) @ G.T)
    return np.array(smooth_m[::-1]), np.array(smooth_P[::-1]), means[-1], covs[-1]


def em_by_sklearn(
    x: np.ndarray, weights: np.ndarray, means: np.ndarray, covs: np.ndarray, n: int
) -> list[np.ndarray]:
    """Return weights, means and covariances after each of n EM steps of scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    iterates = []
    for _ in range(n):
        fit = GaussianMixture(
            len(weights), tol=0.0, reg_covar=0.0, max_iter=1, weights_init=weights,
            means_init=means, precisions_init=np.linalg.inv(covs),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit.fit(x)
        weights, means, covs = fit.weights_, fit.means_, fit.covariances_
        iterates += [weights, means, covs]
    return iterates


def _responsibilities(
    x: np.ndarray, alpha: np.ndarray, means: np.ndarray, precs: np.ndarray
) -> np.ndarray:
    """Return q(z) of the mixture model sum_k pi_k N(mu_k, I) under q(pi) q(mu)."""
    from scipy.special import digamma, logsumexp

    square = ((x[:, None, :] - means) ** 2).sum(-1) + (1 / precs).sum(-1)
    log_r = digamma(alpha) - digamma(alpha.sum()) - 0.5 * square
    return np.asarray(np.exp(log_r - logsumexp(log_r, axis=1, keepdims=True)))


def stochastic_mixture(
    x: np.ndarray,
    start: tuple[np.ndarray, np.ndarray, np.ndarray],
    prior: tuple[float, float],
    batches: Sequence[np.ndarray],
    rates: Sequence[float],
) -> list[np.ndarray]:
    """Return alpha, means and precisions after each step of stochastic variational inference.

    Model: weights ~ Dirichlet(prior[0]), mu_k ~ N(0, I / prior[1]), x given z = k ~ N(mu_k, I).
    """
    alpha, means, precs = start
    eta = precs * means
    iterates = []
    for batch, rho in zip(batches, rates, strict=True):
        r = len(x) / len(batch) * _responsibilities(x[batch], alpha, eta / precs, precs)
        alpha = (1 - rho) * alpha + rho * (prior[0] + r.sum(0))
        eta = (1 - rho) * eta + rho * (r.T @ x[batch])
        precs = (1 - rho) * precs + rho * (prior[1] + r.sum(0)[:, None])
        iterates += [alpha, eta / precs, precs]
    return iterates


def coordinate_ascent(
    x: np.ndarray,
    start: tuple[np.ndarray, np.ndarray, np.ndarray],
    prior: tuple[float, float],
    n: int,
) -> list[np.ndarray]:
    """Return alpha, means and precisions after each sweep of coordinate ascent, item by item."""
    alpha, means, precs = start
    iterates = []
    for _ in range(n):
        r = np.stack([_responsibilities(row[None], alpha, means, precs)[0] for row in x])
        counts = r.sum(0)
        alpha = prior[0] + counts
        precs = np.repeat((prior[1] + counts)[:, None], x.shape[1], 1)
        means = np.stack([(r[:, k, None] * x).sum(0) for k in range(len(alpha))]) / precs
        iterates += [alpha, means, precs]
    return iterates


def mixture_elbo(
    x: np.ndarray,
    alpha: np.ndarray,
    means: np.ndarray,
    precs: np.ndarray,
    prior: tuple[float, float],
) -> float:
    """Return the evidence lower bound of the mixture model, with q(z) at its optimum."""
    from scipy.special import digamma, gammaln

    r = _responsibilities(x, alpha, means, precs)
    log_pi = digamma(alpha) - digamma(alpha.sum())
    d, K = x.shape[1], len(alpha)
    square = ((x[:, None, :] - means) ** 2).sum(-1) + (1 / precs).sum(-1)
    bound = np.sum(r * (log_pi - 0.5 * d * np.log(2 * np.pi) - 0.5 * square))
    bound -= np.sum(r * np.log(np.maximum(r, 1e-300)))
    a0 = np.full(K, prior[0])
    bound += gammaln(a0.sum()) - gammaln(a0).sum() - gammaln(alpha.sum()) + gammaln(alpha).sum()
    bound += np.sum((a0 - alpha) * log_pi)
    bound += 0.5 * np.sum(np.log(prior[1] / precs) + 1 - prior[1] * (means**2 + 1 / precs))
    return float(bound)


def variational_regression(
    x: np.ndarray,
    y: np.ndarray,
    noise_prior: tuple[float, float],
    weight_prior: tuple[float, float],
    start: tuple[float, float],
    n: int,
) -> list[np.ndarray]:
    """Return sweeps of coordinate ascent in regression with unknown precisions (Bishop, sec. 10.3).

    y ~ N(X w, 1/tau), w ~ N(0, I/alpha), tau and alpha ~ Gamma(shape, rate); q(w) q(tau) q(alpha),
    updated in this order from the expectations `start` of tau and alpha. Each sweep returns m, S,
    (shape, rate) of tau and (shape, rate) of alpha.
    """
    N, P = x.shape
    tau, alpha = start
    iterates = []
    for _ in range(n):
        cov = np.linalg.inv(alpha * np.eye(P) + tau * x.T @ x)
        m = tau * cov @ x.T @ y
        a, b = (
            noise_prior[0] + N / 2,
            noise_prior[1] + 0.5 * (np.sum((y - x @ m) ** 2) + np.trace(x.T @ x @ cov)),
        )
        c, d = weight_prior[0] + P / 2, weight_prior[1] + 0.5 * (m @ m + np.trace(cov))
        tau, alpha = a / b, c / d
        iterates += [m, np.linalg.inv(cov), np.array([a, b]), np.array([c, d])]
    return iterates


def variational_newton(
    x: np.ndarray,
    y: np.ndarray,
    m: np.ndarray,
    S: np.ndarray,
    *,
    prec: float,
    rho: float,
    n: int,
    nodes: int = 64,
) -> list[np.ndarray]:
    """Return iterates (m, S) of variational online Newton for logistic regression."""
    z, weights = np.polynomial.hermite.hermgauss(nodes)
    weights = weights / np.sqrt(np.pi)
    iterates = []
    for _ in range(n):
        sd = np.sqrt(np.einsum("np,pq,nq->n", x, np.linalg.inv(S), x))
        p = 1 / (1 + np.exp(-((x @ m)[:, None] + np.sqrt(2.0) * sd[:, None] * z)))
        g = x.T @ ((p - y[:, None]) @ weights) + prec * m
        H = (x.T * ((p * (1 - p)) @ weights)) @ x + prec * np.eye(len(m))
        S = (1 - rho) * S + rho * H
        m = m - rho * np.linalg.solve(S, g)
        iterates += [m, S]
    return iterates


# ------------------------------------------------------- natural gradients, term by term


def explicit_gaussian_natural_gradient(
    x: Tensor, y: Tensor, prec: float, lam: Tensor, n: int, nodes: int = 64
) -> list[np.ndarray]:
    """Return iterates of lambda <- lambda_0 + F(lambda)^-1 grad_lambda E_q[log p(y | theta)].

    The form of Knowles and Minka (2011), for two weights: lambda = (S m, -S_11/2, -S_12, -S_22/2),
    F the Hessian of the log-partition function; all derivatives automatic. Each iterate is
    returned as m and S.
    """
    at, weights = np.polynomial.hermite_e.hermegauss(nodes)
    z, w = torch.from_numpy(at), torch.from_numpy(weights / weights.sum())

    def moments(lam: Tensor) -> tuple[Tensor, Tensor]:
        S = torch.stack([-2 * lam[2], -lam[3], -lam[3], -2 * lam[4]]).reshape(2, 2)
        return torch.linalg.solve(S, lam[:2]), S

    def log_partition(lam: Tensor) -> Tensor:
        m, S = moments(lam)
        return 0.5 * (m @ S @ m) - 0.5 * torch.logdet(S)

    def expected_log_lik(lam: Tensor) -> Tensor:
        m, S = moments(lam)
        sd = ((x @ torch.linalg.inv(S)) * x).sum(-1).sqrt()
        f = (x @ m).unsqueeze(-1) + sd.unsqueeze(-1) * z
        return ((y.unsqueeze(-1) * f - torch.nn.functional.softplus(f)) @ w).sum()

    prior = torch.tensor([0.0, 0.0, -0.5 * prec, 0.0, -0.5 * prec], dtype=x.dtype)
    iterates = []
    for _ in range(n):
        F = torch.func.hessian(log_partition)(lam)
        lam = prior + torch.linalg.solve(F, torch.func.grad(expected_log_lik)(lam))
        iterates += [part.numpy().copy() for part in moments(lam)]
    return iterates


def explicit_mixture_natural_gradient(
    loss: Callable[[Tensor], Tensor],
    grid: Tensor,
    start: tuple[float, Tensor, Tensor],
    rho: float,
    n: int,
) -> list[np.ndarray]:
    """Return iterates of two Gaussians in one dimension along F^-1 grad L, F the joint Fisher.

    q(z, theta) has v = log(pi_1 / pi_2) and natural parameters (s_k m_k, -s_k/2) of component k;
    L = E_q[lbar + log q(theta)] on a grid, with the *marginal* log q. F, the expected outer product
    of the score of the *joint* q(z, theta), is summed over z and the grid. Each iterate is
    returned as (v, m_1, m_2, s_1, s_2).
    """
    v, m, s = start
    params = torch.cat([torch.tensor([v], dtype=m.dtype), s * m, -0.5 * s])
    width = grid[1] - grid[0]

    def log_joint(params: Tensor) -> Tensor:
        """Return log q(z = k, theta) on the grid, (2, n)."""
        s = -2 * params[3:]
        m = params[1:3] / s
        log_pi = torch.log_softmax(torch.stack([params[0], params[0] * 0]), 0)
        gauss = 0.5 * (s / (2 * np.pi)).log().unsqueeze(-1)
        gauss = gauss - 0.5 * s.unsqueeze(-1) * (grid - m.unsqueeze(-1)).square()
        return log_pi.unsqueeze(-1) + gauss

    def objective(params: Tensor) -> Tensor:
        log_q = torch.logsumexp(log_joint(params), 0)
        return (log_q.exp() * (loss(grid) + log_q)).sum() * width

    iterates = []
    for _ in range(n):
        scores = torch.func.jacfwd(log_joint)(params).reshape(-1, 5)
        mass = log_joint(params).exp().reshape(-1, 1) * width
        F = scores.mT @ (mass * scores)
        params = params - rho * torch.linalg.solve(F, torch.func.grad(objective)(params))
        s = -2 * params[3:]
        iterates.append(torch.cat([params[:1], params[1:3] / s, s]).numpy().copy())
    return iterates
