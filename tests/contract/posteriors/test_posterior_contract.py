"""Every posterior family keeps the same contract; the table is in posterior_cases.py."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import posterior_cases as table
import pytest
import torch
from posterior_cases import BY_NAME, CASES, SCHEMA, flat, having, lacking

from bayesrule.errors import CorruptFile, ImproperDistribution, Unsupported
from bayesrule.posteriors import (
    FAMILIES,
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    LowRankGaussian,
    Mixture,
    PointMass,
    load_posterior,
    power_product,
    save_posterior,
)
from bayesrule.posteriors.params import unflatten

OTHER_SHAPES = "same parameters|differ in the shape"  # of families with a schema of their own
LAPACK = {"full", "kronecker", "mixture", "gauss_markov", "wishart"}


def walk(*features: str):
    return pytest.mark.parametrize("case", having(*features), ids=str)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(x: np.ndarray, schema) -> dict[str, torch.Tensor]:
    """A vector as named parameters."""
    return unflatten(torch.as_tensor(np.asarray(x, dtype=np.float64)), table.tensors(schema, 0))


def partner(case, schema, seed=8):
    """Another member that `case` can be combined with, and what it must be."""
    other = BY_NAME[case.partner]
    return other.build(schema, seed), other.reference(schema, seed)


def one_dimensional(case):
    """The member with one degree of freedom, its reference, and its log density of a number."""
    q, ref = case.build(case.one_d, 3), case.reference(case.one_d, 3)
    return q, ref, lambda x: q.log_prob(at(ref.lift(x), case.one_d)).item()


def close(left, right, tol=1e-10) -> bool:
    return all(torch.allclose(left[k], right[k], rtol=tol, atol=tol) for k in left)


def bit_equal(left, right) -> bool:
    a, b = left._groups(), right._groups()
    return (
        left._hyper() == right._hyper()
        and a.keys() == b.keys()
        and all(list(a[g]) == list(b[g]) for g in a)
        and all(
            a[g][k].dtype == b[g][k].dtype and torch.equal(a[g][k], b[g][k])
            for g in a
            for k in a[g]
        )
    )


def test_every_family_has_a_row():
    built = {type(case.build(case.schema, 3)).family for case in CASES}
    assert built == set(FAMILIES)


# --- draws ---------------------------------------------------------------------------------------


@walk("draws")
def test_draws_have_the_mean_and_covariance_of_the_state(case):
    n = 20_000
    q, ref = case.build(case.schema, 3), case.reference(case.schema, 3)
    mean, cov = ref.mean, ref.cov
    np.testing.assert_allclose(flat(q.mean), mean, atol=1e-12)
    draws = q.sample(gen(), n)
    x = np.concatenate([t.numpy().reshape(n, -1) for t in draws.values()], axis=1)
    d = x - mean
    products = d[:, :, None] * d[:, None, :]
    for estimate, truth, spread in (
        (x.mean(0), mean, x.std(0)),
        (products.mean(0), cov, products.std(0)),
    ):
        # Largest of at most 72 dependent z values: |z| > 4.5 has probability below 5e-4.
        assert np.all(np.abs(estimate - truth) <= 4.5 * spread / np.sqrt(n) + 1e-12)


@walk("closed")
def test_draws_have_the_distribution_of_the_reference(case):
    draws = case.build(case.schema, 3).sample(gen(1), 20_000)
    x = np.concatenate([t.numpy().reshape(20_000, -1) for t in draws.values()], axis=1)
    assert min(case.reference(case.schema, 3).p_values(x)) > 2e-4


@walk("draws")
def test_draws_come_from_the_generator_alone(case):
    q = case.build(case.schema, 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = q.sample(gen(4), 3), q.sample(gen(4), 3), q.sample(gen(5), 3)
    single, single_again = q.sample(gen(4)), q.sample(gen(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert all(torch.equal(single[k], single_again[k]) for k in one)
    schema = case.schema
    assert {k: tuple(t.shape) for k, t in one.items()} == {k: (3, *s) for k, s in schema.items()}
    assert {k: tuple(t.shape) for k, t in single.items()} == schema
    if q.support() is None:
        assert not all(torch.equal(one[k], other[k]) for k in one)


@walk("draws")
def test_a_draw_without_a_generator_uses_the_default_one(case):
    q = case.build(case.schema, 3)
    torch.manual_seed(9)
    first = q.sample()
    torch.manual_seed(9)
    second = q.sample()
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_states_carry_the_buffers(case):
    state = case.build(case.schema, 3).sample_state(gen())
    assert torch.equal(state["running"], table.BUFFERS["running"])
    assert state["count"].dtype == torch.int64
    assert set(state) == set(SCHEMA) | set(table.BUFFERS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_finite_support_has_the_right_mean(case):
    q = case.build(case.schema, 3)
    support = q.support()
    assert (support is not None) == (case.name in {"point_mass", "ensemble"})
    if support is None:
        return
    assert sum(w for w, _ in support) == pytest.approx(1.0, abs=1e-15)
    mean = {k: sum(w * state[k] for w, state in support) for k in SCHEMA}
    assert close(mean, q.mean, 1e-14)


# --- density, entropy, divergence ----------------------------------------------------------------


@walk("mode")
def test_the_mode_has_the_largest_density(case):
    q = case.build(case.schema, 3)
    np.testing.assert_allclose(flat(q.mode), case.reference(case.schema, 3).mode, atol=1e-12)
    assert not q.own_mode or not close(q.mode, q.mean)
    if "linear" in case.features:  # families of networks' parameters: a mode of its own is said
        assert q.own_mode == (not close(q.mode, q.mean))
    assert set(q.mode_state()) == set(SCHEMA) | set(table.BUFFERS)
    if "density" in case.features:
        ref = case.reference(case.schema, 3)
        for seed in range(9):
            assert q.log_prob(at(ref.point(seed), case.schema)) <= q.log_prob(q.mode)


@pytest.mark.parametrize("case", lacking("mode"), ids=str)
def test_an_unknown_mode_is_refused(case):
    q = case.build(case.schema, 3)
    assert not q.own_mode
    with pytest.raises(Unsupported, match="mode"):
        q.mode  # noqa: B018


@walk("density")
def test_density_integrates_to_one_in_one_dimension(case):
    _, ref, log_prob = one_dimensional(case)
    assert abs(ref.integrate(lambda x: np.exp(log_prob(x))) - 1.0) < 1e-7


@walk("density")
def test_density_equals_the_reference_in_many_dimensions(case):
    q, ref = case.build(case.schema, 3), case.reference(case.schema, 3)
    for seed in range(4):
        theta = ref.point(50 + seed)
        log_prob = q.log_prob(at(theta, case.schema))
        assert log_prob.item() == pytest.approx(ref.log_prob(theta), abs=1e-9)
        assert log_prob.ndim == 0
        assert log_prob.dtype == torch.float64


@walk("smooth")
def test_density_has_a_gradient(case):
    q, ref = case.build(case.schema, 3), case.reference(case.schema, 3)
    x, h = ref.point(51), 1e-5
    theta = {k: t.requires_grad_() for k, t in at(x, case.schema).items()}
    q.log_prob(theta).backward()
    grad = flat({k: t.grad for k, t in theta.items()})
    for p in range(len(x)):
        e = np.eye(len(x))[p] * h
        slope = (ref.log_prob(x + e) - ref.log_prob(x - e)) / (2 * h)
        assert grad[p] == pytest.approx(slope, abs=1e-6)


@walk("closed")
def test_entropy_equals_the_reference_and_its_definition(case):
    expected = case.reference(case.schema, 3).entropy()
    assert case.build(case.schema, 3).entropy().item() == pytest.approx(expected, abs=1e-9)
    q, ref, log_prob = one_dimensional(case)
    value = ref.integrate(lambda x: -np.exp(log_prob(x)) * log_prob(x), 30.0)
    assert q.entropy().item() == pytest.approx(value, abs=1e-6)


@walk("closed")
@pytest.mark.parametrize("other", having("closed"), ids=str)
def test_divergence_equals_the_reference_or_is_refused(case, other):
    q, p = case.build(case.schema, 3), other.build(other.schema, 8)
    if q.space != p.space:
        with pytest.raises(Unsupported, match=f"{type(p).__name__}|{OTHER_SHAPES}"):
            q.kl(p)
        return
    expected = case.reference(case.schema, 3).kl(other.reference(other.schema, 8))
    assert q.kl(p).item() == pytest.approx(expected, rel=1e-9)
    assert q.kl(case.build(case.schema, 3)).item() == pytest.approx(0.0, abs=1e-10)


@walk("closed")
def test_the_order_of_the_names_does_not_matter(case):
    (weight, _), (bias, shape) = case.schema.items()
    q, (p, ref) = case.build(case.schema, 3), partner(case, {bias: shape, weight: _})
    first = int(np.prod(shape))
    forwards = ref.permuted(np.r_[first:8, 0:first])  # bias, weight -> weight, bias
    assert q.kl(p).item() == pytest.approx(case.reference(case.schema, 3).kl(forwards), rel=1e-9)
    theta = forwards.point(60)
    log_prob = p.log_prob(at(theta, case.schema))
    assert log_prob.item() == pytest.approx(forwards.log_prob(theta), abs=1e-9)


@walk("density")
def test_monte_carlo_entropy_and_divergence(case):
    q, ref, _ = one_dimensional(case)
    p, other = partner(case, case.one_d)

    def entropy(x: float) -> float:
        log_p = ref.log_prob(ref.lift(x))
        return -np.exp(log_p) * log_p

    def divergence(x: float) -> float:
        log_p = ref.log_prob(ref.lift(x))
        return np.exp(log_p) * (log_p - other.log_prob(ref.lift(x)))

    for estimate, integrand in (
        (q.entropy_mc(gen(), 4000), entropy),
        (q.kl_mc(p, gen(), 4000), divergence),
    ):
        assert estimate.item() == pytest.approx(ref.integrate(integrand, 15.0), abs=0.15)


@pytest.mark.parametrize("case", lacking("closed"), ids=str)
def test_what_has_no_closed_form_says_so(case):
    q = case.build(case.schema, 3)
    with pytest.raises(Unsupported):
        q.entropy()
    with pytest.raises(Unsupported):
        q.kl(table.diagonal(SCHEMA, 4))
    if "density" not in case.features:
        with pytest.raises(Unsupported):
            q.log_prob(table.tensors(SCHEMA, 1))


# --- natural and expectation parameters, algebra -------------------------------------------------


@walk("expectation")
def test_natural_and_expectation_maps_invert(case):
    q = case.build(case.schema, 3)
    family = type(q)
    for back in (
        family.from_natural(q.natural(), buffers=q.buffers),
        family.from_expectation(q.expectation(), buffers=q.buffers),
    ):
        assert close(back.mean, q.mean)
        if "linear" in case.features:
            assert close(back.variance(), q.variance())
        assert back.kl(q).item() == pytest.approx(0.0, abs=1e-10)
        assert set(back.buffers) == set(table.BUFFERS)


def flat_tree(tree) -> np.ndarray:
    if tree == {}:
        return np.empty(0)
    return flat(tree) if isinstance(tree, dict) else tree.numpy().ravel()


@walk("expectation")
def test_expectation_parameters_are_the_expected_statistics(case):
    q, ref = case.build(case.schema, 3), case.reference(case.schema, 3)
    mu = q.expectation()
    actual = np.concatenate([flat(mu.mean1), flat_tree(mu.mean2)])
    if hasattr(ref, "expected_statistics"):
        np.testing.assert_allclose(actual, ref.expected_statistics(), atol=1e-7)
        return
    second = ref.cov + np.outer(ref.mean, ref.mean)
    expected = {
        "isotropic": [np.trace(second)],
        "diagonal": np.diag(second),
        "full": second.ravel(),
        # weight: two states of three; bias: two of one, in the order (x_t, x_t), (x_t+1, x_t)
        "gauss_markov": np.concatenate(
            [
                *(second[i : i + 3, i : i + 3].ravel() for i in (0, 3)),
                second[3:6, 0:3].ravel(),
                *([second[6, 6]], [second[7, 7]], [second[7, 6]]),
            ]
        ),
        "bernoulli": [],  # the second statistic would be constant
        "categorical": [],
    }[case.name]
    first = ref.mean if case.name != "categorical" else ref.mean[[0, 1, 3, 4, 6]]  # minimal
    np.testing.assert_allclose(actual, np.concatenate([first, expected]), atol=1e-10)


@walk("expectation")
def test_the_product_of_the_two_parameters_is_the_expected_exponent(case):
    """E_q[log q] - E_q[log r] = <lambda_q - lambda_r, mu_q> + constants of q and r alone."""
    q, r = case.build(case.schema, 3), case.build(case.schema, 8)
    other = case.build(case.schema, 9)

    def gap(p) -> float:  # of KL(p || q) - KL(p || r), whose constants do not depend on p
        inner = (r.natural() - q.natural()).dot(p.expectation())
        return (p.kl(q) - p.kl(r) - inner).item()

    assert gap(q) == pytest.approx(gap(other), abs=1e-9)


@walk("natural")
def test_algebra_laws(case):
    q, r = case.build(case.schema, 3), case.build(case.schema, 8)
    for left, right in (
        (q * r / r, q),
        (q * r, r * q),
        (q**0.3 * q**0.7, q),
        (q**2.0, q * q),
        ((q * r) ** 0.5, q**0.5 * r**0.5),
        (q**1.0, q),
        (power_product([(q, 2.0), (r, 1.0), (q, -1.0)]), q * r),
    ):
        assert type(left) is type(right)
        assert close(left.mean, right.mean, 1e-9)
        assert left.kl(right).item() == pytest.approx(0.0, abs=1e-9)


@walk("natural")
@pytest.mark.parametrize("other", having("natural"), ids=str)
def test_products_multiply_densities_or_are_refused(case, other):
    q, r = case.build(case.schema, 3), other.build(other.schema, 8)
    if q.space != r.space:
        with pytest.raises(Unsupported, match=f"lives on|{OTHER_SHAPES}"):
            q * r
        return
    if {case.name, other.name} in ({"kronecker", "diagonal"}, {"kronecker", "gauss_markov"}):
        with pytest.raises(Unsupported, match="FullGaussian"):
            q * r
        return
    product = q * r
    ref = case.reference(case.schema, 3)
    one, two = (at(ref.point(seed), case.schema) for seed in (61, 62))

    def gap(p) -> float:
        return (p.log_prob(one) - p.log_prob(two)).item()

    assert gap(product) == pytest.approx(gap(q) + gap(r), abs=1e-9)
    assert gap(q**0.25) == pytest.approx(0.25 * gap(q), abs=1e-9)
    ratio = product / r
    assert gap(ratio) == pytest.approx(gap(q), abs=1e-9)
    order = ["isotropic", "kronecker", "diagonal", "gauss_markov", "full"]
    gaussian = case.name in order
    largest = max((case, other), key=lambda c: order.index(c.name)) if gaussian else case
    assert product.family == type(largest.build(SCHEMA, 3)).family


def test_conjugate_linear_regression_is_exact():
    g = gen(2)
    N, P, noise = 30, 8, 0.4
    X = torch.randn(N, P, generator=g, dtype=torch.float64)
    y = X @ torch.randn(P, generator=g, dtype=torch.float64) + noise
    like = table.tensors(SCHEMA, 0)
    site = FullGaussian(unflatten(torch.linalg.solve(X.T @ X, X.T @ y), like), X.T @ X / noise**2)
    zero = {k: torch.zeros_like(t) for k, t in like.items()}
    for prior, S0 in (
        (IsotropicGaussian(zero, 2.0), 2.0 * torch.eye(P, dtype=torch.float64)),
        (
            table.diagonal(SCHEMA, 4),
            torch.diag(torch.tensor(flat(table.tensors(SCHEMA, 104, 0.4)))),
        ),
        (table.full(SCHEMA, 4), table._spd(P, 4)),
    ):
        S = S0 + X.T @ X / noise**2
        m0 = torch.tensor(flat(prior.mean))
        m = torch.linalg.solve(S, S0 @ m0 + X.T @ y / noise**2)
        q = prior * site
        np.testing.assert_allclose(flat(q.mean), m.numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(q.precision_matrix(), S.numpy(), rtol=1e-12, atol=1e-12)
        # One data point at a time, sites improper on their own, kept as natural parameters.
        lam = FullGaussian.from_gaussian(prior).natural()
        for x_P, y_n in zip(X, y, strict=True):
            nat1 = unflatten(x_P * y_n / noise**2, like)
            lam = lam + type(lam)(nat1, -0.5 * torch.outer(x_P, x_P) / noise**2)
        one_by_one = FullGaussian.from_natural(lam)
        np.testing.assert_allclose(flat(one_by_one.mean), m.numpy(), rtol=1e-11, atol=1e-11)


def test_merging_is_prior_times_tempered_ratios():
    prior = table.isotropic(SCHEMA, 3)
    tasks = [prior * table.diagonal(SCHEMA, s) for s in (5, 6, 7)]
    merged = prior
    for q in tasks:
        merged = merged * (q / prior) ** 0.5
    H0 = prior.precision.item()
    S = np.array([flat(q.precision) for q in tasks])
    M = np.array([flat(q.mean) for q in tasks])
    th0 = flat(prior.mean)
    # gradient-matching-merging eq. 5: th0 + sum_t a_t Hbar^-1 (H0 + H_t)(th_t - th0)
    Hbar = H0 + 0.5 * (S - H0).sum(0)
    expected = th0 + 0.5 * (S * (M - th0)).sum(0) / Hbar
    np.testing.assert_allclose(flat(merged.mean), expected, rtol=1e-12)
    np.testing.assert_allclose(flat(merged.precision), Hbar, rtol=1e-12)
    assert close(
        power_product([(prior, 1 - 1.5), *((q, 0.5) for q in tasks)]).mean, merged.mean, 1e-10
    )


@walk("cone")
def test_improper_results_are_refused_by_name(case):
    q = case.build(case.schema, 3)
    improper = [lambda: q / q**2, lambda: q**-1]
    if "uniform" not in case.features:
        improper += [lambda: q / q, lambda: q**0]
    for make in improper:
        with pytest.raises(ImproperDistribution, match=r"layer\.weight|all parameters"):
            make()
    site = q.natural() - (q**2).natural()
    back = q._rebuild(site + (q**2).natural(), {})
    assert back.kl(q).item() == pytest.approx(0.0, abs=1e-9)


@walk("uniform")
def test_nothing_is_the_uniform_distribution(case):
    q, ref = case.build(case.schema, 3), case.reference(case.schema, 3)
    for uniform in (q / q, q**0):
        assert uniform.entropy().item() == pytest.approx(ref.uniform_entropy(), abs=1e-12)


@pytest.mark.parametrize(
    "case", [c for c in having("natural") if "cone" not in c.features], ids=str
)
def test_where_every_natural_parameter_is_proper_nothing_is_refused(case):
    q, ref = case.build(case.schema, 3), case.reference(case.schema, 3)
    one, two = (at(ref.point(seed), case.schema) for seed in (61, 62))
    inverse = q**-1
    gap = q.log_prob(one) - q.log_prob(two)
    assert (inverse.log_prob(two) - inverse.log_prob(one)).item() == pytest.approx(gap.item())
    assert close((q / q**2).mean, inverse.mean, 1e-12)
    for power in (float("inf"), float("nan")):
        with pytest.raises(ImproperDistribution, match=r"'layer\.weight'"):
            q**power


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_improper_states_are_refused_by_name(bad):
    precision = table.tensors(SCHEMA, 1, 0.4)
    precision["layer.bias"][1] = bad
    with pytest.raises(ImproperDistribution, match=r"'layer\.bias'"):
        DiagonalGaussian(table.tensors(SCHEMA, 0), precision)
    with pytest.raises(ImproperDistribution):
        IsotropicGaussian(table.tensors(SCHEMA, 0), bad)
    S = torch.eye(8, dtype=torch.float64)
    S[3, 3] = bad
    with pytest.raises(ImproperDistribution):
        FullGaussian(table.tensors(SCHEMA, 0), S)


@pytest.mark.parametrize("case", lacking("natural"), ids=str)
def test_algebra_is_refused_with_a_sentence(case):
    q, r = case.build(case.schema, 3), table.diagonal(SCHEMA, 4)
    for refused in (lambda: q * r, lambda: q / r, lambda: q**0.5, lambda: r * q, lambda: r / q):
        with pytest.raises(Unsupported, match=r"natural parameters"):
            refused()


@walk("density")
def test_mismatches_name_the_first_differing_key(case):
    q = case.build(case.schema, 3)
    weight, bias = case.schema.values()
    renamed, _ = partner(case, {"layer.weight": weight, "other.bias": bias})
    reshaped, _ = partner(case, {"layer.weight": weight, "layer.bias": tuple(n + 1 for n in bias)})
    for wrong in (renamed, reshaped):
        with pytest.raises(Unsupported, match=r"'layer\.bias'"):
            q.log_prob(wrong.mean)
        with pytest.raises(Unsupported, match=r"'layer\.bias'"):
            q.kl_mc(wrong, gen(), 2)
        if "closed" in case.features:
            with pytest.raises(Unsupported, match=r"'layer\.bias'"):
                q.kl(wrong)
        if "natural" in case.features:
            with pytest.raises(Unsupported, match=r"'layer\.bias'"):
                q * wrong
    with pytest.raises(Unsupported, match=r"'extra'.*only in the second"):
        q.log_prob({**q.mean, "extra": torch.zeros(1)})


# --- linearised outputs --------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_functional_variance_is_the_dense_product(case):
    q = case.build(case.schema, 3)
    jac = table.tensors({k: (4, 3, *s) for k, s in case.schema.items()}, 70)
    if "linear" not in case.features:
        with pytest.raises(Unsupported):
            q.functional_variance(jac)
        return
    cov = case.reference(case.schema, 3).cov
    J = np.concatenate([t.numpy().reshape(4, 3, -1) for t in jac.values()], axis=2)
    np.testing.assert_allclose(
        q.functional_variance(jac).numpy(), J @ cov @ J.transpose(0, 2, 1), atol=1e-9
    )


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_do_not_change_with_their_sources(case):
    q = case.build(case.schema, 3)
    state, mean = q.sample_state(gen()), q.mean
    mean.clear()
    for tensor in state.values():
        assert not tensor.requires_grad
    assert tuple(q.mean) == q.names == tuple(SCHEMA)
    source = table.tensors(SCHEMA, 3)
    copied = PointMass(source)
    source["layer.bias"].zero_()
    assert not torch.equal(copied.mean["layer.bias"], source["layer.bias"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_to_keeps_the_distribution(case):
    q = case.build(case.schema, 3)
    narrow = q.to(dtype=torch.float32)
    assert type(narrow) is type(q)
    assert all(t.dtype == torch.float32 for t in narrow.mean.values())
    assert narrow.buffers["count"].dtype == torch.int64
    assert close(narrow.to(dtype=torch.float64).mean, q.mean, 1e-6)
    assert bit_equal(q.to(device="cpu"), q)
    if "closed" in case.features:
        assert narrow.to(dtype=torch.float64).kl(q).item() == pytest.approx(0.0, abs=1e-5)
        assert narrow.entropy().dtype == torch.float32


@pytest.mark.parametrize("case", CASES, ids=str)
def test_repr_is_one_line(case):
    assert "8 parameters" in repr(case.build(case.schema, 3))


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_files_round_trip_bit_equal(case, dtype, tmp_path):
    if dtype == torch.bfloat16 and case.name in LAPACK:
        pytest.skip("LAPACK has no bfloat16")
    q = case.build(case.schema, 3).to(dtype=dtype)
    path = save_posterior(q, tmp_path / "run")
    assert path == tmp_path / "run" / "posterior.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "posterior.json",
        "posterior.safetensors",
    ]
    back = load_posterior(tmp_path / "run")
    assert type(back) is type(q)
    assert bit_equal(back, q)
    save_posterior(back, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_damaged_files_are_noticed(case, tmp_path):
    path = save_posterior(case.build(case.schema, 3), tmp_path)
    meta = path.with_suffix(".json")
    for file in (path, meta):
        whole = file.read_bytes()
        for damaged in (
            whole[: len(whole) // 2],
            b"",
            *(
                whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :]
                for i in (1, len(whole) // 3, len(whole) - 3)
            ),
        ):
            file.write_bytes(damaged)
            with pytest.raises(CorruptFile, match="posterior"):
                load_posterior(tmp_path)
        file.unlink()
        with pytest.raises(CorruptFile, match="missing"):
            load_posterior(tmp_path)
        file.write_bytes(whole)
    assert bit_equal(load_posterior(tmp_path), case.build(case.schema, 3))


class _Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile-code-ran",))


def test_hostile_payloads_do_not_run(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.chdir(tmp_path)
    path = save_posterior(table.diagonal(SCHEMA, 3), tmp_path)
    torch.save(_Hostile(), tmp_path / "zip")
    for payload in (pickle.dumps(_Hostile()), (tmp_path / "zip").read_bytes()):
        path.write_bytes(payload)
        meta = json.loads(path.with_suffix(".json").read_text())
        meta["tensors_sha256"] = hashlib.sha256(payload).hexdigest()
        del meta["sha256"]
        meta["sha256"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps(meta))
        with pytest.raises(CorruptFile, match="not a safetensors file"):
            load_posterior(tmp_path)
    assert not (tmp_path / "hostile-code-ran").exists()
    meta["family"] = "os.system"
    del meta["sha256"]
    meta["sha256"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(meta))
    with pytest.raises(CorruptFile, match="unknown family"):
        load_posterior(tmp_path)


def test_a_failed_write_leaves_the_file_before(tmp_path, monkeypatch):
    q = table.diagonal(SCHEMA, 3)
    path = save_posterior(q, tmp_path)

    def fail(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_posterior(table.diagonal(SCHEMA, 4), tmp_path)
    monkeypatch.undo()
    assert bit_equal(load_posterior(path), q)
    assert len(list(tmp_path.iterdir())) == 2


# --- construction errors -------------------------------------------------------------------------


def test_constructors_explain_themselves():
    mean = table.tensors(SCHEMA, 0)
    with pytest.raises(Unsupported, match="at least one"):
        PointMass({})
    with pytest.raises(Unsupported, match=r"'n'.*int64"):
        PointMass({"n": torch.tensor([1])})
    with pytest.raises(Unsupported, match="one precision"):
        IsotropicGaussian(mean, torch.ones(3))
    with pytest.raises(Unsupported, match=r"\(8, 8\)"):
        FullGaussian(mean, torch.eye(7))
    with pytest.raises(Unsupported, match="1 weights"):
        Mixture([PointMass(mean), PointMass(mean)], [1.0])
    with pytest.raises(ImproperDistribution, match="weights"):
        Mixture([PointMass(mean)], [-1.0])
    with pytest.raises(Unsupported, match="forward pass"):
        Mixture([table.dropout(SCHEMA, 1)])
    negative = {k: -torch.ones_like(t) for k, t in mean.items()}
    with pytest.raises(ImproperDistribution, match=r"layer\.weight"):
        LowRankGaussian(mean, negative, {k: t.unsqueeze(0) for k, t in mean.items()})
