"""How much memory a method's step takes, in vectors of P numbers, measured and not declared.

The optimiser takes two steps on a small stack of equal layers while every tensor that is allocated
is counted. Activations are negligible there, so the peak over the size of the parameters is what
the method itself needs at any size: parameters, gradients, state, and whatever else it holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bayesrule.runs import canonical_json
from bayesrule.tasks.problem import make_optimizer
from bayesrule.tasks.step_cost import state_bytes

__all__ = ["StepVectors", "step_vectors"]

_WIDTH, _LAYERS = 400, 8  # large beside the blocks that updates work on
_KNOWN: dict[str, StepVectors] = {}


@dataclass(frozen=True)
class StepVectors:
    """Memory of a step in vectors of P numbers.

    Attributes:
        state: What the optimiser keeps per parameter between steps.
        held: The peak beyond parameters, gradients and state: kept means, noise, statistics,
            temporaries.
    """

    state: float
    held: float

    @property
    def total(self) -> float:
        """Parameters, gradients, state and what is held besides."""
        return 2.0 + self.state + self.held


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, storage.nbytes()).atexit = False

    def _freed(self, key: int, nbytes: int) -> None:
        self._alive.discard(key)
        self.now -= nbytes


def step_vectors(options: Mapping[str, Any]) -> StepVectors:
    """Measure the memory of one step of an optimiser.

    Options that differ only in the size of a fraction (learning rates, decays) share a measurement.

    Args:
        options: The optimiser's configuration with its ``_target_``.
    """
    key = canonical_json({name: _kind(value) for name, value in options.items()})
    if key not in _KNOWN:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _KNOWN[key] = _measure(options)
        finally:
            torch.set_num_threads(threads)
    return _KNOWN[key]


def _kind(value: Any) -> Any:
    return f"float {value == 0.0}" if isinstance(value, float) else value


def _measure(options: Mapping[str, Any]) -> StepVectors:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(_LAYERS)]
        inputs = torch.randn(1, _WIDTH)
    model = nn.Sequential(*layers)
    optimizer = make_optimizer(model, options, n_train=1000, seed=0, sync="statistics")
    size = sum(param.numel() * param.element_size() for param in model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    with _Live() as live:
        for param in model.parameters():
            live.note(param)
        for _ in range(2):
            optimizer.step(closure)
    state = state_bytes(optimizer) / size
    return StepVectors(round(state, 1), max(0.0, round(live.peak / size - state - 2.0, 1)))
