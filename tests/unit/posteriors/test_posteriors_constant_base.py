"""Families with a constant base measure: grad_mu H = -lambda, inverse maps, modes, chains."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Beta as TorchBeta
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Dirichlet as TorchDirichlet
from torch.distributions import Gamma as TorchGamma
from torch.distributions import MultivariateNormal
from torch.func import grad, jacrev

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors import (
    Beta,
    Categorical,
    DiagonalGaussian,
    Dirichlet,
    FullGaussian,
    Gamma,
    GaussMarkov,
    Natural,
    Wishart,
)
from bayesrule.posteriors.inverse import (
    dirichlet_from_mean_log,
    multidigamma,
    solve_log_minus_multidigamma,
)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------- grad_mu H = -lambda (Khan and Rue, sec. 1.3)


def gamma_of(lam):
    return TorchGamma(lam[0] + 1, -lam[1])


def gamma_mu(lam):
    a, b = lam[0] + 1, -lam[1]
    return torch.stack([torch.digamma(a) - b.log(), a / b])


def dirichlet_mu(lam):
    alpha = lam + 1
    return torch.digamma(alpha) - torch.digamma(alpha.sum())


def bernoulli_entropy(lam):
    p = torch.sigmoid(2 * lam)
    return -(p * p.log() + (1 - p) * (1 - p).log()).sum()


def categorical_entropy(lam):
    return TorchCategorical(logits=torch.cat([lam, lam.new_zeros(1)])).entropy()


def categorical_mu(lam):
    return torch.softmax(torch.cat([lam, lam.new_zeros(1)]), 0)[:-1]


def gaussian(lam):
    """lam: S m and the three entries of -S/2 that are free, for P = 2."""
    S = -2 * torch.stack([torch.stack([lam[2], 0.5 * lam[3]]), torch.stack([0.5 * lam[3], lam[4]])])
    return MultivariateNormal(torch.linalg.solve(S, lam[:2]), precision_matrix=S)


def gaussian_mu(lam):
    q = gaussian(lam)
    second = q.covariance_matrix + torch.outer(q.mean, q.mean)
    return torch.cat([q.mean, torch.stack([second[0, 0], second[0, 1], second[1, 1]])])


def wishart_entropy(lam):
    """d = 1 and lam = ((nu - 2)/2, -1/(2V)): a Gamma of shape nu/2 and rate 1/(2V)."""
    return TorchGamma(lam[0] + 1, -lam[1]).entropy()


IDENTITIES = {
    "gaussian": (lambda lam: gaussian(lam).entropy(), gaussian_mu, f64(0.3, -0.4, -1.0, 0.3, -0.7)),
    "bernoulli": (bernoulli_entropy, torch.tanh, f64(0.3, -0.2, 0.8)),
    "categorical": (categorical_entropy, categorical_mu, f64(0.5, -1.0, 0.2)),
    "gamma": (lambda lam: gamma_of(lam).entropy(), gamma_mu, f64(1.7, -0.6)),
    "dirichlet": (lambda lam: TorchDirichlet(lam + 1).entropy(), dirichlet_mu, f64(0.4, 2.0, 1.1)),
    "beta": (lambda lam: TorchBeta(*(lam + 1)).entropy(), dirichlet_mu, f64(0.7, 3.0)),
    "wishart": (wishart_entropy, gamma_mu, f64(1.2, -0.8)),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_gradient_of_the_entropy_is_minus_lambda(name):
    entropy, mu, lam = IDENTITIES[name]
    natural_gradient = torch.linalg.solve(jacrev(mu)(lam).mT, grad(entropy)(lam))
    torch.testing.assert_close(natural_gradient, -lam, rtol=0, atol=1e-12)


def test_with_the_usual_parameters_of_a_gamma_it_is_not():
    """lambda = (a, -b) leaves log h = -log x: the identity fails by its gradient, (-1, 0)."""
    entropy, mu, lam = IDENTITIES["gamma"]
    usual = lam + f64(1.0, 0.0)
    natural_gradient = torch.linalg.solve(jacrev(mu)(lam).mT, grad(entropy)(lam))
    torch.testing.assert_close(natural_gradient + usual, f64(1.0, 0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("q", "lam"),
    [
        (Gamma({"x": f64(2.7)}, {"x": f64(0.6)}), [f64(1.7), f64(-0.6)]),
        (Dirichlet({"x": f64(1.4, 3.0, 2.1)}), [f64(0.4, 2.0, 1.1)]),
        (Beta({"x": f64(1.7)}, {"x": f64(4.0)}), [f64(0.7), f64(3.0)]),
        (Categorical({"x": f64(0.5, -1.0, 0.2, 0.0)}), [f64(0.5, -1.0, 0.2)]),
        (
            Wishart({"x": f64(4.4)[0]}, {"x": f64([1.6])}),
            [f64(1.2)[0], f64([-0.8])],
        ),
    ],
)
def test_the_families_use_the_parameters_of_the_identity(q, lam):
    natural = q.natural()
    parts = [natural.nat1["x"], *natural.nat2.values()]
    for part, expected in zip(parts, lam, strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------- inverse maps


@pytest.mark.parametrize("d", [1, 2, 5])
def test_shape_from_the_gap_of_logarithms(d):
    x = 0.5 * (d - 1) + torch.logspace(-5, 5, 101, dtype=torch.float64)
    s = d * x.log() - multidigamma(x, d)
    found = solve_log_minus_multidigamma(s, d)
    # the left side cancels for large x: it has an error of about x eps there
    wide = 0.5 * (d - 1)
    torch.testing.assert_close(found - wide, x - wide, rtol=1e-9, atol=0)


def test_concentration_from_mean_logarithms():
    g = torch.Generator().manual_seed(0)
    alpha = 10 ** (4 * torch.rand(200, 5, generator=g, dtype=torch.float64) - 2)
    t = torch.digamma(alpha) - torch.digamma(alpha.sum(-1, keepdim=True))
    torch.testing.assert_close(dirichlet_from_mean_log(t), alpha, rtol=1e-8, atol=0)


def test_moments_that_no_member_has_are_refused():
    x = f64(1.0, 2.0)
    with pytest.raises(ImproperDistribution, match=r"'x'.*sum exp\(t\) < 1"):
        Dirichlet.from_expectation(_mu({"x": torch.log(f64(0.5, 0.5))}, {}))
    with pytest.raises(ImproperDistribution, match="E log x"):
        Gamma.from_expectation(_mu({"x": x.log()}, {"x": x}))
    with pytest.raises(ImproperDistribution, match="'x'"):
        Categorical.from_expectation(_mu({"x": f64(0.4, 0.6)}, {}))
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ImproperDistribution, match=r"log\|E X\|"):
        Wishart.from_expectation(_mu({"x": f64(0.0)[0]}, {"x": eye}))


def _mu(mean1, mean2):
    from bayesrule.posteriors import Expectation

    return Expectation(mean1, mean2)


# ------------------------------------------------------------------------- errors and modes


def test_constructors_explain_themselves():
    one = f64(1.0, 2.0)
    with pytest.raises(ImproperDistribution, match="shape of 'x'"):
        Gamma({"x": -one}, {"x": one})
    with pytest.raises(ImproperDistribution, match="rate of 'x'"):
        Gamma({"x": one}, {"x": 0 * one})
    with pytest.raises(ImproperDistribution, match="second concentration of 'x'"):
        Beta({"x": one}, {"x": one / 0})
    with pytest.raises(Unsupported, match=r"\(\.\.\., K\)"):
        Dirichlet({"x": f64(1.0)})
    with pytest.raises(Unsupported, match=r"\(\.\.\., d, d\)"):
        Wishart({"x": one}, {"x": one})
    with pytest.raises(ImproperDistribution, match=r"degrees of freedom of 'x'.*above 1"):
        Wishart({"x": f64(1.0)[0]}, {"x": torch.eye(2, dtype=torch.float64)})
    with pytest.raises(ImproperDistribution, match=r"V\^-1 of 'x'.*eigenvalue: -1"):
        Wishart({"x": f64(3.0)[0]}, {"x": torch.diag(f64(1.0, -1.0))})
    with pytest.raises(ImproperDistribution, match="not finite"):
        Categorical({"x": f64(0.0, math.inf)})
    with pytest.raises(Unsupported, match=r"\(0, 1\)\^P"):
        Beta({"x": one}, {"x": one}).log_prob({"x": f64(0.5, 1.5)})
    with pytest.raises(Unsupported, match="one-hot"):
        Categorical({"x": one}).log_prob({"x": f64(0.5, 0.5)})


@pytest.mark.parametrize(
    "q",
    [
        Gamma({"x": f64(0.9)}, {"x": f64(1.0)}),
        Beta({"x": f64(0.5)}, {"x": f64(2.0)}),
        Dirichlet({"x": f64(1.0, 1.0)}),
        Wishart({"x": f64(2.5)[0]}, {"x": torch.eye(2, dtype=torch.float64)}),
    ],
)
def test_a_density_without_a_largest_value_has_no_mode(q):
    with pytest.raises(Unsupported, match="has no mode"):
        q.mode  # noqa: B018


# -------------------------------------------------------------------------------- chains


def random_chain(T, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    A = 0.7 * torch.randn(d, d, generator=g, dtype=torch.float64)
    root = torch.randn(d, d, generator=g, dtype=torch.float64)
    Q = root @ root.mT + 0.3 * torch.eye(d, dtype=torch.float64)
    m0 = torch.randn(d, generator=g, dtype=torch.float64)
    b = torch.randn(d, generator=g, dtype=torch.float64)
    return GaussMarkov.from_transitions("x", T, (m0, 2 * Q), A, Q, b), (m0, 2 * Q, A, Q, b)


def test_a_chain_has_the_moments_of_its_transitions():
    q, (m, P, A, Q, b) = random_chain(6, 2)
    (means, covs) = q.marginals()["x"]
    for t in range(6):
        torch.testing.assert_close(means[t], m, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(covs[t], P, rtol=1e-10, atol=1e-10)
        m, P = A @ m + b, A @ P @ A.mT + Q
    dense = FullGaussian.from_gaussian(q)
    torch.testing.assert_close(dense.covariance, q.covariance_matrix(), rtol=1e-10, atol=1e-10)


def test_products_keep_the_block_tridiagonal_structure():
    q, _ = random_chain(7, 2)
    r, _ = random_chain(7, 2, seed=1)
    sites = DiagonalGaussian({"x": q.mean["x"] + 1}, {"x": torch.full((7, 2), 0.5).double()})
    for product in (q * r, q * sites, sites * q, q**0.5, (q * r) / r):
        assert type(product) is GaussMarkov
        S = product.precision_matrix().reshape(7, 2, 7, 2)
        for t in range(7):
            for s in range(7):
                if abs(t - s) > 1:
                    assert not bool(S[t, :, s].any())
    with pytest.raises(ImproperDistribution, match="block 0 of 7"):
        q / (q * r)


def test_sites_alone_are_improper_and_their_sum_is_not():
    q, _ = random_chain(5, 2)
    lam = q.natural()
    site = Natural(
        {"x": torch.zeros(5, 2).double()}, {k: torch.zeros_like(v) for k, v in lam.nat2.items()}
    )
    site.nat1["x"][3, 0] = 0.4
    site.nat2["x/diagonal"][3, 0, 0] = -0.5 * 2.0
    with pytest.raises(ImproperDistribution):
        GaussMarkov.from_natural(site)
    posterior = GaussMarkov.from_natural(lam + site)
    H = np.zeros((1, 10))
    H[0, 6] = 1.0
    m, P = q.mean["x"].numpy().ravel(), q.covariance_matrix().numpy()
    gain = P @ H.T / (H @ P @ H.T + 0.5)  # one observation y = 0.2 with variance 1/2
    expected = m + gain[:, 0] * (0.2 - m[6])
    np.testing.assert_allclose(posterior.mean["x"].numpy().ravel(), expected, atol=1e-10)


def test_chains_explain_themselves():
    mean = {"x": torch.zeros(3, 2).double()}
    D = {"x": torch.eye(2).double().expand(3, 2, 2)}
    with pytest.raises(Unsupported, match=r"\(3, 2, 2\) and lower ones \(2, 2, 2\)"):
        GaussMarkov(mean, D, {"x": torch.zeros(3, 2, 2).double()})
    with pytest.raises(ImproperDistribution, match="block 1 of 3"):
        GaussMarkov(mean, D, {"x": 2.0 * torch.ones(2, 2, 2).double()})


def test_a_long_chain_is_linear_in_its_length():
    """No (T d)^2 matrix is made: 10,000 states would need 3 GB."""
    T = 10_000
    eye = torch.eye(1, dtype=torch.float64)
    q = GaussMarkov.from_transitions("x", T, (f64(0.0), eye), 0.9 * eye, 0.19 * eye)
    lam = q.natural()
    lam.nat2["x/diagonal"].sub_(0.5)
    posterior = GaussMarkov.from_natural(lam)
    variance = posterior.variance()["x"][T // 2].item()
    # stationary: prior variance 1, precision of neighbours from the two Riccati fixed points
    forward = 1.0
    for _ in range(200):
        predicted = 0.81 * forward + 0.19
        forward = 1.0 / (1.0 / predicted + 1.0)
    backward = 1.0 / (1.0 / (0.81 * forward + 0.19) + 1.0)  # filter at t, reversible chain
    both = 1.0 / (2.0 / backward - 1.0 - 1.0)
    assert variance == pytest.approx(both, rel=1e-9)
