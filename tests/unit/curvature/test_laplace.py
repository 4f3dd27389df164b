"""Laplace and its evidence against exact Bayesian linear and logistic answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from bayesrule.curvature import fit_laplace, laplace, marglik, tune_prior
from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.likelihoods import Bernoulli, Categorical, Gaussian
from bayesrule.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    KroneckerGaussian,
    Predictor,
    load_posterior,
    save_posterior,
)
from bayesrule.posteriors.params import flatten

NOISE, DELTA = 0.3, 2.0


def linear_problem() -> tuple[np.ndarray, np.ndarray, nn.Linear]:
    """Twelve points on three fixed features, with the model at the ridge solution."""
    i = np.arange(12.0)
    X = np.stack([np.ones(12), i / 12, np.sin(i)], axis=1)
    y = 0.5 + 1.5 * i / 12 - 0.3 * np.sin(i) + 0.2 * np.cos(5 * i)
    model = nn.Linear(3, 1, bias=False).double()
    w = np.linalg.solve(X.T @ X / NOISE**2 + DELTA * np.eye(3), X.T @ y / NOISE**2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(w)[None])
    return X, y, model


def data(X: np.ndarray, y: np.ndarray, size: int = 5):
    x, t = torch.tensor(X), torch.tensor(y)
    return lambda: [
        {"input": x[i : i + size], "target": t[i : i + size]} for i in range(0, len(x), size)
    ]


@pytest.mark.parametrize("structure", ["full", "kron", "last_layer"])
def test_linear_gaussian_posterior_and_evidence_are_exact(structure):
    X, y, model = linear_problem()
    fit = fit_laplace(model, Gaussian(NOISE), data(X, y), structure)
    q = fit.posterior(DELTA)
    S = X.T @ X / NOISE**2 + DELTA * np.eye(3)
    np.testing.assert_allclose(q.precision_matrix().numpy(), S, rtol=1e-12)
    np.testing.assert_allclose(
        q.mean["weight"].numpy()[0], np.linalg.solve(S, X.T @ y / NOISE**2), rtol=1e-12
    )
    exact = stats.multivariate_normal(np.zeros(12), X @ X.T / DELTA + NOISE**2 * np.eye(12)).logpdf(
        y
    )
    assert exact == pytest.approx(-4.44875231002112, abs=1e-11)
    assert marglik(fit, DELTA).item() == pytest.approx(exact, abs=1e-10)


def test_diagonal_evidence_is_the_stated_approximation():
    X, y, model = linear_problem()
    fit = fit_laplace(model, Gaussian(NOISE), data(X, y), "diag")
    assert marglik(fit, DELTA).item() == pytest.approx(
        -5.04569803729867, abs=1e-11
    )  # mpmath, 40 digits
    assert isinstance(fit.posterior(DELTA), DiagonalGaussian)


def test_linear_prediction_is_the_exact_posterior_predictive():
    X, y, model = linear_problem()
    q = laplace(model, Gaussian(NOISE), data(X, y), "full", DELTA)
    mu, sigma = Predictor(model, q, Gaussian(NOISE), "lin")(torch.tensor(X[:4] + 0.5))
    S = X.T @ X / NOISE**2 + DELTA * np.eye(3)
    x = X[:4] + 0.5
    np.testing.assert_allclose(mu[0, :, 0], x @ np.linalg.solve(S, X.T @ y / NOISE**2), rtol=1e-10)
    var = NOISE**2 + np.einsum("ni,ij,nj->n", x, np.linalg.inv(S), x)
    np.testing.assert_allclose(sigma[0, :, 0].square(), var, rtol=1e-10)


def logistic_map(X: np.ndarray, y: np.ndarray, delta: float) -> np.ndarray:
    w = np.zeros(X.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-X @ w))
        H = (X * (p * (1 - p))[:, None]).T @ X + delta * np.eye(len(w))
        w = w - np.linalg.solve(H, X.T @ (p - y) + delta * w)
    return w


def test_logistic_regression_laplace_is_the_hessian_at_the_map():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3))
    y = (X[:, 0] + rng.normal(size=20) > 0).astype(np.int64)
    w = logistic_map(X, y, DELTA)
    p = 1 / (1 + np.exp(-X @ w))
    H = (X * (p * (1 - p))[:, None]).T @ X + DELTA * np.eye(3)
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(w)[None])
    fit = fit_laplace(model, Bernoulli(), data(X, y), "full")
    np.testing.assert_allclose(fit.posterior(DELTA).precision_matrix().numpy(), H, rtol=1e-10)
    log_joint = np.sum(np.log(np.where(y, p, 1 - p)))
    log_joint += stats.multivariate_normal(np.zeros(3), np.eye(3) / DELTA).logpdf(w)
    expected = log_joint + 1.5 * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(H)[1]
    assert marglik(fit, DELTA).item() == pytest.approx(expected, abs=1e-9)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def classes(n: int = 9):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return x.numpy(), (np.arange(n) % 3)


@pytest.mark.parametrize(
    ("structure", "family"),
    [("diag", DiagonalGaussian), ("kron", KroneckerGaussian), ("full", FullGaussian)],
)
def test_evidence_is_the_dense_formula(structure, family):
    model, (X, y) = network(), classes()
    fit = fit_laplace(model, Categorical(), data(X, y), structure)
    delta = {"0.weight": 0.5, "0.bias": 2.0, "2.weight": 1.0, "2.bias": 3.0}
    q = fit.posterior(delta)
    assert isinstance(q, family)
    prior = torch.cat([torch.full((q.mean[n].numel(),), d).double() for n, d in delta.items()])
    w = flatten(q.mean)
    with torch.no_grad():
        log_lik = -Categorical().nll(model(torch.tensor(X)), torch.tensor(y)).sum()
    expected = log_lik - 0.5 * (prior * w.square()).sum() + 0.5 * prior.log().sum()
    expected = expected - 0.5 * torch.logdet(q.precision_matrix())
    assert marglik(fit, delta).item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("structure", ["diag", "kron", "full", "last_layer"])
def test_evidence_gradient_and_mackay_fixed_point(structure):
    model, (X, y) = network(), classes()
    fit = fit_laplace(model, Categorical(), data(X, y), structure)
    log_delta = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    marglik(fit, log_delta.exp()).backward()
    delta = 0.4
    q = fit.posterior(float(np.exp(delta)))
    d, w = np.exp(delta), flatten(q.mean).numpy()
    trace = torch.linalg.inv(q.precision_matrix()).trace().item()
    assert log_delta.grad.item() == pytest.approx(0.5 * (len(w) - d * w @ w - d * trace), abs=1e-9)
    best, noise, value = tune_prior(fit)
    assert noise is None
    d = next(iter(best.values()))
    assert len(set(best.values())) == 1
    assert value >= max(marglik(fit, x).item() for x in np.logspace(-4, 6, 60)) - 1e-6
    if np.exp(-9.9) < d < np.exp(13.9):
        trace = torch.linalg.inv(fit.posterior(d).precision_matrix()).trace().item()
        assert d == pytest.approx((len(w) - d * trace) / (w @ w), rel=1e-3)


def test_no_prior_precision_means_that_of_largest_evidence():
    model, (X, y) = network(), classes()
    q = laplace(model, Categorical(), data(X, y), "diag", None)
    best, _, _ = tune_prior(fit_laplace(model, Categorical(), data(X, y), "diag"))
    h = laplace(model, Categorical(), data(X, y), "diag", 1.0).precision["0.bias"] - 1.0
    torch.testing.assert_close(q.precision["0.bias"], h + best["0.bias"])


def test_layerwise_prior_has_at_least_the_common_evidence():
    model, (X, y) = network(), classes()
    fit = fit_laplace(model, Categorical(), data(X, y), "kron")
    _, _, common = tune_prior(fit)
    best, _, layerwise = tune_prior(fit, layerwise=True)
    assert layerwise >= common - 1e-9
    assert len(set(best.values())) > 1


def test_noise_and_prior_of_a_linear_model_by_evidence():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 3))
    y = X @ np.array([1.0, -2.0, 0.5]) + 0.3 * rng.normal(size=200)
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(np.linalg.lstsq(X, y, rcond=None)[0])[None])
    fit = fit_laplace(model, Gaussian(1.0), data(X, y), "full")
    best, noise, _ = tune_prior(fit, noise=True)
    assert noise == pytest.approx(0.3, rel=0.1)
    assert best["weight"] == pytest.approx(3 / (1 + 4 + 0.25), rel=0.15)
    # Another noise level from the same fit equals a new fit at that level.
    again = fit_laplace(model, Gaussian(0.4), data(X, y), "full")
    assert marglik(fit, 2.0, 0.4).item() == pytest.approx(marglik(again, 2.0).item(), abs=1e-9)
    torch.testing.assert_close(
        fit.posterior(2.0, 0.4).precision_matrix(), again.posterior(2.0).precision_matrix()
    )


def test_duplicated_data_counted_once_is_the_same_fit():
    model, (X, y) = network(), classes()
    once = fit_laplace(model, Categorical(), data(X, y), "kron")
    doubled = fit_laplace(
        model, Categorical(), data(np.tile(X, (2, 1)), np.tile(y, 2)), "kron", n_data=len(X)
    )
    assert marglik(doubled, 1.3).item() == pytest.approx(marglik(once, 1.3).item(), abs=1e-9)


def test_infinite_prior_at_zero_weights_leaves_the_likelihood():
    model, (X, y) = network(), classes()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    fit = fit_laplace(model, Categorical(), data(X, y), "full")
    assert marglik(fit, 1e12).item() == pytest.approx(-9 * np.log(3), abs=1e-6)


def test_prior_mean_shifts_the_penalty():
    X, y, model = linear_problem()
    w0 = {"weight": torch.tensor([[0.3, 0.2, -0.1]], dtype=torch.float64)}
    S = X.T @ X / NOISE**2 + DELTA * np.eye(3)
    m = np.linalg.solve(S, X.T @ y / NOISE**2 + DELTA * w0["weight"].numpy()[0])
    with torch.no_grad():
        model.weight.copy_(torch.tensor(m)[None])
    fit = fit_laplace(model, Gaussian(NOISE), data(X, y), "full")
    exact = stats.multivariate_normal(
        X @ w0["weight"].numpy()[0], X @ X.T / DELTA + NOISE**2 * np.eye(12)
    ).logpdf(y)
    assert marglik(fit, DELTA, prior_mean=w0).item() == pytest.approx(exact, abs=1e-10)


def test_subsets_leave_the_rest_in_the_model(tmp_path):
    model, (X, y) = network(), classes()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    last = laplace(model, Categorical(), data(X, y), "last_layer", 1.0, keep_rest=True)
    assert last.names == ("2.weight", "2.bias")
    x = torch.tensor(X)
    at_mean = Predictor(model, last, Categorical(), "mean")(x)
    with torch.no_grad():
        torch.testing.assert_close(at_mean, model(x).log_softmax(-1))
    some = laplace(model, Categorical(), data(X, y), "diag", 1.0, names=["2.bias"])
    assert some.names == ("2.bias",)
    assert some.buffers == {}
    kron = laplace(model, Categorical(), data(X, y), "kron", 1.0, names=["2.weight"])
    assert kron.names == ("2.weight",)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    # The file of a posterior with the rest in its buffers predicts in any other network.
    save_posterior(last, tmp_path)
    other = Predictor(network(5), load_posterior(tmp_path), Categorical(), "lin")(x)
    torch.testing.assert_close(other, Predictor(model, last, Categorical(), "lin")(x))


def test_last_layer_linearised_prediction_is_exact_in_its_features():
    model, (X, y) = network(), classes()
    q = laplace(model, Categorical(), data(X, y), "last_layer", 1.0)
    predictor = Predictor(model, q, Categorical(), "lin_mc4000", seed=3)
    sampled = Predictor(model, q, Categorical(), "mc4000", seed=3)
    x = torch.tensor(X)
    assert float((predictor(x).exp() - sampled(x).exp()).abs().max()) < 0.03


def test_wrong_requests_are_refused_with_a_sentence():
    model, (X, y) = network(), classes()
    batches = data(X, y)
    with pytest.raises(Unsupported, match="not a structure"):
        laplace(model, Categorical(), batches, "block")
    with pytest.raises(Unsupported, match=r"'9\.weight'"):
        laplace(model, Categorical(), batches, "diag", names=["9.weight"])
    with pytest.raises(Unsupported, match="names"):
        laplace(model, Categorical(), batches, "last_layer", names=["2.bias"])
    with pytest.raises(Unsupported, match="no items"):
        laplace(model, Categorical(), list)
    fit = fit_laplace(model, Categorical(), batches)
    with pytest.raises(Unsupported, match=r"'0\.bias'"):
        marglik(fit, {"0.weight": 1.0})
    with pytest.raises(ImproperDistribution, match=r"'0\.weight'"):
        fit.posterior(-1.0)
    with pytest.raises(Unsupported, match="noise"):
        marglik(fit, 1.0, 0.3)
    with pytest.raises(Unsupported, match="noise"):
        tune_prior(fit, noise=True)
