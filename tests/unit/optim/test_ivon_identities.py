"""Identities of the IVON card, section 5, against closed forms."""

import math

import pytest
import torch

from bayesrule.optim import IVON
from bayesrule.optim.ivon import ivon_offset, ivon_update

F64 = torch.float64


class _Vector(torch.nn.Module):
    def __init__(self, start):
        super().__init__()
        self.theta = torch.nn.Parameter(start.clone())


class _SignVectors:
    """All 2^d sign vectors in turn: a cubature that is exact for quadratics."""

    def __init__(self, d):
        signs = torch.tensor(
            [[1.0 if (i >> k) & 1 else -1.0 for k in range(d)] for i in range(2**d)]
        )
        self.signs, self.next = signs.to(F64), 0

    def __call__(self, like):
        out = self.signs[self.next % len(self.signs)]
        self.next += 1
        return out.view(like.shape)


def _quadratic(A, c, model, opt):
    def closure():
        opt.zero_grad()
        diff = model.theta - c
        loss = 0.5 * diff @ A @ diff
        loss.backward()
        return loss

    return closure


def _fit(A, c, steps, **options):
    d = len(c)
    model = _Vector(torch.zeros(d, dtype=F64))
    opt = IVON(
        model.parameters(),
        ess=20.0,
        hess_init=1.0,
        mc_samples=2**d,
        noise=_SignVectors(d),
        **options,
    )
    closure = _quadratic(A, c, model, opt)
    for _ in range(steps):
        opt.step(closure)
    return model, opt


def test_hessian_estimate_of_a_quadratic_is_its_diagonal():
    A = torch.diag(torch.tensor([0.5, 2.0, 3.0], dtype=F64))
    c = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    _, opt = _fit(A, c, 1, lr=0.0, beta2=0.0, weight_decay=0.1)
    # beta2 = 0: the new hess is h_hat + (h - h_hat)^2 / (2 (h + delta)) of the exact E[h_hat] = A
    h, expected = torch.ones(3, dtype=F64), A.diagonal()
    expected = expected + 0.5 * (h - expected) ** 2 / (h + 0.1)
    torch.testing.assert_close(opt.state[opt.trainable()[0]]["hess"], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("diagonal", [True, False])
def test_fixed_point_is_the_exact_posterior(diagonal):
    delta = 0.1
    A = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 1.5]], dtype=F64)
    A = torch.diag(A.diagonal()) if diagonal else A
    c = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    model, opt = _fit(A, c, 4000, lr=0.5, beta2=0.99, weight_decay=delta)
    mean = torch.linalg.solve(A + delta * torch.eye(3, dtype=F64), A @ c)
    torch.testing.assert_close(model.theta.detach(), mean, rtol=0, atol=1e-10)
    q = opt.posterior(model)
    # mean field: the precision is the diagonal of the exact one, 20 (A + delta)
    torch.testing.assert_close(
        q.precision["theta"], 20.0 * (A.diagonal() + delta), rtol=0, atol=1e-9
    )


def test_beta2_one_without_noise_is_sgd_with_momentum():
    delta, alpha, beta1 = 0.1, 0.05, 0.9
    A = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=F64)
    c = torch.tensor([1.0, -2.0], dtype=F64)
    model = _Vector(torch.zeros(2, dtype=F64))
    opt = IVON(
        model.parameters(), lr=alpha, ess=9.0, hess_init=0.3, beta1=beta1, beta2=1.0,
        weight_decay=delta, noise=torch.zeros_like,
    )  # fmt: skip
    m, g_bar = torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)
    closure = _quadratic(A, c, model, opt)
    for t in range(1, 30):
        opt.step(closure)
        g_bar = beta1 * g_bar + (1 - beta1) * A @ (m - c)
        m = m - alpha * (g_bar / (1 - beta1**t) + delta * m)
        torch.testing.assert_close(model.theta.detach(), m, rtol=0, atol=1e-13)
        assert torch.all(opt.state[model.theta]["hess"] == 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.9, 0.99999])
