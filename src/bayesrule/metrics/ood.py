"""Out-of-distribution detection: ranking metrics and scores.

The positive class is **OOD** and a larger score means more OOD. `score_id` are the scores of the
test set, `score_ood` those of the other data. Only the order of scores counts: every value is
unchanged by a strictly increasing map of the scores, and ties are never split.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayesrule.metrics._inputs import (
    IGNORE_INDEX,
    InvalidPrediction,
    check_rows,
    classification_inputs,
    vectors,
    warn_empty,
)
from bayesrule.metrics._ties import tie_runs
from bayesrule.metrics.decomposition import entropy, mutual_information

__all__ = [
    "aupr_in",
    "aupr_out",
    "auroc",
    "auroc_ovr",
    "energy_score",
    "entropy_score",
    "fpr95",
    "fpr95_id",
    "mi_score",
    "msp_score",
]


def _groups(score_id: Tensor, score_ood: Tensor, name: str) -> tuple[Tensor, Tensor] | None:
    (id_N,) = vectors(("score_id", score_id))
    (ood_M,) = vectors(("score_ood", score_ood))
    if id_N.numel() == 0 or ood_M.numel() == 0:
        warn_empty(name)
        return None
    return id_N, ood_M


def _nan(like: Tensor) -> Tensor:
    return like.new_full((), float("nan"), dtype=torch.float64)


def auroc(score_id: Tensor, score_ood: Tensor) -> Tensor:
    """``P(s_ood > s_id) + P(s_ood = s_id)/2``, the area under the ROC curve, ties half.

    Args:
        score_id: Scores of the in-distribution items, shape (N,).
        score_ood: Scores of the OOD items, shape (M,).

    Returns:
        0-d float64 tensor; higher is better; NaN if a group is empty.
    """
    groups = _groups(score_id, score_ood, "auroc")
    if groups is None:
        return _nan(score_id)
    id_N, ood_M = groups
    id_N = id_N.sort().values
    below = torch.searchsorted(id_N, ood_M).sum()
    up_to = torch.searchsorted(id_N, ood_M, right=True).sum()
    return (below + up_to).to(torch.float64) / (2.0 * len(id_N) * len(ood_M))


def auroc_of_labels(score: Tensor, positive: Tensor) -> Tensor:
    """Return the AUROC of scores (N,) for boolean labels (N,); NaN if a label is missing."""
    if bool(positive.all()) or not bool(positive.any()):
        return _nan(score)
    return auroc(score[~positive], score[positive])


def _threshold_counts(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return true and false positives at each distinct threshold, from the largest score down."""
    pos, neg = positive.sort().values, negative.sort().values
    score_N = torch.cat([positive, negative]).sort(descending=True).values
    threshold_T = score_N[tie_runs(score_N)[1].cumsum(0) - 1]
    tp_T = len(pos) - torch.searchsorted(pos, threshold_T)
    fp_T = len(neg) - torch.searchsorted(neg, threshold_T)
    return tp_T.to(torch.float64), fp_T.to(torch.float64)


def _average_precision(positive: Tensor, negative: Tensor) -> Tensor:
    tp_T, fp_T = _threshold_counts(positive, negative)
    recall_T = tp_T / len(positive)
    step_T = torch.diff(recall_T, prepend=recall_T.new_zeros(1))
    return (step_T * tp_T / (tp_T + fp_T)).sum()


def aupr_out(score_id: Tensor, score_ood: Tensor) -> Tensor:
    """Average precision with OOD positive, ``sum_i (R_i - R_{i-1}) P_i`` over distinct thresholds.

    A step function without interpolation; it depends on the base rate, so log both group sizes.
    """
    groups = _groups(score_id, score_ood, "aupr_out")
    return _nan(score_id) if groups is None else _average_precision(groups[1], groups[0])


def aupr_in(score_id: Tensor, score_ood: Tensor) -> Tensor:
    """Average precision with in-distribution items positive and the score ``-s``."""
    groups = _groups(score_id, score_ood, "aupr_in")
    return _nan(score_id) if groups is None else _average_precision(-groups[0], -groups[1])


def _fpr_at_tpr(positive: Tensor, negative: Tensor, tpr: float) -> Tensor:
    tp_T, fp_T = _threshold_counts(positive, negative)
    first = int((tp_T >= tpr * len(positive) - 1e-9).nonzero()[0, 0])
    return fp_T[first] / len(negative)


def fpr95(score_id: Tensor, score_ood: Tensor, tpr: float = 0.95) -> Tensor:
    """Share of in-distribution items flagged at the largest threshold that flags 95 % of the OOD.

    Args:
        score_id: Scores of the in-distribution items, shape (N,).
        score_ood: Scores of the OOD items, shape (M,).
        tpr: Share of OOD items that must be found.

    Returns:
        0-d float64 tensor; lower is better; NaN if a group is empty.
    """
    groups = _groups(score_id, score_ood, "fpr95")
    return _nan(score_id) if groups is None else _fpr_at_tpr(groups[1], groups[0], tpr)


def fpr95_id(score_id: Tensor, score_ood: Tensor, tpr: float = 0.95) -> Tensor:
    """`fpr95` with in-distribution items positive: the "FPR at 95 % TPR" of many OOD papers."""
    groups = _groups(score_id, score_ood, "fpr95_id")
    return _nan(score_id) if groups is None else _fpr_at_tpr(-groups[0], -groups[1], tpr)


def auroc_ovr(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """One-versus-rest AUROC of each class; a class without positives or negatives is NaN.

    The macro average is ``auroc_ovr(...).nanmean()``: absent classes are left out.

    Args:
        log_probs: Log-probabilities, shape (..., K).
        target: Classes, shape (...).
        mask: False drops an item.
        ignore_index: Target value that drops an item.

    Returns:
        Float64 tensor of shape (K,).
    """
    lp_NK, y_N = classification_inputs(log_probs, target, mask, ignore_index)
    return torch.stack([auroc_of_labels(lp_NK[:, k], y_N == k) for k in range(lp_NK.shape[-1])])


def msp_score(log_probs: Tensor) -> Tensor:
    """One minus the largest probability of each row (Hendrycks & Gimpel, 2017), shape (...)."""
    lp = log_probs.detach().to(torch.float64)
    check_rows(lp)
    return -torch.expm1(lp.amax(-1))


def entropy_score(log_probs: Tensor) -> Tensor:
    """Entropy of the predictive distribution (total uncertainty) of each row, shape (...)."""
    check_rows(log_probs.detach().to(torch.float64))
    return entropy(log_probs)


def mi_score(sample_log_probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mutual information of prediction and parameters, from (S, ..., K) to (...)."""
    return mutual_information(sample_log_probs, weights)


def energy_score(sample_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Energy ``-T logsumexp(f / T)`` of the logits averaged over samples (Liu et al., 2020).

    Args:
        sample_logits: Logits of each sample, shape (S, ..., K).
        temperature: T > 0.

    Returns:
        Float64 tensor of shape (...).

    Raises:
        InvalidPrediction: The temperature is not positive.
    """
    if not temperature > 0:
        raise InvalidPrediction(f"the energy's temperature must be positive, not {temperature}")
    mean_logits = sample_logits.detach().to(torch.float64).mean(0)
    return -temperature * (mean_logits / temperature).logsumexp(-1)
