"""Identities of VOGN and OGN, against loops over examples and closed forms."""

import copy
import math

import pytest
import torch

from bayesrule.errors import Unsupported
from bayesrule.optim import OGN, VOGN
from bayesrule.optim.vogn import vogn_update
from bayesrule.posteriors import DiagonalGaussian

F64 = torch.float64
OPTIONS = {
    "lr": 0.05, "ess": 30.0, "hess_init": 0.4, "beta1": 0.8, "hess_rate": 0.1, "prior_prec": 2.0,
    "tau": 0.5, "damping": 0.02,
}  # fmt: skip


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
        ).double()
    return net


def data(n=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g, dtype=F64), torch.randint(0, 3, (n,), generator=g)


def loss_of(net, x, y):
    return torch.nn.functional.cross_entropy(net(x), y)


def loop_statistics(net, x, y):
    """Mean gradient, and the mean over examples of squared gradients, one example at a time."""
    params = list(net.parameters())
    each = [
        torch.autograd.grad(loss_of(net, x[i : i + 1], y[i : i + 1]), params) for i in range(len(x))
    ]
    mean = [sum(gs) / len(x) for gs in zip(*each, strict=True)]
    squares = [sum(g * g for g in gs) / len(x) for gs in zip(*each, strict=True)]
    return mean, squares


def take(opt, net, x, y):
    def closure():
        opt.zero_grad()
        loss = loss_of(net, x, y)
        loss.backward()
        return loss

    return opt.step(closure)


