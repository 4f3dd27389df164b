"""Proper scores and accuracy of a categorical predictive distribution.

All functions take log-probabilities ``log_probs`` (..., K) and integer targets (...), drop ignored
items, and return a 0-d float64 tensor. Losses are **means** over items, logarithms are natural.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesrule.metrics._inputs import IGNORE_INDEX, classification_inputs, mean_or_nan

__all__ = [
    "accuracy",
    "brier",
    "brier_binary",
    "brier_top",
    "err",
    "nll",
    "nll_n_zero",
    "top_k_accuracy",
    "top_label",
]

LOG_FLOOR = math.log(1e-12)


def nll_items(lp_NK: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each item and the mask of floored items.

    An item whose target has probability exactly zero (log-probability ``-inf``) counts
    ``-log(1e-12)``; any other value stands as it is, however small.
    """
    lp_N = lp_NK.gather(-1, y_N[:, None]).squeeze(-1).to(torch.float64)
    zero_N = lp_N == -float("inf")
    return 0.0 - torch.where(zero_N, LOG_FLOOR, lp_N), zero_N


def brier_items(lp_NK: Tensor, y_N: Tensor) -> Tensor:
    """Return ``sum_k (P_nk - 1[y_n = k])^2`` of each item."""
    diff_NK = lp_NK.exp()
    diff_NK[torch.arange(len(y_N), device=y_N.device), y_N] -= 1.0
    return diff_NK.square().sum(-1)


def target_rank(lp_NK: Tensor, y_N: Tensor) -> Tensor:
    """Return how many classes come before the target, 0 is the top; ties go to the lowest index."""
    lp_N1 = lp_NK.gather(-1, y_N[:, None])
    index_K = torch.arange(lp_NK.shape[-1], device=lp_NK.device)
    before_NK = (lp_NK > lp_N1) | ((lp_NK == lp_N1) & (index_K < y_N[:, None]))
    return before_NK.sum(-1)


def top_label(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> tuple[Tensor, Tensor]:
    """Return confidence and correctness of the predicted class.

    ``conf_n = max_k P_nk`` and ``correct_n = 1[argmax_k P_nk = y_n]`` (lowest index on ties).

    Args:
        log_probs: Log-probabilities, shape (..., K).
        target: Classes, shape (...).
        mask: False drops an item.
        ignore_index: Target value that drops an item.

    Returns:
        ``(conf, correct)``, both float64 of shape (N,), N the number of kept items.
    """
    lp_NK, y_N = classification_inputs(log_probs, target, mask, ignore_index)
    return lp_NK.amax(-1).exp(), (target_rank(lp_NK, y_N) == 0).to(torch.float64)


def nll(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Mean negative log-likelihood, ``-(1/N) sum_n log P_{n, y_n}``, in nats.

    Only a probability of exactly zero is floored, at 1e-12; `nll_n_zero` counts those items.

    Args:
        log_probs: Log-probabilities, shape (..., K).
        target: Classes, shape (...).
        mask: False drops an item.
        ignore_index: Target value that drops an item.

    Returns:
        0-d float64 tensor; lower is better.
    """
    lp_NK, y_N = classification_inputs(log_probs, target, mask, ignore_index)
    return mean_or_nan(nll_items(lp_NK, y_N)[0], "nll")


def nll_n_zero(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Count the items whose target has probability exactly zero (floored in `nll`)."""
    lp_NK, y_N = classification_inputs(log_probs, target, mask, ignore_index)
    return nll_items(lp_NK, y_N)[1].sum().to(torch.float64)


def brier(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Brier score, ``(1/N) sum_n sum_k (P_nk - 1[y_n = k])^2``, in [0, 2] (Brier, 1950).

    The sum over classes is not divided by K. For two classes the one-column form is half of this:
    `brier_binary`.

    Args:
        log_probs: Log-probabilities, shape (..., K).
        target: Classes, shape (...).
        mask: False drops an item.
        ignore_index: Target value that drops an item.

    Returns:
        0-d float64 tensor; lower is better.
    """
    lp_NK, y_N = classification_inputs(log_probs, target, mask, ignore_index)
    return mean_or_nan(brier_items(lp_NK, y_N), "brier")


def brier_binary(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """One-column Brier score of two classes, ``(1/N) sum_n (P_n1 - y_n)^2``: half of `brier`."""
    return brier(log_probs, target, mask=mask, ignore_index=ignore_index) / 2.0


def brier_top(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Brier score of the top label, ``(1/N) sum_n (conf_n - correct_n)^2``."""
    conf_N, correct_N = top_label(log_probs, target, mask=mask, ignore_index=ignore_index)
    return mean_or_nan((conf_N - correct_N).square(), "brier_top")


def top_k_accuracy(
    log_probs: Tensor,
    target: Tensor,
    k: int = 5,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Share of items whose target is among the `k` most probable classes.

    Ties go to the lowest class index, so the value depends on nothing but its arguments.

    Args:
        log_probs: Log-probabilities, shape (..., K).
        target: Classes, shape (...).
        k: Number of classes that count; ``k >= K`` gives 1.
        mask: False drops an item.
        ignore_index: Target value that drops an item.

    Returns:
        0-d float64 tensor, a fraction; higher is better.
    """
    lp_NK, y_N = classification_inputs(log_probs, target, mask, ignore_index)
    return mean_or_nan((target_rank(lp_NK, y_N) < k).to(torch.float64), f"top{k}")


def accuracy(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Share of items whose most probable class (lowest index on ties) is the target."""
    return top_k_accuracy(log_probs, target, 1, mask=mask, ignore_index=ignore_index)


def err(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Error rate, one minus `accuracy`."""
    return 1.0 - accuracy(log_probs, target, mask=mask, ignore_index=ignore_index)
