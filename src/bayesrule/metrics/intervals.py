"""Central predictive intervals, PIT values, and the calibration of a regression from them.

Nominal level ``1 - alpha``: the interval runs from the ``alpha/2`` to the ``1 - alpha/2`` quantile
of the predictive distribution and is closed. The PIT of an item is ``F_n(y_n)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesrule.metrics._inputs import mean_or_nan, vectors

__all__ = [
    "gaussian_interval",
    "interval_score",
    "mixture_interval",
    "mixture_quantile",
    "mpiw",
    "nmpiw",
    "picp",
    "pit_gauss",
    "pit_mixture",
    "pit_samples",
    "qce",
    "qce_central",
    "sample_interval",
]

LEVELS = tuple(k / 20 for k in range(1, 20))
QUANTILE_STEPS = 200
QUANTILE_TOLERANCE = 1e-13


def _normal_quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def gaussian_interval(mean: Tensor, std: Tensor, alpha: float = 0.05) -> tuple[Tensor, Tensor]:
    """Central interval of a Gaussian, ``mu -+ z_{1 - alpha/2} sigma``, as ``(lo, hi)`` of (N,)."""
    mu, sigma = mean.detach().to(torch.float64), std.detach().to(torch.float64)
    half = _normal_quantile(1.0 - alpha / 2.0) * sigma
    return mu - half, mu + half


def mixture_quantile(mean: Tensor, std: Tensor, p: float) -> Tensor:
    """Quantile of the equally weighted Gaussian mixture, by bracketed Newton steps.

    The quantile lies between the smallest and the largest quantile of the components; a Newton step
    that leaves the bracket is replaced by bisection.

    Args:
        mean: Component means, shape (S, N).
        std: Component standard deviations (positive), broadcastable to `mean`.
        p: Level in (0, 1).

    Returns:
        Quantile per item, float64, shape (N,).
    """
    mu_SN = mean.detach().to(torch.float64)
    sigma_SN = std.detach().to(torch.float64).expand_as(mu_SN)
    ends_SN = mu_SN + _normal_quantile(p) * sigma_SN
    if mu_SN.shape[0] == 1 or mu_SN.shape[1] == 0:
        return ends_SN[0]
    lo_N, hi_N = ends_SN.amin(0), ends_SN.amax(0)
    x_N = ends_SN.mean(0)
    scale_N = torch.maximum(x_N.abs(), sigma_SN.amax(0))
    for _ in range(QUANTILE_STEPS):
        z_SN = (x_N - mu_SN) / sigma_SN
        excess_N = torch.special.ndtr(z_SN).mean(0) - p
        density_N = (torch.exp(-0.5 * z_SN.square()) / sigma_SN).mean(0) / math.sqrt(2 * math.pi)
        lo_N = torch.where(excess_N < 0, x_N, lo_N)
        hi_N = torch.where(excess_N > 0, x_N, hi_N)
        newton_N = x_N - excess_N / density_N
        inside_N = (newton_N > lo_N) & (newton_N < hi_N)
        next_N = torch.where(inside_N, newton_N, 0.5 * (lo_N + hi_N))
        next_N = torch.where(excess_N == 0, x_N, next_N)
        step_N = (next_N - x_N).abs()
        x_N = next_N
        if bool((step_N <= QUANTILE_TOLERANCE * scale_N).all()):
            break
    return x_N


def mixture_interval(mean: Tensor, std: Tensor, alpha: float = 0.05) -> tuple[Tensor, Tensor]:
    """Central interval of the equally weighted Gaussian mixture (S, N), as ``(lo, hi)`` of (N,)."""
    lo_N = mixture_quantile(mean, std, alpha / 2.0)
    return lo_N, mixture_quantile(mean, std, 1.0 - alpha / 2.0)


def sample_interval(samples: Tensor, alpha: float = 0.05) -> tuple[Tensor, Tensor]:
    """Central interval of the samples' empirical quantiles (S, N), linearly interpolated."""
    x_SN = samples.detach().to(torch.float64).sort(0).values
    last = x_SN.shape[0] - 1

    def quantile(p: float) -> Tensor:
        below = math.floor(p * last)
        return torch.lerp(x_SN[below], x_SN[min(below + 1, last)], p * last - below)

    return quantile(alpha / 2.0), quantile(1.0 - alpha / 2.0)


