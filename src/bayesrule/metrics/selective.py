"""Selective prediction: risk of the i most confident items, and the areas under that curve.

Items are sorted by descending confidence. Inside a group of tied confidences the order is random
and the **expectation** over it is taken in closed form: in a group of size g with E errors, after
c items with F errors, the risk at its j-th item is ``(F + E j/g) / (c + j)``. No value depends on
the order of the input.

    aurc   = (1/N) sum_i risk(i)               (Geifman & El-Yaniv, 2017)
    e_aurc = aurc - aurc with all correct items first, exactly      (Geifman et al., 2019)
    augrc  = (1/N) sum_i (i/N) risk(i)         (Traub et al., 2024)

`confidence` may be any score (probability, minus entropy, minus mutual information); `error` is 1
for a wrong item, or any loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesrule.metrics._inputs import mean_or_nan, vectors, warn_empty
from bayesrule.metrics._ties import tie_runs

__all__ = [
    "accuracy_at_coverage",
    "augrc",
    "aurc",
    "coverage_at_risk",
    "e_aurc",
    "risk_at_coverage",
    "risk_coverage_curve",
]

RISK_TOLERANCE = 1e-12
COVERAGE_TOLERANCE = 1e-9


def risk_coverage_curve(confidence: Tensor, error: Tensor) -> Tensor:
    """Return ``risk(i)``, the mean error of the i most confident items, for i = 1..N.

    Args:
        confidence: Score of each item, larger is more confident, shape (N,).
        error: Error (0 or 1) or loss of each item, shape (N,).

    Returns:
        Selective risk, float64 on the CPU, shape (N,); entry i-1 belongs to coverage i/N.
    """
    # on the CPU: a floating-point cumsum is not deterministic on a GPU
    conf_N, error_N = vectors(("confidence", confidence.cpu()), ("error", error.cpu()))
    conf_N, order = conf_N.sort(descending=True)
    group_N, size_G = tie_runs(conf_N)
    error_G = torch.zeros(len(size_G), dtype=torch.float64)
    error_G.index_add_(0, group_N, error_N[order])
    before_G = size_G.cumsum(0) - size_G
    error_before_G = error_G.cumsum(0) - error_G
    i_N = torch.arange(1, len(conf_N) + 1, dtype=torch.float64)
    j_N = i_N - before_G[group_N]
    return (error_before_G[group_N] + error_G[group_N] * j_N / size_G[group_N]) / i_N


def aurc(confidence: Tensor, error: Tensor) -> Tensor:
    """Area under the risk-coverage curve, ``(1/N) sum_i risk(i)``.

    Args:
        confidence: Score of each item, larger is more confident, shape (N,).
        error: Error (0 or 1) or loss of each item, shape (N,).

    Returns:
        0-d float64 tensor; lower is better.
    """
    return mean_or_nan(risk_coverage_curve(confidence, error), "aurc")


def e_aurc(confidence: Tensor, error: Tensor) -> Tensor:
    """Excess of `aurc` over the best possible order (all correct items first), exactly.

    The optimum is computed from the errors, not by the approximation ``e + (1 - e) log(1 - e)``.
    """
    return aurc(confidence, error) - aurc(-error.to(torch.float64), error)


def augrc(confidence: Tensor, error: Tensor) -> Tensor:
    """Area under the generalised risk curve, ``(1/N) sum_i (i/N) risk(i)``; lower is better."""
    risk_N = risk_coverage_curve(confidence, error)
    i_N = torch.arange(1, len(risk_N) + 1, dtype=torch.float64)
    return mean_or_nan(risk_N * i_N / max(len(risk_N), 1), "augrc")


def risk_at_coverage(confidence: Tensor, error: Tensor, coverage: float = 0.8) -> Tensor:
    """Selective risk of the ``ceil(coverage N)`` most confident items.

    Args:
        confidence: Score of each item, shape (N,).
        error: Error or loss of each item, shape (N,).
        coverage: Share of items that are answered, in (0, 1].

    Returns:
        0-d float64 tensor; lower is better.
    """
    risk_N = risk_coverage_curve(confidence, error)
    n = len(risk_N)
    if n == 0:
        warn_empty("risk_at_coverage")
        return risk_N.new_full((), float("nan"))
    return risk_N[min(max(math.ceil(coverage * n - COVERAGE_TOLERANCE), 1), n) - 1]


def accuracy_at_coverage(confidence: Tensor, error: Tensor, coverage: float = 0.8) -> Tensor:
    """One minus `risk_at_coverage`; higher is better."""
    return 1.0 - risk_at_coverage(confidence, error, coverage)


def coverage_at_risk(confidence: Tensor, error: Tensor, risk: float = 0.05) -> Tensor:
    """Largest coverage ``i/N`` with ``risk(i) <= risk``; 0 if there is none.

    The risk need not be monotone: the largest admissible i counts.

    Args:
        confidence: Score of each item, shape (N,).
        error: Error or loss of each item, shape (N,).
        risk: Admissible risk r.

    Returns:
        0-d float64 tensor, a fraction; higher is better.
    """
    risk_N = risk_coverage_curve(confidence, error)
    if len(risk_N) == 0:
        warn_empty("coverage_at_risk")
        return risk_N.new_full((), float("nan"))
    fit = (risk_N <= risk + RISK_TOLERANCE).nonzero()
    largest = float(fit[-1, 0] + 1) if len(fit) else 0.0
    return risk_N.new_tensor(largest / len(risk_N))
