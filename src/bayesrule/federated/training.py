"""A network client: any optimiser of the repository as the solver of a local objective.

The optimiser minimises, over minibatches of the client's items,

    mean loss + penalty(theta) / W,        W = weight N_k

which is the objective of `bayesrule.federated.local` divided by W. What it leaves is made a
message:

* `SiteIVON`: q_k is its own; server's posterior and dual enter in closed form, whatever the dual.
* Any other that exposes a diagonal Gaussian and takes a prior (IVON, VOGN, BBB): its own, with
  ess = W/rho and the cavity q_g exp(-<eta, T>/rho) as its prior, since

      <eta, E_q T> + rho KL(q || q_g) = rho KL(q || cavity) + const;

  where the cavity is improper (a dual that holds more than the server knows) it is refused.
* Point estimators (AdamW, SGD, SAM): the delta method. The penalty's gradient is added to the
  loss's; the precision is the fixed one, or by the diagonal GGN at theta_k.

Batches and noise are drawn by the seed of (client, round), so a client does not depend on which
process serves it, or in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.curvature import ggn_diag
from bayesrule.errors import ImproperDistribution, NonFiniteLoss, Unsupported
from bayesrule.federated.local import LocalObjective, delta_posterior
from bayesrule.federated.site_ivon import SiteIVON
from bayesrule.likelihoods import Likelihood
from bayesrule.optim.base import PosteriorOptimizer
from bayesrule.optim.gaussian_prior import GaussianPriorOptimizer
from bayesrule.posteriors import DiagonalGaussian, IsotropicGaussian, NaturalGaussian, PointMass
from bayesrule.posteriors.linear import forward_outputs
from bayesrule.seeding import generator

__all__ = ["NetworkClient", "minimise_soft"]

MakeOptimizer = Callable[[nn.Module, float, int], PosteriorOptimizer]
"""(model, effective sample size W/rho, seed) -> optimiser."""


@dataclass
class NetworkClient:
    """A client with a network and data; calling it is a `bayesrule.federated.Solve`.

    Attributes:
        model: The network; its weights are overwritten by every call.
        likelihood: Gives the loss.
        batch: Gives the items at positions, as a mapping with ``input`` and ``target``.
        num_items: N_k.
        optimizer: Makes the client's optimiser.
        epochs: Local epochs; a fraction of one is a part of its batches.
        batch_size: Items of a batch.
        seed: Of this client and round.
        lr_factor: Factor on the learning rate in this round.
        carry: Whether optimiser state persists from round to round.
        clip_grad_norm: Bound on the norm of the gradient that the optimiser sees (for a point
            estimator the penalty's is part of it); None: none.
    """

    model: nn.Module
    likelihood: Likelihood
    batch: Callable[[Tensor, int], Mapping[str, Any]]
    num_items: int
    optimizer: MakeOptimizer
    epochs: float
    batch_size: int
    seed: int
    lr_factor: float = 1.0
    carry: bool = True
    clip_grad_norm: float | None = None

    def __call__(
        self, objective: LocalObjective, carried: Mapping[str, Any]
    ) -> tuple[NaturalGaussian, dict[str, Any]]:
        """Minimise an objective; see the module's docstring.

        Raises:
            NonFiniteLoss: If the loss or the result is not finite.
            Unsupported: If the optimiser's posterior does not fit the family of the messages.
        """
        model, W = self.model.train(), objective.weight * self.num_items
        with torch.no_grad():
            for name, param in model.named_parameters():
                param.copy_(objective.begin[name])
                param.grad = None
        ess = W / objective.rho if objective.rho else W
        optimizer = self.optimizer(model, ess, self.seed)
        base = [group["lr"] for group in optimizer.param_groups]
        if self.carry and carried:
            self._restore(optimizer, carried)
        closed_form = self._set_objective(optimizer, objective)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * self.lr_factor
        torch.manual_seed(self.seed)  # serves dropout alone
        for batch in self._batches():
            loss = optimizer.step(self._closure(optimizer, objective, batch, W, closed_form))
            if loss is not None and not torch.isfinite(loss):
                raise NonFiniteLoss("a client's loss is not finite")
        optimizer.zero_grad()
        q = self._message(optimizer, objective, closed_form)
        return q, self._keep(optimizer) if self.carry else {}

    def _set_objective(self, optimizer: PosteriorOptimizer, objective: LocalObjective) -> bool:
        """Give prior and dual to an optimiser that takes them; return whether it did."""
        if isinstance(optimizer, SiteIVON):
            optimizer.set_objective(objective, self.num_items, self.model)
            return True
        if not isinstance(optimizer, GaussianPriorOptimizer) or not objective.rho:
            return False
        if objective.ridge:
            raise Unsupported("a ridge beside a Gaussian prior: choose a point estimator (adamw)")
        natural = objective.prior.natural()
        if objective.tilt is not None:
            natural = natural - objective.tilt / objective.rho
        try:
            cavity = type(objective.prior).from_natural(natural)
        except ImproperDistribution as problem:
            raise Unsupported(
                f"the cavity of a client is improper, and {type(optimizer).__name__} needs a "
                "prior: use IVON with the server's posterior as its prior (SiteIVON), or a larger "
                "rho"
            ) from problem
        optimizer.set_prior(_as_diagonal(cavity), self.model)
        return True

    def _batches(self) -> Iterator[Mapping[str, Any]]:
        per_epoch = -(-self.num_items // self.batch_size)
        left = max(1, round(self.epochs * per_epoch))
        epoch = 0
        while left:
            order = torch.randperm(self.num_items, generator=generator(self.seed, "order", epoch))
            for rows in order.split(self.batch_size)[:left]:
                yield self.batch(rows, epoch)
                left -= 1
            epoch += 1

    def _closure(
        self,
        optimizer: PosteriorOptimizer,
        objective: LocalObjective,
        batch: Mapping[str, Any],
        W: float,
        closed_form: bool,
    ) -> Callable[[], Tensor]:
        needs_penalty = not closed_form and (
            objective.tilt is not None or objective.rho > 0.0 or objective.ridge > 0.0
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            outputs = self.model(batch["input"])
            loss = self.likelihood.loss(outputs, batch["target"])
            loss.backward()
            for term in objective.soft:
                with optimizer.unobserved():
                    (term.loss(self.model(term.inputs)) / W).backward()
            if needs_penalty:  # its gradient in closed form costs less than a graph
                with torch.no_grad():
                    theta = dict(self.model.named_parameters())
                    for name, pull in objective.pull(theta).items():
                        grad = theta[name].grad
                        theta[name].grad = (
                            pull / W if grad is None else grad.add_(pull, alpha=1.0 / W)
                        )
            if self.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            return loss

        return closure

    def _message(
        self, optimizer: PosteriorOptimizer, objective: LocalObjective, closed_form: bool
    ) -> NaturalGaussian:
        q, prior = optimizer.posterior(self.model), objective.prior
        if not all(bool(torch.isfinite(t).all()) for t in q.mean.values()):
            raise NonFiniteLoss("a client's weights are not finite: its training diverged")
        if isinstance(prior, IsotropicGaussian):
            return IsotropicGaussian(q.mean, prior.precision)
        if closed_form and isinstance(q, NaturalGaussian) and type(q) is type(prior):
            return q
        if isinstance(q, PointMass) and isinstance(prior, DiagonalGaussian):
            return delta_posterior(objective, q.mean, self._curvature(q.mean))
        raise Unsupported(
            f"the messages are {prior.family}s and {type(optimizer).__name__} leaves a {q.family}: "
            "choose a solver of that family, or a point estimator (adamw) for the delta method"
        )

    def _curvature(self, mean: dict[str, Tensor]) -> dict[str, Tensor]:
        def batches() -> Iterator[Mapping[str, Any]]:
            for rows in torch.arange(self.num_items).split(256):
                yield self.batch(rows, 0)

        return ggn_diag(self.model, self.likelihood, batches(), params=mean)

    def _keep(self, optimizer: PosteriorOptimizer) -> dict[str, Any]:
        """Return the optimiser's tensors and step counters, without its noise streams."""
        saved = optimizer.state_dict()
        steps = [group.get("steps", 0) for group in optimizer.param_groups]
        tensors = {
            str(key): {n: t.clone() if isinstance(t, Tensor) else t for n, t in state.items()}
            for key, state in saved["state"].items()
        }
        return {"state": tensors, "steps": steps}

    def _restore(self, optimizer: PosteriorOptimizer, carried: Mapping[str, Any]) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for key, state in carried["state"].items():
            optimizer.state[params[int(key)]] = {
                n: t.clone() if isinstance(t, Tensor) else t for n, t in state.items()
            }
        for group, steps in zip(optimizer.param_groups, carried["steps"], strict=True):
            group["steps"] = steps


def _as_diagonal(q: NaturalGaussian) -> DiagonalGaussian:
    return q if isinstance(q, DiagonalGaussian) else DiagonalGaussian(q.mean, q.precision_diag())


def minimise_soft(
    model: nn.Module, objective: LocalObjective, *, steps: int = 300, lr: float = 1e-2
) -> dict[str, Tensor]:
    """Return the minimiser of an objective without data, by full-batch Adam from its start.

    The search of FedLap-Func's server. `objective.weight` is not used.

    Args:
        model: The network; its weights are overwritten.
        objective: Penalty and function-space terms.
        steps: Adam steps; the learning rate falls linearly to 0.
        lr: The first learning rate.
    """
    params = dict(model.named_parameters())
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(objective.begin[name])
    adam = torch.optim.Adam(params.values(), lr=lr)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = lr * (1.0 - step / steps)
        adam.zero_grad()
        loss = objective.penalty(params)
        for term in objective.soft:
            loss = loss + term.loss(forward_outputs(model, {}, term.inputs))
        loss.backward()
        adam.step()
    return {name: param.detach().clone() for name, param in params.items()}
