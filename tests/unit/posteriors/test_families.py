"""What single families have beyond the contract: SWAG moments, refusals, vector spaces."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    PointMass,
    SwagMoments,
    power_product,
)
from bayesrule.posteriors.params import check_same_schema, flatten, unflatten

SHAPES = {"a": (2, 3), "b": (2,), "c": ()}


def randn(seed: int = 0, lead: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn((*lead, *s), generator=g, dtype=torch.float64) for k, s in SHAPES.items()
    }


def test_importing_posteriors_needs_torch_only():
    code = (
        "import sys, bayesrule.posteriors as p; "
        "bad = {'safetensors', 'scipy', 'lightning', 'torchmetrics', 'transformers', 'sklearn'}; "
        "assert not bad & set(sys.modules), bad & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_flatten_and_unflatten_invert():
    for lead in ((), (4,), (4, 5)):
        params = randn(1, lead)
        flat = flatten(params, leading=len(lead))
        assert flat.shape == (*lead, 9)
        back = unflatten(flat, randn())
        assert all(torch.equal(back[k], params[k]) for k in params)
    check_same_schema(randn(), randn(2, (3,)), leading=1)


def test_swag_equals_the_moments_of_all_iterates():
    iterates = [randn(s) for s in range(12)]
    moments = SwagMoments(rank=5)
    for theta in iterates:
        moments.collect(theta)
    q = moments.posterior()
    stack = torch.stack([flatten(t) for t in iterates])
    torch.testing.assert_close(flatten(q.mean), stack.mean(0))
    torch.testing.assert_close(flatten(q.var), 0.5 * stack.var(0, correction=0))
    running = torch.stack([stack[: i + 1].mean(0) for i in range(12)])
    D = (stack - running)[-5:] / (2 * 4) ** 0.5
    expected = torch.diag(0.5 * stack.var(0, correction=0)) + D.T @ D
    torch.testing.assert_close(q.covariance_matrix(), expected)
    assert q.rank == 5
    torch.testing.assert_close(
        q.precision_matrix() @ q.covariance_matrix(), torch.eye(9, dtype=torch.float64)
    )


def test_swag_resumes_bit_equal():
    through, first = SwagMoments(3), SwagMoments(3)
    for s in range(4):
        through.collect(randn(s))
        first.collect(randn(s))
    second = SwagMoments(2)
    second.load_state_dict(first.state_dict())
    for s in range(4, 7):
        through.collect(randn(s))
        second.collect(randn(s))
    a, b = through.posterior(), second.posterior()
    for group in ("mean", "var", "deviations"):
        left, right = a._groups()[group], b._groups()[group]
        assert all(torch.equal(left[k], right[k]) for k in left)


def test_swag_of_identical_iterates_is_the_iterate():
    moments = SwagMoments()
    for _ in range(4):
        moments.collect(randn(1))
    draw = moments.posterior().sample(torch.Generator().manual_seed(0))
    for name, tensor in randn(1).items():
        torch.testing.assert_close(draw[name], tensor, rtol=0, atol=1e-12)


def test_swag_refuses_too_little():
    with pytest.raises(Unsupported, match="at least 2"):
        SwagMoments(1)
    moments = SwagMoments()
    moments.collect(randn())
    with pytest.raises(Unsupported, match="two iterates, not 1"):
        moments.posterior()


def test_singular_low_rank_draws_but_has_no_density():
    zero = {k: torch.zeros_like(t) for k, t in randn().items()}
    q = LowRankGaussian(randn(), zero, randn(2, (1,)))
    draw = q.sample(torch.Generator().manual_seed(0))
    d = flatten(draw) - flatten(q.mean)
    z = d / flatten(randn(2))
    torch.testing.assert_close(z, z[:1].expand(9))
    with pytest.raises(ImproperDistribution, match="'a' is zero"):
        q.entropy()


def factors(seed: int) -> dict:
    g = torch.Generator().manual_seed(seed)
    result = {}
    for name, shape in SHAPES.items():
        r = shape[0] if shape else 1
        c = shape[1] if len(shape) > 1 else 1
        G, A = (torch.randn(n, n + 1, generator=g, dtype=torch.float64) for n in (r, c))
        result[name] = (G @ G.T, A @ A.T)
    return result


def test_kronecker_of_rank_deficient_factors_needs_delta():
    thin = factors(0)
    thin["a"] = (thin["a"][0], torch.zeros(3, 3, dtype=torch.float64))
    with pytest.raises(ImproperDistribution, match="'a'"):
        KroneckerGaussian(randn(), thin)
    q = KroneckerGaussian(randn(), thin, {"a": 2.0, "b": 0.1, "c": 0.1})
    torch.testing.assert_close(q.variance()["a"], torch.full((2, 3), 0.5).double())


def test_kronecker_refuses_what_is_not_exact():
    q, r = (KroneckerGaussian(randn(s), factors(s), 0.3) for s in (0, 1))
    with pytest.raises(Unsupported, match="equal factors"):
        q * r
    with pytest.raises(Unsupported, match="equal factors"):
        q / r
    dense = FullGaussian.from_gaussian(q) * FullGaussian.from_gaussian(r)
    torch.testing.assert_close(
        dense.precision_matrix(), q.precision_matrix() + r.precision_matrix()
    )
    with pytest.raises(Unsupported, match="expectation"):
        q.expectation()
    with pytest.raises(Unsupported, match="expectation"):
        KroneckerGaussian.from_expectation(None)
    with pytest.raises(Unsupported, match="factors="):
        KroneckerGaussian.from_natural(q.natural())
    divided = q / IsotropicGaussian(randn(5), 0.2)
    torch.testing.assert_close(divided.delta["a"], torch.tensor(0.1).double())
    with pytest.raises(ImproperDistribution, match=r"'a'|'b'|'c'"):
        q / IsotropicGaussian(randn(5), 1e6)


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda f: f.pop("b"), "no factors for 'b'"),
        (lambda f: f.update(d=f["b"]), "no mean for 'd'"),
        (lambda f: f.update(b=f["a"]), r"'b' of shape \(2,\)"),
    ],
)
def test_kronecker_factors_must_fit(broken, match):
    f = factors(0)
    broken(f)
    with pytest.raises(Unsupported, match=match):
        KroneckerGaussian(randn(), f, 1.0)


def test_kronecker_factors_must_be_semi_definite():
    f = factors(0)
    f["b"] = (-f["b"][0], f["b"][1])
    with pytest.raises(ImproperDistribution, match="semi-definite"):
        KroneckerGaussian(randn(), f, 1e3)


def test_full_gaussian_refuses_asymmetry_and_wrong_covariances():
    S = torch.eye(9, dtype=torch.float64)
    S[0, 1] = 0.5
    with pytest.raises(ImproperDistribution, match="symmetric"):
        FullGaussian(randn(), S)
    with pytest.raises(ImproperDistribution, match=r"covariance.*smallest eigenvalue is -1"):
        FullGaussian.from_covariance(randn(), -torch.eye(9).double())
    with pytest.raises(Unsupported, match="9 parameters"):
        FullGaussian.from_covariance(randn(), torch.eye(3).double())


def test_natural_parameters_are_a_vector_space():
    q, r = (
        DiagonalGaussian(randn(s), {k: t.exp() for k, t in randn(s + 9).items()}) for s in (0, 1)
    )
    a, b = q.natural(), r.natural()
    for left, right in (((a + b) - b, a), (2.0 * a, a + a), (a * 2.0 / 2.0, a), (-(a * -1.0), a)):
        torch.testing.assert_close(left.nat1, right.nat1)
        torch.testing.assert_close(left.nat2, right.nat2)
    with pytest.raises(Unsupported, match="different families"):
        a + IsotropicGaussian(randn(), 1.0).natural()
    with pytest.raises(Unsupported, match="Natural and Expectation"):
        a + q.expectation()
    with pytest.raises(Unsupported, match="'c'"):
        (
            a
            + DiagonalGaussian(
                {k: t for k, t in randn().items() if k != "c"},
                {k: t.exp() for k, t in randn().items() if k != "c"},
            ).natural()
        )


def test_buffers_of_products_come_from_the_first_that_has_any():
    plain = IsotropicGaussian(randn(), 1.0)
    left, right = (IsotropicGaussian(randn(), 1.0, buffers={"n": torch.tensor(k)}) for k in (1, 2))
    assert (left * right).buffers["n"] == 1
    assert (plain * right).buffers["n"] == 2
    assert (left**2).buffers["n"] == 1
    assert power_product([(plain, 1.0), (right, 0.5)]).buffers["n"] == 2
    with pytest.raises(Unsupported, match="at least one factor"):
        power_product([])
    with pytest.raises(Unsupported, match="natural parameters"):
        power_product([(plain, 1.0), (PointMass(randn()), 1.0)])


def test_a_cpu_generator_gives_the_same_draw_in_every_family_of_the_same_variance():
    mean = randn()
    iso = IsotropicGaussian(mean, 4.0)
    diag = DiagonalGaussian(mean, {k: torch.full_like(t, 4.0) for k, t in mean.items()})
    a, b = (q.sample(torch.Generator().manual_seed(0), 3) for q in (iso, diag))
    torch.testing.assert_close(a, b)
