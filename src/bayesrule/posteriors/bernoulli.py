"""Bernoulli posteriors over binary weights {-1, +1}^P, and their concrete relaxation.

With natural parameter lambda, entry by entry (Meng et al., 2020, arXiv 2002.10778, eq. 4 and 5)::

    q(theta)    = exp(lambda theta - A(lambda)),  theta in {-1, +1},  A(lambda) = log 2 cosh lambda
    p           = q(theta = +1) = sigmoid(2 lambda)
    mu          = E[theta] = 2 p - 1 = tanh(lambda),        Var[theta] = 1 - mu^2
    log q       = log sigmoid(2 lambda theta)
    H(q)        = softplus(-2 |lambda|) + 2 |lambda| sigmoid(-2 |lambda|)
    KL(q || r)  = sum_{theta = -1, +1} q(theta) [log q(theta) - log r(theta)]
    nat1 = lambda,   mean1 = mu          (the statistic is theta alone: nat2 and mean2 are empty)

Every finite lambda is a distribution, so products, ratios and powers never leave the family. The
forms above stay finite, and exact in the limit, where tanh and sigmoid have long saturated.

The concrete (Gumbel-softmax) relaxation replaces theta by a smooth function of lambda and of
u ~ U(0, 1) (eq. 9 to 11)::

    delta = 1/2 log(u / (1 - u))                    `half_logit`
    w     = tanh((lambda + delta) / tau)            `concrete_sample`
    s     = dw/dmu = (1 - w^2) / (tau (1 - mu^2))   `concrete_slope`

With tau -> 0 it becomes theta = sign(lambda + delta), an exact draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.base import ExponentialFamily, Posterior
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import (
    Params,
    check_same_schema,
    own,
    project_variance,
    total,
    tree_map,
)

__all__ = [
    "Bernoulli",
    "concrete_log_prob",
    "concrete_sample",
    "concrete_slope",
    "half_logit",
    "sign",
]

U_MIN = 1e-7
"""Uniform draws are kept in [U_MIN, 1 - U_MIN], so that their logits are finite in float32."""


def sign(x: Tensor) -> Tensor:
    """Return +1 where x >= 0 and -1 elsewhere, in the dtype of x: never 0, unlike `torch.sign`."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def half_logit(u: Tensor) -> Tensor:
    """Return delta = 1/2 log(u / (1 - u)), u kept in [U_MIN, 1 - U_MIN] (eq. 10)."""
    return 0.5 * torch.logit(u, eps=U_MIN)


def concrete_sample(lam: Tensor, delta: Tensor, tau: float) -> Tensor:
    """Return w = tanh((lambda + delta) / tau) in [-1, 1], the relaxed draw (eq. 9)."""
    return torch.tanh((lam + delta) / tau)


def concrete_slope(w: Tensor, lam: Tensor, tau: float, eps: float = 1e-10) -> Tensor:
    """Return s = dw/dmu = (1 - w^2 + eps) / (tau (1 - tanh(lambda)^2 + eps)) (eq. 11).

    Args:
        w: Relaxed draw.
        lam: Natural parameter at which it was drawn.
        tau: Temperature.
        eps: Keeps s positive where both parts saturate; 0 gives the exact derivative.
    """
    return (1.0 - w.square() + eps) / (tau * (1.0 - torch.tanh(lam).square() + eps))


def concrete_log_prob(w: Tensor, lam: Tensor, tau: float) -> Tensor:
    """Return the log density of `concrete_sample` at w in (-1, 1), entry by entry.

    With delta = tau atanh(w) - lambda, of density 2 sigmoid(2 delta) sigmoid(-2 delta)::

        log p(w) = log 2 + log sigmoid(2 delta) + log sigmoid(-2 delta) + log tau - log(1 - w^2)
    """
    delta = tau * torch.atanh(w) - lam
    noise = math.log(2.0) + logsigmoid(2.0 * delta) + logsigmoid(-2.0 * delta)
    return noise + math.log(tau) - torch.log1p(-w.square())


