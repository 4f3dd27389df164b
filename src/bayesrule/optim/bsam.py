"""bSAM: SAM that learns a diagonal variance (Möllenhoff and Khan, 2023, arXiv 2210.01620).

The expected *negative* loss is replaced by its Fenchel biconjugate, its best convex lower bound
over the expectation parameters, so that the loss is bounded from above; for a Gaussian this is a
worst case over perturbations, weighted by the posterior's own variance. The posterior is
q = N(mean, diag(1 / (ess prec))), the prior N(0, I / (ess delta)) with delta = `weight_decay`, and
the loss a **mean** over examples. One step
(algorithm 1, the Adam form)::

    g    = grad loss(mean + noise / sqrt(ess prec)),  noise ~ N(0, I)           stage 0
    ge   = grad loss(mean + rho g / prec)             from the mean, no noise   stage 1
    momentum <- beta1 momentum + (1 - beta1) (ge + delta mean)                  update
    mean     <- mean - lr momentum / prec                                   (old prec)
    prec     <- beta2 prec + (1 - beta2) (sqrt(prec) |g| + gamma + delta)   (after the mean)

with gamma = `damping`; nothing is debiased. With ``batch_split=k`` the batch is cut into k parts,
each with its own noise and perturbation, and sqrt(prec) |g| and ge are averaged over them
(m-sharpness; the authors use 8). `ess` is the number of training examples times the authors'
`dafactor`, and delta their `priorprec` / ess. A stationary prec with constant |g| solves
prec = sqrt(prec) |g| + gamma + delta, of the order of g^2 where that is large.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesrule.optim.base import Noise, PosteriorOptimizer, Sync
from bayesrule.optim.checks import check, check_groups
from bayesrule.posteriors import DiagonalGaussian

__all__ = ["BSAM", "bsam_update"]


def bsam_update(
    mean: Tensor,
    momentum: Tensor,
    prec: Tensor,
    grad: Tensor,
    abs_grad: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    damping: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean, momentum, prec) after one bSAM update, as pure functions of tensors.

    All tensors have the same shape. The optimiser runs the same equations in place.

    Args:
        mean: Posterior mean.
        momentum: Exponential average of gradients.
        prec: Posterior precision over ess.
        grad: Gradient ge at the adversarial point, averaged over parts and samples.
        abs_grad: sqrt(prec) |g| of the noisy gradient g, averaged likewise.
        lr: Learning rate alpha.
        beta1: Decay of the momentum.
        beta2: Decay of the precision.
        weight_decay: delta.
        damping: gamma.
    """
    momentum = beta1 * momentum + (1.0 - beta1) * (grad + weight_decay * mean)
    mean = mean - lr * momentum / prec
    prec = beta2 * prec + (1.0 - beta2) * (abs_grad + damping + weight_decay)
    return mean, momentum, prec


