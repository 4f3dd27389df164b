"""Estimates of the gradient that the rule steps along, and what each can approximate.

`mu`          grad_mu E_q[lbar], in the natural coordinates of any exponential family
`moments`     E_q[grad lbar] and E_q[hess lbar] of a Gaussian (Bonnet, Price); they give
grad_mu1 = g - H m and grad_mu2 = H/2
`components`  E_k of lbar + log q, its gradient and its Hessian, under each component of a mixture
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors import (
    Bernoulli,
    ExponentialFamily,
    FullGaussian,
    Natural,
    concrete_sample,
    concrete_slope,
    half_logit,
)
from bayesrule.posteriors.params import flatten, unflatten
from bayesrule.rule.approximations import Approximations
from bayesrule.rule.losses import DataLoss, LinearModel

__all__ = [
    "BernoulliGradient",
    "ConjugateGradient",
    "Gradient",
    "InNaturalCoordinates",
    "LossGradient",
    "NodeGradient",
    "QuadratureGradient",
    "SpikeSlabGradient",
]

Noise = Callable[[Tensor], Tensor]
Moments = tuple[Tensor, Tensor | None]


class Gradient(ABC):
    """An estimate of the gradient.

    Attributes:
        coordinates: Which of the three methods it has.
        flags: Approximations that it can make.
    """

    coordinates: ClassVar[str]
    flags: ClassVar[frozenset[str]] = frozenset()

    def grad_mu(
        self, q: ExponentialFamily, how: Approximations, batch: Tensor | None
    ) -> Natural[Any]:
        """Return grad_mu E_q[lbar]."""
        raise Unsupported(f"{type(self).__name__} does not estimate grad_mu")

    def moments(
        self, m: Tensor, S: Tensor, how: Approximations, batch: Tensor | None, *, curvature: bool
    ) -> Moments:
        """Return E_q[grad lbar] (P,) and E_q[hess lbar], in the form of S, for q = N(m, S^-1)."""
        raise Unsupported(f"{type(self).__name__} does not estimate moments")

    def components(
        self, logits: Tensor, means: Tensor, precisions: Tensor, how: Approximations
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return E_k[d] (K,), E_k[grad d] (K, P), E_k[hess d] (K, P, P), d = lbar + log q."""
        raise Unsupported(f"{type(self).__name__} does not estimate under components")


# ------------------------------------------------------------------------ Gaussians


class LossGradient(Gradient):
    """Moments of any loss: at the mean with `delta`, else over draws theta = m + S^-1/2 eps.

    The regulariser is always taken at the mean, which is exact for a Gaussian prior.

    Args:
        loss: lbar.
        draws: Number of draws.
        noise: Standard normal draws, `noise(like) -> Tensor`, called once a draw.
    """

    coordinates = "moments"
    flags = frozenset({"delta", "minibatch", "hess"})

    def __init__(self, loss: DataLoss, draws: int = 1, noise: Noise = torch.randn_like) -> None:
        self.loss, self.draws, self.noise = loss, draws, noise

    def moments(
        self, m: Tensor, S: Tensor, how: Approximations, batch: Tensor | None, *, curvature: bool
    ) -> Moments:
        """See `Gradient`; `how.hess` says which curvature."""
        points = [m] if how.delta else [self._draw(m, S) for _ in range(self.draws)]
        prior = self.loss.grad_regulariser(m)
        grads = [self.loss.data_grad(theta, batch) + prior for theta in points]
        g = torch.stack(grads).mean(0)
        if not curvature:
            return g, None
        pairs = zip(points, grads, strict=True)
        full = S.ndim == 2
        H = torch.stack([self._curvature(theta, own, how, batch, full) for theta, own in pairs])
        if how.hess == "sqgrad":  # the square of the whole estimate, regulariser included
            return g, H.mean(0)
        prior = self.loss.hess_regulariser(m)
        return g, H.mean(0) + (prior if full else prior.diagonal())

    def _draw(self, m: Tensor, S: Tensor) -> Tensor:
        eps = self.noise(m)
        if S.ndim == 1:
            if not bool((S > 0).all()):
                raise ImproperDistribution(
                    "a draw needs a positive precision: start from a proper q, or use delta"
                )
            return m + eps / S.sqrt()
        L = torch.linalg.cholesky(S)
        return m + torch.linalg.solve_triangular(L.mT, eps.unsqueeze(-1), upper=True).squeeze(-1)

    def _curvature(
        self, theta: Tensor, g: Tensor, how: Approximations, batch: Tensor | None, full: bool
    ) -> Tensor:
        if how.hess == "sqgrad":
            return torch.outer(g, g) if full else g.square()
        if how.hess == "gn":  # the squares of single items' gradients
            own, factor = self.loss.item_grads(theta, batch)
            return factor * (own.mT @ own if full else own.square().sum(0))
        H = self.loss.data_hess(theta, batch)
        return H if full else H.diagonal()


