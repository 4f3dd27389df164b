"""Sparse variational Gaussian processes in dual form: the algebra of q(u), as pure functions.

Inducing values u = f(Z) with prior p(u) = N(0, K), K = k(Z, Z) + jitter I = L L^T, are written as
u = L v with p(v) = N(0, I). Data reach u only through a_n^T u, a_n = K^-1 k_n, and

    a_n^T u = phi_n^T v,    phi_n = L^-1 k_n,    f_n | v ~ N( phi_n^T v,  k_nn - |phi_n|^2 )

so that one basis serves every way of storing q. With sites t_n(u) = exp(lam1_n a_n^T u -
lam2_n (a_n^T u)^2 / 2) (Adam et al. 2021, dual parameterisation) the posterior in that basis is

    q(v)  prop.  N(v | 0, I) exp( l1^T v - v^T L2 v / 2 ),   l1 = sum_n lam1_n phi_n,
                                                            L2 = sum_n lam2_n phi_n phi_n^T
    B = I + L2 = C C^T,     mean = B^-1 l1,     Sigma = B^-1

    mu_n = phi_n^T mean,    var_n = k_nn - |phi_n|^2 + |C^-1 phi_n|^2
    KL(q || p) = 1/2 ( tr B^-1 + |mean|^2 - M + logdet B )

B has no eigenvalue below one, so no inverse of an ill-conditioned matrix is ever taken. The
natural-gradient step of size rho on the evidence bound, with g1, g2 the derivatives of the expected
log-likelihood by mu_n and var_n, is a convex combination of sites:

    lam1_n <- (1 - rho) lam1_n + rho (g1_n - 2 g2_n mu_n),   lam2_n <- (1 - rho) lam2_n - 2 rho g2_n

and the same for their projections l1, L2 (mini-batches: the new part times N / |batch|). How q
moves with the kernel while "the sites are fixed" depends on which tensors are frozen (`STORAGES`):

    projected     K^-1 K_uf lam1,  K^-1 K_uf diag(lam2) K_fu K^-1   = L^-T l1,  L^-T L2 L^-1
    unprojected   K_uf lam1,       K_uf diag(lam2) K_fu             = L l1,     L L2 L^T
    whitened      l1, L2                    q-SVGP, whitened: the moments of v stay
    moments       L mean, L Sigma L^T       q-SVGP: the moments of u stay

The per-datum storage freezes lam1_n, lam2_n themselves and projects again with the new features.
P independent latent processes share Z and the kernel; float64 is expected throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution

__all__ = [
    "STORAGES",
    "Frozen",
    "InducingGaussian",
    "Sites",
    "cholesky",
    "features",
    "freeze",
    "from_moments",
    "from_sites",
    "project",
    "residual_variance",
    "site_parameters",
]

STORAGES = ("projected", "unprojected", "whitened", "moments")


@dataclass(frozen=True)
class Sites:
    """Natural parameters of the product of all sites, in some basis of the inducing values.

    Attributes:
        lam1: Linear part, (P, M).
        lam2: Precision part, symmetric positive semi-definite, (P, M, M).
    """

    lam1: Tensor
    lam2: Tensor

    @classmethod
    def none(cls, n_latents: int, n_inducing: int, like: Tensor) -> Sites:
        """Return the sites of no data: q is the prior."""
        return cls(
            like.new_zeros(n_latents, n_inducing), like.new_zeros(n_latents, n_inducing, n_inducing)
        )

    def step(self, target: Sites, lr: float) -> Sites:
        """Return (1 - lr) self + lr target: one natural-gradient step of size lr."""
        return Sites(self.lam1.lerp(target.lam1, lr), self.lam2.lerp(target.lam2, lr))


@dataclass(frozen=True)
class InducingGaussian:
    """q(v) = N(mean, half^T half) for each latent process, in the whitened basis u = L v.

    Attributes:
        mean: (P, M).
        half: A root of the covariance, (P, M, M).
        logdet: logdet of the covariance, (P,).
    """

    mean: Tensor
    half: Tensor
    logdet: Tensor

    def marginals(self, phi_MN: Tensor, rest_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(f_n), each (P, N).

        Args:
            phi_MN: Features, see `features`.
            rest_N: Prior variance that the inducing values do not explain, `residual_variance`.
        """
        return self.mean @ phi_MN, rest_N + (self.half @ phi_MN).square().sum(-2)

    def kl(self) -> Tensor:
        """Return KL(q(u) || p(u)), summed over latents, as a 0-d tensor."""
        M = self.mean.shape[-1]
        trace = self.half.square().sum((-2, -1))
        return 0.5 * (trace + self.mean.square().sum(-1) - M - self.logdet).sum()


