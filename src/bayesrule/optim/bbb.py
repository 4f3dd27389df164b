"""BBB: Bayes by backprop (Blundell et al., 2015, arXiv 1505.05424), the reparameterised baseline.

q = N(mean, diag(std^2)) with std = softplus(rho), prior N(0, I / delta) with delta = `prior_prec`,
and the objective E_q[loss] + (tau / ess) KL(q || prior), the loss being a **mean** over examples.
One step of Adam on (mean, rho) with pathwise gradients::

    theta  = mean + std noise,  noise ~ N(0, I);      g = grad loss(theta)
    g_mean = g + (tau / ess) delta mean
    g_rho  = sigmoid(rho) (noise g + (tau / ess) (delta std - 1 / std))
    mean  <- mean - lr adam(g_mean);      rho <- rho - lr adam(g_rho)

With `set_prior` the prior is another Gaussian N(m0, diag(s0)^-1): delta is the vector s0, and delta
mean is s0 (mean - m0). Variational continual learning is this method with yesterday's posterior as
prior (Nguyen et al., 2018, arXiv 1710.10628).

The natural-gradient methods of this package move the same q; this one takes ordinary gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.checks import check, check_groups
from bayesrule.optim.gaussian_prior import GaussianPriorOptimizer
from bayesrule.posteriors import DiagonalGaussian, Posterior

__all__ = ["BBB", "bbb_gradients"]


def bbb_gradients(
    mean: Tensor,
    rho: Tensor,
    grad: Tensor,
    noise_grad: Tensor,
    *,
    ess: float,
    prior_prec: float | Tensor,
    tau: float,
    prior_mean: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the objective with respect to mean and rho.

    Args:
        mean: Posterior mean.
        rho: std = softplus(rho).
        grad: Mean over samples of g, the gradient at theta.
        noise_grad: Mean over samples of noise * g.
        ess: Effective sample size N.
        prior_prec: delta, or s0 of a prior of its own.
        tau: Weight of the KL term.
        prior_mean: m0; None for zero.
    """
    std, from_prior = F.softplus(rho), mean if prior_mean is None else mean - prior_mean
    g_mean = grad + tau / ess * prior_prec * from_prior
    g_rho = torch.sigmoid(rho) * (noise_grad + tau / ess * (prior_prec * std - 1.0 / std))
    return g_mean, g_rho


