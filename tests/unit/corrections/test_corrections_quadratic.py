"""The quadratic around the past against dense algebra and the Gaussians it stands for, float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesrule.corrections import KroneckerSum, QuadraticAnchor
from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    KroneckerGaussian,
)
from bayesrule.posteriors.params import flatten

SHAPES = {"w": (2, 3), "b": (2,)}


def randn(seed: int, shapes=SHAPES) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(*s, generator=g, dtype=torch.float64) for n, s in shapes.items()}


def spd(n: int, seed: int) -> torch.Tensor:
    half = randn(seed, {"a": (n, n + 1)})["a"]
    return half @ half.mT


def factors(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    one = torch.ones(1, 1, dtype=torch.float64)
    return {"w": (spd(2, seed), spd(3, seed + 1)), "b": (spd(2, seed + 2), one)}


def gaussians():
    m = randn(1)
    diag = {n: t.exp() for n, t in randn(2).items()}
    yield "isotropic", IsotropicGaussian(m, 0.7)
    yield "diagonal", DiagonalGaussian(m, diag)
    yield "kronecker", KroneckerGaussian(m, factors(3), 0.4, 1.3)
    yield "kronecker, own deltas", KroneckerGaussian(m, factors(3), {"w": 0.4, "b": 0.2})
    yield "full", FullGaussian(m, spd(8, 9))


@pytest.mark.parametrize("q", [pytest.param(q, id=name) for name, q in gaussians()])
def test_of_a_gaussian_it_is_its_negative_log_density_up_to_a_constant(q):
    anchor = QuadraticAnchor.of(q)
    theta = {n: t.requires_grad_() for n, t in randn(20).items()}
    value = anchor.value(theta)
    at_mean = q.log_prob(q.mean)
    torch.testing.assert_close(value, at_mean - q.log_prob(theta))
    grads = dict(zip(theta, torch.autograd.grad(value, list(theta.values())), strict=True))
    for name, g in anchor.gradient(theta).items():
        torch.testing.assert_close(grads[name], g)
    torch.testing.assert_close(
        anchor.posterior().precision_matrix(), q.precision_matrix(), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(anchor.matrix(), q.precision_matrix(), rtol=1e-12, atol=1e-12)
    again = QuadraticAnchor.from_state(anchor.state_dict())
    assert torch.equal(again.value(theta), value)
    assert again.nbytes() == anchor.nbytes()


def test_a_sum_of_quadratics_is_one_quadratic_also_where_they_say_nothing():
    first = QuadraticAnchor(randn(1), {n: t.square() for n, t in randn(2).items()})
    second = QuadraticAnchor(randn(3), {n: t.square() for n, t in randn(4).items()}, 0.3)
    third = QuadraticAnchor(randn(5), {n: t.relu() for n, t in randn(6).items()})
    first.precision["w"][0] = second.precision["w"][0] = third.precision["w"][0] = 0.0
    both = (first + second) + third
    for seed in (7, 8):
        theta = randn(seed)
        apart = sum(a.value(theta) for a in (first, second, third))
        torch.testing.assert_close(both.value(theta), apart, rtol=1e-12, atol=1e-12)
        g = [a.gradient(theta) for a in (first, second, third)]
        for name, value in both.gradient(theta).items():
            torch.testing.assert_close(value, sum(x[name] for x in g), rtol=1e-11, atol=1e-11)
    assert both.nbytes() == first.nbytes()


def test_a_sum_of_proper_quadratics_is_the_product_of_the_gaussians():
    q, r = (
        DiagonalGaussian(randn(s), {n: t.exp() for n, t in randn(s + 1).items()}) for s in (1, 5)
    )
    both, product = (QuadraticAnchor.of(q) + QuadraticAnchor.of(r)).posterior(), q * r
    for name in SHAPES:
        torch.testing.assert_close(both.mean[name], product.mean[name])
        torch.testing.assert_close(both.precision[name], product.precision[name])


def test_kronecker_terms_add_up_to_the_dense_sum():
    S = KroneckerSum((factors(1),), 0.5).plus(factors(11))
    anchor = QuadraticAnchor(randn(1), S)
    dense = sum(
        torch.block_diag(*(torch.kron(*f[n]) for n in SHAPES)) for f in (factors(1), factors(11))
    )
    dense = dense + 0.5 * torch.eye(8, dtype=torch.float64)
    d = flatten(randn(2)) - flatten(randn(1))
    torch.testing.assert_close(anchor.value(randn(2)), 0.5 * d @ dense @ d)
    torch.testing.assert_close(anchor.posterior().precision_matrix(), dense)
    torch.testing.assert_close(anchor.to(d.device, torch.float32).matrix(), dense.float())
    with pytest.raises(Unsupported, match="diagonal"):
        anchor + anchor


def test_it_reads_a_models_parameters_and_leaves_others_free():
    model = nn.Linear(3, 2).double()
    anchor = QuadraticAnchor({"bias": torch.ones(2, dtype=torch.float64)}, 2.0)
    value = anchor.value(model)
    torch.testing.assert_close(value, (model.bias - 1).square().sum())
    value.backward()
    assert model.weight.grad is None
    torch.testing.assert_close(model.bias.grad, 2 * (model.bias.detach() - 1))


def test_what_is_no_quadratic_around_the_past_is_refused():
    with pytest.raises(ImproperDistribution, match="'b'"):
        QuadraticAnchor(randn(1), {n: t.abs() - (n == "b") * 3 for n, t in randn(2).items()})
    with pytest.raises(Unsupported, match="'w'"):
        QuadraticAnchor(randn(1), 1.0).value({"b": randn(1)["b"]})
    with pytest.raises(ImproperDistribution):
        QuadraticAnchor(randn(1), {n: torch.zeros_like(t) for n, t in randn(1).items()}).posterior()
