"""The algebra of sparse GPs in dual form against dense formulas, and the numbers of the reference.

Everything on the other side is written out here: kernels, quadrature, N x N matrices, moments.
"""

import math

import numpy as np
import pytest
import torch

from bayesrule.errors import ImproperDistribution
from bayesrule.posteriors.inducing import (
    STORAGES,
    Sites,
    cholesky,
    features,
    freeze,
    from_moments,
    from_sites,
    project,
    residual_variance,
    site_parameters,
)

NODES, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite.hermgauss(20))
X = torch.linspace(-1.0, 1.0, 40, dtype=torch.float64)
Z = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64)
Y = torch.sign(torch.sin(6 * X) + 0.3 * torch.cos(17 * X))
ALL = torch.arange(40)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def matern52(a, b, ell, var):
    r = math.sqrt(5.0) * (a[:, None] - b[None]).abs() / ell
    return var * (1.0 + r + r**2 / 3.0) * torch.exp(-r)


def logistic(mean, var, rows=ALL):
    """E log sigmoid(y f), the likelihood of the reference problem."""
    f = mean[..., None] + (2.0 * var[..., None]).sqrt() * NODES
    values = torch.nn.functional.logsigmoid(Y[rows, None] * f)
    return (values * WEIGHTS).sum(-1) / math.sqrt(math.pi)


def gaussian(noise):
    def expected(mean, var, rows=ALL):
        gap = (Y[rows] - mean).square() + var
        return -0.5 * (math.log(2.0 * math.pi * noise) + gap / noise)

    return expected


def geometry(ell=0.5, var=0.8, inducing=Z, jitter=1e-8):
    K = matern52(inducing, inducing, ell, var)
    L = cholesky(K + jitter * eye(len(inducing)), "K")
    phi = features(L, matern52(inducing, X, ell, var))
    return L, phi, residual_variance(torch.full_like(X, var), phi)


def bound(q, phi, rest, expected):
    return (expected(*q.marginals(phi, rest)).sum() - q.kl()).item()


def new_sites(sites, phi, rest, expected, rows=ALL):
    """The per-datum sites that the current q asks for."""
    mean, var = from_sites(sites).marginals(phi[:, rows], rest[rows])
    mean.requires_grad_(), var.requires_grad_()
    g1, g2 = torch.autograd.grad(expected(mean, var, rows).sum(), (mean, var))
    return site_parameters(g1, g2, mean.detach(), 1e-8)


def learn(n_steps, expected=logistic, lr=0.7, **where):
    """Run the dual update; return per-datum and projected sites."""
    _, phi, rest = geometry(**where)
    M = len(where.get("inducing", Z))
    sites = Sites.none(1, M, phi)
    lam1 = lam2 = torch.zeros(1, 40, dtype=torch.float64)
    for _ in range(n_steps):
        new1, new2 = new_sites(sites, phi, rest, expected)
        lam1, lam2 = lam1.lerp(new1, lr), lam2.lerp(new2, lr)
        sites = sites.step(project(phi, new1, new2), lr)
    return sites, lam1, lam2


# ------------------------------------------------------------ the reference problem


@pytest.mark.parametrize(
    ("n_steps", "value"), [(1, -24.932521), (3, -24.639437), (300, -24.637610)]
)
def test_bound_of_the_reference_problem(n_steps, value):
    sites, _, _ = learn(n_steps)
    _, phi, rest = geometry()
    assert bound(from_sites(sites), phi, rest, logistic) == pytest.approx(value, abs=6e-7)


TABLE = [  # ell, var: moments, whitened, projected, unprojected, per datum, optimal again
    (0.5, 0.2, -36.31536, -27.51192, -26.74554, -29.19423, -26.74554, -26.74414),
    (0.5, 1.6, -24.11963, -23.13436, -22.85554, -24.19524, -22.85554, -22.84401),
    (0.5, 3.2, -24.97202, -21.97080, -20.85049, -27.00670, -20.85049, -20.72271),
    (0.25, 0.8, -24.59733, -24.23719, -22.52559, -23.78048, -22.50692, -22.50054),
    (0.7, 0.8, -29.08462, -26.69030, -26.24043, -27.06936, -26.23983, -26.23925),
    (1.0, 0.8, -52.23656, -28.90597, -27.28162, -29.89191, -27.28096, -27.27973),
]


@pytest.fixture(scope="module")
def converged():
    return learn(300)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"ell{row[0]}-var{row[1]}")
