"""Likelihoods against autograd, torch.distributions, scipy and sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Bernoulli, Categorical, Gaussian


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


CASES = [
    ("categorical", Categorical(), randn(6, 4), torch.tensor([0, 3, 1, 2, -100, 1])),
    ("soft", Categorical(), randn(6, 4), randn(6, 4, seed=3).softmax(-1)),
    (
        "tokens",
        Categorical(),
        randn(2, 3, 5),
        torch.tensor([[0, 4, -100], [-100, 2, 1]]),
    ),
    ("bernoulli", Bernoulli(), randn(6), torch.tensor([0, 1, 1, 0, 1, 0])),
    ("bernoulli_column", Bernoulli(), randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])),
    ("gaussian", Gaussian(0.7), randn(6, 3), randn(6, 3, seed=1)),
    ("gaussian_flat", Gaussian(0.7), randn(6), randn(6, 1, seed=1)),
]
walk = pytest.mark.parametrize(
    ("likelihood", "outputs", "targets"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)


def reference_log_prob(likelihood, outputs, targets) -> torch.Tensor:
    D = torch.distributions
    if isinstance(likelihood, Gaussian):
        per_entry = D.Normal(outputs, likelihood.noise_std).log_prob(targets.reshape(outputs.shape))
        return per_entry if outputs.ndim == 1 else per_entry.sum(-1)
    if isinstance(likelihood, Bernoulli):
        f = outputs.reshape(-1)
        return D.Bernoulli(logits=f).log_prob(targets.double())
    if targets.is_floating_point():
        return (targets * D.Categorical(logits=outputs).probs.log()).sum(-1)
    kept = targets != -100
    value = D.Categorical(logits=outputs).log_prob(targets.clamp_min(0))
    return value * kept


@walk
def test_nll_equals_torch_distributions(likelihood, outputs, targets):
    nll = likelihood.nll(outputs, targets)
    torch.testing.assert_close(nll, -reference_log_prob(likelihood, outputs, targets))


@walk
def test_loss_is_the_mean_over_items_that_count(likelihood, outputs, targets):
    total = -reference_log_prob(likelihood, outputs, targets)
    kept = total.numel()
    if not targets.is_floating_point() and isinstance(likelihood, Categorical):
        kept = int((targets != -100).sum())
    torch.testing.assert_close(likelihood.loss(outputs, targets), total.sum() / kept)
    assert float(likelihood.count(outputs, targets)) == kept


@walk
def test_residual_and_hessian_equal_autograd(likelihood, outputs, targets):
    f = outputs.clone().requires_grad_()
    (residual,) = torch.autograd.grad(likelihood.nll(f, targets).sum(), f)
    torch.testing.assert_close(likelihood.residual(outputs, targets), residual)
    dense = torch.func.hessian(lambda f: likelihood.nll(f, targets).sum())(outputs)
    n, C = outputs.numel(), outputs.shape[-1]
    flat = dense.reshape(n, n)
    size = 1 if isinstance(likelihood, Bernoulli) or outputs.ndim == 1 else C
    blocks = torch.stack([flat[i : i + size, i : i + size] for i in range(0, n, size)])
    Lambda = likelihood.hessian(outputs, targets)
    torch.testing.assert_close(Lambda.reshape(-1, size, size), blocks)
    R = likelihood.hessian_sqrt(outputs, targets)
    torch.testing.assert_close(R @ R.mT, Lambda)
    assert float(flat.abs().sum()) == pytest.approx(float(blocks.abs().sum()))


@pytest.mark.parametrize(
    ("likelihood", "outputs"), [(Categorical(), randn(5, 3)), (Bernoulli(), randn(5, 1))]
)
def test_class_probabilities(likelihood, outputs):
    log_p = likelihood.log_probs(outputs)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(5, dtype=torch.float64))
    K = log_p.shape[-1]
    for k in range(K):
        nll = likelihood.nll(outputs, torch.full((5,), k))
        torch.testing.assert_close(log_p[:, k], -nll)
    mean = likelihood.predict(outputs)
    torch.testing.assert_close(
        mean if K > 2 else mean.squeeze(-1), log_p.exp() if K > 2 else log_p[:, 1].exp()
    )


def test_half_precision_logits_are_widened():
    assert Categorical().log_probs(randn(2, 3).bfloat16()).dtype == torch.float32
    assert Bernoulli().log_probs(randn(2).half()).dtype == torch.float32


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Gaussian(0.5)])
def test_samples_follow_the_likelihood(likelihood):
    n = 4000
    row = torch.tensor([0.3]) if isinstance(likelihood, Bernoulli) else torch.tensor([0.3, -1, 1.2])
    outputs = row.double().expand(n, -1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    y = likelihood.sample(outputs, gen(1))
    assert torch.equal(y, likelihood.sample(outputs, gen(1)))
    assert torch.equal(torch.get_rng_state(), before)
    if isinstance(likelihood, Gaussian):
        z = ((y - outputs) / 0.5).numpy().ravel()
        assert stats.kstest(z, "norm").pvalue > 1e-3
    else:
        p = likelihood.log_probs(outputs)[0].exp().numpy()
        counts = np.bincount(y.numpy(), minlength=len(p))
        assert stats.chisquare(counts, n * p).pvalue > 1e-3


def test_probit_integral_is_close_to_quadrature():
    for m, v in ((0.5, 0.3), (-1.0, 2.0), (2.0, 4.0)):
        exact, _ = integrate.quad(
            lambda f, m, v: stats.norm.pdf(f, m, math.sqrt(v)) / (1 + math.exp(-f)),
            m - 20,
            m + 20,
            args=(m, v),
        )
        log_p = Bernoulli().integrate(torch.tensor([[m]]), torch.tensor([[[v]]]))
        assert math.exp(log_p[0, 1]) == pytest.approx(exact, abs=0.02)
        two = Categorical().integrate(
            torch.tensor([[0.0, m]]), torch.diag(torch.tensor([v, v])).unsqueeze(0)
        )
        assert 0.5 < math.exp(two[0].max()) < 1
    certain = Categorical().integrate(randn(3, 4), torch.zeros(3, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(certain, randn(3, 4).log_softmax(-1))


def test_wrong_shapes_are_refused_with_a_sentence():
    with pytest.raises(Unsupported, match=r"\(4, 3\).*\(4,\)"):
        Categorical().nll(randn(4, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(Unsupported, match="float64"):
        Categorical().nll(randn(4, 3), randn(4))
    with pytest.raises(Unsupported, match="Categorical"):
        Bernoulli().nll(randn(4, 2), torch.zeros(4))
    with pytest.raises(Unsupported, match="one target each"):
        Bernoulli().nll(randn(4), torch.zeros(3))
    with pytest.raises(Unsupported, match="same shape"):
        Gaussian().nll(randn(4, 2), randn(4))
    with pytest.raises(Unsupported, match="positive"):
        Gaussian(0.0)
    with pytest.raises(Unsupported, match="moments"):
        Gaussian().log_probs(randn(4))
    with pytest.raises(Unsupported, match="log_probs"):
        Categorical().moments(randn(4))
    with pytest.raises(Unsupported):
        Gaussian().integrate(randn(1, 2), randn(1, 2, 2))
