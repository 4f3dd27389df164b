"""Predictive uncertainty and its split into aleatoric and epistemic parts.

With S posterior samples ``p_s = p(y | x, theta_s)`` and weights ``w_s`` (default 1/S)::

    total = H[sum_s w_s p_s];   aleatoric = sum_s w_s H[p_s];   epistemic = total - aleatoric >= 0

in nats, ``0 log 0 = 0``. The epistemic part is the mutual information of prediction and parameters
(BALD; Houlsby et al., 2011). With few samples it is too small by about (S-1)/S, so S belongs in the
record. The layout is (samples, items, classes).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bayesrule.metrics._inputs import InvalidPrediction, check_rows

__all__ = [
    "Decomposition",
    "VarianceDecomposition",
    "decompose",
    "entropy",
    "mutual_information",
    "predictive_log_probs",
    "variance_decomposition",
    "variation_ratio",
]

MI_TOLERANCE = 1e-9


class Decomposition(NamedTuple):
    """Total, aleatoric and epistemic uncertainty of each item, shape (...)."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


class VarianceDecomposition(NamedTuple):
    """Total, aleatoric and epistemic variance of each item, shape (...)."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def _weights(weights: Tensor | None, n_samples: int, like: Tensor) -> Tensor:
    if weights is None:
        return like.new_full((n_samples,), 1.0 / n_samples, dtype=torch.float64)
    w_S = weights.to(device=like.device, dtype=torch.float64)
    if w_S.shape != (n_samples,) or bool((w_S < 0).any()) or abs(float(w_S.sum()) - 1.0) > 1e-6:
        raise InvalidPrediction(
            f"weights must be {n_samples} non-negative numbers that sum to 1, one per sample; got "
            f"shape {tuple(w_S.shape)} with sum {float(w_S.sum()):.6g}"
        )
    return w_S


def _check_samples(sample_log_probs: Tensor) -> None:
    if sample_log_probs.ndim < 2 or sample_log_probs.shape[0] == 0:
        raise InvalidPrediction(
            f"sample_log_probs has shape {tuple(sample_log_probs.shape)}; "
            "give (samples, ..., classes) with at least one sample"
        )


def mean_probs_and_aleatoric(
    sample_log_probs: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``sum_s w_s p_s`` (..., K) and ``sum_s w_s H[p_s]`` (...), one sample at a time."""
    _check_samples(sample_log_probs)
    w_S = _weights(weights, len(sample_log_probs), sample_log_probs)
    mean = torch.zeros_like(sample_log_probs[0], dtype=torch.float64)
    aleatoric = mean.sum(-1)
    for w, log_probs in zip(w_S, sample_log_probs):
        lp = log_probs.detach().to(torch.float64)
        check_rows(lp, "sample_log_probs")
        probs = lp.exp()
        mean += w * probs
        aleatoric += w * torch.special.entr(probs).sum(-1)
    return mean, aleatoric


def predictive_log_probs(sample_log_probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Log of the mean probability, ``log sum_s w_s exp(log p_s)``; never the mean of logits.

    Args:
        sample_log_probs: Log-probabilities of each sample, shape (S, ..., K).
        weights: Optional weights of the samples, shape (S,).

    Returns:
        Log-probabilities of the posterior predictive, float64, shape (..., K).
    """
    _check_samples(sample_log_probs)
    lp = sample_log_probs.detach().to(torch.float64)
    if lp.shape[0] == 1:
        return lp[0]
    w_S = _weights(weights, lp.shape[0], lp)
    return (lp + w_S.log().reshape(-1, *(1,) * (lp.ndim - 1))).logsumexp(0)


def entropy(log_probs: Tensor, *, normalised: bool = False) -> Tensor:
    """Entropy of each row, ``-sum_k P_k log P_k``, in nats.

    Args:
        log_probs: Log-probabilities, shape (..., K).
        normalised: Divide by ``log K``, so that the uniform row has 1.

    Returns:
        Float64 tensor of shape (...).
    """
    value = torch.special.entr(log_probs.detach().to(torch.float64).exp()).sum(-1)
    return value / math.log(log_probs.shape[-1]) if normalised else value


def decompose(
    sample_log_probs: Tensor, weights: Tensor | None = None, *, normalised: bool = False
) -> Decomposition:
    """Split the predictive entropy of each item into aleatoric and epistemic parts.

    Args:
        sample_log_probs: Log-probabilities of each sample, shape (S, ..., K).
        weights: Optional weights of the samples, shape (S,).
        normalised: Divide all parts by ``log K``.

    Returns:
        Total, aleatoric and epistemic entropy per item, shape (...); one sample has an epistemic
        part of exactly zero.

    Raises:
        InvalidPrediction: Rows are not log-probabilities, or the epistemic part is below -1e-9,
            which no set of distributions can give.
    """
    mean, aleatoric = mean_probs_and_aleatoric(sample_log_probs, weights)
    split = split_entropy(mean, aleatoric)
    scale = math.log(mean.shape[-1]) if normalised else 1.0
    return Decomposition(*(part / scale for part in split))


def split_entropy(mean_probs: Tensor, aleatoric: Tensor) -> Decomposition:
    """Return the split of ``H[mean_probs]`` given the aleatoric part, checking that MI >= 0."""
    total = torch.special.entr(mean_probs).sum(-1)
    epistemic = total - aleatoric
    if epistemic.numel() and float(epistemic.min()) < -MI_TOLERANCE:
        raise InvalidPrediction(
            f"mutual information {float(epistemic.min()):.3g} is negative: the sample "
            "log-probabilities are not normalised or lie in the wrong layout; expected "
            "(samples, items, classes)"
        )
    return Decomposition(total, aleatoric, epistemic.clamp(min=0.0))


def mutual_information(sample_log_probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mutual information of prediction and parameters per item (BALD), in nats, shape (...)."""
    return decompose(sample_log_probs, weights).epistemic


def variation_ratio(sample_log_probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Share of samples that do not vote for the winning class, ``1 - max_k votes_k / S``.

    Each sample votes for its most probable class, the lowest index on ties.

    Args:
        sample_log_probs: Log-probabilities of each sample, shape (S, ..., K).
        weights: Optional weights of the votes, shape (S,).

    Returns:
        Float64 tensor of shape (...).
    """
    _check_samples(sample_log_probs)
    w_S = _weights(weights, len(sample_log_probs), sample_log_probs)
    votes = torch.zeros_like(sample_log_probs[0], dtype=torch.float64)
    for w, log_probs in zip(w_S, sample_log_probs):
        vote = log_probs.argmax(-1, keepdim=True)
        votes.scatter_add_(-1, vote, w.expand(vote.shape))
    return (1.0 - votes.amax(-1)).clamp(min=0.0)


def variance_decomposition(mean: Tensor, std: Tensor) -> VarianceDecomposition:
    """Law of total variance: ``mean_s sigma_s^2`` plus ``var_s(mu_s)`` (population, 1/S).

    Args:
        mean: Means of the samples' predictive distributions, shape (S, ...).
        std: Their standard deviations, broadcastable to `mean`.

    Returns:
        Total, aleatoric and epistemic variance per item, shape (...).
    """
    mu = mean.detach().to(torch.float64)
    aleatoric = std.detach().to(torch.float64).square().expand_as(mu).mean(0)
    epistemic = (mu - mu.mean(0)).square().mean(0)
    return VarianceDecomposition(aleatoric + epistemic, aleatoric, epistemic)
