"""Ways to learn q(u) of a sparse GP: dual sites, moments by natural gradient or Adam, collapsed.

A method alternates between two states. In an E-phase the kernel is fixed and `step` moves q. In an
M-phase what the method stores is fixed and q is a function of the kernel (`posterior`), through
which the bound's gradient flows; what is stored is all that tells t-SVGP from q-SVGP, since a
natural-gradient step of either gives the same q. `freeze` and `thaw` go from one to the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor

from bayesrule.errors import ConfigError
from bayesrule.posteriors.inducing import (
    Frozen,
    InducingGaussian,
    Sites,
    freeze,
    from_moments,
    from_sites,
    project,
    site_parameters,
)
from bayesrule.tasks.gp.model import GaussianProcess

__all__ = ["SGPR", "AdamSVGP", "Batch", "DualSVGP", "NaturalSVGP", "SparseInference", "elbo"]

Features = Callable[[], Tensor]


@dataclass(frozen=True)
class Batch:
    """Items of one step, seen through the kernel.

    Attributes:
        rows: Their places in the training set, (B,).
        targets: (B,).
        phi: Features, (M, B).
        rest: Prior variance that the inducing values leave, (B,).
        scale: N / B.
        seed: Seed of the likelihood's draws, if it takes any.
    """

    rows: Tensor
    targets: Tensor
    phi: Tensor
    rest: Tensor
    scale: float
    seed: int


def elbo(gp: GaussianProcess, q: InducingGaussian, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the two terms of the bound, N/B sum_n E log p(y_n | f_n) and KL(q(u) || p(u))."""
    mean, var = q.marginals(batch.phi, batch.rest)
    expected = gp.observation.expected_log_prob(batch.targets, mean + gp.mean, var, batch.seed)
    return batch.scale * expected.sum(), q.kl()


