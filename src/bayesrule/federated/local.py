"""What a client minimises, whatever the algorithm: its loss, a tilt, and a pull to the server.

With l_k the **sum** of client k's losses, q_g the server's posterior of mean m_g, precision S_g::

    J(q) = weight E_q[l_k] + <eta, E_q T> + rho KL(q || q_g) + ridge/2 E_q||theta||^2

    <eta, T(theta)> = v^T theta - 1/2 theta^T V theta,      eta = (nat1, nat2) = (v, -V/2)

so that the tilt `eta` is a natural parameter of the family. With q a point (the delta method) this
is weight l_k(theta) + `penalty(theta)`, where rho KL becomes rho/2 (theta - m_g)^T S_g (theta -
m_g). At a stationary point the precision of q is

    S_k = S_g + (weight H_k - V + ridge I) / rho,     H_k = E_q[hess l_k]

which a family of fixed covariance ignores (S_k = S_g). `weight` is 1/tau in a Bayesian method, and
1/N_k where a method is defined on mean losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    NaturalGaussian,
)
from bayesrule.posteriors.natural import Natural
from bayesrule.posteriors.params import Params, Tree, flatten, total, tree_map, unflatten

__all__ = [
    "LocalObjective",
    "SoftLabels",
    "Solve",
    "delta_posterior",
    "second_order_times",
    "zero_natural",
]


@dataclass(frozen=True)
class SoftLabels:
    """A function-space term weight * sum_i CE(targets_i, f_i(theta)).

    Attributes:
        inputs: Inputs, (M, ...).
        targets: Class probabilities, (M, C).
        weight: Any sign.
    """

    inputs: Tensor
    targets: Tensor
    weight: float

    def loss(self, outputs: Tensor) -> Tensor:
        """Return the term at the outputs (M, C), a 0-d tensor."""
        return -self.weight * (self.targets * outputs.log_softmax(-1)).sum()


@dataclass(frozen=True)
class LocalObjective:
    """The objective of the module's docstring, as a value.

    Attributes:
        prior: q_g, the server's posterior.
        rho: Weight of KL(q || q_g); 0 for no pull.
        weight: Factor of the summed loss; 0 for an objective without data.
        tilt: eta, or None for zero.
        ridge: Precision of a further isotropic penalty.
        start: Where the solver begins; None: at the mean of `prior`.
        soft: Function-space terms.
    """

    prior: NaturalGaussian
    rho: float
    weight: float
    tilt: Natural[Any] | None = None
    ridge: float = 0.0
    start: Params | None = None
    soft: tuple[SoftLabels, ...] = ()

    @property
    def begin(self) -> Params:
        """The point at which the solver begins."""
        return self.prior.mean if self.start is None else self.start

    def pull(self, theta: Mapping[str, Tensor]) -> Params:
        """Return the penalty's gradient v - V theta + rho S_g (theta - m_g) + ridge theta."""
        mean = self.prior.mean
        offset = {name: theta[name] - m for name, m in mean.items()}
        pull = {name: self.rho * t for name, t in self.prior.precision_times(offset).items()}
        if self.tilt is not None:
            bent = second_order_times(self.tilt.nat2, {name: theta[name] for name in mean})
            pull = {n: g + self.tilt.nat1[n] + 2.0 * bent[n] for n, g in pull.items()}
        if self.ridge:
            pull = {n: g + self.ridge * theta[n] for n, g in pull.items()}
        return pull

    def penalty(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Return the delta-method value of all terms but the losses, a 0-d tensor.

        ::

                v^T theta - 1/2 theta^T V theta + rho/2 (theta - m_g)^T S_g (theta - m_g)
            + ridge/2 ||theta||^2
        """
        mean = self.prior.mean
        terms: list[Tensor] = []
        if self.rho:
            offset = {name: theta[name] - m for name, m in mean.items()}
            scaled = self.prior.precision_times(offset)
            terms += [0.5 * self.rho * (offset[n] * scaled[n]).sum() for n in mean]
        if self.tilt is not None:
            bent = second_order_times(self.tilt.nat2, {name: theta[name] for name in mean})
            terms += [(theta[n] * (self.tilt.nat1[n] + bent[n])).sum() for n in mean]
        if self.ridge:
            terms += [0.5 * self.ridge * theta[n].square().sum() for n in mean]
        first = next(iter(theta.values()))
        return torch.stack(terms).sum() if terms else first.new_zeros(())

    def hessian(self) -> Tensor:
        """Return the penalty's dense Hessian rho S_g - V + ridge I, (P, P)."""
        P = self.prior.num_params
        first = next(iter(self.prior.mean.values()))
        H = self.rho * self.prior.precision_matrix()
        if self.tilt is not None:
            H = H + 2.0 * _dense(self.tilt.nat2, self.prior)
        return H + self.ridge * torch.eye(P, dtype=first.dtype, device=first.device)


class Solve(Protocol):
    """A client's solver: minimises a `LocalObjective` on the client's own data."""

    def __call__(
        self, objective: LocalObjective, carried: Mapping[str, Any]
    ) -> tuple[NaturalGaussian, dict[str, Any]]:
        """Return q_k and what the solver keeps for this client's next round.

        Args:
            objective: What to minimise.
            carried: What the last call of this client returned (empty at first): optimiser state.
        """


def _dense(nat2: Tree, like: NaturalGaussian) -> Tensor:
    if isinstance(nat2, dict):
        return torch.diag(flatten(nat2))
    if nat2.ndim == 0:
        first = next(iter(like.mean.values()))
        return nat2 * torch.eye(like.num_params, dtype=first.dtype, device=first.device)
    return nat2


def second_order_times(nat2: Tree, theta: Mapping[str, Tensor]) -> Params:
    """Return A theta for the second-order part A of a Gaussian's natural parameter.

    Args:
        nat2: By name (diagonal), 0-d (a multiple of I) or (P, P).
        theta: By name.
    """
    if isinstance(nat2, dict):
        return {name: nat2[name] * t for name, t in theta.items()}
    if nat2.ndim == 0:
        return {name: nat2.to(t.dtype) * t for name, t in theta.items()}
    return unflatten(nat2 @ flatten(theta), theta)


def zero_natural(q: NaturalGaussian) -> Natural[Any]:
    """Return the natural parameter zero of q's family."""
    return q.natural() * 0.0


def delta_posterior(
    objective: LocalObjective, mean: Mapping[str, Tensor], curvature: Tree | None
) -> NaturalGaussian:
    """Return q_k in the family of the server's posterior, its precision by the delta method.

    Args:
        objective: What `mean` minimises.
        mean: theta_k.
        curvature: H_k at `mean`, of the **summed** loss: by name for a diagonal family, (P, P) for
            the full one; not used by an isotropic family, whose precision is fixed.

    Raises:
        Unsupported: The family needs a curvature and none was given.
        ImproperDistribution: The precision is not positive.
    """
    prior = objective.prior
    if isinstance(prior, IsotropicGaussian):
        return IsotropicGaussian(mean, prior.precision)
    if curvature is None:
        raise Unsupported(
            f"{type(prior).__name__} has a precision to learn, and this solver gave no curvature"
        )
    tilt = zero_natural(prior) if objective.tilt is None else objective.tilt
    w, rho, ridge = objective.weight, objective.rho, objective.ridge
    if isinstance(prior, DiagonalGaussian):
        assert isinstance(curvature, dict)
        precision = {
            n: s + (w * curvature[n] + 2.0 * tilt.nat2[n] + ridge) / rho
            for n, s in prior.precision.items()
        }
        return DiagonalGaussian(mean, precision)
    if isinstance(prior, FullGaussian):
        assert isinstance(curvature, Tensor)
        eye = torch.eye(len(curvature), dtype=curvature.dtype, device=curvature.device)
        S = prior.precision + (w * curvature + 2.0 * tilt.nat2 + ridge * eye) / rho
        return FullGaussian(mean, S)
    raise Unsupported(
        f"messages are isotropic, diagonal or full Gaussians, not {type(prior).__name__}"
    )


def clamp_precision(
    natural: Natural[Any], floor: Natural[Any], fraction: float
) -> tuple[Natural[Any], float]:
    """Return `natural` with diagonal precisions of at least `fraction` of the floor's.

    Damped, noisy duals may leave a coordinate of S_0 + sum V_k at or below zero. There the
    precision is raised and the mean kept where it was meaningful: nat1 is not touched.

    Args:
        natural: Of a diagonal or isotropic family; a full one is returned as it is.
        floor: The prior's.
        fraction: In (0, 1).

    Returns:
        The natural parameter and the fraction of coordinates that were raised.
    """
    if not isinstance(natural.nat2, dict):
        return natural, 0.0
    least = tree_map(lambda t: fraction * t, floor.nat2)
    raised = total((t > least[n]).to(torch.float64) for n, t in natural.nat2.items())
    count = sum(t.numel() for t in natural.nat2.values())
    clamped = {n: torch.minimum(t, least[n]) for n, t in natural.nat2.items()}
    return Natural(natural.nat1, clamped), float(raised) / count
