"""IVON as a client's solver: a general diagonal Gaussian prior and a linear-quadratic dual.

Minimises the objective of `bayesrule.federated.local` over diagonal Gaussians, for a network and a
**mean** loss over N_k items. With W = weight N_k, ess = W/rho, delta = S_g/ess (a vector),
vbar = v/W and Vbar = V/W, one step is (Moellenhoff et al., 2026; IVON: arXiv 2402.17641)::

    theta = mean + noise / sqrt(ess (hess + delta)),   noise ~ N(0, I);      g = grad loss(theta)
    momentum <- beta1 momentum + (1 - beta1) g
    f     = ess (hess + delta) (theta - mean) g - Vbar             # Hessian minus the dual's
    hess <- beta2 hess + (1 - beta2) f + (1 - beta2)^2 / 2  (hess - f)^2 / (hess + delta)
    pull  = vbar - Vbar mean + delta (mean - m_g)
    mean <- mean - lr ( momentum/(1 - beta1^t) + pull ) / (hess + delta)

q_k has precision ess (hess + delta). A round starts at q_g: mean = m_g and hess = 0, since then
ess (hess + delta) = S_g. Where the server has learnt nothing yet (the objective has a `start`) it
starts there with hess = hess_init. Momentum and t persist over rounds. With V = v = 0, m_g = 0,
rho = 1 and a scalar S_g this is IVON with `weight_decay` = S_g/ess and ``rescale_lr=False``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.federated.local import LocalObjective
from bayesrule.optim.base import Noise, PosteriorOptimizer
from bayesrule.optim.checks import check, check_groups
from bayesrule.posteriors import DiagonalGaussian

__all__ = ["SiteIVON", "site_ivon_update"]


def site_ivon_update(
    mean: Tensor,
    momentum: Tensor,
    hess: Tensor,
    grad: Tensor,
    stat: Tensor,
    *,
    centre: Tensor,
    delta: Tensor,
    vbar: Tensor,
    Vbar: Tensor,
    steps: int,
    lr: float,
    ess: float,
    beta1: float,
    beta2: float,
    clip_radius: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean, momentum, hess) after one step; see the module's docstring.

    Args:
        mean: Of q.
        momentum: Average of gradients.
        hess: Hessian estimate h.
        grad: Gradient of the mean loss at theta, averaged over samples.
        stat: (theta - mean) g, averaged over samples.
        centre: m_g.
        delta: S_g/ess.
        vbar: v/W.
        Vbar: V/W.
        steps: t, from 1, over all rounds.
        lr: Step size.
        ess: Effective sample size.
        beta1: Decay of the momentum.
        beta2: Decay of the Hessian estimate.
        clip_radius: Element-wise bound on the preconditioned direction.
    """
    r = 1.0 - beta2
    momentum = beta1 * momentum + (1.0 - beta1) * grad
    f = ess * (hess + delta) * stat - Vbar
    hess = beta2 * hess + r * f + 0.5 * r**2 * (hess - f) ** 2 / (hess + delta)
    pull = momentum / (1.0 - beta1**steps) + vbar - Vbar * mean + delta * (mean - centre)
    direction = (pull / (hess + delta)).clamp(-clip_radius, clip_radius)
    return mean - lr * direction, momentum, hess


