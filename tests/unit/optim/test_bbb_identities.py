"""Bayes by backprop: pathwise gradients by autograd, Adam by torch."""

import pytest
import torch
import torch.nn.functional as F

from bayesrule.optim import BBB
from bayesrule.optim.bbb import bbb_gradients
from bayesrule.posteriors import DiagonalGaussian

F64 = torch.float64


def objective(mean, rho, eps, A, c, ess, prior_prec, tau):
    """Loss at theta plus (tau / ess) KL, the KL by the posterior family."""
    diff = mean + F.softplus(rho) * eps - c
    var = F.softplus(rho) ** 2
    kl = 0.5 * (prior_prec * (var + mean**2) - 1 - torch.log(prior_prec * var)).sum()
    return 0.5 * diff @ A @ diff + tau / ess * kl, kl


def test_gradients_are_those_of_the_objective():
    g = torch.Generator().manual_seed(0)
    mean, rho, eps, c = (torch.randn(3, generator=g, dtype=F64) for _ in range(4))
    B = torch.randn(3, 3, generator=g, dtype=F64)
    A = B @ B.T
    mean.requires_grad_()
    rho.requires_grad_()
    value, kl = objective(mean, rho, eps, A, c, 20.0, 1.5, 0.3)
    expected = torch.autograd.grad(value, [mean, rho])
    grad = A @ (mean + F.softplus(rho) * eps - c)
    found = bbb_gradients(mean, rho, grad, eps * grad, ess=20.0, prior_prec=1.5, tau=0.3)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)
    q = DiagonalGaussian({"w": mean.detach()}, {"w": F.softplus(rho.detach()) ** -2})
    p = DiagonalGaussian({"w": torch.zeros(3, dtype=F64)}, {"w": torch.full((3,), 1.5, dtype=F64)})
    assert float(q.kl(p)) == pytest.approx(kl.item(), rel=1e-12)


@pytest.mark.parametrize("samples", [1, 3])
def test_equals_torch_adam_on_mean_and_rho(samples):
    g = torch.Generator().manual_seed(1)
    A, c = (
        torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=F64)),
        torch.randn(3, generator=g).double(),
    )
    weight = torch.nn.Parameter(torch.zeros(3, dtype=F64))
    opt = BBB(
        [weight], lr=0.05, ess=20.0, rho_init=-1.0, prior_prec=1.5, tau=0.3, mc_samples=samples,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    stream = torch.Generator().manual_seed(5)
    mean = torch.zeros(3, dtype=F64, requires_grad=True)
    rho = torch.full((3,), -1.0, dtype=F64, requires_grad=True)
    adam = torch.optim.Adam([mean, rho], lr=0.05)

    def closure():
        opt.zero_grad()
        loss = 0.5 * (weight - c) @ A @ (weight - c)
        loss.backward()
        return loss

    for _ in range(30):
        opt.step(closure)
        adam.zero_grad()
        for _ in range(samples):
            eps = torch.randn(3, generator=stream, dtype=F64)
            (objective(mean, rho, eps, A, c, 20.0, 1.5, 0.3)[0] / samples).backward()
        adam.step()
    torch.testing.assert_close(weight.detach(), mean.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(opt.state[weight]["rho"], rho.detach(), rtol=1e-10, atol=1e-12)