def features(chol_MM: Tensor, cross_MN: Tensor) -> Tensor:
    """Return phi = L^-1 k(Z, X), (M, N), from L = chol K and k(Z, X)."""
    return torch.linalg.solve_triangular(chol_MM, cross_MN, upper=False)


def residual_variance(prior_var_N: Tensor, phi_MN: Tensor) -> Tensor:
    """Return k_nn - |phi_n|^2, at least 0 (rounding), (N,)."""
    return (prior_var_N - phi_MN.square().sum(0)).clamp_min(0.0)


def site_parameters(
    grad_mean: Tensor, grad_var: Tensor, mean: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return the sites that the current marginals ask for, lam1 = g1 - 2 g2 mu, lam2 = -2 g2.

    Args:
        grad_mean: g1, derivative of the expected log-likelihood by the marginal mean, (P, N).
        grad_var: g2, derivative by the marginal *variance*, (P, N).
        mean: mu, without any mean function of the prior, (P, N).
        clip: Largest g2 is -clip, which keeps lam2 positive where a likelihood is not log-concave.
    """
    g2 = grad_var.clamp_max(-clip)
    return grad_mean - 2.0 * g2 * mean, -2.0 * g2


def project(phi_MN: Tensor, lam1_PN: Tensor, lam2_PN: Tensor, scale: float = 1.0) -> Sites:
    """Return l1 = sum_n lam1_n phi_n and L2 = sum_n lam2_n phi_n phi_n^T, times `scale`.

    Args:
        phi_MN: Features of a batch.
        lam1_PN: Linear site parameters.
        lam2_PN: Site precisions.
        scale: N / |batch|.
    """
    weighted_PMN = phi_MN * (scale * lam2_PN).unsqueeze(-2)
    return Sites((scale * lam1_PN) @ phi_MN.mT, weighted_PMN @ phi_MN.mT)


def cholesky(matrix: Tensor, what: str) -> Tensor:
    """Return the lower Cholesky factor of symmetric positive definite matrices.

    Raises:
        ImproperDistribution: If there is none; `what` says in words what the matrix is.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()) or not bool(torch.isfinite(factor.detach()).all()):
        finite = bool(torch.isfinite(matrix.detach()).all())
        reason = "is not positive definite" if finite else "has entries that are not finite"
        raise ImproperDistribution(f"{what} {reason}")
    return factor


def from_sites(sites: Sites) -> InducingGaussian:
    """Return q(v) of whitened sites, through one Cholesky factor C of B = I + L2.

    Raises:
        ImproperDistribution: If the sites are not finite, or not positive semi-definite.
    """
    eye = torch.eye(sites.lam2.shape[-1], dtype=sites.lam2.dtype, device=sites.lam2.device)
    C = cholesky(sites.lam2 + eye, "the precision I + L2 of the whitened inducing values")
    inverse = torch.linalg.solve_triangular(C, eye.expand_as(C), upper=False)
    mean = (inverse.mT @ (inverse @ sites.lam1.unsqueeze(-1))).squeeze(-1)
    return InducingGaussian(mean, inverse, -2.0 * _log_diagonal(C))