class SiteIVON(PosteriorOptimizer):
    """IVON under a local objective; see the module's docstring.

    Args:
        params: Named parameters.
        lr: Step size.
        hess_init: h0 >= 0, where the server has learnt nothing yet.
        beta1: Decay of the momentum.
        beta2: Decay of the Hessian estimate.
        mc_samples: Draws per step.
        clip_radius: Element-wise bound on the preconditioned direction.
        seed: Seed of the noise.
        generator: The noise stream.
        noise: Replacement of the standard normal draw.
    """

    stochastic = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        hess_init: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.9995,
        mc_samples: int = 1,
        clip_radius: float = math.inf,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "hess_init": hess_init,
            "beta1": beta1,
            "beta2": beta2,
            "clip_radius": clip_radius,
        }
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            hess_init=check(">= 0"),
            beta1=check(">= 0", "< 1"),
            beta2=check(">= 0", "<= 1"),
            clip_radius=check("> 0"),
        )
        self.ess = 0.0
        self._terms: dict[Tensor, dict[str, Tensor]] = {}
        self._offsets: list[Tensor] = []
        self.setup(mc_samples=mc_samples, seed=seed, generator=generator, noise=noise)

    def set_objective(
        self, objective: LocalObjective, num_items: int, model: torch.nn.Module | None = None
    ) -> None:
        """Begin a round: take the prior and the dual, and start at q_g (see the module).

        Args:
            objective: Its prior is a `DiagonalGaussian`.
            num_items: N_k.
            model: Gives the names, as for `posterior`.

        Raises:
            Unsupported: Another family, no pull, or a ridge.
        """
        prior = objective.prior
        if not isinstance(prior, DiagonalGaussian) or objective.rho <= 0.0 or objective.ridge:
            raise Unsupported(
                "IVON as a client's solver needs an algorithm whose messages are diagonal "
                f"Gaussians, with a pull to the server; here it is a {type(prior).__name__}"
            )
        W = objective.weight * num_items
        self.ess = W / objective.rho
        names, tilt = self.names(model), objective.tilt
        for group in self.param_groups:
            for p in group["params"]:
                name = names[p]
                zero = torch.zeros_like(p)
                self._terms[p] = {
                    "centre": prior.mean[name].clone(),
                    "delta": prior.precision[name] / self.ess,
                    "vbar": zero if tilt is None else tilt.nat1[name] / W,
                    "Vbar": zero if tilt is None else -2.0 * tilt.nat2[name] / W,
                }
                state = self.param_state(p, momentum=0.0, hess=0.0)
                state["hess"].fill_(0.0 if objective.start is None else group["hess_init"])
                with torch.no_grad():
                    p.copy_(objective.begin[name])

    def _learnt(self) -> list[tuple[Tensor, dict[str, Any], dict[str, Any], dict[str, Tensor]]]:
        if not self._terms:
            raise RuntimeError("call set_objective at the start of a round")
        return [
            (p, self.state[p], group, self._terms[p])
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to theta = mean + noise / sqrt(ess (hess + delta)); keep the offset."""
        assert noise is not None
        self._offsets = noise
        for (param, state, _, terms), offset in zip(self._learnt(), noise, strict=True):
            offset.div_((state["hess"] + terms["delta"]).mul_(self.ess).sqrt_())
            param.add_(offset)

    def collect(self, stage: int) -> None:
        """Keep g and (theta - mean) g."""
        grads, stat = self.gradients(), self._offsets
        torch._foreach_mul_(stat, grads)
        self._offsets = []
        self.accumulate("grad", grads)
        self.accumulate("stat", stat)

    def update(self, statistics: Mapping[str, list[Tensor]]) -> None:
        """Apply `site_ivon_update`."""
        rows = zip(self._learnt(), statistics["grad"], statistics["stat"], strict=True)
        for (param, state, group, terms), grad, stat in rows:
            mean, state["momentum"], state["hess"] = site_ivon_update(
                param,
                state["momentum"],
                state["hess"],
                grad,
                stat,
                centre=terms["centre"],
                delta=terms["delta"],
                vbar=terms["vbar"],
                Vbar=terms["Vbar"],
                steps=group["steps"],
                lr=group["lr"],
                ess=self.ess,
                beta1=group["beta1"],
                beta2=group["beta2"],
                clip_radius=group["clip_radius"],
            )
            param.copy_(mean)

    def posterior(self, model: torch.nn.Module | None = None) -> DiagonalGaussian:
        """Return q_k = N(mean, 1 / (ess (hess + delta)))."""
        names = self.names(model)
        precision = {
            names[p]: (state["hess"] + terms["delta"]) * self.ess
            for p, state, _, terms in self._learnt()
        }
        return DiagonalGaussian(self.named_mean(model), precision)
