"""Scores of a regression: likelihood, error, sharpness and calibration of the variance.

A predictive is a Gaussian ``(mean, std)`` of shape (N,), an equally weighted mixture of Gaussians
``(mean, std)`` of shape (S, N), or samples (S, N). `std` **includes the observation noise**.
Values are in the units of the arguments: undo the standardisation of the targets first, which adds
``log(std_y)`` to the NLL. Each function returns a 0-d float64 mean over items.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesrule.metrics._inputs import InvalidPrediction, mean_or_nan, vectors
from bayesrule.metrics._ties import equal_mass_groups

__all__ = [
    "ence",
    "mae",
    "mean_sigma",
    "moment_match",
    "nll_gauss",
    "nll_mixture",
    "nll_mm",
    "rmse",
    "sharpness",
    "var_calibration",
]


def check_std(std: Tensor) -> None:
    """Raise unless every standard deviation is positive and finite."""
    if not bool(((std > 0) & std.isfinite()).all()):
        raise InvalidPrediction(
            "a predictive standard deviation is zero, negative or not finite; it must include the "
            "observation noise"
        )


def nll_items(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Return ``-log N(y | mu, sigma^2)`` elementwise in float64."""
    mu, sigma, y = (t.detach().to(torch.float64) for t in (mean, std, target))
    check_std(sigma)
    return 0.5 * math.log(2.0 * math.pi) + sigma.log() + 0.5 * ((y - mu) / sigma).square()


def nll_mixture_items(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Return ``-log (1/S) sum_s N(y | mu_s, sigma_s^2)`` of each item, shape (N,)."""
    log_density_SN = -nll_items(mean, std, target)
    return math.log(log_density_SN.shape[0]) - log_density_SN.logsumexp(0)


def moment_match(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the equally weighted mixture.

    ``mu = mean_s mu_s`` and ``sigma^2 = mean_s sigma_s^2 + var_s(mu_s)`` (population variance).

    Args:
        mean: Component means, shape (S, N).
        std: Component standard deviations, broadcastable to `mean`.

    Returns:
        ``(mean, std)``, float64, shape (N,).
    """
    mu_SN = mean.detach().to(torch.float64)
    var_SN = std.detach().to(torch.float64).square().expand_as(mu_SN)
    mu_N = mu_SN.mean(0)
    return mu_N, (var_SN.mean(0) + (mu_SN - mu_N).square().mean(0)).sqrt()


def nll_gauss(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Mean of ``log(2 pi sigma^2)/2 + (y - mu)^2/(2 sigma^2)``, in nats.

    Args:
        mean: Predictive means, shape (N,).
        std: Predictive standard deviations with observation noise, shape (N,).
        target: Targets, shape (N,).

    Returns:
        0-d float64 tensor; lower is better.

    Raises:
        InvalidPrediction: A standard deviation is not positive.
    """
    return mean_or_nan(nll_items(mean, std, target), "nll")


def nll_mixture(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Mean of ``-log (1/S) sum_s N(y | mu_s, sigma_s^2)``, in nats (not moment matched).

    Args:
        mean: Component means, shape (S, N).
        std: Component standard deviations with observation noise, broadcastable to `mean`.
        target: Targets, shape (N,).

    Returns:
        0-d float64 tensor; lower is better.
    """
    return mean_or_nan(nll_mixture_items(mean, std, target), "nll")


def nll_mm(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """NLL of the Gaussian with the mixture's mean and variance: arguments as in `nll_mixture`."""
    return nll_gauss(*moment_match(mean, std), target)


def rmse(mean: Tensor, target: Tensor) -> Tensor:
    """Root of the mean squared error of the predictive mean, both of shape (N,)."""
    mu_N, y_N = vectors(("mean", mean), ("target", target))
    return mean_or_nan((y_N - mu_N).square(), "rmse").sqrt()


def mae(mean: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the predictive mean, both of shape (N,)."""
    mu_N, y_N = vectors(("mean", mean), ("target", target))
    return mean_or_nan((y_N - mu_N).abs(), "mae")


def sharpness(std: Tensor) -> Tensor:
    """Root mean predictive variance, ``sqrt(mean sigma^2)``."""
    return mean_or_nan(vectors(("std", std))[0].square(), "sharpness").sqrt()


def mean_sigma(std: Tensor) -> Tensor:
    """Mean predictive standard deviation."""
    return mean_or_nan(vectors(("std", std))[0], "mean_sigma")


def var_calibration(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Mean squared z-score, ``mean ((y - mu)/sigma)^2``: 1 if the variances are calibrated."""
    mu_N, sigma_N, y_N = vectors(("mean", mean), ("std", std), ("target", target))
    return mean_or_nan(((y_N - mu_N) / sigma_N).square(), "var_calibration")


def ence(mean: Tensor, std: Tensor, target: Tensor, n_bins: int = 10) -> Tensor:
    """Expected normalised calibration error of the variance (Levi et al., 2022).

    ``mean_b |sqrt(mean_b sigma^2) - rmse_b| / sqrt(mean_b sigma^2)`` over equal-mass bins of sigma
    that never split ties; one common sigma gives one bin.

    Args:
        mean: Predictive means, shape (N,).
        std: Predictive standard deviations (positive), shape (N,).
        target: Targets, shape (N,).
        n_bins: Number of bins.

    Returns:
        0-d float64 tensor; lower is better.
    """
    mu_N, sigma_N, y_N = vectors(("mean", mean), ("std", std), ("target", target))
    if len(sigma_N) == 0:
        return mean_or_nan(sigma_N, "ence")
    sigma_N, order = sigma_N.sort()
    group_N = equal_mass_groups(sigma_N, n_bins)
    squares_2N = torch.stack([sigma_N.square(), (y_N - mu_N)[order].square()])
    sums_2B = sigma_N.new_zeros(2, int(group_N[-1]) + 1).index_add_(1, group_N, squares_2N)
    return (1.0 - (sums_2B[1] / sums_2B[0]).sqrt()).abs().mean()
