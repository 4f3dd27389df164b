"""Merging as algebra of posteriors: the Bayesian rules of Daheim et al. (2024).

::

    q  =  q_0 prod_t ( q_t / q_0 )^{alpha_t}                    q_0 the prior, q_t = posterior of t

For an exponential family this is one line of natural parameters, lambda_0 + sum_t alpha_t
(lambda_t - lambda_0). With q_0 = N(theta_0, H_0^-1) and the Laplace posteriors q_t = N(theta_t,
(H_0 + H_t)^-1) its mean is their equation 5::

    Hbar = H_0 + sum_t alpha_t H_t
    m    = theta_0 + sum_t alpha_t Hbar^-1 (H_0 + H_t) (theta_t - theta_0)

Fisher averaging is the same product with the sites N(theta_t, H_t^-1) in the place of q_t / q_0: as
if the likelihood alone had its mode at theta_t, which counts the base model twice.

Curvatures are of losses summed over data; H_t is that of the data of t alone, H_0 that of all that
holds the base model, its prior included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution
from bayesrule.posteriors import (
    DiagonalGaussian,
    ExponentialFamily,
    Natural,
    Params,
    power_product,
)

__all__ = ["gaussian_site", "laplace_posterior", "merge_posteriors", "merged_mean", "multiply"]


def merge_posteriors(
    prior: ExponentialFamily, posteriors: Sequence[ExponentialFamily], alphas: Sequence[float]
) -> ExponentialFamily:
    """Return prior * prod_t (q_t / prior) ** alpha_t, of any exponential family.

    Args:
        prior: q_0.
        posteriors: q_t, over the same parameters.
        alphas: alpha_t, of any sign.

    Raises:
        ImproperDistribution: If the product is no distribution, as removal by estimated curvatures
            may give; `merged_mean` has a floor for it.
    """
    factors = [(prior, 1.0 - sum(alphas)), *zip(posteriors, alphas, strict=True)]
    return power_product([(q, a) for q, a in factors if a != 0.0] or [(prior, 1.0)])


def laplace_posterior(
    mean: Mapping[str, Tensor],
    curvature: Mapping[str, Tensor],
    base_curvature: Mapping[str, Tensor],
) -> DiagonalGaussian:
    """Return q_t = N(theta_t, (H_0 + H_t)^-1), diagonal."""
    precision = {name: base_curvature[name] + curvature[name] for name in mean}
    return DiagonalGaussian(mean, precision)


def gaussian_site(mean: Mapping[str, Tensor], precision: Mapping[str, Tensor]) -> Natural[Params]:
    """Return (H theta, -H/2), a factor of Gaussian form; H may be zero or negative."""
    return Natural(
        {name: precision[name] * m for name, m in mean.items()},
        {name: -0.5 * precision[name] for name in mean},
    )


def multiply(
    prior: Natural[Params], sites: Sequence[Natural[Params]], alphas: Sequence[float]
) -> Natural[Params]:
    """Return lambda_0 + sum_t alpha_t lambda_t."""
    total = prior
    for site, alpha in zip(sites, alphas, strict=True):
        total = total + alpha * site
    return total


def merged_mean(
    natural: Natural[Params], prior: DiagonalGaussian, floor: float
) -> tuple[DiagonalGaussian, int]:
    """Return the Gaussian of natural parameters whose precision is floored, and how often it was.

    The exponent is put about theta_0, where S (theta - theta_0) = nat1 - S theta_0; then S is
    raised to at least `floor` H_0. Where nothing is floored this is `from_natural`.

    Args:
        natural: lambda_0 + sum_t alpha_t (lambda_t - lambda_0).
        prior: q_0 = N(theta_0, H_0^-1).
        floor: Smallest precision, as a share of the prior's.

    Raises:
        ImproperDistribution: If a natural parameter is not finite.
    """
    mean: Params = {}
    precision: Params = {}
    floored = 0
    for name, m0 in prior.mean.items():
        S = -2.0 * natural.nat2[name]
        pull = natural.nat1[name] - S * m0
        if not (torch.isfinite(S).all() and torch.isfinite(pull).all()):
            raise ImproperDistribution(f"{name}: the product's natural parameters are not finite")
        least = floor * prior.precision[name]
        floored += int((least > S).sum())
        precision[name] = torch.maximum(S, least)
        mean[name] = m0 + pull / precision[name]
    return DiagonalGaussian(mean, precision), floored
