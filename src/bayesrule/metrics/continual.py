"""Metrics of continual learning, from a matrix: a[t, j] is the accuracy on task j after task t.

::

    average_accuracy    (1/T) sum_j a[T, j]
    forgetting          (1/(T-1)) sum_{j<T} ( max_{j <= t < T} a[t, j] - a[T, j] )     can be < 0
    forgetting_max      (1/(T-1)) sum_{j<T} ( max_{t <= T}     a[t, j] - a[T, j] )     never < 0
    backward_transfer   (1/(T-1)) sum_{j<T} ( a[T, j] - a[j, j] )
    forward_transfer    (1/(T-1)) sum_{j>1} ( a[j-1, j] - b[j] ),  b: the untrained network
    transfer_to_new     (1/(T-1)) sum_{j>1} ( a[j, j] - c[j] ),    c: a fresh network on D_j
    learning_accuracy   (1/T) sum_j a[j, j]
    incremental         (1/T) sum_t (1/t) sum_{j<=t} a[t, j]

`forgetting` is that of Chaudhry et al. (2018), `forgetting_max` that of Mammoth, whose maximum is
over all rows; `backward_transfer` and `forward_transfer` are those of Lopez-Paz and Ranzato (2017),
`transfer_to_new` that of Pan et al. (2020). Any score with larger-is-better may stand for accuracy.
Entries that were not measured are NaN; with one task what is undefined is NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "forgetting_max",
    "forward_transfer",
    "incremental_accuracy",
    "intransigence",
    "learning_accuracy",
    "transfer_to_new",
]


def _matrix(a_TT: Tensor) -> Tensor:
    a = torch.as_tensor(a_TT, dtype=torch.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] == 0:
        raise ValueError(f"the matrix must be square and not empty, not of shape {tuple(a.shape)}")
    return a


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else math.nan


def average_accuracy(a_TT: Tensor) -> float:
    """Return the mean of the last row: accuracy over all tasks after the last one."""
    return _mean(_matrix(a_TT)[-1])


def forgetting(a_TT: Tensor) -> float:
    """Return how far tasks fell below their best before the last one (Chaudhry et al., 2018)."""
    a = _matrix(a_TT)
    last = len(a) - 1
    drops = [a[j:last, j].max() - a[last, j] for j in range(last)]
    return _mean(torch.tensor([float(drop) for drop in drops], dtype=torch.float64))


def forgetting_max(a_TT: Tensor) -> float:
    """Return how far tasks fell below their best of all rows, the last included (Mammoth)."""
    a = _matrix(a_TT)
    best = a.nan_to_num(nan=-math.inf).amax(0)
    return _mean((best - a[-1])[:-1])


def backward_transfer(a_TT: Tensor) -> float:
    """Return what later tasks did to earlier ones (Lopez-Paz and Ranzato, 2017)."""
    a = _matrix(a_TT)
    return _mean((a[-1] - a.diagonal())[:-1])


def forward_transfer(a_TT: Tensor, initial_T: Tensor) -> float:
    """Return what earlier tasks did to later ones, before these were seen (Lopez-Paz, Ranzato).

    Args:
        a_TT: The matrix.
        initial_T: Accuracy of the untrained network on each task.
    """
    a = _matrix(a_TT)
    initial = torch.as_tensor(initial_T, dtype=torch.float64)
    return _mean(a.diagonal(1) - initial[1:])


def transfer_to_new(a_TT: Tensor, separate_T: Tensor) -> float:
    """Return how much better tasks after the first are learnt than by a fresh network.

    Args:
        a_TT: The matrix.
        separate_T: Accuracy on each task of a network that learnt it alone.
    """
    a = _matrix(a_TT)
    separate = torch.as_tensor(separate_T, dtype=torch.float64)
    return _mean((a.diagonal() - separate)[1:])


def learning_accuracy(a_TT: Tensor) -> float:
    """Return the mean accuracy on tasks that were just learnt."""
    return _mean(_matrix(a_TT).diagonal())


def intransigence(a_TT: Tensor, reference_T: Tensor) -> float:
    """Return how much worse tasks are learnt than by a reference (joint or separate training)."""
    reference = torch.as_tensor(reference_T, dtype=torch.float64)
    return _mean(reference - _matrix(a_TT).diagonal())


def incremental_accuracy(a_TT: Tensor) -> float:
    """Return the mean over experiences of the mean accuracy on the tasks seen so far."""
    a = _matrix(a_TT)
    return _mean(torch.stack([a[t, : t + 1].mean() for t in range(len(a))]))
