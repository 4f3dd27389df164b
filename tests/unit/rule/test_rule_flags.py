"""Each approximation is switched on its own: all combinations against one reference loop."""

import itertools

import numpy as np
import pytest
import torch

from bayesrule.errors import ConfigError, ImproperDistribution
from bayesrule.posteriors import (
    Bernoulli,
    DiagonalGaussian,
    DropoutPosterior,
    FullGaussian,
    IsotropicGaussian,
    Mixture,
    PointMass,
)
from bayesrule.rule import (
    Approximations,
    BayesianLearningRule,
    BernoulliGradient,
    ConjugateGradient,
    DataLoss,
    LossGradient,
    QuadratureGradient,
    SpikeSlabGradient,
    StepSizes,
    gaussian_prior,
    problems,
)
from bayesrule.rule.rule import positive_definite_step

N_STEPS, P = 2, 4
EPS = np.random.default_rng(5).standard_normal((N_STEPS, P))
COMBINATIONS = list(
    itertools.product(
        [False, True],  # delta
        [False, True],  # minibatch
        ["exact", "gn", "sqgrad"],
        [False, True],  # sqrt
        [False, True],  # slow_scale
        ["none", "heavy_ball", "average"],
        [False, True],  # bias_correction
        [False, True],  # positive_definite
    )
)


def reference(how, steps, batches):
    """The diagonal rule with every approximation written out, in NumPy."""
    x, y = (a.numpy() for a in problems.breast_cancer(P))
    m, s = problems.start(1, P).numpy(), np.full(P, 140.0)
    u, before = np.zeros(P), None
    b = steps.scale or steps.rho
    for t in range(N_STEPS):
        w = m if how.delta else m + EPS[t] / np.sqrt(s)
        rows = batches[t].numpy() if how.minibatch else np.arange(len(x))
        X, Y, factor = x[rows], y[rows], len(x) / len(rows)
        p = 1 / (1 + np.exp(-X @ w))
        grads = (p - Y)[:, None] * X
        g = factor * grads.sum(0) + m
        h = {
            "exact": factor * ((p * (1 - p))[:, None] * X**2).sum(0) + 1,
            "gn": factor * (grads**2).sum(0) + 1,
            "sqgrad": g**2,
        }[how.hess]
        new = s + b * (h - s)
        if how.positive_definite:
            new = new + b**2 / 2 * (h - s) ** 2 / s
        d = s if how.positive_definite else new
        step = g
        if how.momentum == "average":
            u = steps.momentum * u + (1 - steps.momentum) * g
            step = u / (1 - steps.momentum ** (t + 1)) if how.bias_correction else u
        if how.bias_correction:
            d = d / (1 - (1 - b) ** (t + 1))
        moved = m - steps.rho * step / ((np.sqrt(d) if how.sqrt else d) + steps.damping)
        if how.momentum == "heavy_ball" and before is not None:
            moved = moved + steps.momentum * (m - before)
        before, m, s = m, moved, new
    return m, s


@pytest.mark.parametrize("momentum", ["none", "heavy_ball", "average"])
def test_all_combinations_of_the_diagonal_gaussian(momentum):
    batches = problems.batches(3, 569, 40, N_STEPS)
    chosen = [c for c in COMBINATIONS if c[5] == momentum]
    assert len(chosen) == 192
    for combination in chosen:
        how = Approximations(
            **dict(
                zip(
                    (
                        *("delta", "minibatch", "hess", "sqrt", "slow_scale", "momentum"),
                        *("bias_correction", "positive_definite"),
                    ),
                    combination,
                )
            )
        )
        steps = StepSizes(
            0.01,
            scale=0.05 if how.slow_scale else None,
            momentum=0.7 if momentum != "none" else 0.0,
            damping=0.1,
        )
        noise = iter(torch.from_numpy(EPS))
        gradient = LossGradient(problems.logistic(P), noise=lambda like: next(noise))
        rule = BayesianLearningRule(DiagonalGaussian, gradient, steps, how)
        m = problems.start(1, P)
        q = DiagonalGaussian({"theta": m}, {"theta": torch.full_like(m, 140.0)})
        state = rule.run(rule.start(q), N_STEPS, batches)[-1]
        expected_m, expected_s = reference(how, steps, batches)
        np.testing.assert_allclose(state.mean, expected_m, rtol=1e-9, atol=1e-11, err_msg=str(how))
        np.testing.assert_allclose(state.scale, expected_s, rtol=1e-9, err_msg=str(how))


