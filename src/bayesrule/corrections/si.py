"""Synaptic intelligence (Zenke, Poole and Ganguli, 2017, arXiv 1703.04200).

A weight matters as much as its moves lowered the loss. During task t, with g the gradient of the
batch's own mean loss (no penalty, no clipping) and dw the step that was actually taken::

    omega_j <- omega_j - g_j dw_j                                                      path integral

and at its end, with D_j the whole distance that w_j went,

    Omega_j <- Omega_j + max(0, omega_j) / (D_j^2 + xi)
    loss     = lbar_t(w) + c sum_j Omega_j (w_j - w_{t-1,j})^2

The sum is c Omega (.)^2, not c/2. omega is 0 at the start of each task. Where an optimiser takes
several gradients per step (samples, sharpness-aware steps), g is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.corrections.anchored import Anchored, weights, zeros
from bayesrule.corrections.base import Past
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.data.streams import Experience
from bayesrule.posteriors.params import Params

__all__ = ["SI", "importance"]


def importance(omega: Tensor, distance: Tensor, xi: float) -> Tensor:
    """Return max(0, omega) / (D^2 + xi)."""
    return omega.clamp(min=0.0) / (distance.square() + xi)


class SI(Anchored):
    """Synaptic intelligence.

    Args:
        c: Weight of the past.
        xi: Damping xi > 0.
    """

    wants_gradients = True
    vectors = 6

    def __init__(self, *, c: float, xi: float) -> None:
        super().__init__(2.0 * c)  # Q is half a square
        self.xi = xi
        self.omega: Params = {}
        self.origin: Params = {}  # weights at the start of the experience
        self.before: Params = {}  # weights before the step that comes
        self._grads: Params = {}
        self._count = 0

    def begin(self, experience: Experience, past: Past) -> None:
        """Start the path integral."""
        self.origin = weights(past.model)
        self.before = {name: w.clone() for name, w in self.origin.items()}
        self.omega, self._grads, self._count = zeros(self.origin), zeros(self.origin), 0

    def see_gradients(self, model: nn.Module) -> None:
        """Add the gradients of the batch's own loss."""
        self._move(next(model.parameters()).device)
        for name, p in model.named_parameters():
            if p.requires_grad and p.grad is not None:
                self._grads[name.removeprefix("_orig_mod.")] += p.grad
        self._count += 1

    def _move(self, device: torch.device) -> None:
        """Put the path integral on a device, where a checkpoint was loaded on another."""
        paths = (self.omega, self.origin, self.before, self._grads)
        for path in paths if next(iter(self.omega.values())).device != device else ():
            path.update({name: value.to(device) for name, value in path.items()})

    @torch.no_grad()
    def after_step(self, batch: Mapping[str, Any], past: Past) -> None:
        """Add -g dw of the step that was taken."""
        for name, p in past.model.named_parameters():
            if name in self.omega:
                step = self.before[name].neg_().add_(p)  # in its place
                self.omega[name].addcmul_(self._grads[name], step, value=-1.0 / self._count)
                self.before[name].copy_(p)
                self._grads[name].zero_()
        self._count = 0

    def absorb(self, experience: Experience, past: Past) -> None:
        """Turn the path integral into importance, and centre on the weights."""
        now = weights(past.model)
        Omega = {n: importance(self.omega[n], now[n] - self.origin[n], self.xi) for n in now}
        if self.anchor is not None:
            older = self.anchor.to(past.device).diagonal()
            Omega = {name: older[name] + value for name, value in Omega.items()}
        self.anchor = QuadraticAnchor(now, Omega)
        self.omega, self.origin, self.before, self._grads = {}, {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return Q and the path integral, at the end of a step."""
        path = {"omega": self.omega, "origin": self.origin, "before": self.before}
        copies = {k: {n: t.clone() for n, t in v.items()} for k, v in path.items()}
        return {**super().state_dict(), **copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore Q and the path integral."""
        super().load_state_dict(state)
        self.omega, self.origin = dict(state["omega"]), dict(state["origin"])
        self.before = dict(state["before"])
        self._grads, self._count = zeros(self.omega), 0
