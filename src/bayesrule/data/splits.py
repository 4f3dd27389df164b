"""Which rows are used for what, and what label noise does to them.

All draws come from named streams below one seed, so that no option shifts the draw of another:
`split/...` for the choice of rows, `label_noise/train` and `label_noise/test` for the noise. Noise
is drawn for every row of the source, so a row keeps its noisy label when a subset size changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesrule.errors import ConfigError
from bayesrule.seeding import numpy_generator

__all__ = ["Partition", "long_tail", "noisy_labels", "partition", "published_partition"]

Rows = np.ndarray


@dataclass(frozen=True)
class Partition:
    """Rows of each split, int64.

    Attributes:
        train: Rows of the source's training part.
        val: Rows of the source's training part, disjoint from `train`; may be empty.
        test: Rows of the source's test part, or, when `one_pool`, of its training part.
        one_pool: Whether all three index the same pool.
    """

    train: Rows
    val: Rows
    test: Rows
    one_pool: bool


def partition(
    n_train: int,
    n_test: int | None,
    *,
    seed: int,
    train_size: int | None = None,
    test_size: int | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
) -> Partition:
    """Draw the rows of train, val and test.

    With an official test split, sizes take a random subset of each part, and null keeps the part
    whole, in file order. Without one, a permutation of the pool is cut: first the training rows,
    then the test rows.

    Args:
        n_train: Rows of the training part, or of the pool.
        n_test: Rows of the official test part; None when there is none.
        seed: Seed of the split.
        train_size: Number of training rows, validation included; None: all (of a pool: the rest).
        test_size: Number of test rows; None: all (of a pool: what training leaves).
        test_fraction: Part of a pool that is tested on when `train_size` is None.
        val_fraction: Part of the training rows that becomes the validation split.

    Raises:
        ConfigError: A size exceeds what is there, or leaves a split empty.
    """
    if n_test is None:
        order = numpy_generator(seed, "split", "pool").permutation(n_train)
        default = n_train - round(test_fraction * n_train)
        cut = _size("train_size", train_size, n_train - 1, default)
        rest = order[cut:]
        test = rest[: _size("test_size", test_size, len(rest), len(rest))]
        train = order[:cut]
    else:
        train = _subset("train_size", train_size, n_train, seed)
        test = _subset("test_size", test_size, n_test, seed)
    train, val = _hold_out(train, val_fraction, seed)
    return Partition(train, val, test, one_pool=n_test is None)


def published_partition(
    n: int, tests: Sequence[Sequence[int]], split: int, *, seed: int, val_fraction: float = 0.0
) -> Partition:
    """Return the rows of a published train/test split of a pool.

    Args:
        n: Rows of the pool.
        tests: Published test rows, one list a split.
        split: Which one.
        seed: Seed of the validation rows.
        val_fraction: Part of the training rows that becomes the validation split.

    Raises:
        ConfigError: There is no split of that number.
    """
    if not 0 <= split < len(tests):
        raise ConfigError(
            f"data.split={split}: there are {len(tests)} splits, 0 to {len(tests) - 1}."
        )
    test = np.asarray(tests[split], dtype=np.int64)
    train = np.setdiff1d(np.arange(n), test)
    train, val = _hold_out(train, val_fraction, seed)
    return Partition(train, val, test, one_pool=True)


def noisy_labels(
    labels: np.ndarray, rate: float, n_classes: int, *, seed: int, stream: str
) -> np.ndarray:
    """Replace each label, with probability `rate`, by one of the other classes, uniformly.

        p(y' = k | y) = 1 - rate if k = y, else rate / (K - 1)

    Args:
        labels: True labels, int64, shape (N,).
        rate: Probability of replacement, in [0, 1].
        n_classes: K, the number of classes.
        seed: Seed of the split.
        stream: `train` or `test`: each has its own draw.

    Returns:
        Noisy labels, int64, shape (N,).

    Raises:
        ConfigError: `rate` is not a probability.
    """
    if not 0.0 <= rate <= 1.0:
        raise ConfigError(f"data.label_noise={rate}: a probability lies between 0 and 1.")
    rng = numpy_generator(seed, "label_noise", stream)
    replace = rng.random(len(labels)) < rate
    shift = rng.integers(1, n_classes, size=len(labels)) if n_classes > 1 else 0
    return np.where(replace, (labels + shift) % n_classes, labels).astype(np.int64)


def long_tail(labels: np.ndarray, rows: Rows, factor: float, n_classes: int, *, seed: int) -> Rows:
    """Thin the classes of `rows` to an exponential long tail.

    Class k keeps ``n_k = n_max * factor ** (-k / (K - 1))`` of its rows (at least one, at most
    what it has), where n_max is the size of the largest class.

    Args:
        labels: Labels of all rows of the source, int64.
        rows: The rows to thin.
        factor: Largest over smallest class size, at least 1.
        n_classes: K, the number of classes.
        seed: Seed of the split.

    Returns:
        The kept rows, in the order of `rows`.

    Raises:
        ConfigError: `factor` is below 1.
    """
    if factor < 1.0:
        raise ConfigError(f"data.imbalance={factor}: largest over smallest class is at least 1.")
    order = numpy_generator(seed, "split", "imbalance").permutation(len(rows))
    classes = labels[rows]
    n_max = int(np.bincount(classes, minlength=n_classes).max())
    keep = np.zeros(len(rows), dtype=bool)
    for k in range(n_classes):
        n_k = max(1, int(n_max * factor ** (-k / max(1, n_classes - 1))))
        keep[order[classes[order] == k][:n_k]] = True
    return rows[keep]


def _size(key: str, size: int | None, most: int, default: int) -> int:
    size = default if size is None else int(size)
    if not 1 <= size <= most:
        raise ConfigError(f"data.{key}={size}: must lie between 1 and {most} here.")
    return size


def _subset(key: str, size: int | None, n: int, seed: int) -> Rows:
    if size is None:
        return np.arange(n)
    return numpy_generator(seed, "split", key).permutation(n)[: _size(key, size, n, n)]


def _hold_out(train: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    if not 0.0 <= fraction < 1.0:
        raise ConfigError(f"data.val_fraction={fraction}: must lie in [0, 1).")
    n_val = round(fraction * len(train))
    if n_val == len(train):
        raise ConfigError(f"data.val_fraction={fraction}: leaves no training rows.")
    order = numpy_generator(seed, "split", "val").permutation(len(train))
    return train[np.sort(order[n_val:])], train[np.sort(order[:n_val])]