def test_the_square_root_of_a_full_scale():
    S = problems.random_precision(0, 5)
    loss = problems.logistic(5)
    how = Approximations(delta=True, sqrt=True, hess="gn", slow_scale=True)
    rule = BayesianLearningRule(FullGaussian, LossGradient(loss), StepSizes(0.1, scale=1e-12), how)
    m = problems.start(0, 5)
    state = rule.step(rule.start(FullGaussian({"t": m}, S)))
    values, vectors = np.linalg.eigh(S.numpy())
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    expected = m.numpy() - 0.1 * np.linalg.solve(root, loss.grad(m).numpy())
    np.testing.assert_allclose(state.mean, expected, rtol=1e-8)


def test_the_second_order_step_keeps_any_precision_positive():
    rng = np.random.default_rng(0)
    broken = 0
    for k in range(300):
        S = problems.random_precision(k, 4)
        G = rng.standard_normal((4, 4)) * rng.choice([0.1, 1.0, 10.0])
        G = torch.from_numpy(G + G.T)
        rho = float(rng.uniform(0.01, 2.0))
        new = positive_definite_step(S, G, rho)
        assert torch.linalg.eigvalsh(new)[0] > 0
        assert bool((positive_definite_step(S.diagonal(), G.diagonal(), rho) > 0).all())
        factored = torch.linalg.cholesky(S).mT + rho * torch.linalg.solve(
            torch.linalg.cholesky(S), G
        )
        torch.testing.assert_close(new, 0.5 * (S + factored.mT @ factored), rtol=1e-8, atol=1e-8)
        broken += bool(torch.linalg.eigvalsh(S + rho * G)[0] <= 0)
    assert broken > 150  # the plain step would have lost them


# ------------------------------------------------------------------------------- dropout


def slab(precision, **how):
    """The gradient of a one-unit network under dropout's posterior, averaged over many masks."""
    g = torch.Generator().manual_seed(0)
    x, y = (a[:40] for a in problems.breast_cancer(2))
    x = x.repeat(2000, 1)
    y = y.repeat(2000)
    loss = DataLoss(
        lambda t, x, y: (torch.tanh(x @ t[:2]) * t[2] - y).square(), x, y, gaussian_prior(0.0)
    )
    gradient = SpikeSlabGradient(
        loss,
        torch.tensor([0, 0, 0]),
        lambda n: (torch.rand(n, 1, generator=g) < 0.7).double(),
        keep=0.7,
        spike_prec=1e4,
        noise=lambda like: torch.randn(like.shape, generator=g, dtype=like.dtype),
    )
    m = torch.tensor([0.5, -0.8, 1.0], dtype=torch.float64)
    S = torch.full((3,), precision, dtype=torch.float64)
    found, _ = gradient.moments(m, S, Approximations(**how), None, curvature=False)
    return found / 2000


def test_dropouts_approximations_vanish_with_the_covariance_of_its_components():
    exact = slab(1e4)
    both = slab(1e4, delta=True, resp=True)
    torch.testing.assert_close(exact, both, rtol=0.05, atol=0.02)
    assert (slab(4.0) - slab(4.0, delta=True, resp=True)).abs().max() > 0.3
    one = slab(1e4, delta=True)
    torch.testing.assert_close(one, both, rtol=0.05, atol=0.02)


# ------------------------------------------------------------------------------ refusals


def build(family, gradient, steps=None, **how):
    return BayesianLearningRule(family, gradient, steps or StepSizes(0.1), Approximations(**how))


