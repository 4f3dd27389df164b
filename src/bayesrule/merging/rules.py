"""Merging rules as functions of one tensor: theta_0, theta_1..theta_T and their curvatures.

With d_t = theta_t - theta_0 most are theta_0 + sum_t alpha_t P_t d_t:

=================  ================================================================================
average            alpha_t = 1/T, P_t = I
weighted           alpha_t = w_t / sum w, P_t = I
task_arithmetic    P_t = I                                          (Ilharco et al., 2023)
fisher             P_t = (sum_s alpha_s H_s)^-1 H_t                 (Matena and Raffel, 2022)
fisher_base        P_t = Hbar^-1 H_t,         Hbar = H_0 + sum_s alpha_s H_s
gradient_matching  P_t = Hbar^-1 (H_0 + H_t)                        (Daheim et al., 2024, eq. 5)
ties               trimmed d_t that agree with sign(sum_t alpha_t d_t)   (Yadav et al., 2023)
dare               d_t z / (1 - p), z ~ Bernoulli(1 - p)            (Yu et al., 2024)
slerp              sin((1-w) O)/sin(O) theta_1 + sin(w O)/sin(O) theta_2, O their angle
regmean            (sum_t G_t)^-1 sum_t G_t W_t^T                   (Jin et al., 2023)
=================  ================================================================================

The Bayesian ones go through natural parameters (`algebra`). Curvatures are sums over data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bayesrule.merging.algebra import gaussian_site, laplace_posterior, merged_mean, multiply
from bayesrule.posteriors import DiagonalGaussian

__all__ = [
    "SLERP_LINEAR",
    "Reduce",
    "agreeing",
    "average",
    "dare",
    "fisher",
    "fisher_base",
    "gradient_matching",
    "regmean",
    "slerp",
    "task_arithmetic",
    "ties",
    "trim",
    "weighted",
]

SLERP_LINEAR = 0.9995
"""Above this |cos O| two tensors are taken as parallel and interpolated linearly."""

Reduce = Literal["mean", "sum"]
"""How differences that agree in sign are combined."""

_ONE = "theta"


def weighted(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum_t w_t theta_t / sum_t w_t."""
    total = sum(weights)
    out = torch.zeros_like(models[0])
    for theta, w in zip(models, weights, strict=True):
        out += (w / total) * theta
    return out


def average(models: Sequence[Tensor]) -> Tensor:
    """Return (1/T) sum_t theta_t."""
    return weighted(models, [1.0] * len(models))


def task_arithmetic(base: Tensor, models: Sequence[Tensor], alphas: Sequence[float]) -> Tensor:
    """Return theta_0 + sum_t alpha_t (theta_t - theta_0)."""
    out = base.clone()
    for theta, a in zip(models, alphas, strict=True):
        out += a * (theta - base)
    return out


def fisher(
    models: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    alphas: Sequence[float],
    base: Tensor | None = None,
) -> Tensor:
    """Return sum_t alpha_t H_t theta_t / sum_t alpha_t H_t.

    Where no model has curvature, the entry is the base model's, or without one the average.

    Args:
        models: theta_t.
        curvatures: H_t, not negative.
        alphas: Weights; a common factor cancels.
        base: theta_0, for entries without curvature only.
    """
    at = average(models) if base is None else base
    sites = [gaussian_site({_ONE: m - at}, {_ONE: H}) for m, H in zip(models, curvatures)]
    flat = gaussian_site({_ONE: torch.zeros_like(at)}, {_ONE: torch.zeros_like(at)})
    product = multiply(flat, sites, alphas)
    S = -2.0 * product.nat2[_ONE]
    known = S > 0
    return at + torch.where(known, product.nat1[_ONE] / torch.where(known, S, 1.0), 0.0)


def fisher_base(
    base: Tensor,
    models: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    base_curvature: Tensor,
    alphas: Sequence[float],
    *,
    floor: float = 0.1,
) -> tuple[Tensor, int]:
    """Return theta_0 + sum_t alpha_t Hbar^-1 H_t (theta_t - theta_0), and how often it was floored.

    It is the mean of N(theta_0, H_0^-1) prod_t N(theta_t, H_t^-1)^alpha_t: the posteriors' means
    are taken for the likelihoods' modes.
    """
    prior = DiagonalGaussian({_ONE: base}, {_ONE: base_curvature})
    sites = [gaussian_site({_ONE: m}, {_ONE: H}) for m, H in zip(models, curvatures)]
    product = multiply(prior.natural(), sites, alphas)
    merged, floored = merged_mean(product, prior, floor)
    return merged.mean[_ONE], floored


