"""Reliability bins: the counts behind every binned calibration error and the reliability diagram.

Bins are M equal-width intervals ``(lo, hi]``: ``b = clip(ceil(conf M) - 1, 0, M - 1)``, so a
confidence of 0 falls into the first bin and of 1 into the last. A confidence within 0.5e-9 of an
edge counts as being on it, which keeps ``0.6 * 10`` at 6 whatever the floating-point noise. With
``n_b`` items, mean correctness ``acc_b`` and mean **confidence of the items in the bin** (not the
bin's centre) ``conf_b``::

    ece   = sum_b (n_b/N) |acc_b - conf_b|              empty bins contribute 0
    rmsce = sqrt(sum_b (n_b/N) (acc_b - conf_b)^2)
    mce   = max over non-empty bins |acc_b - conf_b|
    oce   = sum_b (n_b/N) max(0, conf_b - acc_b);  uce is the opposite sign;  ece = oce + uce

Sources: Naeini et al. (2015) and Guo et al. (2017) for ECE and MCE; Nguyen & O'Connor (2015) for
equal mass; Kumar et al. (2019) for the debiased and classwise forms; Gupta et al. (2021) for the
Kolmogorov-Smirnov error.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayesrule.metrics._inputs import classification_inputs, vectors, warn_empty
from bayesrule.metrics._ties import equal_mass_groups, tie_runs
from bayesrule.seeding import child_seed

__all__ = [
    "ReliabilityBins",
    "adaptive_bins",
    "classwise_bins",
    "ece_null_draws",
    "reliability_bins",
]

EDGE_TOLERANCE = 0.5e-9
NULL_CHUNK = 4_000_000


class ReliabilityBins(NamedTuple):
    """Sufficient statistics of a binned calibration error, and of the reliability diagram.

    Leading axes (e.g. classes) may come before the axis of bins; sums over the last axis reduce.

    Attributes:
        counts: Number of items per bin ``n_b``, float64, shape (..., M).
        sum_conf: Sum of their confidences, shape (..., M).
        sum_acc: Sum of their correctness, shape (..., M).
    """

    counts: Tensor
    sum_conf: Tensor
    sum_acc: Tensor

    @property
    def conf(self) -> Tensor:
        """Mean confidence ``conf_b``; NaN in an empty bin."""
        return self.sum_conf / self.counts

    @property
    def acc(self) -> Tensor:
        """Mean correctness ``acc_b``; NaN in an empty bin."""
        return self.sum_acc / self.counts

    @property
    def total(self) -> Tensor:
        """Number of items N, shape (...)."""
        return self.counts.sum(-1)

    @property
    def _signed_mass(self) -> Tensor:
        """``(n_b/N) (conf_b - acc_b)``: finite in empty bins, NaN only if N = 0."""
        return (self.sum_conf - self.sum_acc) / self.total[..., None]

    @property
    def _gap(self) -> Tensor:
        """``|acc_b - conf_b|`` with 0 in empty bins."""
        return (self.sum_conf - self.sum_acc).abs() / self.counts.clamp(min=1.0)

    def ece(self) -> Tensor:
        """``sum_b (n_b/N) |acc_b - conf_b|``."""
        return self._signed_mass.abs().sum(-1)

    def oce(self) -> Tensor:
        """Overconfidence part of `ece`, ``sum_b (n_b/N) max(0, conf_b - acc_b)``."""
        return self._signed_mass.clamp(min=0.0).sum(-1)

    def uce(self) -> Tensor:
        """Underconfidence part of `ece`, ``sum_b (n_b/N) max(0, acc_b - conf_b)``."""
        return (-self._signed_mass).clamp(min=0.0).sum(-1)

    def rmsce(self) -> Tensor:
        """``sqrt(sum_b (n_b/N) (acc_b - conf_b)^2)``."""
        return (self.counts / self.total[..., None] * self._gap.square()).sum(-1).sqrt()

    def mce(self) -> Tensor:
        """``max_b |acc_b - conf_b|`` over non-empty bins."""
        return torch.where(self.total > 0, self._gap.amax(-1), float("nan"))

    def mce_count(self) -> Tensor:
        """Number of items in the bin that gives `mce`: one item alone can give 0.6."""
        counts = self.counts.gather(-1, self._gap.argmax(-1, keepdim=True)).squeeze(-1)
        return torch.where(self.total > 0, counts, float("nan"))

    def ace_nonempty(self) -> Tensor:
        """Unweighted mean gap of the non-empty bins ("ACE" of netcal), for comparison only."""
        return self._gap.sum(-1) / (self.counts > 0).sum(-1)

    def rmsce_debiased(self) -> Tensor:
        """`rmsce` less its sampling variance; bins with one item are left out.

        ``sqrt(max(0, sum_b (n_b/N) [(acc_b - conf_b)^2 - acc_b (1 - acc_b)/(n_b - 1)]))``
        """
        acc = self.sum_acc / self.counts.clamp(min=1.0)
        noise = acc * (1.0 - acc) / (self.counts - 1.0).clamp(min=1.0)
        weight = torch.where(self.counts >= 2, self.counts, 0.0) / self.total[..., None]
        return (weight * (self._gap.square() - noise)).sum(-1).clamp(min=0.0).sqrt()


def bin_index(conf: Tensor, n_bins: int) -> Tensor:
    """Return ``clip(ceil(conf M) - 1, 0, M - 1)``, snapping values within 0.5e-9 of an edge."""
    scaled = conf.to(torch.float64) * n_bins
    edge = scaled.round()
    scaled = torch.where((scaled - edge).abs() <= EDGE_TOLERANCE * n_bins, edge, scaled)
    return (scaled.ceil().to(torch.int64) - 1).clamp(0, n_bins - 1)


def reliability_bins(conf: Tensor, correct: Tensor, n_bins: int = 15) -> ReliabilityBins:
    """Sort items into equal-width bins ``(lo, hi]`` of confidence.

    Args:
        conf: Confidences in [0, 1], shape (N,).
        correct: 1 or 0 (or a frequency), shape (N,).
        n_bins: Number of bins M.

    Returns:
        Counts and sums per bin; its methods are the calibration errors.
    """
    conf_N, correct_N = vectors(("conf", conf), ("correct", correct))
    return _histogram(bin_index(conf_N, n_bins), conf_N, correct_N, n_bins)


def _histogram(index: Tensor, conf: Tensor, correct: Tensor, n_bins: int) -> ReliabilityBins:
    # index_add_ and not bincount: bincount with weights is not deterministic on a GPU
    sums = conf.new_zeros(3, n_bins)
    sums.index_add_(1, index, torch.stack([torch.ones_like(conf), conf, correct]))
    return ReliabilityBins(*sums)


def classwise_bins(log_probs: Tensor, target: Tensor, n_bins: int = 15) -> ReliabilityBins:
    """Bin all N items by ``P_nk`` for every class k.

    Args:
        log_probs: Log-probabilities, shape (N, K).
        target: Classes, shape (N,).
        n_bins: Number of bins M.

    Returns:
        Bins of shape (K, M): confidence is ``P_nk``, correctness is ``1[y_n = k]``.
    """
    lp_NK, y_N = classification_inputs(log_probs, target)
    n_classes = lp_NK.shape[-1]
    p_NK = lp_NK.exp()
    offset_K = n_bins * torch.arange(n_classes, device=p_NK.device)
    index = (bin_index(p_NK, n_bins) + offset_K).reshape(-1)
    hit_NK = torch.zeros_like(p_NK).scatter_(-1, y_N[:, None], 1.0)
    flat = _histogram(index, p_NK.reshape(-1), hit_NK.reshape(-1), n_bins * n_classes)
    return ReliabilityBins(*(values.reshape(n_classes, n_bins) for values in flat))


def adaptive_bins(conf: Tensor, correct: Tensor, n_bins: int = 15) -> ReliabilityBins:
    """Sort items into equal-mass bins of confidence that never split ties.

    Args:
        conf: Confidences, shape (N,).
        correct: 1 or 0, shape (N,).
        n_bins: Number of bins M; at most ``min(M, number of distinct confidences)`` are returned.

    Returns:
        Counts and sums of the non-empty bins.
    """
    conf_N, correct_N = vectors(("conf", conf), ("correct", correct))
    conf_N, order = conf_N.sort()
    group_N = equal_mass_groups(conf_N, n_bins)
    n_groups = int(group_N[-1]) + 1 if len(group_N) else 1
    return _histogram(group_N, conf_N, correct_N[order], n_groups)


def ks_ce_from_top(conf: Tensor, correct: Tensor) -> Tensor:
    """Return the Kolmogorov-Smirnov calibration error of confidences and correctness (N,)."""
    # on the CPU: a floating-point cumsum is not deterministic on a GPU
    conf_N, correct_N = vectors(("conf", conf.cpu()), ("correct", correct.cpu()))
    if conf_N.numel() == 0:
        warn_empty("ks_ce")
        return conf_N.new_full((), float("nan"))
    conf_N, order = conf_N.sort()
    _, size_G = tie_runs(conf_N)
    gap_N = (correct_N[order] - conf_N).cumsum(0) / len(conf_N)
    return gap_N[size_G.cumsum(0) - 1].abs().amax()


def ece_null_draws(conf: Tensor, n_bins: int = 15, n_draws: int = 100, seed: int = 0) -> Tensor:
    """Draw the ECE that a perfectly calibrated model with these confidences would show.

    With ``y_n ~ Cat(P_n)`` the top label is right with probability ``conf_n``, so each draw
    replaces the correctness by independent ``Bernoulli(conf_n)``. Items are sorted first: their
    order does not matter.

    Args:
        conf: Confidences, shape (N,).
        n_bins: Number of bins M.
        n_draws: Number of draws R.
        seed: Seed of the draws.

    Returns:
        ECE of each draw, float64, shape (R,).
    """
    (conf_N,) = vectors(("conf", conf.cpu()))
    conf_N = conf_N.clamp(0.0, 1.0).sort().values
    n = len(conf_N)
    if n == 0:
        warn_empty("ece_null")
        return torch.full((n_draws,), float("nan"), dtype=torch.float64)
    generator = torch.Generator().manual_seed(child_seed(seed, "ece_null"))
    member_NM = torch.nn.functional.one_hot(bin_index(conf_N, n_bins), n_bins).to(torch.float64)
    sum_conf_M = conf_N @ member_NM
    chunk = max(1, NULL_CHUNK // n)
    draws = []
    for start in range(0, n_draws, chunk):
        size = min(chunk, n_draws - start)
        uniform_RN = torch.rand(size, n, generator=generator, dtype=torch.float64)
        sum_acc_RM = (uniform_RN < conf_N).to(torch.float64) @ member_NM
        draws.append((sum_acc_RM - sum_conf_M).abs().sum(-1) / n)
    return torch.cat(draws) if draws else torch.empty(0, dtype=torch.float64)