def test_what_has_no_meaning_is_refused():
    loss = problems.logistic(3)
    with pytest.raises(ConfigError, match="temp has no meaning for DiagonalGaussian"):
        build(DiagonalGaussian, LossGradient(loss), temp=1.0)
    with pytest.raises(ConfigError, match="sqrt has no meaning for IsotropicGaussian"):
        build(IsotropicGaussian, LossGradient(loss), sqrt=True)
    with pytest.raises(ConfigError, match="hess has no meaning for FullGaussian"):
        build(FullGaussian, QuadratureGradient(loss), hess="gn")
    with pytest.raises(ConfigError, match="coordinates 'mu', which Mixture does not have"):
        build(Mixture, BernoulliGradient(loss))
    with pytest.raises(ConfigError, match="PointMass does not have"):
        build(PointMass, LossGradient(loss))
    with pytest.raises(ConfigError, match="choose one of exact, gn, sqgrad"):
        Approximations(hess="fisher")
    with pytest.raises(ConfigError, match="not negative"):
        Approximations(temp=-1.0)
    with pytest.raises(ConfigError, match="heavy_ball"):
        build(Bernoulli, BernoulliGradient(loss), StepSizes(0.1, momentum=0.9), momentum="average")
    with pytest.raises(ConfigError, match="resp has no meaning"):
        build(Bernoulli, ConjugateGradient(None, []), resp=True)


def test_step_sizes_are_read_or_refused():
    loss = problems.logistic(3)
    with pytest.raises(ConfigError, match="slow_scale needs the step size scale"):
        build(DiagonalGaussian, LossGradient(loss), slow_scale=True)
    with pytest.raises(ConfigError, match="slow_scale is off, so nothing reads"):
        build(DiagonalGaussian, LossGradient(loss), StepSizes(0.1, scale=0.1))
    with pytest.raises(ConfigError, match="momentum needs the step size momentum"):
        build(DiagonalGaussian, LossGradient(loss), momentum="average")
    with pytest.raises(ConfigError, match=r"rho=0.0 must be positive"):
        StepSizes(0.0)


def test_a_minibatch_must_be_given_and_a_scale_of_zero_gives_no_draws():
    loss = problems.logistic(3)
    m = problems.start(0, 3)
    q = DiagonalGaussian({"t": m}, {"t": torch.ones_like(m)})
    rule = build(DiagonalGaussian, LossGradient(loss), minibatch=True, delta=True)
    with pytest.raises(ConfigError, match=r"rule.step\(state, batch\)"):
        rule.step(rule.start(q))
    rule = build(DiagonalGaussian, LossGradient(loss))
    state = rule.start(q, scale=torch.zeros(3).double())
    with pytest.raises(ImproperDistribution, match=r"positive precision"):
        rule.step(state)
    rule = build(DiagonalGaussian, LossGradient(loss), delta=True, positive_definite=True)
    with pytest.raises(ImproperDistribution, match="positive scale"):
        rule.step(state)
    with pytest.raises(ImproperDistribution):
        rule.posterior(state)


def test_posteriors_come_back_as_they_went_in():
    m = problems.start(0, 3)
    loss = problems.logistic(3)
    for q in (
        FullGaussian({"t": m}, problems.random_precision(0, 3)),
        DiagonalGaussian({"t": m}, {"t": torch.full_like(m, 2.0)}),
        IsotropicGaussian({"t": m}, 3.0),
    ):
        rule = build(type(q), LossGradient(loss), delta=True)
        back = rule.posterior(rule.start(q))
        assert type(back) is type(q)
        assert back.kl(q).item() == pytest.approx(0.0, abs=1e-12)
    drop = build(DropoutPosterior, LossGradient(loss), delta=True)
    back = drop.posterior(drop.start(DropoutPosterior({"t": m}, 0.2)))
    assert isinstance(back, DropoutPosterior)
    assert back.p == 0.2
    two = {"a": m[:1], "b": m[1:]}
    mix = Mixture([FullGaussian(two, torch.eye(3).double())] * 2, [0.25, 0.75])
    from bayesrule.rule import ComponentGradient

    rule = build(Mixture, ComponentGradient(lambda theta: None))
    back = rule.posterior(rule.start(mix))
    assert back.weights == pytest.approx((0.25, 0.75))
    assert back.names == ("a", "b")
