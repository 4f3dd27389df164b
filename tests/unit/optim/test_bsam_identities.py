"""Identities of bSAM and of the relaxed Bayes objective, against naive loops and closed forms."""

import math

import pytest
import torch

from bayesrule.optim import BSAM, SAM
from bayesrule.optim.bsam import bsam_update
from bayesrule.optim.sam import asam_offset

F64 = torch.float64
OPTIONS = {
    "lr": 0.05, "ess": 30.0, "rho": 0.2, "prec_init": 0.7, "beta1": 0.8, "beta2": 0.9,
    "weight_decay": 0.03, "damping": 0.1,
}  # fmt: skip
STEP = ("lr", "beta1", "beta2", "weight_decay", "damping")


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
        return torch.nn.Sequential(*layers).double()


def data(n=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g, dtype=F64), torch.randint(0, 3, (n,), generator=g)


def loss_of(net, x, y):
    return torch.nn.functional.cross_entropy(net(x), y)


def grads_at(net, points, x, y):
    params = list(net.parameters())
    kept = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, point in zip(params, points, strict=True):
            p.copy_(point)
    found = torch.autograd.grad(loss_of(net, x, y), params)
    with torch.no_grad():
        for p, value in zip(params, kept, strict=True):
            p.copy_(value)
    return found


