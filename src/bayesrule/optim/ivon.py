"""IVON: improved variational online Newton (Shen et al., 2024, arXiv 2402.17641).

The posterior is q = N(mean, diag(1 / (ess (hess + delta)))) with delta = `weight_decay`, prior
N(0, I / (ess delta)), and the objective is ess E_q[loss] + KL(q || prior), the loss being a
**mean** over examples without any regulariser. One step (algorithm 1 of the paper)::

    theta  = mean + noise / sqrt(ess (hess + delta)),   noise ~ N(0, I)         perturb
    g      = grad loss(theta);  n = (theta - mean) g                            statistic
    momentum <- beta1 momentum + (1 - beta1) g                                  update
    h_hat  = ess (hess + delta) n             (price)   or   ess g^2  (gradsq)
    hess  <- beta2 hess + (1 - beta2) h_hat
             + (1 - beta2)^2 / 2  (hess - h_hat)^2 / (hess + delta)       (old hess on the right)
    mean  <- mean - lr' clip((momentum / (1 - beta1^t) + delta mean) / (hess + delta), xi)

with lr' = lr (hess_init + delta) if `rescale_lr`. The correction term keeps hess + delta > 0: with
x = (1 - beta2) (h_hat - hess) / (hess + delta) the new value is (hess + delta)(1 + x + x^2 / 2), at
least half of the old one.

With `set_prior` another Gaussian N(m0, diag(s0)^-1) is the prior (yesterday's posterior, in
continual learning). Then delta is the vector s0 / ess, and delta mean is delta (mean - m0); lr' has
the `weight_decay` of the options still, so that weights of which the prior is certain take steps
that are small, not steps of their own scale.

Deviations from the authors' `ivon-opt` 0.1.3: noise is drawn per tensor (not per group), frozen
parameters are not perturbed, the step counter is part of the saved state, and the multi-process
statistic works for both Hessian estimators.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.checks import check, check_groups
from bayesrule.optim.gaussian_prior import GaussianPriorOptimizer
from bayesrule.optim.memory import copy_tensors
from bayesrule.posteriors import DiagonalGaussian, Posterior

__all__ = ["IVON", "ivon_offset", "ivon_update"]


def ivon_offset(noise: Tensor, hess: Tensor, ess: float, weight_decay: float) -> Tensor:
    """Return theta - mean = noise / sqrt(ess (hess + delta)) for standard normal noise."""
    return noise / (ess * (hess + weight_decay)).sqrt()


def ivon_update(
    mean: Tensor,
    momentum: Tensor,
    hess: Tensor,
    grad: Tensor,
    stat: Tensor,
    *,
    steps: int,
    lr: float,
    ess: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    hess_init: float,
    prior_mean: float | Tensor = 0.0,
    prior_prec: Tensor | None = None,
    clip_radius: float = math.inf,
    hess_approx: Literal["price", "gradsq"] = "price",
    debias: bool = True,
    rescale_lr: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean, momentum, hess) after one IVON update, as pure functions of tensors.

    All tensors have the same shape. The optimiser runs the same equations in place.

    Args:
        mean: Posterior mean m.
        momentum: Exponential average of gradients.
        hess: Hessian estimate h of the mean loss.
        grad: Mean over samples of the gradient at theta.
        stat: Mean over samples of (theta - mean) * gradient (price) or of gradient^2 (gradsq).
        steps: Index t of this step, from 1.
        lr: Learning rate before rescaling.
        ess: Effective sample size lambda.
        beta1: Decay of the momentum.
        beta2: Decay of the Hessian estimate.
        weight_decay: delta.
        hess_init: h0, which rescales the learning rate.
        prior_mean: m0.
        prior_prec: s0, of a prior of its own; None for ess weight_decay.
        clip_radius: xi.
        hess_approx: Which estimator `stat` is for.
        debias: Whether the momentum is divided by 1 - beta1^t.
        rescale_lr: Whether lr is multiplied by (h0 + delta).
    """
    delta: float | Tensor = weight_decay if prior_prec is None else prior_prec / ess
    r = 1.0 - beta2
    momentum = beta1 * momentum + (1.0 - beta1) * grad
    h_hat = ess * (hess + delta) * stat if hess_approx == "price" else ess * stat
    hess = beta2 * hess + r * h_hat + 0.5 * r**2 * (hess - h_hat) ** 2 / (hess + delta)
    m_hat = momentum / (1.0 - beta1**steps) if debias else momentum
    pull = delta * (mean - prior_mean)
    direction = ((m_hat + pull) / (hess + delta)).clamp(-clip_radius, clip_radius)
    step_size = lr * (hess_init + weight_decay) if rescale_lr else lr
    return mean - step_size * direction, momentum, hess