def gradient_matching(
    base: Tensor,
    models: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    base_curvature: Tensor,
    alphas: Sequence[float],
    *,
    floor: float = 0.1,
) -> tuple[DiagonalGaussian, int]:
    """Return prior * prod_t (q_t / prior) ** alpha_t over one tensor, named "theta".

    Its mean is equation 5 of Daheim et al. (2024). Negative factors remove tasks; the precision is
    then no difference of exact Hessians, and is held above `floor` H_0.

    Args:
        base: theta_0.
        models: theta_t.
        curvatures: H_t of the tasks' data, not negative.
        base_curvature: H_0 > 0, the base model's prior included.
        alphas: Scaling factors, of any sign.
        floor: Least precision, as a share of H_0.

    Returns:
        N(m, Hbar^-1), and the number of floored entries.
    """
    prior = DiagonalGaussian({_ONE: base}, {_ONE: base_curvature})
    zero = prior.natural()
    sites = [
        laplace_posterior({_ONE: m}, {_ONE: H}, {_ONE: base_curvature}).natural() - zero
        for m, H in zip(models, curvatures)
    ]
    return merged_mean(multiply(zero, sites, alphas), prior, floor)


def trim(delta: Tensor, threshold: float) -> Tensor:
    """Return d where |d| (in single precision) reaches the threshold, else 0."""
    return torch.where(delta.abs().float() >= threshold, delta, 0.0)


def agreeing(deltas: Sequence[Tensor], reduce: Reduce) -> Tensor:
    """Return the mean (or sum) of the non-zero d_t whose sign is that of sum_t d_t."""
    elected = torch.stack(list(deltas)).sum(0).sign()
    total = torch.zeros_like(deltas[0])
    count = torch.zeros_like(deltas[0])
    for delta in deltas:
        agrees = (delta.sign() == elected) & (delta != 0)
        total += torch.where(agrees, delta, 0.0)
        count += agrees
    return total if reduce == "sum" else total / count.clamp_min(1.0)


def ties(
    base: Tensor,
    models: Sequence[Tensor],
    alphas: Sequence[float],
    thresholds: Sequence[float],
    reduce: Reduce = "mean",
) -> Tensor:
    """Return theta_0 + agreeing( alpha_t trim(d_t) ).

    Args:
        base: theta_0.
        models: theta_t.
        alphas: Scaling factors; with a common one, it scales what is added.
        thresholds: Of each model, over all of its tensors.
        reduce: How entries that agree are combined.
    """
    deltas = [
        a * trim(m - base, least) for m, a, least in zip(models, alphas, thresholds, strict=True)
    ]
    return base + agreeing(deltas, reduce)


def dare(delta: Tensor, keep: Tensor, density: float) -> Tensor:
    """Return d z / (1 - p): entries that are not kept are dropped, the others rescaled.

    Args:
        delta: d_t.
        keep: z, whether an entry stays.
        density: 1 - p, the probability of staying.
    """
    return torch.where(keep, delta / density, 0.0)


def slerp(first: Tensor, second: Tensor, w: float) -> Tensor:
    """Return the point at share `w` of the great circle from the first tensor to the second.

    Tensors that are nearly parallel, or zero, are interpolated linearly.
    """
    norms = first.norm() * second.norm()
    cos = float((first * second).sum() / norms) if norms > 0 else 1.0
    if abs(cos) > SLERP_LINEAR:
        return (1.0 - w) * first + w * second
    angle = torch.arccos(torch.tensor(cos, dtype=torch.float64))
    left, right = torch.sin((1.0 - w) * angle), torch.sin(w * angle)
    return (left * first + right * second) / torch.sin(angle)


def regmean(
    weights_OI: Sequence[Tensor], grams_II: Sequence[Tensor], *, off_diagonal: float = 0.9
) -> Tensor:
    """Return W with W^T = (sum_t G_t)^-1 sum_t G_t W_t^T, the least-squares fit of all outputs.

    Args:
        weights_OI: Weights of one linear layer.
        grams_II: G_t = sum over inputs of x x^T.
        off_diagonal: Factor of the Gram matrices' off-diagonal entries.

    Returns:
        The merged weight; for directions that no input has, the minimum-norm correction of the
        average.
    """
    centre = average(weights_OI)
    total = torch.zeros_like(grams_II[0])
    pull = torch.zeros_like(centre.mT)
    for W, G in zip(weights_OI, grams_II, strict=True):
        reduced = off_diagonal * G + (1.0 - off_diagonal) * torch.diag(G.diagonal())
        total += reduced
        pull += reduced @ (W - centre).mT
    return centre + (torch.linalg.pinv(total, hermitian=True) @ pull).mT
