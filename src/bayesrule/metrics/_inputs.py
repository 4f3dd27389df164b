"""Checks and reductions that every metric of this room shares.

Conventions (they hold for the whole room):

* Predictions come as **log-probabilities**, rows on the last axis,
  ``log P = logsumexp_s(log_softmax f_s) - log S``. Nothing guesses whether an input is a logit: a
  row whose probabilities do not sum to one within 1e-4 is an error. ``-inf`` (a probability of
  exactly zero) is allowed; NaN and ``+inf`` are not.
* Items whose target equals ``ignore_index``, or whose ``mask`` is false, are dropped before
  anything else happens, the checks included.
* All arithmetic is float64. No items gives NaN and a warning, never zero and never an exception.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from bayesrule.errors import BayesruleError

__all__ = ["InvalidPrediction"]

IGNORE_INDEX = -100
ROW_TOLERANCE = 1e-4


class InvalidPrediction(BayesruleError, ValueError):
    """A prediction or target that no metric can be computed from; the message says why."""


def warn_empty(name: str) -> None:
    """Warn that `name` has no items to be computed from and is NaN."""
    warnings.warn(f"{name}: no items, the value is NaN", RuntimeWarning, stacklevel=3)


def mean_or_nan(values: Tensor, name: str) -> Tensor:
    """Return the float64 mean of `values`; NaN with a warning when there are none."""
    if values.numel() == 0:
        warn_empty(name)
        return values.new_full((), float("nan"), dtype=torch.float64)
    return values.to(torch.float64).mean()


def keep_items(target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor:
    """Return the boolean mask of the items that count."""
    keep = torch.ones_like(target, dtype=torch.bool)
    if mask is not None:
        if mask.shape != target.shape:
            raise InvalidPrediction(
                f"mask has shape {tuple(mask.shape)} but the target has {tuple(target.shape)}; "
                "give one boolean per item"
            )
        keep &= mask.to(torch.bool)
    if ignore_index is not None:
        keep &= target != ignore_index
    return keep


def check_rows(log_probs: Tensor, name: str = "log_probs") -> None:
    """Raise unless each row (last axis) of `log_probs` holds log-probabilities that sum to one."""
    if log_probs.numel() == 0:
        return
    rows = log_probs.reshape(-1, log_probs.shape[-1])
    off = (rows.exp().sum(-1) - 1.0).abs()
    bad = ~(off <= ROW_TOLERANCE)
    if not bool(bad.any()):
        return
    infinite = ~off.isfinite()
    if bool(infinite.any()):
        row = int(infinite.nonzero()[0, 0])
        raise InvalidPrediction(
            f"{name}: row {row} of {rows.shape[0]} has a NaN, +inf or an "
            "enormous value; look for a diverged model, or for logits in place of log-probabilities"
        )
    row = int(off.argmax())
    raise InvalidPrediction(
        f"{name}: the probabilities of row {row} of {rows.shape[0]} sum to "
        f"{float(rows[row].exp().sum()):.6g}, not 1; pass log-probabilities, e.g. "
        "torch.log_softmax(logits.float(), -1), not logits or probabilities"
    )


def classification_inputs(
    log_probs: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    ignore_index: int | None = IGNORE_INDEX,
    *,
    widen: bool = True,
) -> tuple[Tensor, Tensor]:
    """Drop ignored items, check the rest, and return ``(log_probs (N, K) float64, target (N,))``.

    Args:
        log_probs: Log-probabilities, shape (..., K).
        target: Integer classes, shape (...).
        mask: Optional booleans, shape (...); false drops the item.
        ignore_index: Target value that drops the item, or None.
        widen: Return float64 rows; otherwise at least float32 ones (a large vocabulary).

    Returns:
        The kept rows and their targets in int64.

    Raises:
        InvalidPrediction: Shapes do not fit, rows are not log-probabilities, or a target is not a
            class.
    """
    if log_probs.ndim != target.ndim + 1 or log_probs.shape[:-1] != target.shape:
        raise InvalidPrediction(
            f"log_probs {tuple(log_probs.shape)} and target {tuple(target.shape)} do not fit: "
            "log_probs needs the target's shape plus one axis of classes at the end"
        )
    if target.is_floating_point() or target.is_complex():
        raise InvalidPrediction(f"target must hold class numbers (integers), not {target.dtype}")
    keep = keep_items(target, mask, ignore_index)
    lp_NK = log_probs.detach()
    lp_NK = lp_NK.reshape(-1, lp_NK.shape[-1]) if bool(keep.all()) else lp_NK[keep]
    dtype = torch.float64 if widen else torch.promote_types(lp_NK.dtype, torch.float32)
    lp_NK = lp_NK.to(dtype)
    y_N = target[keep].to(torch.int64)
    check_rows(lp_NK)
    n_classes = lp_NK.shape[-1]
    bad = (y_N < 0) | (y_N >= n_classes)
    if bool(bad.any()):
        raise InvalidPrediction(
            f"target {int(y_N[bad][0])} is not a class: {n_classes} classes are numbered "
            f"0..{n_classes - 1} (ignored items carry {ignore_index})"
        )
    return lp_NK, y_N


def vectors(*named: tuple[str, Tensor]) -> tuple[Tensor, ...]:
    """Return 1-D float64 copies of equally long vectors; NaN or a length that differs raises."""
    out = []
    first_name, first = named[0]
    for name, value in named:
        if value.shape != first.shape or value.ndim != 1:
            raise InvalidPrediction(
                f"{name} has shape {tuple(value.shape)}, {first_name} has {tuple(first.shape)}; "
                "both must be vectors of the same length"
            )
        value64 = value.detach().to(torch.float64).contiguous()
        if bool(value64.isnan().any()):
            raise InvalidPrediction(
                f"{name} has a NaN at position {int(value64.isnan().nonzero()[0, 0])}"
            )
        out.append(value64)
    return tuple(out)