def from_moments(mean_PM: Tensor, root_PMM: Tensor, chol_MM: Tensor) -> InducingGaussian:
    """Return q(v) of moments of u: mean m and covariance R R^T with R lower triangular.

    Args:
        mean_PM: m.
        root_PMM: R; its diagonal may have any sign but no zero.
        chol_MM: L.
    """
    mean = torch.linalg.solve_triangular(chol_MM, mean_PM.mT, upper=False).mT
    root = torch.linalg.solve_triangular(chol_MM, root_PMM, upper=False)
    logdet = 2.0 * (_log_diagonal(root_PMM) - _log_diagonal(chol_MM))
    return InducingGaussian(mean, root.mT, logdet)


@dataclass(frozen=True)
class Frozen:
    """What stays when the kernel moves: q(u) as a function of L = chol K.

    Attributes:
        storage: One of `STORAGES`.
        first: (P, M); linear site parameters, or a mean.
        second: (P, M, M); site precisions, or (moments) a lower triangular root of the covariance.
    """

    storage: str
    first: Tensor
    second: Tensor

    def sites(self, chol_MM: Tensor) -> Sites:
        """Return the whitened sites of q under a kernel with factor L.

        For `moments` these are B - I and B mean of the kept moments; L2 need not be positive then.
        """
        L = chol_MM
        if self.storage == "projected":
            return Sites(self.first @ L, L.mT @ self.second @ L)
        if self.storage == "unprojected":
            return Sites(_solve_vector(L, self.first), _solve_both(L, self.second))
        if self.storage == "whitened":
            return Sites(self.first, self.second)
        q = self.posterior(L)
        eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
        inverse = torch.linalg.solve_triangular(q.half, eye.expand_as(q.half), upper=True)
        B = inverse @ inverse.mT
        return Sites((B @ q.mean.unsqueeze(-1)).squeeze(-1), B - eye)

    def posterior(self, chol_MM: Tensor) -> InducingGaussian:
        """Return q under a kernel with factor L; gradients by L go through it."""
        if self.storage == "moments":
            return from_moments(self.first, self.second, chol_MM)
        return from_sites(self.sites(chol_MM))


def freeze(sites: Sites, chol_MM: Tensor, storage: str) -> Frozen:
    """Return whitened sites in the form of `storage`; `Frozen.sites` is the inverse.

    Args:
        sites: Whitened sites at the kernel with factor L.
        chol_MM: L.
        storage: One of `STORAGES`.
    """
    L = chol_MM
    if storage == "projected":
        up = L.mT
        first = torch.linalg.solve_triangular(up, sites.lam1.mT, upper=True).mT
        left = torch.linalg.solve_triangular(up, sites.lam2, upper=True)
        second = torch.linalg.solve_triangular(up, left.mT, upper=True)
        return Frozen(storage, first, 0.5 * (second + second.mT))
    if storage == "unprojected":
        return Frozen(storage, sites.lam1 @ L.mT, L @ sites.lam2 @ L.mT)
    if storage == "whitened":
        return Frozen(storage, sites.lam1, sites.lam2)
    q = from_sites(sites)
    # S = (L half^T)(L half^T)^T; its lower triangular root by QR, which needs no Cholesky of S
    root = torch.linalg.qr(q.half @ L.mT)[1].mT
    return Frozen("moments", q.mean @ L.mT, root)


def _log_diagonal(triangular: Tensor) -> Tensor:
    """Return the log of the absolute determinant of triangular matrices."""
    return triangular.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def _solve_vector(chol_MM: Tensor, first_PM: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(chol_MM, first_PM.mT, upper=False).mT


def _solve_both(chol_MM: Tensor, second_PMM: Tensor) -> Tensor:
    left = torch.linalg.solve_triangular(chol_MM, second_PMM, upper=False)
    both = torch.linalg.solve_triangular(chol_MM, left.mT, upper=False)
    return 0.5 * (both + both.mT)