def take(opt, net, x, y):
    def closure():
        opt.zero_grad()
        loss = loss_of(net, opt.part(x), opt.part(y))
        loss.backward()
        return loss

    return opt.step(closure)


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("rho", [0.2, 0.0])
def test_steps_equal_the_naive_algorithm(split, rho):
    """Also the average over parts, each with its own noise, at the same mean and precision."""
    options = {**OPTIONS, "rho": rho}
    ours, theirs = network(), network()
    stream = torch.Generator().manual_seed(9)
    opt = BSAM(
        ours.parameters(), **options, batch_split=split,
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    params = list(theirs.parameters())
    momentum = [torch.zeros_like(p) for p in params]
    prec = [torch.full_like(p, 0.7) for p in params]
    for step in range(6):
        x, y = data(seed=step)
        take(opt, ours, x, y)
        mean = [p.detach().clone() for p in params]
        ge = [torch.zeros_like(p) for p in params]
        g_abs = [torch.zeros_like(p) for p in params]
        for xs, ys in zip(x.chunk(split), y.chunk(split), strict=True):
            noisy = [
                m + torch.randn(m.shape, generator=stream, dtype=F64) / (30.0 * s).sqrt()
                for m, s in zip(mean, prec, strict=True)
            ]
            g = grads_at(theirs, noisy, xs, ys)
            worst = [m + rho * gi / s for m, gi, s in zip(mean, g, prec, strict=True)]
            for i, (gi, gei) in enumerate(zip(g, grads_at(theirs, worst, xs, ys), strict=True)):
                g_abs[i] += prec[i].sqrt() * gi.abs() / split
                ge[i] += gei / split
        if rho == 0.0:  # the mean step uses the clean gradient, the precision the noisy one
            for clean, gei in zip(grads_at(theirs, mean, x, y), ge, strict=True):
                torch.testing.assert_close(gei, clean, rtol=1e-12, atol=1e-14)
        for i, p in enumerate(params):
            pure = bsam_update(
                *(mean[i], momentum[i], prec[i], ge[i], g_abs[i]),
                **{name: options[name] for name in STEP},
            )
            momentum[i] = 0.8 * momentum[i] + 0.2 * (ge[i] + 0.03 * mean[i])
            new = mean[i] - 0.05 * momentum[i] / prec[i]  # the old precision
            prec[i] = 0.9 * prec[i] + 0.1 * (g_abs[i] + 0.1 + 0.03)
            for one, two in zip(pure, (new, momentum[i], prec[i]), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)
            p.data.copy_(new)
    for p, q, s in zip(ours.parameters(), params, prec, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(opt.state[p]["prec"], s, rtol=1e-11, atol=1e-13)


def test_frozen_precision_without_noise_is_unnormalised_sam_with_an_average():
    ours, theirs = network(), network()
    options = {**OPTIONS, "prec_init": 1.0, "beta2": 1.0, "ess": 1e300}
    opt = BSAM(ours.parameters(), **options, seed=0)
    params = list(theirs.parameters())
    momentum = [torch.zeros_like(p) for p in params]
    for step in range(5):
        x, y = data(seed=step)
        take(opt, ours, x, y)
        mean = [p.detach().clone() for p in params]
        g = grads_at(theirs, mean, x, y)
        ge = grads_at(theirs, [m + 0.2 * gi for m, gi in zip(mean, g, strict=True)], x, y)
        with torch.no_grad():
            for i, p in enumerate(params):
                momentum[i] = 0.8 * momentum[i] + 0.2 * (ge[i] + 0.03 * mean[i])
                p.sub_(0.05 * momentum[i])
    for p, q in zip(ours.parameters(), params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_quadratic_without_noise():
    """ge = a (1 + rho a / s) w, seen by the first momentum."""
    a, w = 3.0, 0.4
    weight = torch.nn.Parameter(torch.tensor([w], dtype=F64))
    opt = BSAM([weight], **{**OPTIONS, "weight_decay": 0.0}, noise=torch.zeros_like)

    def closure():
        opt.zero_grad()
        loss = 0.5 * a * weight.square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    expected = 0.2 * a * (1 + 0.2 * a / 0.7) * w
    assert float(opt.state[weight]["momentum"]) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("c", [0.0, 0.01, 1.0, 30.0])
def test_stationary_precision_of_a_constant_gradient(c):
    s, k = torch.tensor(1.0, dtype=F64), 0.1 + 0.03
    for _ in range(5_000):
        _, _, s = bsam_update(
            torch.zeros(()).double(), torch.zeros(()).double(), s, torch.zeros(()).double(),
            s.sqrt() * c, lr=0.0, beta1=0.9, beta2=0.95, weight_decay=0.03, damping=0.1,
        )  # fmt: skip
    expected = c * c / 2 + k + c * math.sqrt(c * c / 4 + k)
    assert float(s) == pytest.approx(expected, rel=1e-9)


def test_precision_stays_positive():
    g = torch.Generator().manual_seed(0)
    s = torch.full((1000,), 0.7, dtype=F64)
    zero = torch.zeros_like(s)
    for _ in range(300):
        size = 10 ** torch.empty_like(s).uniform_(-6, 6, generator=g)
        _, _, s = bsam_update(
            zero, zero, s, zero, s.sqrt() * size, lr=0.0, beta1=0.9, beta2=0.5, weight_decay=0.03,
            damping=0.1,
        )  # fmt: skip
        assert (s >= 0.13 - 1e-12).all()


@pytest.mark.parametrize(("a", "sigma2"), [(1.0, 0.5), (3.0, 0.2), (0.2, 0.01)])
def test_sam_as_the_relaxation_of_a_quadratic(a, sigma2):
    """max over eps of a (w + eps)^2 / 2 - eps^2 / (2 sigma^2) is a w^2 / (2 (1 - a sigma^2))."""
    w = 0.7
    eps = torch.linspace(-20, 20, 4_000_001, dtype=F64)
    found = float((0.5 * a * (w + eps) ** 2 - eps**2 / (2 * sigma2)).max())
    assert found == pytest.approx(a * w * w / (2 * (1 - a * sigma2)), rel=1e-8)


def test_parts_of_a_batch():
    net = network()
    opt = SAM(net.parameters(), lr=0.1, batch_split=4)
    x, y = data(6)
    sizes = []

    def closure():
        opt.zero_grad()
        sizes.append(len(opt.part(x)))
        loss = loss_of(net, opt.part(x), opt.part(y))
        loss.backward()
        return loss

    opt.step(closure)
    assert sizes == [2, 2, 2, 2, 1, 1, 1, 1]  # each part twice: SAM takes two gradients
    with pytest.raises(ValueError, match=r"cannot be split into batch_split=4"):
        take(opt, net, *data(3))


def test_adaptive_sam_is_invariant_under_rescaling():
    """Layers scaled by c and 1/c have perturbations scaled likewise (eta = 0)."""
    g = torch.Generator().manual_seed(0)
    w1, w2, g1, g2 = (torch.randn(3, generator=g, dtype=F64) for _ in range(4))
    plain = asam_offset([w1, w2], [g1, g2], 0.5, 0.0)
    scaled = asam_offset([10 * w1, w2 / 10], [g1 / 10, 10 * g2], 0.5, 0.0)
    torch.testing.assert_close(scaled[0], 10 * plain[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled[1], plain[1] / 10, rtol=1e-12, atol=0)
    norm = torch.cat([plain[0] / w1.abs(), plain[1] / w2.abs()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-12)