def test_bounds_when_the_kernel_moves(converged, row):
    """What an M-step sees: each storage's q under another kernel, to all printed digits."""
    sites, lam1, lam2 = converged
    L, _, _ = geometry()
    ell, var, *values = row
    L_new, phi, rest = geometry(ell, var)
    for storage, value in zip(
        ("moments", "whitened", "projected", "unprojected"), values, strict=False
    ):
        q = freeze(sites, L, storage).posterior(L_new)
        assert bound(q, phi, rest, logistic) == pytest.approx(value, abs=6e-6), storage
    per_datum = from_sites(project(phi, lam1, lam2))
    assert bound(per_datum, phi, rest, logistic) == pytest.approx(values[4], abs=6e-6)
    again, _, _ = learn(300, ell=ell, var=var)
    assert bound(from_sites(again), phi, rest, logistic) == pytest.approx(values[5], abs=6e-6)


def test_a_pure_rescaling_leaves_projected_and_per_datum_equal(converged):
    """K^-1 k_n does not depend on the variance."""
    sites, lam1, lam2 = converged
    L, _, _ = geometry(jitter=0.0)
    sites = project(geometry(jitter=0.0)[1], lam1, lam2)
    L_new, phi, _ = geometry(var=3.2, jitter=0.0)
    projected = freeze(sites, L, "projected").sites(L_new)
    assert torch.allclose(projected.lam2, project(phi, lam1, lam2).lam2, rtol=1e-9)


# -------------------------------------------------------------------- storages


@pytest.mark.parametrize("storage", STORAGES)
def test_a_storage_gives_back_what_it_was_given(converged, storage):
    sites, _, _ = converged
    L, phi, rest = geometry()
    frozen = freeze(sites, L, storage)
    back, q = frozen.sites(L), from_sites(sites)
    assert torch.allclose(back.lam1, sites.lam1, atol=1e-8)
    assert torch.allclose(back.lam2, sites.lam2, atol=1e-8)
    for mine, theirs in zip(
        frozen.posterior(L).marginals(phi, rest), q.marginals(phi, rest), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-10)
    assert frozen.posterior(L).kl().item() == pytest.approx(q.kl().item(), abs=1e-9)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_frozen_stays_under_another_kernel(converged, storage):
    """Each storage against its definition, with matrices written out."""
    sites, _, _ = converged
    L, _, _ = geometry()
    L_new, _, _ = geometry(0.3, 1.4)
    m, S = dense(from_sites(sites), L)
    m_new, S_new = dense(freeze(sites, L, storage).posterior(L_new), L_new)
    K, K_new = L @ L.T, L_new @ L_new.T

    def site_parts(m, S, K):
        return torch.linalg.solve(S, m), torch.linalg.inv(S) - torch.linalg.inv(K)

    if storage == "moments":
        pairs = [(m, m_new), (S, S_new)]
    elif storage == "whitened":
        A, B = torch.linalg.inv(L), torch.linalg.inv(L_new)
        pairs = [(A @ m, B @ m_new), (A @ S @ A.T, B @ S_new @ B.T)]
    else:
        (a, A), (b, B) = site_parts(m, S, K), site_parts(m_new, S_new, K_new)
        if storage == "unprojected":
            a, A, b, B = K @ a, K @ A @ K, K_new @ b, K_new @ B @ K_new
        pairs = [(a, b), (A, B)]
    for before, after in pairs:
        scale = before.abs().max()
        assert (before - after).abs().max() < 1e-7 * scale


def dense(q, L):
    """Moments of u."""
    return L @ q.mean[0], L @ q.half[0].T @ q.half[0] @ L.T


def test_moments_and_sites_describe_the_same_gaussian(converged):
    sites, _, _ = converged
    L, phi, rest = geometry()
    q = from_sites(sites)
    m, S = dense(q, L)
    other = from_moments(m[None], torch.linalg.cholesky(S)[None], L)
    assert other.kl().item() == pytest.approx(q.kl().item(), abs=1e-8)
    K = L @ L.T
    kl = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(m, S),
        torch.distributions.MultivariateNormal(torch.zeros_like(m), K),
    )
    assert q.kl().item() == pytest.approx(kl.item(), abs=1e-7)
    A = torch.linalg.solve(K, matern52(Z, X, 0.5, 0.8))
    mean, var = q.marginals(phi, rest)
    full = 0.8 - (A * matern52(Z, X, 0.5, 0.8)).sum(0) + (A * (S @ A)).sum(0)
    assert torch.allclose(mean[0], A.T @ m, atol=1e-8)
    assert torch.allclose(var[0], full, atol=1e-8)


# -------------------------------------------------------- the update, by another road


