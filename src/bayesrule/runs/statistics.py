"""The few statistics that verdicts rest on: t intervals over seeds, paired tests, trends.

For values x_1..x_n of n seeds with mean m and standard deviation s (divisor n - 1),

    CI95 = m +- t_{n-1}(0.975) s / sqrt(n),        t = (m - m0) sqrt(n) / s

Arms are paired by seed: the values are then differences. s = 0 is exact, not an error: the interval
is one point, and a p-value is 0 or 1. scipy.special is imported when first needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "Interval",
    "least_squares_slope",
    "mean_interval",
    "p_greater",
    "p_less",
    "ranks",
    "spearman",
]


@dataclass(frozen=True)
class Interval:
    """Mean, spread and 95 % confidence interval of the mean of n values.

    Attributes:
        mean: Mean.
        sd: Standard deviation (divisor n - 1); 0 for one value.
        n: Number of values.
        ci95: Ends of the interval; None for fewer than two values.
    """

    mean: float
    sd: float
    n: int
    ci95: tuple[float, float] | None

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.ci95 is None else (self.ci95[1] - self.ci95[0]) / 2

    @property
    def effect_size(self) -> float | None:
        """Cohen's d of the values against zero, mean / sd; None where sd is 0."""
        return self.mean / self.sd if self.sd > 0 else None


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; exact for equal values, safe from overflow."""
    largest = max(abs(value) for value in values)
    if all(value == values[0] for value in values):
        return float(values[0]), 0.0
    # a power of two: scaling is exact, and squares neither overflow nor vanish
    scale = 2.0 ** max(-1000, min(1000, math.frexp(largest)[1]))
    scaled = [value / scale for value in values]
    n = len(scaled)
    mean = math.fsum(scaled) / n
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in scaled) / (n - 1))
    return mean * scale, sd * scale


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of values and its 95 % t interval.

    Args:
        values: At least one finite number.

    Raises:
        ValueError: For no values, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"need finite values, at least one, got {list(values)}")
    n = len(values)
    mean, sd = _mean_and_sd(values)
    if n < 2:
        return Interval(mean, sd, n, None)
    if sd == 0:
        return Interval(mean, sd, n, (mean, mean))
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Interval(mean, sd, n, (mean - half, mean + half))


def p_less(interval: Interval, bound: float = 0.0) -> float:
    """Return the one-sided p-value of `mean < bound`, against `mean >= bound` (t test).

    Args:
        interval: Of at least two values.
        bound: The value compared with.

    Returns:
        Where sd is 0: 0 if the mean is below the bound, else 1.
    """
    if interval.n < 2:
        raise ValueError("a t test needs at least two values")
    if interval.sd == 0:
        return 0.0 if interval.mean < bound else 1.0
    from scipy.special import stdtr

    t = (interval.mean - bound) / (interval.sd / math.sqrt(interval.n))
    return float(stdtr(interval.n - 1, t))


def p_greater(interval: Interval, bound: float = 0.0) -> float:
    """Return the one-sided p-value of `mean > bound`; see `p_less`."""
    ends = interval.ci95 and (-interval.ci95[1], -interval.ci95[0])
    return p_less(Interval(-interval.mean, interval.sd, interval.n, ends), -bound)


def ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 1; ties share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in range(start, end + 1):
            result[order[place]] = (start + end) / 2 + 1
        start = end + 1
    return result


def _moments(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return centred sums of x*y, x*x, y*y."""
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    pairs = [(a - mean_x, b - mean_y) for a, b in zip(x, y, strict=True)]
    return (
        math.fsum(a * b for a, b in pairs),
        math.fsum(a * a for a, _ in pairs),
        math.fsum(b * b for _, b in pairs),
    )


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation, the correlation of the ranks; 0 if one is constant."""
    xy, xx, yy = _moments(ranks(x), ranks(y))
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else 0.0


def least_squares_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the points.

    Raises:
        ValueError: If all x are equal.
    """
    xy, xx, _ = _moments(x, y)
    if xx == 0:
        raise ValueError("all x are equal: there is no slope")
    return xy / xx