class Bernoulli(ExponentialFamily):
    """Independent theta in {-1, +1} with natural parameters lambda; equations in the module.

    Args:
        lam: lambda, by parameter name; any finite value. 0 is the uniform distribution.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: An entry of lambda is not finite.
    """

    family: ClassVar[str] = "bernoulli"
    space: ClassVar[str] = "{-1, +1}^P"
    own_mode: ClassVar[bool] = True

    def __init__(
        self, lam: Mapping[str, Tensor], *, buffers: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__({name: torch.tanh(tensor) for name, tensor in lam.items()}, buffers)
        for name, tensor in lam.items():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise ImproperDistribution(
                    f"not a proper Bernoulli: the natural parameters of {name!r} must be finite, "
                    f"but {bad} of {tensor.numel()} entries are not (a mean of exactly -1 or +1 "
                    "has none; a certain weight is a large finite one)"
                )
        self._lam = own(lam)

    @classmethod
    def uniform(cls, like: Mapping[str, Tensor]) -> Self:
        """Return the uniform distribution, lambda = 0, over parameters named and shaped so."""
        return cls(tree_map(torch.zeros_like, dict(like)))

    @property
    def lam(self) -> Params:
        """The natural parameters lambda by parameter name."""
        return dict(self._lam)

    @property
    def probs(self) -> Params:
        """q(theta = +1) = sigmoid(2 lambda) by parameter name."""
        return {name: torch.sigmoid(2.0 * lam) for name, lam in self._lam.items()}

    @property
    def mode(self) -> Params:
        """The most probable weights, sign(lambda), by parameter name (+1 where lambda = 0)."""
        return tree_map(sign, self._lam)

    def variance(self) -> Params:
        """Return 1 - mu^2 = 1 / cosh(lambda)^2, by parameter name, without cancellation."""
        return {
            name: 4.0 * torch.sigmoid(2.0 * lam) * torch.sigmoid(-2.0 * lam)
            for name, lam in self._lam.items()
        }

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw theta = +1 with probability sigmoid(2 lambda), else -1."""
        lead = () if n is None else (n,)
        draws = {}
        for name, lam in self._lam.items():
            wide = torch.promote_types(lam.dtype, torch.float32)  # 8 bits would bias the draw
            device = lam.device if generator is None else generator.device
            u = torch.rand((*lead, *lam.shape), generator=generator, dtype=wide, device=device)
            p = torch.sigmoid(2.0 * lam.to(wide))
            draws[name] = torch.where(u.to(lam.device) < p, 1.0, -1.0).to(lam.dtype)
        return draws

    def log_prob(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Return sum log sigmoid(2 lambda theta).

        Raises:
            Unsupported: An entry of theta is neither -1 nor +1, or names or shapes do not fit.
        """
        self._check_theta(theta)
        for name, tensor in theta.items():
            if not bool((tensor.abs() == 1).all()):
                raise Unsupported(
                    f"theta[{name!r}] must be binary, -1 or +1 in every entry: Bernoulli has no "
                    "mass elsewhere (relaxed weights have a density, `concrete_log_prob`)"
                )
        return total(logsigmoid(2.0 * lam * theta[name]) for name, lam in self._lam.items())

    def entropy(self) -> Tensor:
        """Return sum softplus(-2 |lambda|) + 2 |lambda| sigmoid(-2 |lambda|), in nats."""
        doubled = [2.0 * lam.abs() for lam in self._lam.values()]
        return total(softplus(-a) + a * torch.sigmoid(-a) for a in doubled)

    def kl(self, other: Posterior) -> Tensor:
        """Return KL(self || other) for another Bernoulli over the same parameters.

        Raises:
            Unsupported: `other` is no Bernoulli, or the names or shapes do not fit.
        """
        check_same_schema(self._mean, other._mean)
        if not isinstance(other, Bernoulli):
            raise Unsupported(
                f"KL(Bernoulli || {type(other).__name__}) is not defined: Bernoulli lives on "
                f"{self.space}, {type(other).__name__} on {other.space}"
            )

        def term(a: Tensor, b: Tensor) -> Tensor:  # a = 2 lambda theta of q, b = that of r
            return torch.sigmoid(a) * (logsigmoid(a) - logsigmoid(b))

        pairs = [(2.0 * lam, 2.0 * other._lam[name]) for name, lam in self._lam.items()]
        return total(term(a, b) + term(-a, -b) for a, b in pairs)

    def functional_variance(self, jac: Mapping[str, Tensor]) -> Tensor:
        """Return cov_BCC = sum_p J_bcp J_bdp (1 - mu_p^2)."""
        check_same_schema(self._mean, jac, "the posterior and the Jacobian", leading=2)
        return project_variance(jac, self.variance())

    def natural(self) -> Natural[Params]:
        """Return (lambda, nothing)."""
        return Natural(dict(self._lam), {})

    def expectation(self) -> Expectation[Params]:
        """Return (tanh(lambda), nothing)."""
        return Expectation(dict(self._mean), {})

    @classmethod
    def from_natural(
        cls, natural: Natural[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with lambda = nat1."""
        return cls(natural.nat1, buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with lambda = atanh(mean1); means of exactly -1 or +1 have none."""
        return cls(tree_map(torch.atanh, expectation.mean1), buffers=buffers)

    def _groups(self) -> dict[str, Params]:
        return {"natural": self._lam, "buffers": self._buffers}

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["natural"], buffers=groups["buffers"])