class IVON(GaussianPriorOptimizer):
    """Improved variational online Newton, see the module docstring for the equations.

    Example:
        >>> opt = IVON(model.parameters(), lr=0.1, ess=len(train_set))
        >>> loss = opt.step(closure)
        >>> with opt.sampled_params():
        ...     logits = model(x)

    Args:
        params: Parameters, named parameters or parameter groups. `lr`, `ess`, `hess_init`, `beta1`,
            `beta2`, `weight_decay` and `clip_radius` may be set per group.
        lr: Learning rate alpha, before rescaling by (hess_init + weight_decay). About 0.1 to 0.3
            for ResNets, hundreds for GPT-2.
        ess: Effective sample size lambda, normally the number of training examples.
        hess_init: h0 > 0.
        beta1: Decay of the gradient average, in [0, 1].
        beta2: Decay of the Hessian estimate, in [0, 1]; 1 - beta2 about 1 / (number of steps).
        weight_decay: delta >= 0, the prior precision over ess.
        mc_samples: Samples S per step.
        hess_approx: ``"price"`` (reparameterisation, unbiased) or ``"gradsq"``.
        clip_radius: xi, element-wise bound on the preconditioned direction.
        debias: Debias the gradient average. (The Hessian estimate starts at h0 and needs none.)
        rescale_lr: Multiply lr by (hess_init + weight_decay).
        seed: See `PosteriorOptimizer.setup`, as for `generator`, `noise` and `sync`.
        generator: The noise stream.
        noise: Replacement of the standard normal draw.
        sync: How several processes share one posterior.

    Raises:
        ValueError: If an option is out of range.
    """

    stochastic = True
    shards = True
    prior_option = "weight_decay"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        ess: float,
        hess_init: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.99999,
        weight_decay: float = 1e-4,
        mc_samples: int = 1,
        hess_approx: Literal["price", "gradsq"] = "price",
        clip_radius: float = math.inf,
        debias: bool = True,
        rescale_lr: bool = True,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        if hess_approx not in ("price", "gradsq"):
            raise ValueError(f"hess_approx must be 'price' or 'gradsq', got {hess_approx!r}")
        defaults = {
            "lr": lr,
            "ess": ess,
            "hess_init": hess_init,
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": weight_decay,
            "clip_radius": clip_radius,
        }
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            ess=check("> 0"),
            hess_init=check("> 0"),
            beta1=check(">= 0", "<= 1"),
            beta2=check(">= 0", "<= 1"),
            weight_decay=check(">= 0"),
            clip_radius=check("> 0"),
        )
        self.hess_approx = hess_approx
        self.debias = debias
        self.rescale_lr = rescale_lr
        self._offsets: list[Tensor] = []
        self.setup(mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync)

    def _learnt(self) -> list[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Return (parameter, its state, its group) for every trainable parameter, in order."""
        return [
            (p, self.param_state(p, momentum=0.0, hess=group["hess_init"]), group)
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to theta = mean + noise / sqrt(ess (hess + delta)); keep the offset."""
        assert noise is not None
        self._offsets = noise
        rows = (
            (group, (param, eps, state["hess"], *self.own_prior(state)))
            for (param, state, group), eps in zip(self._learnt(), noise, strict=True)
        )
        for group, (param, offset, hess, *own), scale in self._scratch.blocks(rows, written=2):
            if own:
                torch.mul(hess, group["ess"], out=scale).add_(own[1]).rsqrt_()
            else:
                torch.add(hess, group["weight_decay"], out=scale).mul_(group["ess"]).rsqrt_()
            param.add_(offset.mul_(scale))

    def collect(self, stage: int) -> None:
        """Keep g, and (theta - mean) g (price) or g^2 (gradsq), in the place of the offset."""
        grads, stat = self.gradients(), self._offsets
        if self.hess_approx == "gradsq":
            copy_tensors(stat, grads)
        torch._foreach_mul_(stat, grads)
        self._offsets = []
        self.accumulate("grad", grads)
        self.accumulate("stat", stat)

    def update(self, statistics: dict[str, list[Tensor]]) -> None:
        """Apply `ivon_update` in place, over blocks of all parameters."""
        rows = (
            (
                group,
                (param, state["momentum"], state["hess"], grad, stat, *self.own_prior(state)),
            )
            for (param, state, group), grad, stat in zip(
                self._learnt(), statistics["grad"], statistics["stat"], strict=True
            )
        )
        for group, operands, prec in self._scratch.blocks(rows, written=3):
            mean, momentum, hess, grad, stat, *own = operands
            delta: Any = own[1] / group["ess"] if own else group["weight_decay"]
            beta1, r = group["beta1"], 1.0 - group["beta2"]
            momentum.lerp_(grad, 1.0 - beta1)  # momentum <- beta1 momentum + (1 - beta1) g
            torch.add(hess, delta, out=prec)
            h_hat = (stat.mul_(prec) if self.hess_approx == "price" else stat).mul_(group["ess"])
            diff = h_hat.sub_(hess)
            hess.add_(diff, alpha=r).addcdiv_(diff.square_(), prec, value=0.5 * r * r)
            torch.add(hess, delta, out=prec)  # the mean step uses the new hess
            debias = 1.0 - beta1 ** group["steps"] if self.debias and beta1 < 1.0 else 1.0
            direction = torch.div(momentum, debias, out=diff)
            if own:
                direction.add_((mean - own[0]).mul_(delta))
            else:
                direction.add_(mean, alpha=delta)
            direction.div_(prec)
            if group["clip_radius"] < math.inf:
                direction.clamp_(-group["clip_radius"], group["clip_radius"])
            rescale = (group["hess_init"] + group["weight_decay"]) if self.rescale_lr else 1.0
            mean.sub_(direction, alpha=float(group["lr"] * rescale))

    def posterior(self, model: torch.nn.Module | None = None) -> DiagonalGaussian:
        """Return q = N(mean, 1 / (ess (hess + delta)))."""
        names, precision = self.names(model), {}
        for p, state, group in self._learnt():
            own, hess = self.own_prior(state), state["hess"].detach()
            if own:
                precision[names[p]] = hess * group["ess"] + own[1]
            else:
                precision[names[p]] = (hess + group["weight_decay"]) * group["ess"]
        return DiagonalGaussian(self.named_mean(model), precision)

    @torch.no_grad()
    def set_posterior(self, q: Posterior, model: torch.nn.Module | None = None) -> None:
        """Go on from `q` with no momentum; set the prior first.

        Raises:
            Unsupported: If `q` is no diagonal Gaussian.
        """
        rows = list(self._gaussian_rows(q, model, "posterior"))
        for (param, state, group), (_, mean, precision) in zip(self._learnt(), rows, strict=True):
            own = self.own_prior(state)
            delta = own[1] / group["ess"] if own else group["weight_decay"]
            state["hess"].copy_(precision.to(param) / group["ess"] - delta)
            state["momentum"].zero_()
            group["steps"] = 0  # of the momentum's debiasing
            param.copy_(mean)