def picp(lo: Tensor, hi: Tensor, target: Tensor) -> Tensor:
    """Prediction interval coverage, ``mean 1[lo <= y <= hi]``; best at the nominal level."""
    lo_N, hi_N, y_N = vectors(("lo", lo), ("hi", hi), ("target", target))
    return mean_or_nan(((lo_N <= y_N) & (y_N <= hi_N)).to(torch.float64), "picp")


def mpiw(lo: Tensor, hi: Tensor) -> Tensor:
    """Mean prediction interval width, ``mean(hi - lo)``, in the units of the target."""
    lo_N, hi_N = vectors(("lo", lo), ("hi", hi))
    return mean_or_nan(hi_N - lo_N, "mpiw")


def nmpiw(lo: Tensor, hi: Tensor, target: Tensor) -> Tensor:
    """`mpiw` over the targets' range, ``mpiw / (max y - min y)``; NaN if they are all equal."""
    (y_N,) = vectors(("target", target))
    width = mpiw(lo, hi)
    span = y_N.amax() - y_N.amin() if len(y_N) else y_N.new_zeros(())
    return torch.where(span > 0, width / span, float("nan"))


def interval_score(lo: Tensor, hi: Tensor, target: Tensor, alpha: float = 0.05) -> Tensor:
    """Interval score (Gneiting & Raftery, 2007, eq. 43), averaged over items; lower is better.

    ``mean[(hi - lo) + (2/alpha) (lo - y)_+ + (2/alpha) (y - hi)_+]``

    Args:
        lo: Lower ends, shape (N,).
        hi: Upper ends, shape (N,).
        target: Targets, shape (N,).
        alpha: One minus the nominal level.

    Returns:
        0-d float64 tensor, in the units of the target.
    """
    lo_N, hi_N, y_N = vectors(("lo", lo), ("hi", hi), ("target", target))
    miss_N = (lo_N - y_N).clamp(min=0.0) + (y_N - hi_N).clamp(min=0.0)
    return mean_or_nan(hi_N - lo_N + 2.0 / alpha * miss_N, "interval_score")


def pit_gauss(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """PIT ``Phi((y - mu)/sigma)`` of a Gaussian predictive, shape (N,)."""
    mu, sigma, y = (t.detach().to(torch.float64) for t in (mean, std, target))
    return torch.special.ndtr((y - mu) / sigma)


def pit_mixture(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """PIT ``mean_s Phi((y - mu_s)/sigma_s)`` of a Gaussian mixture (S, N), shape (N,)."""
    return pit_gauss(mean, std, target).mean(0)


def pit_samples(samples: Tensor, target: Tensor) -> Tensor:
    """PIT ``(#{x_s < y} + #{x_s = y}/2) / S`` of samples (S, N), shape (N,)."""
    x_SN, y_N = samples.detach().to(torch.float64), target.detach().to(torch.float64)
    twice_N = 2 * (x_SN < y_N).sum(0) + (x_SN == y_N).sum(0)
    return twice_N.to(torch.float64) / (2 * x_SN.shape[0])


def qce(pit: Tensor) -> Tensor:
    """Quantile calibration error, ``mean_tau |tau - mean 1[F_n(y_n) <= tau]|``, tau = .05, .., .95.

    Args:
        pit: PIT values, shape (N,).

    Returns:
        0-d float64 tensor; 0 if the PIT is uniform on the levels; lower is better.
    """
    (pit_N,) = vectors(("pit", pit))
    level_L = pit_N.new_tensor(LEVELS)
    share_L = (pit_N[:, None] <= level_L).to(torch.float64).sum(0) / len(pit_N)
    return mean_or_nan((level_L - share_L).abs() if len(pit_N) else pit_N, "qce")


def qce_central(pit: Tensor) -> Tensor:
    """`qce` of central intervals, ``mean_c |c - mean 1[|2 F_n(y_n) - 1| <= c]|``, same levels."""
    (pit_N,) = vectors(("pit", pit))
    return qce((2.0 * pit_N - 1.0).abs())