@pytest.mark.parametrize("tempering", ["text", "code"])
@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("samples", [1, 3])
def test_steps_equal_a_loop_over_examples_and_the_pure_update(tempering, ema, samples):
    ours, theirs = network(), network()
    stream = torch.Generator().manual_seed(9)
    opt = VOGN(
        ours.parameters(), **OPTIONS, ema=ema, tempering=tempering, mc_samples=samples, model=ours,
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    params = list(theirs.parameters())
    momentum = [torch.zeros_like(p) for p in params]
    hess = [torch.full_like(p, OPTIONS["hess_init"]) for p in params]
    dt = OPTIONS["tau"] * OPTIONS["prior_prec"] / OPTIONS["ess"]
    temperature = OPTIONS["tau"] if tempering == "code" else 1.0
    update = {k: v for k, v in OPTIONS.items() if k != "hess_init"}
    for step in range(8):
        x, y = data(seed=step)
        take(opt, ours, x, y)
        mean = [p.detach().clone() for p in params]
        grads, squares = [0.0] * len(params), [0.0] * len(params)
        for _ in range(samples):
            with torch.no_grad():
                for p, m, h in zip(params, mean, hess, strict=True):
                    eps = torch.randn(p.shape, generator=stream, dtype=F64)
                    p.copy_(m + eps * (temperature / (OPTIONS["ess"] * (h + dt + 0.02))).sqrt())
            g, h = loop_statistics(theirs, x, y)
            grads = [a + b / samples for a, b in zip(grads, g, strict=True)]
            squares = [a + b / samples for a, b in zip(squares, h, strict=True)]
        for i, p in enumerate(params):
            pure = vogn_update(
                *(mean[i], momentum[i], hess[i], grads[i], squares[i]),
                **update,
                ema=ema,
                tempering=tempering,
            )
            momentum[i] = 0.8 * momentum[i] + (0.2 if ema else 1.0) * (grads[i] + dt * mean[i])
            kept = 1.0 - (0.5 if tempering == "text" else 1.0) * 0.1
            hess[i] = kept * hess[i] + 0.1 * squares[i]
            new = mean[i] - 0.05 * momentum[i] / (hess[i] + dt + 0.02)
            for one, two in zip(pure, (new, momentum[i], hess[i]), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)
            p.data.copy_(new)
    for p, q, h in zip(ours.parameters(), params, hess, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(opt.state[p]["hess"], h, rtol=1e-11, atol=1e-12)
        assert (opt.state[p]["hess"] >= 0).all()


def test_no_noise_and_no_momentum_is_online_gauss_newton():
    ours, theirs = network(), network()
    opt = OGN(ours.parameters(), **{**OPTIONS, "beta1": 0.0, "tau": 1.0}, model=ours)
    params = list(theirs.parameters())
    hess = [torch.full_like(p, 0.4) for p in params]
    for step in range(5):
        x, y = data(seed=step)
        take(opt, ours, x, y)
        g, h = loop_statistics(theirs, x, y)
        with torch.no_grad():
            for i, p in enumerate(params):
                hess[i] = 0.9 * hess[i] + 0.1 * h[i]
                p -= 0.05 * (g[i] + 2.0 / 30 * p) / (hess[i] + 2.0 / 30 + 0.02)
    for p, q in zip(ours.parameters(), params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("tempering", ["text", "code"])
def test_linear_regression_has_the_tempered_posterior(tau, tempering):
    """With the exact curvature x_i^2: mean is ridge with tau delta, precision by the table."""
    g = torch.Generator().manual_seed(3)
    X, delta = torch.randn(20, 3, generator=g, dtype=F64), 1.7
    y, n = X @ torch.tensor([1.0, -2.0, 0.5], dtype=F64), 20
    mean, momentum, hess = (
        torch.zeros(3, dtype=F64),
        torch.zeros(3, dtype=F64),
        torch.ones(3).double(),
    )
    for _ in range(4000):
        grad = X.T @ (X @ mean - y) / n
        mean, momentum, hess = vogn_update(
            mean, momentum, hess, grad, X.square().mean(0), lr=0.1, ess=n, beta1=0.5, hess_rate=0.1,
            prior_prec=delta, tau=tau, damping=0.0, tempering=tempering,
        )  # fmt: skip
    ridge = torch.linalg.solve(X.T @ X + tau * delta * torch.eye(3, dtype=F64), X.T @ y)
    torch.testing.assert_close(mean, ridge, rtol=1e-12, atol=1e-12)
    gram = X.square().sum(0)
    if tempering == "code":
        found, expected = n * (hess + tau * delta / n) / tau, gram / tau + delta
    else:
        found, expected = n * (hess + tau * delta / n), gram / tau + tau * delta
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_one_example_squares_the_gradient_and_a_batch_adds_its_variance():
    net = network()
    options = {**OPTIONS, "hess_rate": 1.0, "tau": 1.0}
    x, y = data(6)
    grads, squares = loop_statistics(net, x, y)
    variance = [s - g * g for g, s in zip(grads, squares, strict=True)]
    opt = OGN(net.parameters(), **options, model=net)
    one = loop_statistics(net, x[:1], y[:1])[0]
    take(opt, net, x[:1], y[:1])
    for p, g in zip(net.parameters(), one, strict=True):
        torch.testing.assert_close(opt.state[p]["hess"], g * g, rtol=1e-10, atol=1e-15)
    again = network()
    opt = OGN(again.parameters(), **options, model=again)
    take(opt, again, x, y)
    for p, g, v in zip(again.parameters(), grads, variance, strict=True):
        torch.testing.assert_close(opt.state[p]["hess"] - g * g, v, rtol=1e-8, atol=1e-14)


def test_tau_to_zero_of_the_code_is_ogn():
    ours, theirs = network(), network()
    options = {**OPTIONS, "tau": 0.0, "tempering": "code"}
    noisy = VOGN(ours.parameters(), **options, model=ours, seed=1)
    plain = OGN(theirs.parameters(), **options, model=theirs)
    for step in range(5):
        take(noisy, ours, *data(seed=step))
        take(plain, theirs, *data(seed=step))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_yesterdays_posterior_as_prior():
    """One task, quadratic loss: the exact precision-weighted combination on the diagonal."""
    n, a = 25.0, torch.tensor([0.5, 1.0, 3.0], dtype=F64)  # loss: a/2 (theta - c)^2, mean over n
    c, m0 = torch.tensor([1.0, -1.0, 0.5], dtype=F64), torch.tensor([0.2, 0.4, -0.6], dtype=F64)
    s0 = torch.tensor([2.0, 10.0, 40.0], dtype=F64)
    mean, momentum, hess = m0.clone(), torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    for _ in range(3000):
        mean, momentum, hess = vogn_update(
            mean, momentum, hess, a * (mean - c), a, lr=0.1, ess=n, beta1=0.5, hess_rate=0.1,
            prior_prec=s0, prior_mean=m0, tau=1.0, damping=0.0,
        )  # fmt: skip
    precision = n * a + s0
    torch.testing.assert_close(mean, (n * a * c + s0 * m0) / precision, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(n * (hess + s0 / n), precision, rtol=1e-12, atol=1e-12)


def test_the_optimiser_with_a_prior_equals_the_pure_update_and_saves_it():
    net = network()
    g = torch.Generator().manual_seed(2)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    prior = DiagonalGaussian(
        {k: torch.randn(v.shape, generator=g, dtype=F64) for k, v in start.items()},
        {k: 1.0 + torch.rand(v.shape, generator=g, dtype=F64) for k, v in start.items()},
    )
    opt = OGN(net.named_parameters(), **OPTIONS, model=net, prior=prior)
    grads, squares = loop_statistics(net, *data())
    take(opt, net, *data())
    update = {k: v for k, v in OPTIONS.items() if k not in ("hess_init", "prior_prec")}
    for (name, p), grad, sq in zip(net.named_parameters(), grads, squares, strict=True):
        new, _, hess = vogn_update(
            start[name], torch.zeros_like(p), torch.full_like(p, 0.4), grad, sq, **update,
            prior_prec=prior.precision[name], prior_mean=prior.mean[name],
        )  # fmt: skip
        torch.testing.assert_close(p, new, rtol=1e-12, atol=1e-13)
        dt = 0.5 * prior.precision[name] / 30.0
        torch.testing.assert_close(opt.posterior().precision[name], 30.0 * (hess + dt + 0.02))
    other = network()
    second = OGN(other.named_parameters(), **OPTIONS, model=other)
    other.load_state_dict(net.state_dict())
    second.load_state_dict(copy.deepcopy(opt.state_dict()))
    take(opt, net, *data(seed=4))
    take(second, other, *data(seed=4))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_kl_weight_warms_up():
    net = network()
    opt = VOGN(net.parameters(), **OPTIONS, model=net, tau_init=0.1, tau_warmup=4, seed=0)
    seen = [opt.param_groups[0]["tau_now"]]
    for step in range(6):
        take(opt, net, *data(seed=step))
        seen.append(opt.param_groups[0]["tau_now"])
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("tempering", ["text", "code"])
def test_steps_during_the_warm_up_have_its_weight(tempering):
    """A step at weight tau_t is a step of an optimiser whose tau is that, noise included."""
    warm, plain = network(), network()
    options = {**OPTIONS, "tempering": tempering, "noise": torch.ones_like}
    opt = VOGN(warm.parameters(), **options, model=warm, tau_init=0.1, tau_warmup=4)
    other = VOGN(plain.parameters(), **options, model=plain)
    for step, tau in enumerate([0.1, 0.2, 0.3, 0.4, 0.5, 0.5]):
        other.param_groups[0]["tau"] = other.param_groups[0]["tau_now"] = tau
        take(opt, warm, *data(seed=step))
        take(other, plain, *data(seed=step))
        for p, q in zip(warm.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_noise_with_a_prior_of_its_own_has_the_posterior_s_variance():
    net = network()
    mean = {name: p.detach().clone() for name, p in net.named_parameters()}
    prior = DiagonalGaussian(mean, {k: torch.full_like(v, 40.0) for k, v in mean.items()})
    opt = VOGN(net.named_parameters(), **OPTIONS, model=net, prior=prior, noise=torch.ones_like)
    with opt.sampled_params():
        drawn = {name: p.detach().clone() for name, p in net.named_parameters()}
    expected = (30.0 * (0.4 + 0.5 * 40.0 / 30.0 + 0.02)) ** -0.5
    for name, value in drawn.items():
        torch.testing.assert_close(
            value - mean[name], torch.full_like(value, expected), rtol=1e-10, atol=1e-12
        )
        assert float(opt.posterior().precision[name].mean()) == pytest.approx(expected**-2)


def test_what_is_refused():
    net = network()
    for wrong, says in (({"tau_warmup": 3}, "tau_warmup needs"), ({"tau_init": 2.0}, "tau_init")):
        with pytest.raises(ValueError, match=says):
            VOGN(net.parameters(), 0.1, 10.0, model=net, **wrong)
    with pytest.raises(ValueError, match="precision of a weight"):
        VOGN(net.parameters(), 0.1, 10.0, hess_init=0.0, tau_init=0.0, tau_warmup=2, model=net)
    net = network()
    with pytest.raises(Unsupported, match=r"pass model="):
        VOGN(net.parameters(), 0.1, 10.0)
    with pytest.raises(ValueError, match=r"not in model="):
        VOGN(net.parameters(), 0.1, 10.0, model=network())
    with pytest.raises(ValueError, match="precision of a weight"):
        VOGN(net.parameters(), 0.1, 10.0, hess_init=0.0, tau=0.0, model=net)
    VOGN(net.parameters(), 0.1, 10.0, hess_init=0.0, tau=0.0, damping=1e-3, model=net)
    prior = DiagonalGaussian({"0.weight": torch.zeros(5, 4)}, {"0.weight": torch.ones(5, 4)})
    with pytest.raises(ValueError, match=r"no parameter '0.bias'"):
        VOGN(net.named_parameters(), 0.1, 10.0, model=net, prior=prior)
    rnn = torch.nn.LSTM(3, 3)
    with pytest.raises(Unsupported, match="LSTM"):
        VOGN(rnn.parameters(), 0.1, 10.0, model=rnn)
    assert math.isfinite(
        float(take(VOGN(net.parameters(), 0.1, 10.0, model=net, seed=0), net, *data()))
    )
