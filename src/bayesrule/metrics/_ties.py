"""Runs of equal values in a sorted vector, and equal-mass bins that never split one."""

from __future__ import annotations

import torch
from torch import Tensor


def tie_runs(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the run number of each entry of a sorted vector, and the size of each run.

    Args:
        ordered: Sorted values, shape (N,).

    Returns:
        ``(run (N,), size (G,))``, int64; both are empty if N = 0.
    """
    starts_N = torch.ones_like(ordered, dtype=torch.bool)
    starts_N[1:] = ordered[1:] != ordered[:-1]
    run_N = starts_N.cumsum(0) - 1
    return run_N, torch.bincount(run_N)


def equal_mass_groups(ordered: Tensor, n_bins: int) -> Tensor:
    """Return the bin number of each entry of an ascending vector, cutting it into equal masses.

    Cuts are at ``round(j N / M)`` (half to even), moved to the end of a run of ties, so that equal
    values share a bin; bins left empty vanish.

    Args:
        ordered: Ascending values, shape (N,).
        n_bins: Number of bins M.

    Returns:
        Consecutive bin numbers, int64, shape (N,).
    """
    n = ordered.numel()
    positions = [round(j * n / n_bins) for j in range(1, n_bins)]
    cuts = torch.tensor([p for p in positions if 0 < p < n], dtype=torch.int64)
    ends = torch.searchsorted(ordered, ordered[cuts.to(ordered.device) - 1], right=True)
    is_start_N = torch.zeros(n + 1, dtype=torch.int64, device=ordered.device)
    is_start_N[ends] = 1
    return is_start_N[:n].cumsum(0)