def test_precision_stays_positive(dtype, beta2):
    gen = torch.Generator().manual_seed(0)
    n, ess, delta = 10_000, 7.0, 0.01
    hess = torch.rand(n, generator=gen, dtype=dtype) * 2 - delta * 0.99
    h_hat = (torch.rand(n, generator=gen, dtype=dtype) - 0.5) * 2e6
    stat = h_hat / (ess * (hess + delta))
    zero = torch.zeros(n, dtype=dtype)
    _, _, new = ivon_update(
        zero, zero, hess, zero, stat, steps=1, lr=0.1, ess=ess, beta1=0.9, beta2=beta2,
        weight_decay=delta, hess_init=1.0,
    )  # fmt: skip
    assert torch.all(new + delta > 0)
    assert torch.all(new + delta >= (hess + delta) / 2 * (1 - 1e-6) - 1e-9)


def test_the_optimiser_keeps_precision_positive_on_adversarial_gradients():
    model = _Vector(torch.zeros(1000, dtype=torch.float32))
    opt = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=0.5, beta2=0.3, seed=0)
    gen = torch.Generator().manual_seed(1)
    for _ in range(50):
        before = opt.param_state(model.theta, momentum=0.0, hess=0.5)["hess"].clone() + 1e-4

        def closure():
            opt.zero_grad()
            push = torch.randn(1000, generator=gen) * 1e3
            (model.theta * push).sum().backward()
            return torch.zeros(())

        opt.step(closure)
        after = opt.state[model.theta]["hess"] + 1e-4
        assert torch.all(after > 0)
        assert torch.all(after >= before / 2 * (1 - 1e-5))


def test_pure_update_equals_the_optimiser():
    gen = torch.Generator().manual_seed(0)
    for approx in ("price", "gradsq"):
        model = _Vector(torch.randn(6, generator=gen, dtype=F64))
        options = dict(lr=0.2, ess=30.0, hess_init=0.4, beta1=0.9, beta2=0.9, weight_decay=0.05)
        noise = torch.randn(6, generator=gen, dtype=F64)
        opt = IVON(
            model.parameters(),
            **options,
            hess_approx=approx,
            clip_radius=0.5,
            noise=lambda p: noise,
        )
        m, mom, h = (
            model.theta.detach().clone(),
            torch.zeros(6, dtype=F64),
            torch.full((6,), 0.4, dtype=F64),
        )
        for t in range(1, 6):
            offset = ivon_offset(noise, h, 30.0, 0.05)
            grad = (m + offset) ** 3
            stat = offset * grad if approx == "price" else grad**2
            m, mom, h = ivon_update(
                m, mom, h, grad, stat, steps=t, hess_approx=approx, clip_radius=0.5, **options
            )

            def closure():
                opt.zero_grad()
                loss = (model.theta**4 / 4).sum()
                loss.backward()
                return loss

            opt.step(closure)
            torch.testing.assert_close(model.theta.detach(), m, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(opt.state[model.theta]["hess"], h, rtol=1e-13, atol=1e-14)


def test_infinite_ess_samples_the_mean():
    model = _Vector(torch.randn(50))
    mean = model.theta.detach().clone()
    opt = IVON(model.parameters(), lr=0.1, ess=1e30, seed=0)
    with opt.sampled_params():
        torch.testing.assert_close(model.theta.detach(), mean, rtol=0, atol=1e-12)


def test_sampling_variance():
    """Chi-square: sum of squared standardised offsets over n draws has n degrees of freedom."""
    n = 40_000
    model = _Vector(torch.zeros(n, dtype=F64))
    opt = IVON(model.parameters(), lr=0.1, ess=50.0, hess_init=0.3, weight_decay=0.02, seed=4)
    with opt.sampled_params():
        chi2 = float((model.theta.detach() ** 2 * 50.0 * 0.32).sum())
    assert abs(chi2 - n) < 4.5 * math.sqrt(2 * n)


def test_mean_and_prior():
    model = _Vector(torch.randn(4))
    opt = IVON(model.named_parameters(), lr=0.1, ess=50.0, weight_decay=0.02)
    q, p = opt.posterior(), opt.prior()
    assert q.names == p.names == ("theta",)
    torch.testing.assert_close(p.precision["theta"], torch.full((4,), 1.0))
    torch.testing.assert_close(q.precision["theta"], torch.full((4,), 50.0 * 1.02))
