"""A diagonal Gaussian prior with its own mean and precision per weight, for optimisers of such q.

The objective is ess E_q[loss] + tau KL(q || N(m0, diag(s0)^-1)), whose gradient in the mean is that
of the loss plus (tau / ess) s0 (mean - m0). Without such a prior an optimiser has N(0, I / delta)
from its options, and computes what it always did.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.errors import Unsupported
from bayesrule.optim.base import PosteriorOptimizer
from bayesrule.posteriors import DiagonalGaussian, Posterior

__all__ = ["GaussianPriorOptimizer"]


class GaussianPriorOptimizer(PosteriorOptimizer):
    """An optimiser of a diagonal Gaussian q that takes a diagonal Gaussian prior.

    Attributes:
        prior_option: The option that is delta (over ess, where it is called a weight decay).
    """

    prior_option: str = "prior_prec"

    def _gaussian_rows(
        self, q: Posterior, model: nn.Module | None, what: str
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield every trainable parameter with its mean and precision under `q`."""
        if not isinstance(q, DiagonalGaussian):
            raise Unsupported(
                f"{type(self).__name__} has a diagonal Gaussian as {what}, not a {type(q).__name__}"
            )
        names, mean, precision = self.names(model), q.mean, q.precision
        for param in self.trainable():
            if names[param] not in mean:
                raise ValueError(f"the {what} has no parameter {names[param]!r}")
            yield param, mean[names[param]], precision[names[param]]

    @torch.no_grad()
    def set_prior(self, prior: Posterior, model: nn.Module | None = None) -> None:
        """Take another Gaussian as the prior from the next step on; it is saved with the state.

        Args:
            prior: A diagonal Gaussian, keyed by parameter name.
            model: Gives the names, see `posterior`.

        Raises:
            Unsupported: If the prior is no diagonal Gaussian.
            ValueError: If a trainable parameter is not in the prior.
        """
        for param, mean, precision in list(self._gaussian_rows(prior, model, "prior")):
            state = self.param_state(param, prior_mean=0.0, prior_prec=0.0)
            state["prior_mean"].copy_(mean)
            state["prior_prec"].copy_(precision)

    @staticmethod
    def own_prior(state: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return (m0, s0) of a parameter that was given a prior, else nothing."""
        return (state["prior_mean"], state["prior_prec"]) if "prior_prec" in state else ()

    def prior(self, model: nn.Module | None = None) -> DiagonalGaussian:
        """Return the prior in force: N(0, I / delta) of the options, or the one that was set.

        Raises:
            ImproperDistribution: If a group has no prior precision.
        """
        names, mean, precision = self.names(model), {}, {}
        for group in self.param_groups:
            delta = group[self.prior_option]
            delta = group["ess"] * delta if self.prior_option == "weight_decay" else delta
            for p in group["params"]:
                if p.requires_grad:
                    own = self.own_prior(self.state.get(p, {}))
                    mean[names[p]] = own[0] if own else torch.zeros_like(p.detach())
                    precision[names[p]] = own[1] if own else torch.full_like(p.detach(), delta)
        return DiagonalGaussian(mean, precision)
