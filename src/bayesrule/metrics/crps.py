"""Continuous ranked probability score of Gaussian, mixture and sample predictives.

``CRPS(F, y) = integral (F(t) - 1[t >= y])^2 dt = E|X - y| - E|X - X'|/2`` (Gneiting & Raftery,
2007), in the units of the target; lower is better. Every function returns one value per item.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesrule.metrics._inputs import InvalidPrediction

__all__ = ["crps_ens", "crps_fair", "crps_gauss", "crps_mixture"]

PAIR_CHUNK = 4_000_000


def _normal_pdf(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)


def _expected_distance(mean: Tensor, std: Tensor) -> Tensor:
    """``E|X|`` of ``X ~ N(mean, std^2)``; ``|mean|`` if std = 0."""
    z = mean / torch.where(std > 0, std, 1.0)
    value = 2.0 * std * _normal_pdf(z) + mean * torch.erf(z / math.sqrt(2.0))
    return torch.where(std > 0, value, mean.abs())


def crps_gauss(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """CRPS of a Gaussian, ``sigma [z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)]``, z = (y - mu)/sigma.

    Args:
        mean: Predictive means, shape (N,).
        std: Predictive standard deviations, shape (N,); 0 gives ``|y - mu|``.
        target: Targets, shape (N,).

    Returns:
        CRPS per item, float64, shape (N,).
    """
    mu, sigma, y = (t.detach().to(torch.float64) for t in (mean, std, target))
    return _expected_distance(y - mu, sigma) - sigma / math.sqrt(math.pi)


def crps_mixture(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """CRPS of the equally weighted Gaussian mixture, in closed form (Grimit et al., 2006).

    ``mean_s A(y - mu_s, sigma_s) - 1/2 mean_{s,s'} A(mu_s - mu_s', sqrt(sigma_s^2 + sigma_s'^2))``
    with ``A(m, s) = E|N(m, s^2)|``.

    Args:
        mean: Component means, shape (S, N).
        std: Component standard deviations, broadcastable to `mean`.
        target: Targets, shape (N,).

    Returns:
        CRPS per item, float64, shape (N,).
    """
    mu_SN = mean.detach().to(torch.float64)
    sigma_SN = std.detach().to(torch.float64).expand_as(mu_SN)
    y_N = target.detach().to(torch.float64)
    first_N = _expected_distance(y_N - mu_SN, sigma_SN).mean(0)
    chunk = max(1, PAIR_CHUNK // mu_SN.shape[0] ** 2)
    second_N = torch.empty_like(first_N)
    for start in range(0, len(first_N), chunk):
        mu, sigma = mu_SN[:, start : start + chunk], sigma_SN[:, start : start + chunk]
        sigma_SSN = torch.hypot(sigma[:, None], sigma[None])
        distance_SSN = _expected_distance(mu[:, None] - mu[None], sigma_SSN)
        second_N[start : start + chunk] = distance_SSN.mean((0, 1))
    return first_N - 0.5 * second_N


def _ensemble(samples: Tensor, target: Tensor, pairs: int) -> Tensor:
    x_SN = samples.detach().to(torch.float64)
    y_N = target.detach().to(torch.float64)
    n_samples = x_SN.shape[0]
    if n_samples == 0 or x_SN.shape[1:] != y_N.shape:
        raise InvalidPrediction(
            f"samples {tuple(x_SN.shape)} and target {tuple(y_N.shape)} do not fit: give samples "
            "(S, N) with S >= 1 and target (N,)"
        )
    first_N = (x_SN - y_N).abs().mean(0)
    if n_samples == 1:
        return first_N
    # sum_{s < s'} |x_s - x_s'| = sum_i (2 i - S - 1) x_(i) for sorted x
    weight_S = 2.0 * torch.arange(1, n_samples + 1, dtype=torch.float64, device=x_SN.device)
    weight_S -= n_samples + 1.0
    return first_N - torch.tensordot(weight_S, x_SN.sort(0).values, dims=1) / pairs


def crps_ens(samples: Tensor, target: Tensor) -> Tensor:
    """CRPS of the empirical distribution of samples (V-statistic).

    ``mean_s |x_s - y| - 1/(2 S^2) sum_{s,s'} |x_s - x_s'|``; one sample gives ``|x - y|``.

    Args:
        samples: Samples of the predictive, shape (S, N).
        target: Targets, shape (N,).

    Returns:
        CRPS per item, float64, shape (N,).
    """
    return _ensemble(samples, target, samples.shape[0] ** 2)


def crps_fair(samples: Tensor, target: Tensor) -> Tensor:
    """Unbiased estimate of the CRPS of the distribution that the samples come from (Ferro, 2014).

    As `crps_ens`, with ``1/(2 S (S - 1))`` in place of ``1/(2 S^2)``; one sample gives ``|x - y|``.
    """
    return _ensemble(samples, target, samples.shape[0] * (samples.shape[0] - 1))