class QuadratureGradient(Gradient):
    """Exact moments of a `LinearModel`, by one-dimensional Gauss-Hermite integrals."""

    coordinates = "moments"
    flags = frozenset({"delta", "minibatch"})

    def __init__(self, model: LinearModel) -> None:
        self.model = model

    def moments(
        self, m: Tensor, S: Tensor, how: Approximations, batch: Tensor | None, *, curvature: bool
    ) -> Moments:
        """See `Gradient`."""
        if how.delta:
            cov = m.new_zeros(len(m), len(m))
        else:
            cov = torch.diag(1.0 / S) if S.ndim == 1 else torch.linalg.inv(S)
        g, H = self.model.expected(m, cov, batch)
        return g, H if S.ndim == 2 else H.diagonal()


class InNaturalCoordinates(Gradient):
    """The moments of a full Gaussian as grad_mu: (g - H m, H/2)."""

    coordinates = "mu"

    def __init__(self, gradient: Gradient) -> None:
        self.gradient = gradient
        self.flags = gradient.flags  # type: ignore[misc]

    def grad_mu(
        self, q: ExponentialFamily, how: Approximations, batch: Tensor | None
    ) -> Natural[Any]:
        """See `Gradient`."""
        assert isinstance(q, FullGaussian)
        m = flatten(q.mean)
        g, H = self.gradient.moments(m, q.precision, how, batch, curvature=True)
        assert H is not None
        return Natural(unflatten(g - H @ m, q.mean), 0.5 * H)


class SpikeSlabGradient(Gradient):
    """The slab's mean under dropout's posterior, one two-component mixture for each unit j.

        q(theta_j) = pi N(m_j, S^-1 I) + (1 - pi) N(0, s_0^-1 I),    theta_j: all weights of unit j

    A draw has an indicator z_j ~ Bernoulli(pi) for each unit and item, and with the responsibility
    r_j(theta) of the slab, E_slab[f] = E_q[(r_j / pi) f]. What is returned is E_q[r_j grad (lbar +
    log q)]; the step size takes the factor 1/pi. Approximations:

    * `delta`: theta_j = z_j m_j, the components' means, in place of a draw from them;
    * `resp`: r_j = z_j; then log q has no part, since its gradient vanishes in the slab's mean.

    Args:
        loss: lbar of the network.
        unit: The unit of each weight, (P,); -1 for weights that belong to none.
        masks: `masks(n_items) -> (n_items, units)`, the indicators, zeros and ones.
        keep: pi; read without `resp`.
        spike_prec: s_0; the slab's precision S is that of the start.
        noise: Standard normal draws; read without `delta`.
    """

    coordinates = "moments"
    flags = frozenset({"delta", "minibatch", "resp"})

    def __init__(
        self,
        loss: DataLoss,
        unit: Tensor,
        masks: Callable[[int], Tensor],
        keep: float = 0.5,
        spike_prec: float = 1.0,
        noise: Noise = torch.randn_like,
    ) -> None:
        self.loss, self.unit, self.masks = loss, unit, masks
        self.keep, self.spike_prec, self.noise = keep, spike_prec, noise

    def moments(
        self, m: Tensor, S: Tensor, how: Approximations, batch: Tensor | None, *, curvature: bool
    ) -> Moments:
        """See `Gradient`; S is the slab's precision, (P,)."""
        z = self.masks(self.loss.n_data if batch is None else len(batch)).to(m.dtype)
        kept = self._by_weight(z)
        theta = kept * m
        if not how.delta:
            sd = torch.where(kept > 0, S, self.spike_prec).rsqrt()
            theta = theta + sd * self.noise(theta)
        grads, factor = self.loss.item_grads(theta, batch)
        if how.resp:
            return factor * (kept * grads).sum(0) + self._decay(m), None
        r = self._by_weight(self._responsibility(theta, m, S))
        log_q = -(r * S * (theta - m) + (1 - r) * self.spike_prec * theta)
        return factor * (r * grads).sum(0) + (r * log_q).mean(0) + self._decay(m), None

    def _decay(self, m: Tensor) -> Tensor:
        return self.loss.grad_regulariser(m)

    def _by_weight(self, units: Tensor) -> Tensor:
        """Return a value for each weight (n, P) from one for each unit; 1 for weights of none."""
        return torch.where(self.unit >= 0, units[:, self.unit.clamp_min(0)], 1.0)

    def _responsibility(self, theta: Tensor, m: Tensor, S: Tensor) -> Tensor:
        """Return r_j(theta), (n, units)."""
        slab = 0.5 * (S.log() - S * (theta - m).square())
        spike = 0.5 * (math.log(self.spike_prec) - self.spike_prec * theta.square())
        n_units = int(self.unit.max()) + 1
        odds = theta.new_zeros(len(theta), n_units + 1)  # the last column: weights of no unit
        odds.index_add_(1, self.unit % (n_units + 1), slab - spike)
        return torch.sigmoid(odds[:, :n_units] + math.log(self.keep / (1 - self.keep)))