class BBB(GaussianPriorOptimizer):
    """Bayes by backprop with Adam, see the module docstring for the equations.

    Args:
        params: Parameters, named parameters or parameter groups; every option below up to `eps`
            may be set per group.
        lr: Learning rate of Adam, for mean and rho.
        ess: Effective sample size N, normally the number of training examples.
        rho_init: First rho; std = softplus(rho).
        prior_prec: delta > 0.
        tau: Weight of the KL term, >= 0; 1 is Bayes.
        beta1: Decay of Adam's first moment.
        beta2: Decay of Adam's second moment.
        eps: Added to the root of the second moment.
        mc_samples: Samples S per step.
        seed: See `PosteriorOptimizer.setup`, as for `generator`, `noise` and `sync`.
        generator: The noise stream.
        noise: Replacement of the standard normal draw.
        sync: How several processes share one posterior.

    Raises:
        ValueError: If an option is out of range.
    """

    stochastic = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        ess: float,
        rho_init: float = -5.0,
        prior_prec: float = 1.0,
        tau: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        mc_samples: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "ess": ess,
            "rho_init": rho_init,
            "prior_prec": prior_prec,
            "tau": tau,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
        }
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            ess=check("> 0"),
            prior_prec=check("> 0"),
            tau=check(">= 0"),
            beta1=check(">= 0", "< 1"),
            beta2=check(">= 0", "< 1"),
            eps=check("> 0"),
        )
        if not all(math.isfinite(group["rho_init"]) for group in self.param_groups):
            raise ValueError(f"rho_init must be finite, got {rho_init}")
        self._noise_room: list[Tensor] = []
        self.setup(mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync)

    def _learnt(self) -> list[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Return (parameter, its state, its group) for every trainable parameter, in order."""
        return [
            (
                p,
                self.param_state(
                    p, rho=group["rho_init"], mean_avg=0.0, mean_sq=0.0, rho_avg=0.0, rho_sq=0.0
                ),
                group,
            )
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to theta = mean + softplus(rho) noise; keep the noise."""
        assert noise is not None
        self._noise_room = noise
        rows = (
            (group, (param, eps, state["rho"]))
            for (param, state, group), eps in zip(self._learnt(), noise, strict=True)
        )
        for _, (param, eps, rho), _ in self._scratch.blocks(rows, written=1):
            param.addcmul_(eps, F.softplus(rho))

    def collect(self, stage: int) -> None:
        """Keep g, and noise * g in the place of the noise."""
        grads, noise_grads = self.gradients(), self._noise_room
        torch._foreach_mul_(noise_grads, grads)
        self._noise_room = []
        self.accumulate("grad", grads)
        self.accumulate("noise_grad", noise_grads)

    def update(self, statistics: dict[str, list[Tensor]]) -> None:
        """Apply an Adam step along `bbb_gradients`, over blocks of all parameters."""
        rows = (
            (
                group,
                (
                    *(param, state["rho"], state["mean_avg"], state["mean_sq"]),
                    *(state["rho_avg"], state["rho_sq"], grad, noise_grad),
                    *self.own_prior(state),
                ),
            )
            for (param, state, group), grad, noise_grad in zip(
                self._learnt(), statistics["grad"], statistics["noise_grad"], strict=True
            )
        )
        for group, operands, _ in self._scratch.blocks(rows, written=6):
            mean, rho, mean_avg, mean_sq, rho_avg, rho_sq, grad, noise_grad, *own = operands
            g_mean, g_rho = bbb_gradients(
                *(mean, rho, grad, noise_grad),
                ess=group["ess"],
                prior_prec=own[1] if own else group["prior_prec"],
                tau=group["tau"],
                prior_mean=own[0] if own else None,
            )
            _adam(mean, mean_avg, mean_sq, g_mean, group)
            _adam(rho, rho_avg, rho_sq, g_rho, group)

    def posterior(self, model: torch.nn.Module | None = None) -> DiagonalGaussian:
        """Return q = N(mean, softplus(rho)^2)."""
        names = self.names(model)
        precision = {
            names[p]: F.softplus(state["rho"].detach()).square().reciprocal()
            for p, state, _ in self._learnt()
        }
        return DiagonalGaussian(self.named_mean(model), precision)

    @torch.no_grad()
    def set_posterior(self, q: Posterior, model: torch.nn.Module | None = None) -> None:
        """Go on from `q`, with Adam's moments at zero.

        Raises:
            Unsupported: If `q` is no diagonal Gaussian.
        """
        rows = list(self._gaussian_rows(q, model, "posterior"))
        for (param, state, group), (_, mean, precision) in zip(self._learnt(), rows, strict=True):
            std = precision.to(param).rsqrt()
            state["rho"].copy_(std + (-(-std).expm1()).log())  # softplus(rho) = std
            for name in ("mean_avg", "mean_sq", "rho_avg", "rho_sq"):
                state[name].zero_()
            group["steps"] = 0
            param.copy_(mean)


def _adam(value: Tensor, avg: Tensor, sq: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
    """Take Adam's step on `value` in place, with its moments `avg` and `sq`."""
    beta1, beta2, t = group["beta1"], group["beta2"], group["steps"]
    avg.lerp_(grad, 1.0 - beta1)
    sq.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    scale = (sq / (1.0 - beta2**t)).sqrt_().add_(group["eps"])
    value.addcdiv_(avg, scale, value=-float(group["lr"]) / (1.0 - beta1**t))