class BSAM(PosteriorOptimizer):
    """Bayesian SAM, see the module docstring for the equations.

    Example:
        >>> opt = BSAM(model.parameters(), lr=0.2, ess=len(train_set), rho=0.1)
        >>> loss = opt.step(closure)         # the closure is called twice per sample

    Args:
        params: Parameters, named parameters or parameter groups; every option below up to
            `damping` may be set per group.
        lr: Learning rate alpha.
        ess: Effective sample size N, the number of training examples (times a factor when data
            are augmented).
        rho: Size of the perturbation in units of g / prec, >= 0.
        prec_init: First precision over ess, > 0.
        beta1: Decay of the momentum, in [0, 1).
        beta2: Decay of the precision, in [0, 1].
        weight_decay: delta >= 0, the prior precision over ess.
        damping: gamma >= 0.
        mc_samples: Samples per step and part.
        batch_split: Parts of the batch that are perturbed on their own.
        seed: See `PosteriorOptimizer.setup`, as for `generator`, `noise` and `sync`.
        generator: The noise stream.
        noise: Replacement of the standard normal draw.
        sync: How several processes share one posterior.

    Raises:
        ValueError: If an option is out of range.
    """

    stages = 2
    stochastic = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        ess: float,
        rho: float = 0.05,
        prec_init: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 1e-4,
        damping: float = 0.1,
        mc_samples: int = 1,
        batch_split: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "ess": ess,
            "rho": rho,
            "prec_init": prec_init,
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": weight_decay,
            "damping": damping,
        }
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            ess=check("> 0"),
            rho=check(">= 0"),
            prec_init=check("> 0"),
            beta1=check(">= 0", "< 1"),
            beta2=check(">= 0", "<= 1"),
            weight_decay=check(">= 0"),
            damping=check(">= 0"),
        )
        if any(group["damping"] + group["weight_decay"] <= 0 for group in self.param_groups):
            raise ValueError("damping and weight_decay are both 0: prec could shrink to 0")
        self._noise_room: list[Tensor] = []
        self._offsets: list[Tensor] = []
        self.setup(
            mc_samples=mc_samples,
            batch_split=batch_split,
            seed=seed,
            generator=generator,
            noise=noise,
            sync=sync,
        )

    def _learnt(self) -> list[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Return (parameter, its state, its group) for every trainable parameter, in order."""
        return [
            (p, self.param_state(p, momentum=0.0, prec=group["prec_init"]), group)
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to mean + noise / sqrt(ess prec), at stage 1 to mean + rho g / prec."""
        if stage == 1:
            torch._foreach_add_(self.trainable(), self._offsets)
            self._offsets = []
            return
        assert noise is not None
        self._noise_room = noise
        rows = (
            (group, (param, eps, state["prec"]))
            for (param, state, group), eps in zip(self._learnt(), noise, strict=True)
        )
        for group, (param, eps, prec), scale in self._scratch.blocks(rows, written=1):
            torch.mul(prec, group["ess"], out=scale).rsqrt_()
            param.addcmul_(eps, scale)

    def collect(self, stage: int) -> None:
        """Stage 0: sqrt(prec) |g| and the perturbation rho g / prec; stage 1: ge."""
        if stage == 1:
            self.accumulate("grad", self.gradients())
            return
        grads, abs_grads = self.gradients(), self._noise_room
        rows = (
            (group, (abs_grad, grad, state["prec"]))
            for (_, state, group), abs_grad, grad in zip(
                self._learnt(), abs_grads, grads, strict=True
            )
        )
        for group, (abs_grad, grad, prec), root in self._scratch.blocks(rows, written=2):
            torch.mul(torch.abs(grad, out=abs_grad), torch.sqrt(prec, out=root), out=abs_grad)
            grad.div_(prec).mul_(group["rho"])
        self._noise_room, self._offsets = [], grads
        self.accumulate("abs_grad", abs_grads)

    def update(self, statistics: dict[str, list[Tensor]]) -> None:
        """Apply `bsam_update` in place, over blocks of all parameters."""
        rows = (
            (group, (param, state["momentum"], state["prec"], grad, abs_grad))
            for (param, state, group), grad, abs_grad in zip(
                self._learnt(), statistics["grad"], statistics["abs_grad"], strict=True
            )
        )
        for group, (mean, momentum, prec, grad, abs_grad), work in self._scratch.blocks(
            rows, written=3
        ):
            delta = group["weight_decay"]
            torch.add(grad, mean, alpha=delta, out=work)
            momentum.lerp_(work, 1.0 - group["beta1"])
            mean.addcdiv_(momentum, prec, value=-float(group["lr"]))  # the old prec
            prec.lerp_(abs_grad.add_(group["damping"] + delta), 1.0 - group["beta2"])

    def posterior(self, model: torch.nn.Module | None = None) -> DiagonalGaussian:
        """Return q = N(mean, 1 / (ess prec))."""
        names = self.names(model)
        precision = {
            names[p]: state["prec"].detach() * group["ess"] for p, state, group in self._learnt()
        }
        return DiagonalGaussian(self.named_mean(model), precision)