class SparseInference(ABC):
    """A way to learn q(u).

    Attributes:
        has_e_step: Whether q is moved by steps at all.
        full_batch_only: Whether mini-batches have no meaning for it.
    """

    has_e_step: bool = True
    full_batch_only: bool = False

    def check(self, gp: GaussianProcess) -> None:
        """Refuse observation models that the method has no meaning for.

        Raises:
            ConfigError: Saying which method has.
        """
        del gp

    @abstractmethod
    def start(self, gp: GaussianProcess, chol_MM: Tensor, targets_N: Tensor) -> None:
        """Begin with q = prior.

        Args:
            gp: The model.
            chol_MM: L = chol k(Z, Z).
            targets_N: All training targets.
        """

    @abstractmethod
    def step(self, gp: GaussianProcess, chol_MM: Tensor, batch: Batch) -> None:
        """Move q by one step on a batch (E-phase)."""

    def freeze(self, chol_MM: Tensor) -> None:
        """Enter the M-phase; `chol_MM` is L before it."""
        del chol_MM

    def thaw(self, chol_MM: Tensor, features: Features) -> None:
        """Enter the E-phase; `chol_MM` is L after the M-phase, `features` those of all data."""
        del chol_MM, features

    @abstractmethod
    def posterior(
        self, gp: GaussianProcess, chol_MM: Tensor, features: Features
    ) -> InducingGaussian:
        """Return q under the kernel with factor L, differentiable by it in an M-phase."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as tensors and plain data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


class _NaturalGradient(SparseInference):
    """A natural-gradient step on whitened sites, and a storage for M-phases."""

    def __init__(self, lr: float, clip: float, storage: str) -> None:
        self.lr, self.clip, self.storage = lr, clip, storage
        self.sites: Sites | None = None
        self.frozen: Frozen | None = None
        self.datum: tuple[Tensor, Tensor] | None = None

    def start(self, gp: GaussianProcess, chol_MM: Tensor, targets_N: Tensor) -> None:
        """Begin with sites that say nothing."""
        self.sites = Sites.none(gp.n_latents, gp.n_inducing, chol_MM)
        if self.storage == "per_datum":
            nothing = chol_MM.new_zeros(gp.n_latents, len(targets_N))
            self.datum = (nothing, nothing)

    def step(self, gp: GaussianProcess, chol_MM: Tensor, batch: Batch) -> None:
        """Take lam <- (1 - rho) lam + rho (N/B) A (g1 - 2 g2 mu) and its matrix twin."""
        assert self.sites is not None
        mean, var = from_sites(self.sites).marginals(batch.phi, batch.rest)
        g1, g2 = gp.observation.gradients(batch.targets, mean + gp.mean, var, batch.seed)
        lam1, lam2 = site_parameters(g1, g2, mean, self.clip)
        self.sites = self.sites.step(project(batch.phi, lam1, lam2, batch.scale), self.lr)
        if self.datum is not None:  # sites of absent data shrink, as in the projected form
            self.datum = tuple(  # type: ignore[assignment]
                ((1.0 - self.lr) * old).index_add(1, batch.rows, self.lr * batch.scale * new)
                for old, new in zip(self.datum, (lam1, lam2), strict=True)
            )

    def freeze(self, chol_MM: Tensor) -> None:
        """Turn the whitened sites into what the storage keeps."""
        assert self.sites is not None
        if self.datum is None:
            self.frozen = freeze(self.sites, chol_MM, self.storage)
        self.sites = None

    def thaw(self, chol_MM: Tensor, features: Features) -> None:
        """Turn what was kept into whitened sites under the new kernel."""
        if self.datum is not None:
            self.sites = project(features(), *self.datum)
        else:
            assert self.frozen is not None
            self.sites = self.frozen.sites(chol_MM)
        self.frozen = None

    def posterior(
        self, gp: GaussianProcess, chol_MM: Tensor, features: Features
    ) -> InducingGaussian:
        """Return q of the sites, or of what was frozen."""
        if self.sites is not None:
            return from_sites(self.sites)
        if self.datum is not None:
            return from_sites(project(features(), *self.datum))
        assert self.frozen is not None
        return self.frozen.posterior(chol_MM)

    def state_dict(self) -> dict[str, Any]:
        """Return sites, what is frozen, and the per-datum parameters."""
        return {
            "sites": None if self.sites is None else [self.sites.lam1, self.sites.lam2],
            "frozen": None if self.frozen is None else [self.frozen.first, self.frozen.second],
            "datum": None if self.datum is None else list(self.datum),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        sites, frozen, datum = state["sites"], state["frozen"], state["datum"]
        self.sites = None if sites is None else Sites(*sites)
        self.frozen = None if frozen is None else Frozen(self.storage, *frozen)
        self.datum = None if datum is None else (datum[0], datum[1])


class DualSVGP(_NaturalGradient):
    """t-SVGP: the dual parameters of the sites stay when the kernel moves (Adam et al. 2021).

    Args:
        lr: rho, step size in (0, 1]; 1 is exact for a Gaussian likelihood.
        storage: ``projected`` (the default), ``per_datum`` or ``unprojected``.
        clip: Smallest -g2 of a site.
    """

    def __init__(self, lr: float, storage: str, clip: float) -> None:
        super().__init__(lr, clip, storage)


class NaturalSVGP(_NaturalGradient):
    """q-SVGP with natural gradients: the moments stay when the kernel moves.

    Args:
        lr: rho, as in `DualSVGP`; the E-steps of both are the same.
        whiten: Whether the moments that stay are those of v = L^-1 u.
        clip: Smallest -g2.
    """

    def __init__(self, lr: float, whiten: bool, clip: float) -> None:
        super().__init__(lr, clip, "whitened" if whiten else "moments")


class AdamSVGP(SparseInference):
    """q-SVGP by Adam on the mean m and the lower triangular R of q(u) = N(m, R R^T).

    Args:
        lr: Adam's learning rate.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._params: list[Tensor] = []
        self._adam: torch.optim.Adam | None = None

    def start(self, gp: GaussianProcess, chol_MM: Tensor, targets_N: Tensor) -> None:
        """Begin with m = 0 and R = L, q = prior."""
        mean = chol_MM.new_zeros(gp.n_latents, gp.n_inducing)
        self._hold([mean, chol_MM.expand(gp.n_latents, -1, -1)])

    def _hold(self, params: list[Tensor]) -> None:
        self._params = [p.detach().clone().requires_grad_() for p in params]
        self._adam = torch.optim.Adam(self._params, lr=self.lr)

    def step(self, gp: GaussianProcess, chol_MM: Tensor, batch: Batch) -> None:
        """Take one step of Adam on the negative bound."""
        assert self._adam is not None
        with torch.enable_grad():
            mean, root = self._params
            expected, kl = elbo(gp, from_moments(mean, root.tril(), chol_MM), batch)
            grads = torch.autograd.grad(kl - expected, self._params)
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad
        self._adam.step()

    def posterior(
        self, gp: GaussianProcess, chol_MM: Tensor, features: Features
    ) -> InducingGaussian:
        """Return q with the moments as they are."""
        mean, root = (p.detach() for p in self._params)
        return from_moments(mean, root.tril(), chol_MM)

    def state_dict(self) -> dict[str, Any]:
        """Return moments and Adam's state."""
        assert self._adam is not None
        return {"params": [p.detach() for p in self._params], "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._hold(state["params"])
        assert self._adam is not None
        self._adam.load_state_dict(state["adam"])


class SGPR(SparseInference):
    """The collapsed bound of a Gaussian likelihood: q is optimal for every kernel (Titsias 2009).

    It is the dual form with lam1_n = (y_n - mean) / s2, lam2_n = 1 / s2, so the bound at this q is
    log N(y | mean, Q + s2 I) - tr(K - Q) / (2 s2).
    """

    has_e_step = False
    full_batch_only = True

    def __init__(self) -> None:
        self._targets: Tensor | None = None

    def check(self, gp: GaussianProcess) -> None:
        """Refuse likelihoods that are not Gaussian."""
        if not isinstance(gp.observation.likelihood, gpytorch.likelihoods.GaussianLikelihood):
            raise ConfigError(
                "posterior=sgpr is the collapsed bound of a Gaussian likelihood; for another one "
                "use dual_svgp, svgp_natgrad or svgp_adam"
            )

    def start(self, gp: GaussianProcess, chol_MM: Tensor, targets_N: Tensor) -> None:
        """Keep the targets: q is a function of them and the kernel."""
        self._targets = targets_N

    def step(self, gp: GaussianProcess, chol_MM: Tensor, batch: Batch) -> None:
        """There is nothing to move."""

    def posterior(
        self, gp: GaussianProcess, chol_MM: Tensor, features: Features
    ) -> InducingGaussian:
        """Return the optimal q."""
        assert self._targets is not None
        noise = gp.observation.likelihood.noise
        lam1 = (self._targets - gp.mean) / noise
        return from_sites(project(features(), lam1, (1.0 / noise).expand_as(lam1)))

    def state_dict(self) -> dict[str, Any]:
        """There is no state but the model's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""
