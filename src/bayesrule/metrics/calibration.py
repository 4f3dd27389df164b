"""Calibration of the top label: binned, equal-mass, classwise and bin-free errors.

The definitions and the bins are those of `ReliabilityBins`; these functions take log-probabilities
(..., K) and targets (...), drop ignored items, and return a 0-d float64 tensor. `ece` and its
relatives are about the top label, also for two classes (`ece_pos` is about P(y = 1)).
"""

from __future__ import annotations

from torch import Tensor

from bayesrule.metrics._inputs import (
    IGNORE_INDEX,
    classification_inputs,
    mean_or_nan,
    warn_empty,
)
from bayesrule.metrics.reliability import (
    ReliabilityBins,
    adaptive_bins,
    classwise_bins,
    ece_null_draws,
    ks_ce_from_top,
    reliability_bins,
)
from bayesrule.metrics.scores import top_label

__all__ = [
    "ada_ece",
    "cw_ece",
    "ece",
    "ece_null",
    "ece_pos",
    "ks_ce",
    "mce",
    "oce",
    "rmsce",
    "rmsce_debiased",
    "uce",
]


def ece_null(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    n_draws: int = 100,
    seed: int = 0,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Mean ECE of a perfectly calibrated resample ``y_n ~ Cat(P_n)``: the noise floor of `ece`.

    ECE is biased upward for small N; a difference below this value is noise.

    Args:
        log_probs: Log-probabilities, shape (..., K).
        target: Classes, shape (...); only says which items are kept.
        n_bins: Number of bins M.
        n_draws: Number of resamples.
        seed: Seed of the resamples.
        mask: False drops an item.
        ignore_index: Target value that drops an item.

    Returns:
        0-d float64 tensor.
    """
    conf_N, _ = top_label(log_probs, target, mask=mask, ignore_index=ignore_index)
    return mean_or_nan(ece_null_draws(conf_N, n_bins, n_draws, seed), "ece_null")


def _top_bins(
    name: str,
    log_probs: Tensor,
    target: Tensor,
    n_bins: int,
    mask: Tensor | None,
    ignore_index: int | None,
) -> ReliabilityBins:
    conf_N, correct_N = top_label(log_probs, target, mask=mask, ignore_index=ignore_index)
    if conf_N.numel() == 0:
        warn_empty(name)
    return reliability_bins(conf_N, correct_N, n_bins)


def ece(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Expected calibration error of the top label, ``sum_b (n_b/N) |acc_b - conf_b|``.

    Args:
        log_probs: Log-probabilities, shape (..., K).
        target: Classes, shape (...).
        n_bins: Number of equal-width bins M, ``(lo, hi]``.
        mask: False drops an item.
        ignore_index: Target value that drops an item.

    Returns:
        0-d float64 tensor in [0, 1]; lower is better.
    """
    return _top_bins("ece", log_probs, target, n_bins, mask, ignore_index).ece()


def rmsce(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Root mean square calibration error, ``sqrt(sum_b (n_b/N) (acc_b - conf_b)^2)``."""
    return _top_bins("rmsce", log_probs, target, n_bins, mask, ignore_index).rmsce()


def rmsce_debiased(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Debiased `rmsce` (Kumar et al., 2019): see `ReliabilityBins.rmsce_debiased`."""
    bins = _top_bins("rmsce_debiased", log_probs, target, n_bins, mask, ignore_index)
    return bins.rmsce_debiased()


def mce(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Maximum calibration error, ``max_b |acc_b - conf_b|`` over non-empty bins."""
    return _top_bins("mce", log_probs, target, n_bins, mask, ignore_index).mce()


def oce(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Overconfidence part of `ece`, ``sum_b (n_b/N) max(0, conf_b - acc_b)``."""
    return _top_bins("oce", log_probs, target, n_bins, mask, ignore_index).oce()


def uce(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Underconfidence part of `ece`, ``sum_b (n_b/N) max(0, acc_b - conf_b)``."""
    return _top_bins("uce", log_probs, target, n_bins, mask, ignore_index).uce()


def ada_ece(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """ECE over equal-mass bins that never split ties: see `adaptive_bins`."""
    conf_N, correct_N = top_label(log_probs, target, mask=mask, ignore_index=ignore_index)
    if conf_N.numel() == 0:
        warn_empty("ada_ece")
    return adaptive_bins(conf_N, correct_N, n_bins).ece()


def cw_ece(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Classwise ECE, ``(1/K) sum_k sum_b (n_bk/N) |mean_b 1[y=k] - mean_b P_k|``.

    Items are binned by ``P_nk``, all N for each class; a class that never occurs stays in the mean.
    """
    lp_NK, y_N = classification_inputs(log_probs, target, mask, ignore_index)
    if len(y_N) == 0:
        warn_empty("cw_ece")
    return classwise_bins(lp_NK, y_N, n_bins).ece().mean()


def ece_pos(
    log_probs: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """ECE of ``P(y = 1)`` for two classes (`ece` is always about the top label)."""
    lp_NK, y_N = classification_inputs(log_probs, target, mask, ignore_index)
    if len(y_N) == 0:
        warn_empty("ece_pos")
    return classwise_bins(lp_NK, y_N, n_bins).ece()[1]


def ks_ce(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Bin-free calibration error, ``max_j |(1/N) sum_{i<=j} (acc_(i) - conf_(i))|``.

    Items are sorted by confidence and the partial sums read only at the ends of runs of ties.
    """
    conf_N, correct_N = top_label(log_probs, target, mask=mask, ignore_index=ignore_index)
    return ks_ce_from_top(conf_N, correct_N)
