"""`ClassificationMetrics`: every score of a categorical predictive from one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bayesrule.metrics._inputs import (
    IGNORE_INDEX,
    ROW_TOLERANCE,
    InvalidPrediction,
    classification_inputs,
    keep_items,
    mean_or_nan,
)
from bayesrule.metrics.decomposition import (
    entropy,
    mean_probs_and_aleatoric,
    predictive_log_probs,
    split_entropy,
    variation_ratio,
)
from bayesrule.metrics.ood import auroc_of_labels
from bayesrule.metrics.reliability import (
    ReliabilityBins,
    adaptive_bins,
    classwise_bins,
    ece_null_draws,
    ks_ce_from_top,
    reliability_bins,
)
from bayesrule.metrics.scores import brier_items, nll_items, target_rank
from bayesrule.metrics.selective import (
    augrc,
    aurc,
    coverage_at_risk,
    e_aurc,
    risk_at_coverage,
)
from bayesrule.metrics.state import ExactMetric

__all__ = ["ClassificationMetrics"]

BASE_BINS = 15
Confidence = Literal["max_prob", "entropy", "mi"]


class ClassificationMetrics(ExactMetric):
    """Accumulates scores, calibration, uncertainty split and selective prediction.

    `update` takes log-probabilities of the posterior predictive, per-sample log-probabilities, or
    both. `compute` returns a dict with the keys of `bayesrule.metrics.DIRECTIONS`: ``ece`` and its
    relatives always have 15 bins, further bin counts add a key each (``ece20``). The keys
    ``aleatoric``, ``mi``, ``variation_ratio`` and ``n_samples`` are present once samples were
    given (for all items).

    Args:
        n_classes: Number of classes K.
        ece_bins: Bin counts of the ECE; 15 is always among them.
        top_k: Further ranks of the accuracy; those below K are reported, as ``top5``.
        confidence: Score of selective prediction: the largest probability, minus the entropy, or
            minus the mutual information (needs samples).
        coverages: Coverages c of ``risk80`` and ``acc80``.
        risks: Risks r of ``cov_r05``.
        n_null: Resamples of ``ece_null``; 0 leaves it out.
        ignore_index: Target value that drops an item, or None.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    sums: Tensor
    split_sums: Tensor
    classwise: Tensor

    def __init__(
        self,
        n_classes: int,
        ece_bins: Sequence[int] = (BASE_BINS,),
        *,
        top_k: Sequence[int] = (5,),
        confidence: Confidence = "max_prob",
        coverages: Sequence[float] = (0.8,),
        risks: Sequence[float] = (0.01, 0.05, 0.10),
        n_null: int = 100,
        ignore_index: int | None = IGNORE_INDEX,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if n_classes < 2 or any(n_bins < 1 for n_bins in ece_bins):
            raise InvalidPrediction(
                f"n_classes must be at least 2 and each count of ece_bins at least 1, got "
                f"{n_classes} and {tuple(ece_bins)}"
            )
        if confidence not in ("max_prob", "entropy", "mi"):
            raise InvalidPrediction(
                f"confidence must be 'max_prob', 'entropy' or 'mi', not {confidence!r}"
            )
        self.n_classes = n_classes
        self.ece_bins = tuple(dict.fromkeys((BASE_BINS, *ece_bins)))
        self.top_k = tuple(k for k in top_k if 1 < k < n_classes)
        self.confidence = confidence
        self.coverages = tuple(coverages)
        self.risks = tuple(risks)
        self.n_null = n_null
        self.ignore_index = ignore_index
        self.add_sum("sums", 6 + len(self.top_k))
        self.add_sum("split_sums", 5)
        self.add_sum("classwise", 3, n_classes, BASE_BINS)
        for n_bins in self.ece_bins:
            self.add_sum(f"bins{n_bins}", 3, n_bins)
        self.add_rows("items", 5 if n_classes == 2 else 3)

    def update(
        self,
        log_probs: Tensor | None,
        target: Tensor,
        sample_log_probs: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            log_probs: Log-probabilities of the posterior predictive, shape (..., K); None takes the
                mean of the samples.
            target: Classes, shape (...).
            sample_log_probs: Log-probabilities of each posterior sample, shape (S, ..., K).
            mask: False drops an item, e.g. one that a sampler repeated.
            weights: Weights of the samples, shape (S,); default 1/S.

        Raises:
            InvalidPrediction: Shapes do not fit, rows are not log-probabilities, a target is not a
                class, or `log_probs` is not the mean of the samples.
        """
        if log_probs is None:
            if sample_log_probs is None:
                raise InvalidPrediction("give log_probs, sample_log_probs, or both")
            log_probs = predictive_log_probs(sample_log_probs, weights)
        if log_probs.shape[-1] != self.n_classes:
            raise InvalidPrediction(
                f"log_probs has {log_probs.shape[-1]} classes, the metric was made for "
                f"{self.n_classes}"
            )
        lp_NK, y_N = classification_inputs(log_probs, target, mask, self.ignore_index)
        log_conf_N, entropy_N = lp_NK.amax(-1), entropy(lp_NK)
        rank_N = target_rank(lp_NK, y_N)
        correct_N = (rank_N == 0).to(torch.float64)
        kappa_N = {"max_prob": log_conf_N, "entropy": -entropy_N}.get(self.confidence)
        if sample_log_probs is not None:
            keep = keep_items(target, mask, self.ignore_index)
            mi_N = self._add_split(sample_log_probs[:, keep], lp_NK, weights)
            kappa_N = -mi_N if kappa_N is None else kappa_N
        if kappa_N is None:
            raise InvalidPrediction("confidence='mi' needs sample_log_probs in every update")
        self._add_sums(lp_NK, y_N, rank_N, entropy_N)
        for n_bins in self.ece_bins:
            name = f"bins{n_bins}"
            bins = torch.stack(reliability_bins(log_conf_N.exp(), correct_N, n_bins))
            setattr(self, name, getattr(self, name) + bins)
        self.classwise = self.classwise + torch.stack(classwise_bins(lp_NK, y_N, BASE_BINS))
        columns = [log_conf_N, correct_N, kappa_N]
        if self.n_classes == 2:
            columns += [lp_NK[:, 1], y_N.to(torch.float64)]
        self.add_to_rows("items", columns)

    def _add_sums(self, lp_NK: Tensor, y_N: Tensor, rank_N: Tensor, entropy_N: Tensor) -> None:
        nll_N, zero_N = nll_items(lp_NK, y_N)
        conf_N = lp_NK.amax(-1).exp()
        top_N = (conf_N - (rank_N == 0).to(torch.float64)).square()
        parts = [torch.ones_like(nll_N), nll_N, zero_N, brier_items(lp_NK, y_N), top_N, entropy_N]
        parts += [rank_N < k for k in self.top_k]
        self.sums = self.sums + torch.stack([part.to(torch.float64).sum() for part in parts])

    def _add_split(self, samples_SNK: Tensor, lp_NK: Tensor, weights: Tensor | None) -> Tensor:
        if samples_SNK.shape[1:] != lp_NK.shape:
            raise InvalidPrediction(
                f"sample_log_probs keeps {tuple(samples_SNK.shape)} where log_probs keeps "
                f"{tuple(lp_NK.shape)}; expected (samples, items, classes)"
            )
        mean_NK, aleatoric_N = mean_probs_and_aleatoric(samples_SNK, weights)
        split = split_entropy(mean_NK, aleatoric_N)
        if lp_NK.numel() and float((mean_NK - lp_NK.exp()).abs().max()) > ROW_TOLERANCE:
            raise InvalidPrediction(
                "log_probs is not the log of the mean probability of sample_log_probs: average "
                "probabilities (logsumexp), not logits, and use the same samples for both"
            )
        n = float(split.total.numel())
        parts = [
            lp_NK.new_tensor(n),
            split.aleatoric.sum(),
            split.epistemic.sum(),
            variation_ratio(samples_SNK, weights).sum(),
            lp_NK.new_tensor(n * samples_SNK.shape[0]),
        ]
        self.split_sums = self.split_sums + torch.stack(parts)
        return split.epistemic

    def compute(self) -> dict[str, float]:
        """Return all values over the items seen so far, on all processes."""
        with self.one_warning_if_empty(float(self.sums[0])):
            values = self._score_values()
            values.update(self._calibration_values())
            values.update(self._split_values())
            values.update(self._selective_values())
            values["n"] = self.sums[0]
            return {key: float(value) for key, value in values.items()}

    def reliability(self, n_bins: int = BASE_BINS) -> ReliabilityBins:
        """Return the bins of the reliability diagram, reduced over processes.

        Args:
            n_bins: One of the bin counts the metric was made with.
        """
        if n_bins not in self.ece_bins:
            raise InvalidPrediction(f"the metric has bins {self.ece_bins}, not {n_bins}")
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=self._to_sync,
            should_unsync=self._should_unsync,
        ):
            return ReliabilityBins(*getattr(self, f"bins{n_bins}").clone())

    def _score_values(self) -> dict[str, Tensor]:
        sums = self.sums.cpu()
        count = sums[0]
        _, nll, n_zero, brier, brier_top, total = (sums / count)[:6]
        items = self.rows("items")
        acc = mean_or_nan(items[:, 1], "acc")
        values = {"acc": acc, "err": 1.0 - acc}
        values.update(
            (f"top{k}", share) for k, share in zip(self.top_k, sums[6:] / count, strict=True)
        )
        values.update(nll=nll, nll_n_zero=n_zero * count, brier=brier, brier_top=brier_top)
        if self.n_classes == 2:
            values["brier_binary"] = brier / 2.0
            values["auroc"] = auroc_of_labels(items[:, 3], items[:, 4] == 1)
        values["conf"] = mean_or_nan(items[:, 0].exp(), "conf")
        values["entropy"] = total
        return values

    def _calibration_values(self) -> dict[str, Tensor]:
        log_conf_N, correct_N = self.rows("items").T[:2]
        conf_N = log_conf_N.exp()
        base = ReliabilityBins(*getattr(self, f"bins{BASE_BINS}"))
        classwise_K = ReliabilityBins(*self.classwise).ece()
        values = {
            "ece": base.ece(),
            "oce": base.oce(),
            "uce": base.uce(),
            "rmsce": base.rmsce(),
            "rmsce_debiased": base.rmsce_debiased(),
            "mce": base.mce(),
            "mce_n": base.mce_count(),
            "ada_ece": adaptive_bins(conf_N, correct_N, BASE_BINS).ece(),
            "cw_ece": classwise_K.mean(),
            "ks_ce": ks_ce_from_top(conf_N, correct_N),
        }
        if self.n_classes == 2:
            values["ece_pos"] = classwise_K[1]
        if self.n_null > 0:
            draws = ece_null_draws(conf_N, BASE_BINS, self.n_null)
            values["ece_null"] = draws.mean()
        for n_bins in self.ece_bins[1:]:
            values[f"ece{n_bins}"] = ReliabilityBins(*getattr(self, f"bins{n_bins}")).ece()
        return values

    def _split_values(self) -> dict[str, Tensor]:
        count = self.split_sums[0]
        if count == 0:
            return {}
        if count != self.sums[0]:
            raise InvalidPrediction(
                f"samples were given for {int(count)} of {int(self.sums[0])} items; give "
                "sample_log_probs in every update or in none"
            )
        aleatoric, mi, ratio, n_samples = self.split_sums[1:] / count
        return {
            "aleatoric": aleatoric,
            "mi": mi,
            "variation_ratio": ratio,
            "n_samples": n_samples,
        }

    def _selective_values(self) -> dict[str, Tensor]:
        correct_N, kappa_N = self.rows("items").T[1:3]
        error_N = 1.0 - correct_N
        values = {
            "aurc": aurc(kappa_N, error_N),
            "e_aurc": e_aurc(kappa_N, error_N),
            "augrc": augrc(kappa_N, error_N),
        }
        for coverage in self.coverages:
            risk = risk_at_coverage(kappa_N, error_N, coverage)
            values[f"risk{round(100 * coverage)}"] = risk
            values[f"acc{round(100 * coverage)}"] = 1.0 - risk
        for level in self.risks:
            name = f"cov_r{round(100 * level):02d}"
            values[name] = coverage_at_risk(kappa_N, error_N, level)
        values["auroc_err"] = auroc_of_labels(-kappa_N, error_N == 1)
        return values
