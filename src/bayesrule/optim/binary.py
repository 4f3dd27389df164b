"""What optimisers of binary weights {-1, +1} have in common.

Outside a step the model holds the posterior's mean (or the binary point); the real numbers that are
learnt, one per weight, are state. They start from the model's initial weights, whose signs are fair
coins under every usual initialisation; what is written into the parameters later does not reach
them (`set_posterior` does).

Not every tensor of a network wants to be binary. Per parameter group, `binary` says which are:

=============  ==================================================================================
``matrices``   tensors of two or more axes; those with fewer (biases, norms' scales) stay real
               numbers, and a warning says that the network is not all binary
``all``        every tensor
``none``       none: the group is learnt by Adam
=============  ==================================================================================

Tensors that are not binary are real numbers, learnt by Adam on the same gradients, at `lr` times
`real_lr_factor`; without that, at Adam's own 1e-3, which follows the schedule of `lr`.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

from bayesrule.optim.base import PosteriorOptimizer
from bayesrule.posteriors import PointMass, Posterior

__all__ = ["Binary", "BinaryOptimizer", "adam_step"]

Binary = Literal["matrices", "all", "none"]
Row = tuple[int, Tensor, dict[str, Any], dict[str, Any]]

_CHOICES = ("matrices", "all", "none")
_REAL_LR = 1e-3


def adam_step(
    point: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    *,
    steps: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> None:
    """Move `point` in place by `torch.optim`'s Adam, with the averages kept in `state`.

    Args:
        point: What is learnt.
        grad: Its gradient.
        state: Holds ``exp_avg`` and ``exp_avg_sq``.
        steps: Index of this step, from 1.
        lr: Learning rate.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
    """
    adam(
        [point],
        [grad],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [torch.tensor(float(steps - 1))],
        amsgrad=False,
        lr=lr,
        weight_decay=0.0,
        maximize=False,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
    )


class BinaryOptimizer(PosteriorOptimizer):
    """Learns binary weights; subclasses say what state a weight has and how it moves.

    Their groups have the keys `lr`, `binary` and `real_lr_factor`. They call `setup_binary` once at
    the end of ``__init__``.
    """

    # ------------------------------------------------- what a method provides

    @abstractmethod
    def first_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return the state of a weight tensor before the first step, from its initial values."""

    @abstractmethod
    def point(self, state: dict[str, Any], param: Tensor) -> Tensor:
        """Return what the model holds outside a step (`param` holds the initial values)."""

    @abstractmethod
    def update_binary(self, rows: list[Row], statistics: list[Tensor]) -> None:
        """Move the state and the parameters of the binary tensors.

        Args:
            rows: The binary tensors.
            statistics: Per trainable tensor (see the index of a row) the mean of what `collect`
                has kept.
        """

    # ---------------------------------------------------------------- set-up

    def setup_binary(self, **options: Any) -> None:
        """Check which tensors are binary, start their state, then `setup`.

        Raises:
            ValueError: If an option is out of range.
        """
        names = self.names()
        real: list[str] = []
        for group in self.param_groups:
            if group["binary"] not in _CHOICES:
                raise ValueError(f"binary must be one of {_CHOICES}, got {group['binary']!r}")
            factor = group["real_lr_factor"]
            if factor is not None and not factor >= 0.0:
                raise ValueError(f"real_lr_factor must be >= 0, got {factor}")
            for param in group["params"]:
                if param.requires_grad and not is_binary(param, group) and factor is None:
                    real.append(names[param])
        if real:
            warnings.warn(
                f"{type(self).__name__} learns {len(real)} tensors, such as {real[0]!r}, as real "
                "numbers by Adam (biases, scales of norms): the network is not all binary. Build "
                "it without them (model.bias=false, model.norm_affine=false), make them binary too "
                "(binary='all'), or say how fast they learn (real_lr_factor=...)",
                stacklevel=3,
            )
        self.setup(**options)
        self._rows()

    @torch.no_grad()
    def _rows(self) -> list[Row]:
        """Return (index, parameter, state, group) of every binary tensor that is learnt."""
        rows = []
        for index, (param, group) in enumerate(self._grouped()):
            if not is_binary(param, group):
                continue
            if not self.state[param]:
                first = self.first_state(param, group)
                self.state[param].update(first)
                param.copy_(self.point(self.state[param], param))
            rows.append((index, param, self._following(param), group))
        return rows

    def _following(self, param: Tensor) -> dict[str, Any]:
        """Return the parameter's state, on its device and in its dtype."""
        return self.param_state(param, **dict.fromkeys(self.state[param], 0.0))

    def _grouped(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield the trainable parameters with their groups, in the order of `trainable`."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    yield param, group

    # ------------------------------------------------------------------ step

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Leave the parameters at the binary point."""

    def _perturbed(self, stage: int) -> list[Tensor]:
        return [param for _, param, _, _ in self._rows()] if self.relaxed or self.random else []

    def collect(self, stage: int) -> None:
        """Keep the gradient."""
        self.accumulate("grad", self.gradients())

    def update(self, statistics: dict[str, list[Tensor]]) -> None:
        """Move the binary tensors by the method, the others by Adam."""
        grads = statistics["grad"]
        self.update_binary(self._rows(), grads)
        for (param, group), grad in zip(self._grouped(), grads, strict=True):
            if not is_binary(param, group):
                state = self.param_state(param, exp_avg=0.0, exp_avg_sq=0.0)
                adam_step(param, grad, state, steps=group["steps"], lr=_real_lr(group))

    def posterior(self, model: torch.nn.Module | None = None) -> Posterior:
        """Return the point mass at the binary weights (and at the real-valued tensors)."""
        return PointMass(self.named_mean(model))


def _real_lr(group: dict[str, Any]) -> float:
    """Return Adam's learning rate of a group's tensors that are not binary."""
    lr = float(group["lr"])
    if group["real_lr_factor"] is not None:
        return lr * float(group["real_lr_factor"])
    first = float(group.get("initial_lr", lr))  # set by torch's schedules
    return _REAL_LR * lr / first if first > 0.0 else _REAL_LR


def is_binary(param: Tensor, group: dict[str, Any]) -> bool:
    """Return whether a tensor of this group is binary."""
    return group["binary"] == "all" or (group["binary"] == "matrices" and param.ndim >= 2)
