"""`OODMetrics`: detection of one or several out-of-distribution sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesrule.metrics._inputs import InvalidPrediction, check_rows
from bayesrule.metrics.decomposition import predictive_log_probs
from bayesrule.metrics.ood import (
    aupr_in,
    aupr_out,
    auroc,
    energy_score,
    entropy_score,
    fpr95,
    fpr95_id,
    mi_score,
    msp_score,
)
from bayesrule.metrics.state import ExactMetric

__all__ = ["OODMetrics"]

VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auroc": auroc,
    "aupr_out": aupr_out,
    "aupr_in": aupr_in,
    "fpr95": fpr95,
    "fpr95_id": fpr95_id,
}
SCORES = ("entropy", "msp", "mi", "energy")


class OODMetrics(ExactMetric):
    """Accumulates OOD scores of the test set and of each OOD set.

    The first of `scores` gives ``auroc``, ``aupr_out``, ``aupr_in``, ``fpr95`` and ``fpr95_id``;
    each further score adds the same keys with its name, e.g. ``auroc_msp``. With several OOD sets
    these are the mean over sets, and each set has its own keys, e.g. ``auroc_fmnist`` or
    ``auroc_msp_fmnist``.

    Args:
        scores: Among ``entropy``, ``msp`` (one minus the largest probability), ``mi`` (needs
            samples) and ``energy`` (needs logits).
        ood_sets: Names of the OOD sets.
        temperature: Temperature of the energy.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    def __init__(
        self,
        scores: Sequence[str] = ("entropy", "msp"),
        ood_sets: Sequence[str] = ("ood",),
        *,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        wrong = [name for name in scores if name not in SCORES]
        if wrong or not scores or len(set(scores)) != len(scores):
            raise InvalidPrediction(f"scores must be distinct names of {SCORES}, got {scores!r}")
        clash = {"id", *SCORES} & set(ood_sets)
        if clash or not ood_sets or len(set(ood_sets)) != len(ood_sets):
            raise InvalidPrediction(
                f"ood_sets must be distinct names other than 'id' and {SCORES}, got {ood_sets!r}"
            )
        self.scores = tuple(scores)
        self.ood_sets = tuple(ood_sets)
        self.temperature = temperature
        for name in ("id", *self.ood_sets):
            self.add_rows(f"rows_{name}", len(self.scores))

    def update(
        self,
        log_probs: Tensor | None,
        source: str,
        sample_log_probs: Tensor | None = None,
        *,
        sample_logits: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add a batch of one source.

        Args:
            log_probs: Log-probabilities of the posterior predictive, shape (N, K); None takes the
                mean of the samples.
            source: ``"id"`` for the test set, else the name of an OOD set.
            sample_log_probs: Log-probabilities of each sample, shape (S, N, K).
            sample_logits: Logits of each sample, shape (S, N, K).
            mask: False drops an item, shape (N,).
            weights: Weights of the samples, shape (S,).

        Raises:
            InvalidPrediction: An unknown source, or an input that a score needs is missing.
        """
        if source not in ("id", *self.ood_sets):
            raise InvalidPrediction(
                f"source must be 'id' or one of {self.ood_sets}, not {source!r}"
            )
        if log_probs is None and sample_log_probs is not None:
            log_probs = predictive_log_probs(sample_log_probs, weights)
        if log_probs is None:
            raise InvalidPrediction("give log_probs, sample_log_probs, or both")
        keep = torch.ones(log_probs.shape[:-1], dtype=torch.bool, device=log_probs.device)
        if mask is not None:
            keep &= mask.to(torch.bool)
        lp_NK = log_probs[keep]
        check_rows(lp_NK.detach().to(torch.float64))
        columns = []
        for name in self.scores:
            if name == "entropy":
                columns.append(entropy_score(lp_NK))
            elif name == "msp":
                columns.append(msp_score(lp_NK))
            elif name == "mi" and sample_log_probs is not None:
                columns.append(mi_score(sample_log_probs[:, keep], weights))
            elif name == "energy" and sample_logits is not None:
                columns.append(energy_score(sample_logits[:, keep], self.temperature))
            else:
                needed = "sample_log_probs" if name == "mi" else "sample_logits"
                raise InvalidPrediction(f"the score {name!r} needs {needed} in every update")
        self.add_to_rows(f"rows_{source}", columns)

    def compute(self) -> dict[str, float]:
        """Return all values over the items seen so far, on all processes."""
        id_NC = self.rows("rows_id")
        sets = {name: self.rows(f"rows_{name}") for name in self.ood_sets}
        values: dict[str, float] = {}
        with self.one_warning_if_empty(min(len(id_NC), *(len(rows) for rows in sets.values()))):
            for column, score in enumerate(self.scores):
                suffix = "" if column == 0 else f"_{score}"
                for key, value_of in VALUES.items():
                    per_set = {
                        name: float(value_of(id_NC[:, column], ood_NC[:, column]))
                        for name, ood_NC in sets.items()
                    }
                    values[key + suffix] = sum(per_set.values()) / len(per_set)
                    if len(per_set) > 1:
                        values.update(
                            (f"{key}{suffix}_{name}", value) for name, value in per_set.items()
                        )
        values["n_id"] = float(len(id_NC))
        values["n_ood"] = float(sum(len(rows) for rows in sets.values()))
        return values
