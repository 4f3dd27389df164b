"""SGD and AdamW under the interface of the variational optimisers.

Their posterior is a point mass at the parameters; the numbers are those of `torch.optim`, whose
update they call. Weight decay follows each method's habit: added to the gradient for SGD (so it is
delta of a Gaussian prior with precision N delta, in mean-loss scale), decoupled for AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bayesrule.optim.base import Noise, PosteriorOptimizer, Sync
from bayesrule.optim.checks import check, check_groups
from bayesrule.posteriors import PointMass

__all__ = ["SGD", "AdamW", "PointOptimizer"]


def _unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch's step without its call of step hooks: ours has called them already.

    torch wraps ``step`` of a class when it is first instantiated, and marks the wrapper `hooked`.
    """
    return step.__wrapped__ if hasattr(step, "hooked") else step  # type: ignore[attr-defined]


class PointOptimizer(PosteriorOptimizer):
    """A method whose posterior is a point mass: no perturbation, the statistic is the gradient."""

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Leave the parameters at the mean."""

    def _perturbed(self, stage: int) -> list[Tensor]:
        return []

    def collect(self, stage: int) -> None:
        """Keep the gradient, and whether there was one."""
        used = [p.new_full((1,), float(p.grad is not None)) for p in self.trainable()]
        self.accumulate("grad", self.gradients())
        self.accumulate("used", used)

    def update(self, statistics: dict[str, list[Tensor]]) -> None:
        """Put the mean gradient in place and run the torch optimiser's own step."""
        rows = zip(self.trainable(), statistics["grad"], statistics["used"], strict=True)
        for param, grad, used in rows:  # as in torch.optim, a parameter without a gradient stays
            param.grad = grad if used > 0 else None
        self.torch_step()

    def torch_step(self) -> None:
        """Run the step of the torch optimiser that the class derives from."""
        raise TypeError(f"{type(self).__name__} does not say which torch optimiser it runs")

    def posterior(self, model: torch.nn.Module | None = None) -> PointMass:
        """Return the point mass at the parameters."""
        return PointMass(self.named_mean(model))


class SGD(PointOptimizer, torch.optim.SGD):
    """Stochastic gradient descent with heavy-ball or Nesterov momentum, as `torch.optim.SGD`.

    ::

        buf <- momentum buf + (1 - dampening) (g + weight_decay mean);   mean <- mean - lr buf

    Args:
        params: Parameters, named parameters or parameter groups.
        lr: Learning rate.
        momentum: Momentum factor in [0, 1).
        weight_decay: L2 factor, in mean-loss scale.
        dampening: Dampening of the momentum.
        nesterov: Whether to use Nesterov momentum.
        mc_samples: Closure calls averaged per step.
        batch_split: Parts of the batch that closure calls take in turn.
        seed: Accepted, as `generator` and `noise`, for one interface; no noise is drawn.
        generator: Unused.
        noise: Unused.
        sync: How several processes share one step.
    """

    shards = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        mc_samples: int = 1,
        batch_split: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        torch.optim.SGD.__init__(
            self,
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            dampening=dampening,
            nesterov=nesterov,
        )
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            momentum=check(">= 0", "< 1"),
            weight_decay=check(">= 0"),
        )
        self.setup(
            mc_samples=mc_samples,
            batch_split=batch_split,
            seed=seed,
            generator=generator,
            noise=noise,
            sync=sync,
        )

    def torch_step(self) -> None:
        """Run `torch.optim.SGD.step`."""
        _unhooked(torch.optim.SGD.step)(self)


class AdamW(PointOptimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    ::

        mean <- (1 - lr weight_decay) mean
        m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
        mean <- mean - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        params: Parameters, named parameters or parameter groups.
        lr: Learning rate.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        mc_samples: Closure calls averaged per step.
        batch_split: Parts of the batch that closure calls take in turn.
        seed: Accepted, as `generator` and `noise`, for one interface; no noise is drawn.
        generator: Unused.
        noise: Unused.
        sync: How several processes share one step.
    """

    shards = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        mc_samples: int = 1,
        batch_split: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        torch.optim.AdamW.__init__(
            self, params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay
        )
        for group in self.param_groups:  # a group may set beta1 or beta2; torch reads `betas`
            group["betas"] = tuple(
                group.pop(name, value)
                for name, value in zip(("beta1", "beta2"), group["betas"], strict=True)
            )
        check_groups(
            self.param_groups, lr=check(">= 0"), eps=check("> 0"), weight_decay=check(">= 0")
        )
        self.setup(
            mc_samples=mc_samples,
            batch_split=batch_split,
            seed=seed,
            generator=generator,
            noise=noise,
            sync=sync,
        )

    def torch_step(self) -> None:
        """Run `torch.optim.AdamW.step`."""
        _unhooked(torch.optim.AdamW.step)(self)