def natural_gradient_in_moments(n_steps, lr):
    """Moments of u by lambda <- lambda + lr dELBO/d(E u, E u u^T), autograd through the moments."""
    K = matern52(Z, Z, 0.5, 0.8) + 1e-8 * eye(6)
    A = torch.linalg.solve(K, matern52(Z, X, 0.5, 0.8))
    rest = 0.8 - (A * matern52(Z, X, 0.5, 0.8)).sum(0)
    nat1, nat2 = torch.zeros(6, dtype=torch.float64), -0.5 * torch.linalg.inv(K)
    for _ in range(n_steps):
        S = torch.linalg.inv(-2.0 * nat2)
        m = S @ nat1
        mean1 = m.clone().requires_grad_()
        mean2 = (S + torch.outer(m, m)).requires_grad_()
        cov = mean2 - torch.outer(mean1, mean1)
        elbo = logistic(A.T @ mean1, rest + (A * (cov @ A)).sum(0)).sum()
        solved = torch.linalg.solve(K, cov + torch.outer(mean1, mean1))
        elbo = elbo - 0.5 * (torch.trace(solved) + torch.logdet(K) - torch.logdet(cov))
        g1, g2 = torch.autograd.grad(elbo, (mean1, mean2))
        nat1, nat2 = nat1 + lr * g1, nat2 + lr * 0.5 * (g2 + g2.T)
    S = torch.linalg.inv(-2.0 * nat2)
    return S @ nat1, S


@pytest.mark.parametrize("n_steps", [1, 3, 50])
def test_all_storages_take_the_natural_gradient_step(n_steps):
    L, phi, _ = geometry()
    sites, lam1, lam2 = learn(n_steps)
    m, S = dense(from_sites(sites), L)
    per_datum = dense(from_sites(project(phi, lam1, lam2)), L)
    assert torch.allclose(per_datum[0], m, atol=1e-12)
    assert torch.allclose(per_datum[1], S, atol=1e-12)
    other_m, other_S = natural_gradient_in_moments(n_steps, 0.7)
    assert torch.allclose(m, other_m, atol=1e-9)  # K is inverted there, condition 1e4
    assert torch.allclose(S, other_S, atol=1e-9)
    frozen = Sites.none(1, 6, phi)  # a round trip through each storage between any two steps
    for storage in ("projected", "unprojected", "whitened", "moments"):
        frozen = Sites.none(1, 6, phi)
        for _ in range(n_steps):
            frozen = freeze(frozen, L, storage).sites(L)
            new = new_sites(frozen, *geometry()[1:], logistic)
            frozen = frozen.step(project(phi, *new), 0.7)
        assert torch.allclose(dense(from_sites(frozen), L)[0], m, atol=1e-8), storage


def test_equal_batches_average_to_the_full_update():
    _, phi, rest = geometry()
    sites, _, _ = learn(2)
    full = project(phi, *new_sites(sites, phi, rest, logistic))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    parts = [
        project(phi[:, rows], *new_sites(sites, phi, rest, logistic, rows), scale=4.0)
        for rows in order.split(10)
    ]
    assert torch.allclose(sum(p.lam1 for p in parts) / 4, full.lam1, atol=1e-12)
    assert torch.allclose(sum(p.lam2 for p in parts) / 4, full.lam2, atol=1e-12)


def test_at_the_fixed_point_the_bound_is_stationary_and_the_sites_are_their_own(converged):
    sites, lam1, lam2 = converged
    _, phi, rest = geometry()
    new1, new2 = new_sites(sites, phi, rest, logistic)
    assert torch.allclose(new1, lam1, atol=1e-8)
    assert torch.allclose(new2, lam2, atol=1e-8)
    free = Sites(sites.lam1.clone().requires_grad_(), sites.lam2.clone().requires_grad_())
    q = from_sites(free)
    elbo = logistic(*q.marginals(phi, rest)).sum() - q.kl()
    for grad in torch.autograd.grad(elbo, (free.lam1, free.lam2)):
        assert grad.abs().max() < 1e-8


# -------------------------------------------------------------- Gaussian likelihood


def titsias(inducing, noise, jitter=1e-8):
    K = matern52(inducing, inducing, 0.5, 0.8) + jitter * eye(len(inducing))
    k = matern52(inducing, X, 0.5, 0.8)
    Q = k.T @ torch.linalg.solve(K, k)
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(40, dtype=torch.float64), Q + noise * eye(40)
    )
    return (prior.log_prob(Y) - (40 * 0.8 - Q.trace()) / (2.0 * noise)).item()


