"""OGN, VOGN, dropout, the straight-through estimator and BayesBiNN as plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["bayesbinn", "dropout_network", "natural_gauss_newton", "straight_through"]


def natural_gauss_newton(
    x: np.ndarray,
    y: np.ndarray,
    m: np.ndarray,
    s: np.ndarray,
    batches: Sequence[np.ndarray],
    *,
    lr: float,
    beta: float,
    prec: float,
    noise: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Return iterates (m, s) of OGN, or with noise of VOGN, on logistic regression.

    s <- (1 - beta) s + beta [(N/M) sum_i g_i^2 + prec],   m <- m - lr ghat / s
    with the g_i at m, or at m + eps / sqrt(s); ghat = (N/M) sum_i g_i + prec m.
    """
    iterates = []
    for t, batch in enumerate(batches):
        w = m if noise is None else m + noise[t] / np.sqrt(s)
        residual = 1 / (1 + np.exp(-(x[batch] @ w))) - y[batch]
        grads = residual[:, None] * x[batch]
        scale = len(x) / len(batch)
        ghat = scale * grads.sum(0) + prec * m
        s = (1 - beta) * s + beta * (scale * (grads**2).sum(0) + prec)
        m = m - lr * ghat / s
        iterates += [m, s]
    return iterates


class _Network(nn.Module):
    """One hidden layer of ReLU units, each multiplied by its mask."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, n_hidden, dtype=torch.float64)
        self.second = nn.Linear(n_hidden, n_out, dtype=torch.float64)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logits."""
        return self.second(torch.relu(self.first(x)) * mask)


def dropout_network(
    x: Tensor,
    y: Tensor,
    sizes: tuple[int, int, int],
    w: Tensor,
    batches: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    lr: float,
    prec: float,
) -> list[np.ndarray]:
    """Return iterates of SGD on a network with dropout and weight decay, all weights flattened.

    Dropout multiplies a hidden unit's output by its mask (without rescaling).
    """
    network = _Network(*sizes)
    nn.utils.vector_to_parameters(w.clone(), network.parameters())
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, weight_decay=prec)
    iterates = []
    for batch, mask in zip(batches, masks, strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x[batch], mask), y[batch].long(), reduction="sum")
        (len(x) / len(batch) * loss).backward()
        optimizer.step()
        flat = nn.utils.parameters_to_vector(network.parameters())
        iterates.append(flat.detach().numpy().copy())
    return iterates


class _StraightThrough(torch.autograd.Function):
    """sign(w) whose gradient is passed through as it is."""

    @staticmethod
    def forward(ctx: object, w: Tensor) -> Tensor:
        """Return +1 or -1."""
        return torch.where(w >= 0, 1.0, -1.0).to(w)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        """Return the gradient unchanged."""
        return grad


def straight_through(
    loss: Callable[[Tensor, Tensor], Tensor],
    w: np.ndarray,
    batches: Sequence[Tensor],
    lr: float,
) -> list[np.ndarray]:
    """Return iterates of the latent weights of BinaryConnect with plain SGD."""
    latent = nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = torch.optim.SGD([latent], lr=lr)
    iterates = []
    for batch in batches:
        optimizer.zero_grad()
        loss(_StraightThrough.apply(latent), batch).backward()
        optimizer.step()
        iterates.append(latent.detach().numpy().copy())
    return iterates


def bayesbinn(
    x: np.ndarray,
    y: np.ndarray,
    lam: np.ndarray,
    batches: Sequence[np.ndarray],
    uniforms: Sequence[np.ndarray],
    *,
    lr: float,
    tau: float,
) -> list[np.ndarray]:
    """Return iterates of lambda of BayesBiNN on logistic regression with binary weights.

    d = log(u / (1 - u)) / 2,  w = tanh((lambda + d) / tau),
    s = (1 - w^2 + e) / (tau (1 - tanh(lambda)^2 + e)),  lambda <- (1 - lr) lambda - lr s ghat(w)
    """
    iterates = []
    for batch, u in zip(batches, uniforms, strict=True):
        w = np.tanh((lam + 0.5 * np.log(u / (1 - u))) / tau)
        s = (1 - w**2 + 1e-10) / (tau * (1 - np.tanh(lam) ** 2 + 1e-10))
        residual = 1 / (1 + np.exp(-(x[batch] @ w))) - y[batch]
        ghat = len(x) / len(batch) * (x[batch].T @ residual)
        lam = (1 - lr) * lam - lr * s * ghat
        iterates.append(lam)
    return iterates
