"""What TIES and DARE need beside one tensor: thresholds over all of a model, and random masks.

The k largest of P magnitudes are found without holding them. The bits of a non-negative float32,
read as an integer, are ordered as the numbers are; a first pass counts their upper 15 bits, a
second the lower 16 bits of those numbers whose upper bits are the k-th largest's. The result is
exact in single precision, for any P and any order of the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bayesrule.seeding import generator

__all__ = ["keep_mask", "kth_magnitude"]

_LOW = 16


def kth_magnitude(pieces: Callable[[], Iterable[Tensor]], density: float) -> float:
    """Return the magnitude that the `density` largest of all entries reach.

    Args:
        pieces: Returns the entries in pieces, anew at each call; called twice.
        density: Share of entries to keep, in (0, 1].

    Returns:
        The k-th largest |d| in single precision, k = floor(density P), at least 1.
    """
    high = torch.zeros(1 << (31 - _LOW), dtype=torch.int64)
    for piece in pieces():
        high += torch.bincount(_bits(piece) >> _LOW, minlength=len(high))
    k = max(1, int(density * int(high.sum())))
    bucket, above = _bucket(high, k)
    low = torch.zeros(1 << _LOW, dtype=torch.int64)
    for piece in pieces():
        bits = _bits(piece)
        inside = bits[(bits >> _LOW) == bucket] & ((1 << _LOW) - 1)
        low += torch.bincount(inside, minlength=len(low))
    rest, _ = _bucket(low, k - above)
    return float(torch.tensor([(bucket << _LOW) | rest], dtype=torch.int32).view(torch.float32))


def _bits(piece: Tensor) -> Tensor:
    return piece.reshape(-1).abs().float().view(torch.int32)


def _bucket(counts: Tensor, k: int) -> tuple[int, int]:
    """Return the bucket that holds the k-th largest, and how many lie in larger ones."""
    reached = counts.flip(0).cumsum(0)
    place = int((reached < k).sum())
    bucket = len(counts) - 1 - place
    return bucket, int(reached[place] - counts[bucket])


def keep_mask(shape: tuple[int, ...], density: float, seed: int, *names: str | int) -> Tensor:
    """Return z ~ Bernoulli(density) of a shape, a function of the seed and names alone."""
    return torch.rand(shape, generator=generator(seed, "dare", *names)) < density