@pytest.mark.parametrize("start", [0, 5])
def test_one_full_step_gives_the_collapsed_bound_and_its_posterior(start):
    """Titsias (2009): log N(y | 0, Q + s2 I) - tr(K - Q) / (2 s2)."""
    noise = 0.3
    L, phi, rest = geometry()
    sites, _, _ = learn(start, lr=0.6)  # anywhere: some steps on another likelihood
    sites = project(phi, *new_sites(sites, phi, rest, gaussian(noise)))
    q = from_sites(sites)
    assert bound(q, phi, rest, gaussian(noise)) == pytest.approx(titsias(Z, noise), rel=1e-9)
    K, k = L @ L.T, matern52(Z, X, 0.5, 0.8)
    inner = torch.linalg.solve(K + k @ k.T / noise, torch.stack([k @ Y], 1))
    m, S = dense(q, L)
    assert torch.allclose(m, K @ inner[:, 0] / noise, atol=1e-9)
    assert torch.allclose(S, K @ torch.linalg.solve(K + k @ k.T / noise, K), atol=1e-9)


def test_with_all_data_as_inducing_inputs_it_is_the_exact_process():
    noise = 0.3
    sites, _, _ = learn(1, gaussian(noise), lr=1.0, inducing=X)
    _, phi, rest = geometry(inducing=X)
    K = matern52(X, X, 0.5, 0.8)
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(40, dtype=torch.float64), K + noise * eye(40)
    )
    q = from_sites(sites)
    assert bound(q, phi, rest, gaussian(noise)) == pytest.approx(exact.log_prob(Y).item(), rel=1e-7)
    solved = torch.linalg.solve(K + noise * eye(40), K)
    mean, var = q.marginals(phi, rest)
    assert torch.allclose(mean[0], solved.T @ Y, atol=1e-7)
    assert torch.allclose(var[0], 0.8 - (K * solved).sum(0), atol=1e-7)


def test_the_per_datum_bound_is_the_collapsed_one_for_every_kernel():
    """C2 of the paper, Gaussian case: lam1 = y / s2 and lam2 = 1 / s2 know no kernel."""
    noise = 0.3
    _, lam1, lam2 = learn(1, gaussian(noise), lr=1.0)
    for ell, var in ((0.2, 0.5), (0.9, 2.0)):
        K = matern52(Z, Z, ell, var) + 1e-8 * eye(6)
        k = matern52(Z, X, ell, var)
        Q = k.T @ torch.linalg.solve(K, k)
        evidence = torch.distributions.MultivariateNormal(
            torch.zeros(40, dtype=torch.float64), Q + noise * eye(40)
        ).log_prob(Y)
        collapsed = evidence - (40 * var - Q.trace()) / (2.0 * noise)
        _, phi, rest = geometry(ell, var)
        q = from_sites(project(phi, lam1, lam2))
        assert bound(q, phi, rest, gaussian(noise)) == pytest.approx(collapsed.item(), rel=1e-9)


# ----------------------------------------------------------------------- refusals


def test_latents_do_not_mix():
    """Two latent processes at once are two alone."""
    L, phi, rest = geometry()
    one, two = learn(1)[0], learn(7)[0]
    both = Sites(torch.cat([one.lam1, two.lam1]), torch.cat([one.lam2, two.lam2]))
    for storage in STORAGES:
        mean, var = freeze(both, L, storage).posterior(L).marginals(phi, rest)
        for p, alone in enumerate((one, two)):
            m, v = freeze(alone, L, storage).posterior(L).marginals(phi, rest)
            assert torch.allclose(mean[p], m[0], atol=1e-12)
            assert torch.allclose(var[p], v[0], atol=1e-12)
    total = from_sites(one).kl() + from_sites(two).kl()
    assert from_sites(both).kl().item() == pytest.approx(total.item(), rel=1e-12)


def test_a_positive_curvature_is_clipped_not_mirrored():
    g1, g2, mean = torch.ones(1, 3), torch.tensor([[-0.5, 0.25, 0.0]]), torch.full((1, 3), 2.0)
    lam1, lam2 = site_parameters(g1, g2, mean, 1e-8)
    assert torch.allclose(lam2, torch.tensor([[1.0, 2e-8, 2e-8]]))
    assert torch.allclose(lam1, torch.tensor([[3.0, 1.0, 1.0]]))


@pytest.mark.parametrize(("value", "words"), [(-2.0, "not positive"), (math.nan, "not finite")])
def test_improper_sites_are_refused(value, words):
    lam2 = value * eye(3)[None]
    with pytest.raises(ImproperDistribution, match=words):
        from_sites(Sites(torch.zeros(1, 3, dtype=torch.float64), lam2))