# ------------------------------------------------------------------ other families


class BernoulliGradient(Gradient):
    """grad_mu E_q[lbar] over binary weights, with lbar a function that also takes other vectors.

    | delta | temp | estimate of grad_mu E_q[lbar] |
    |---|---|---|
    | off | none | exact, by the sum over all 2^P vectors (P <= 16) |
    | on  | none | grad lbar(mu), mu = tanh(lambda) |
    | on  | tau  | grad lbar(tanh(lambda / tau)); tau = 0: grad lbar(sign(lambda)) |
    | off | tau  | s grad lbar(w), w = tanh((lambda + d) / tau), s = dw/dmu, d = logit(u) / 2 |

    Args:
        loss: lbar.
        draws: Number of relaxed draws.
        noise: Uniform draws in (0, 1), `noise(like) -> Tensor`, called once a draw.
    """

    coordinates = "mu"
    flags = frozenset({"delta", "minibatch", "temp"})

    def __init__(self, loss: DataLoss, draws: int = 1, noise: Noise = torch.rand_like) -> None:
        self.loss, self.draws, self.noise = loss, draws, noise

    def grad_mu(
        self, q: ExponentialFamily, how: Approximations, batch: Tensor | None
    ) -> Natural[Any]:
        """See `Gradient`.

        Raises:
            Unsupported: The sum over all vectors is too long.
        """
        assert isinstance(q, Bernoulli)
        lam = flatten(q.lam)
        tau = how.temp
        if how.delta:
            if tau is None:
                w = torch.tanh(lam)
            else:
                w = torch.where(lam >= 0, 1.0, -1.0).to(lam) if tau == 0 else torch.tanh(lam / tau)
            g = self.loss.grad(w, batch)
        elif tau is None:
            g = self._exact(torch.tanh(lam), batch)
        else:
            g = torch.stack([self._relaxed(lam, tau, batch) for _ in range(self.draws)]).mean(0)
        return Natural(unflatten(g, q.mean), {})

    def _relaxed(self, lam: Tensor, tau: float, batch: Tensor | None) -> Tensor:
        w = concrete_sample(lam, half_logit(self.noise(lam)), tau)
        return concrete_slope(w, lam, tau) * self.loss.grad(w, batch)

    def _exact(self, mu: Tensor, batch: Tensor | None) -> Tensor:
        """Return d/dmu_j E = (E[lbar | theta_j = 1] - E[lbar | theta_j = -1]) / 2."""
        P = len(mu)
        if P > 16:
            raise Unsupported(
                f"the exact gradient sums over 2^{P} binary vectors; use delta or temp"
            )
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=mu.dtype)] * P).reshape(
            -1, P
        )
        values = torch.stack([self.loss.value(theta, batch) for theta in signs])
        probs = 0.5 * (1.0 + signs * mu)
        others = probs.prod(-1, keepdim=True) / probs
        return (values.unsqueeze(-1) * others * 0.5 * signs).sum(0)


class ConjugateGradient(Gradient):
    """A conjugate model: lbar is linear in T, and grad_mu E_q[lbar] = -(lambda_0 + sum_i lambda_i).

    Args:
        prior: lambda_0.
        sites: lambda_i, one for each item.
    """

    coordinates = "mu"
    flags = frozenset({"minibatch"})

    def __init__(self, prior: Natural[Any], sites: list[Natural[Any]]) -> None:
        self.prior, self.sites = prior, sites

    def grad_mu(
        self, q: ExponentialFamily, how: Approximations, batch: Tensor | None
    ) -> Natural[Any]:
        """See `Gradient`."""
        chosen = self.sites if batch is None else [self.sites[int(i)] for i in batch]
        total = chosen[0]
        for site in chosen[1:]:
            total = total + site
        return -(self.prior + (len(self.sites) / len(chosen)) * total)


class NodeGradient(Gradient):
    """One node of a mean field: grad_mu E_q[lbar] is minus the sum of the messages to it.

    A message is the natural parameter of a factor as a function of this node, its neighbours'
    statistics replaced by their expectations (Winn and Bishop 2005).

    Args:
        messages: Their sum.
    """

    coordinates = "mu"

    def __init__(self, messages: Natural[Any]) -> None:
        self.messages = messages

    def grad_mu(
        self, q: ExponentialFamily, how: Approximations, batch: Tensor | None
    ) -> Natural[Any]:
        """See `Gradient`."""
        return -self.messages
