"""Token-level scores of a language model: an item is a token that is neither padding nor prompt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesrule.metrics._inputs import IGNORE_INDEX, classification_inputs, mean_or_nan
from bayesrule.metrics.scores import nll_items, target_rank
from bayesrule.metrics.state import ExactMetric

__all__ = ["LanguageMetrics", "perplexity"]


def perplexity(
    log_probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Perplexity per token, ``exp(nll)``.

    Args:
        log_probs: Log-probabilities of the next token, shape (..., V).
        target: Next tokens, shape (...); `ignore_index` marks padding and prompt.
        mask: False drops a token.
        ignore_index: Target value that drops a token.

    Returns:
        0-d float64 tensor, at least 1; lower is better.
    """
    lp_NV, y_N = classification_inputs(log_probs, target, mask, ignore_index, widen=False)
    return mean_or_nan(nll_items(lp_NV, y_N)[0], "perplexity").exp()


class LanguageMetrics(ExactMetric):
    """Accumulates ``nll``, ``perplexity``, ``bits``, ``acc`` and ``nll_n_zero`` over tokens.

    The mean is over all tokens of all batches and processes, never a mean of batch means.

    Args:
        ignore_index: Target value that drops a token, or None.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    sums: Tensor

    def __init__(self, ignore_index: int | None = IGNORE_INDEX, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self.add_sum("sums", 4)

    def update(self, log_probs: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            log_probs: Log-probabilities of the next token, shape (..., V).
            target: Next tokens, shape (...).
            mask: False drops a token.
        """
        lp_NV, y_N = classification_inputs(log_probs, target, mask, self.ignore_index, widen=False)
        nll_N, zero_N = nll_items(lp_NV, y_N)
        hit_N = target_rank(lp_NV, y_N) == 0
        count = nll_N.new_tensor(float(len(y_N)))
        self.sums = self.sums + torch.stack([count, nll_N.sum(), hit_N.sum(), zero_N.sum()])

    def compute(self) -> dict[str, float]:
        """Return all values over the tokens seen so far, on all processes."""
        count, nll_sum, hits, zeros = self.sums.unbind()
        mean = nll_sum / count
        values = {
            "nll": mean,
            "perplexity": mean.exp(),
            "bits": mean / math.log(2.0),
            "acc": hits / count,
            "nll_n_zero": torch.where(count > 0, zeros, float("nan")),
            "n": count,
        }
        with self.one_warning_if_empty(float(count)):
            return {key: float(value) for key, value in values.items()}
