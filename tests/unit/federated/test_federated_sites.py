"""Identities of Bayesian ADMM, Bregman ADMM, PVI, FedLap and FedLap-Cov."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from federated_cases import (
    DELTA,
    joint_gradient,
    joint_quadratic,
    logistic_data,
    logistic_losses,
    normal,
    prior,
    quadratics,
    solvers,
)
from sklearn.linear_model import LogisticRegression

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.federated import (
    ADMM,
    PVI,
    BayesianADMM,
    BregmanADMM,
    FedADMM,
    FedDyn,
    FedLap,
    FedLapCov,
    LinearModel,
    Quadratic,
    newton,
    newton_solver,
    run_rounds,
    von,
)
from bayesrule.federated.local import LocalObjective
from bayesrule.likelihoods import Categorical
from bayesrule.posteriors import DiagonalGaussian, FullGaussian, IsotropicGaussian


def states(algorithm, q0, losses, rounds, num_items=1):
    start = algorithm.start(q0, len(losses))
    return list(run_rounds(algorithm, start, solvers(losses, num_items), rounds))


def mean(state):
    return state.posterior.mean["w"]


def distance(state, target):
    return float((mean(state) - target).norm() / target.norm())


def test_full_covariance_is_exact_after_one_round_on_quadratics_and_stays():
    losses = quadratics()
    m, S = joint_quadratic(losses)
    found = states(BayesianADMM(rho=1 / 3), prior("full", 4), losses, 4)
    for state in found:
        assert distance(state, m) < 1e-10
        torch.testing.assert_close(state.posterior.precision, S, rtol=1e-10, atol=0)


def test_other_rho_is_not_exact_after_one_round():
    losses = quadratics()
    m, _ = joint_quadratic(losses)
    assert distance(states(BayesianADMM(rho=1.0), prior("full", 4), losses, 1)[0], m) > 1e-2


def test_pvi_is_exact_after_one_round_from_any_precision():
    losses = quadratics()
    m, S = joint_quadratic(losses)
    algorithm = PVI()
    A = normal(4, 4, seed=9)
    elsewhere = FullGaussian({"w": normal(4, seed=8)}, A @ A.mT + torch.eye(4, dtype=A.dtype))
    start = replace(algorithm.start(prior("full", 4), 3), posterior=elsewhere)
    state = next(run_rounds(algorithm, start, solvers(losses), 1))
    assert distance(state, m) < 1e-12
    torch.testing.assert_close(state.posterior.precision, S, rtol=1e-12, atol=0)


def test_precision_error_contracts_by_one_minus_alpha_from_other_starts():
    losses = quadratics()
    _, S = joint_quadratic(losses)
    algorithm = BayesianADMM(rho=1 / 3)
    start = replace(algorithm.start(prior("full", 4), 3), posterior=prior("full", 4, delta=5.0))
    found = list(run_rounds(algorithm, start, solvers(losses), 6))
    errors = [state.posterior.precision - S for state in found]
    for before, after in pairwise(errors[1:]):
        torch.testing.assert_close(after, 0.5 * before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rho", [0.3, 1.0])
def test_isotropic_bayesian_admm_is_federated_admm_iterate_by_iterate(rho):
    losses = logistic_losses()
    ours = states(BayesianADMM(rho=rho), prior("isotropic", 4), losses, 12)
    theirs = states(ADMM(rho=rho * DELTA, delta=DELTA), prior("isotropic", 4), losses, 12)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mean(a), mean(b), rtol=0, atol=1e-12)
        assert float(a.posterior.precision) == DELTA


def test_federated_admm_written_out_on_quadratics():
    losses, rho = quadratics(), 0.8
    eye, w = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    v = [torch.zeros(4, dtype=torch.float64) for _ in losses]
    found = states(ADMM(rho=rho, delta=DELTA), prior("isotropic", 4), losses, 8)
    for state in found:
        w_k = [
            torch.linalg.solve(loss.H + rho * eye, loss.b - v_k + rho * w)
            for loss, v_k in zip(losses, v, strict=True)
        ]
        v = [v_k + rho * (one - w) for v_k, one in zip(v, w_k, strict=True)]
        w = (rho * sum(w_k) + sum(v)) / (DELTA + 3 * rho)
        torch.testing.assert_close(mean(state), w, rtol=0, atol=1e-12)


def test_fixed_point_on_logistic_regression_is_scikit_learns():
    X, y = logistic_data()
    losses = logistic_losses()
    state = states(BayesianADMM(rho=0.5), prior("full", 4), losses, 60)[-1]
    reference = LogisticRegression(C=1 / DELTA, fit_intercept=False, tol=1e-12, max_iter=10_000)
    reference.fit(X.numpy(), y.numpy())
    expected = torch.from_numpy(reference.coef_[0])
    torch.testing.assert_close(mean(state), expected, rtol=0, atol=1e-6)
    assert float(joint_gradient(losses, mean(state)).norm()) < 1e-8
    hess = sum(loss.hess(mean(state)) for loss in losses) + DELTA * torch.eye(4, dtype=X.dtype)
    torch.testing.assert_close(state.posterior.precision, hess, rtol=1e-7, atol=1e-7)


def test_splitting_a_client_and_permuting_clients_leave_the_fixed_point():
    losses = logistic_losses(num_clients=2)
    halves = [
        LinearModel(one.likelihood, one.X[rows], one.y[rows], 1)
        for one in losses
        for rows in (slice(None, None, 2), slice(1, None, 2))
    ]
    two = states(BayesianADMM(rho=0.5), prior("full", 4), losses, 60)[-1]
    four = states(BayesianADMM(rho=0.25), prior("full", 4), halves, 120)[-1]
    turned = states(BayesianADMM(rho=0.5), prior("full", 4), losses[::-1], 60)[-1]
    torch.testing.assert_close(mean(two), mean(four), rtol=0, atol=1e-8)
    torch.testing.assert_close(mean(two), mean(turned), rtol=0, atol=1e-12)


def test_one_client_ends_at_the_central_laplace_posterior():
    (loss,) = logistic_losses(num_clients=1)
    state = states(BayesianADMM(rho=1.0), prior("full", 4), [loss], 60)[-1]
    objective = LocalObjective(prior("full", 4), rho=1.0, weight=1.0)
    central = newton_solver(loss)(objective, {})[0]
    torch.testing.assert_close(mean(state), central.mean["w"], rtol=0, atol=1e-9)
    torch.testing.assert_close(state.posterior.precision, central.precision, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_dual_precisions_of_convex_losses_stay_positive(gamma):
    losses = logistic_losses()
    algorithm = BayesianADMM(rho=0.4, gamma=gamma)
    state = algorithm.start(prior("full", 4), 3)
    clients = [algorithm.client_start(state, k) for k in range(3)]
    for _ in range(10):
        message, replies = algorithm.message(state), []
        for k, loss in enumerate(losses):
            reply, clients[k] = algorithm.client_update(
                message, clients[k], k, 1, newton_solver(loss)
            )
            replies.append(reply)
            assert float(torch.linalg.eigvalsh(-2.0 * clients[k].dual.nat2)[0]) > -1e-10
        state = algorithm.server_update(state, replies)
        total = sum((c.dual for c in clients[1:]), start=clients[0].dual)
        torch.testing.assert_close(total.nat1["w"], state.dual_sum.nat1["w"], rtol=0, atol=1e-10)
        torch.testing.assert_close(total.nat2, state.dual_sum.nat2, rtol=0, atol=1e-10)


def test_dual_at_an_exact_optimum_is_minus_the_natural_gradient():
    loss = logistic_losses()[0]
    algorithm = BayesianADMM(rho=0.4, temperature=2.0)
    state = algorithm.start(prior("full", 4), 3)
    reply, client = algorithm.client_update(
        algorithm.message(state), algorithm.client_start(state, 0), 0, 1, newton_solver(loss)
    )
    m = reply.posterior.mean["w"]
    V = loss.hess(m) / 2.0
    torch.testing.assert_close(-2.0 * client.dual.nat2, V, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        client.dual.nat1["w"], V @ m - loss.grad(m) / 2.0, rtol=1e-8, atol=1e-8
    )


def test_bregman_dual_step_is_in_expectation_coordinates():
    loss = logistic_losses()[0]
    algorithm = BregmanADMM(rho=0.4, gamma=0.5)
    state = algorithm.start(prior("full", 4), 3)
    reply, client = algorithm.client_update(
        algorithm.message(state), algorithm.client_start(state, 0), 0, 1, newton_solver(loss)
    )
    m, Sigma = reply.posterior.mean["w"], torch.linalg.inv(reply.posterior.precision)
    mu2, mu2_g = Sigma + torch.outer(m, m), torch.eye(4, dtype=m.dtype) / DELTA
    torch.testing.assert_close(client.dual.nat1["w"], 0.2 * m, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(-2.0 * client.dual.nat2, -0.4 * (mu2 - mu2_g), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_undamped_fedlap_cov_is_pvi_and_bayesian_admm_with_alpha_one(family):
    losses = logistic_losses()
    found = [
        states(algorithm, prior(family, 4), losses, 6)
        for algorithm in (FedLapCov(gamma=1.0), PVI(), BayesianADMM(rho=1.0, alpha=1.0))
    ]
    for a, b, c in zip(*found, strict=True):
        assert torch.equal(mean(a), mean(b))
        assert torch.equal(mean(a), mean(c))


def test_fedlap_cov_follows_its_own_equations():
    losses, rho = logistic_losses(), 0.4
    found = states(FedLapCov(gamma=rho), prior("full", 4), losses, 5)
    eye = torch.eye(4, dtype=torch.float64)
    v, V = [torch.zeros(4).double() for _ in losses], [torch.zeros(4, 4).double() for _ in losses]
    w, S = torch.zeros(4).double(), DELTA * eye
    for state in found:
        w_k, H_k = [], []
        for loss, v_k, V_k in zip(losses, v, V, strict=True):
            at = w.clone()
            for _ in range(60):
                grad = loss.grad(at) + v_k - V_k @ at + S @ (at - w)
                at = at - torch.linalg.solve(loss.hess(at) - V_k + S, grad)
            w_k.append(at)
            H_k.append(loss.hess(at))
        S_k = [H - V_k + S for H, V_k in zip(H_k, V, strict=True)]
        v = [v_k + rho * (A @ one - S @ w) for v_k, A, one in zip(v, S_k, w_k, strict=True)]
        V = [(1 - rho) * V_k + rho * H for V_k, H in zip(V, H_k, strict=True)]
        S = DELTA * eye + sum(V)
        w = torch.linalg.solve(S, sum(v))
        torch.testing.assert_close(mean(state), w, rtol=0, atol=1e-9)
        torch.testing.assert_close(state.posterior.precision, S, rtol=0, atol=1e-9)
        natural = state.posterior.natural().nat1["w"]  # S_g w_g = sum v_k
        torch.testing.assert_close(natural, state.dual_sum.nat1["w"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["isotropic", "diagonal", "full"])
def test_a_split_start_fulfils_the_servers_equation_whatever_the_priors_mean(family):
    q0, init = prior(family, 4, mean=normal(4, seed=3)), {"w": normal(4, seed=4)}
    algorithm = BayesianADMM(start_at="init", dual_init="split")
    state = algorithm.start(q0, 3, init)
    first = algorithm.client_start(state, 0).dual
    total = q0.natural() + first * 3.0
    torch.testing.assert_close(total.nat1["w"], state.posterior.natural().nat1["w"])
    torch.testing.assert_close(total.nat2, state.posterior.natural().nat2)
    torch.testing.assert_close(state.dual_sum.nat1["w"], 3.0 * first.nat1["w"])


def test_damped_fedlap_cov_on_quadratics_has_the_closed_form():
    losses, rho = quadratics(), 0.3
    eye = torch.eye(4, dtype=torch.float64)
    H, b = sum(one.H for one in losses), sum(one.b for one in losses)
    for r, state in enumerate(states(FedLapCov(gamma=rho), prior("full", 4), losses, 8), start=1):
        part = 1.0 - (1.0 - rho) ** r
        S = DELTA * eye + part * H
        torch.testing.assert_close(state.posterior.precision, S, rtol=1e-10, atol=0)
        torch.testing.assert_close(
            mean(state), torch.linalg.solve(S, part * b), rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize("start", ["zero", "split"])
def test_fedlap_follows_its_own_equations(start):
    losses, rho = quadratics(), 0.25
    init = {"w": normal(4, seed=5)}
    algorithm = FedLap(gamma=rho, dual_init=start)
    state = algorithm.start(prior("isotropic", 4), 3, init)
    if start == "split":  # sum_k v_k = w_g holds from the start
        torch.testing.assert_close(state.dual_sum.nat1["w"] / DELTA, init["w"])
    eye, w = torch.eye(4, dtype=torch.float64), init["w"]
    v = [init["w"] / 3 if start == "split" else torch.zeros(4).double() for _ in losses]
    for found in run_rounds(algorithm, state, solvers(losses), 8):
        w_k = [
            torch.linalg.solve(loss.H + DELTA * eye, loss.b - DELTA * v_k + DELTA * w)
            for loss, v_k in zip(losses, v, strict=True)
        ]
        v = [v_k + rho * (one - w) for v_k, one in zip(v, w_k, strict=True)]
        w = sum(v)
        torch.testing.assert_close(mean(found), w, rtol=0, atol=1e-10)
        torch.testing.assert_close(found.dual_sum.nat1["w"] / DELTA, w, rtol=0, atol=1e-10)


def test_fedlap_cov_without_curvature_is_fedlap():
    losses = quadratics()
    lap = states(FedLap(gamma=0.3), prior("isotropic", 4), losses, 6)

    def frozen(loss):
        inner = newton_solver(loss)

        def solve(objective, carried):
            q, kept = inner(objective, carried)
            return FullGaussian(q.mean, objective.prior.precision), kept

        return solve

    algorithm = FedLapCov(gamma=0.3)
    start = algorithm.start(prior("full", 4), 3)
    cov = list(run_rounds(algorithm, start, [(1, frozen(loss)) for loss in losses], 6))
    for a, b in zip(lap, cov, strict=True):
        torch.testing.assert_close(mean(a), mean(b), rtol=0, atol=1e-12)
        torch.testing.assert_close(a.dual_sum.nat1["w"], b.dual_sum.nat1["w"], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("algorithm", "family", "rounds"),
    [
        (FedLap(gamma=0.3), "isotropic", 350),
        (FedLapCov(gamma=0.5), "full", 60),
        (FedLapCov(gamma=0.4), "diagonal", 300),
        (ADMM(rho=2.0, delta=DELTA), "isotropic", 400),
        (FedDyn(a=2.0, ridge=DELTA / 3, units="sum"), "isotropic", 400),
        (PVI(gamma=0.4), "full", 60),
    ],
)
def test_fixed_points_are_the_joint_map(algorithm, family, rounds):
    losses = logistic_losses(n=40, D=2)
    state = states(algorithm, prior(family, 3), losses, rounds)[-1]
    assert float(joint_gradient(losses, mean(state)).norm()) < 1e-6


def test_fedadmm_ends_at_the_joint_minimum_without_prior():
    losses = quadratics()
    m, _ = joint_quadratic(losses, delta=0.0)
    state = states(FedADMM(rho=2.0, units="sum"), prior("isotropic", 4), losses, 200)[-1]
    assert distance(state, m) < 1e-8


def test_fedadmm_is_feddyn_when_all_clients_take_part():
    losses = logistic_losses()
    one = states(FedADMM(rho=0.8, units="sum"), prior("isotropic", 4), losses, 8)
    other = states(FedDyn(a=0.8, units="sum"), prior("isotropic", 4), losses, 8)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(mean(a), mean(b), rtol=0, atol=1e-10)


def test_one_client_fedlap_takes_proximal_point_steps_to_the_map():
    losses = quadratics(num_clients=1)
    m, _ = joint_quadratic(losses)
    assert distance(states(FedLap(gamma=0.5), prior("isotropic", 4), losses, 400)[-1], m) < 1e-9


def test_undamped_fedlap_oscillates_on_two_steep_clients():
    """With h_k >> delta the server nearly reflects: w <- sum_k w_k - w."""
    H = 10.0 * torch.eye(1, dtype=torch.float64)
    losses = [Quadratic(H, 5.0 * H[0]), Quadratic(H, -1.0 * H[0])]
    m, _ = joint_quadratic(losses)
    gaps = [float(mean(s) - m) for s in states(FedLap(gamma=1.0), prior("isotropic", 1), losses, 8)]
    assert all(a * b < 0 for a, b in pairwise(gaps[1:]))


def test_von_is_exact_on_a_quadratic_in_one_step_and_newton_agrees():
    (loss,) = quadratics(num_clients=1)
    tilt = prior("full", 4, mean=normal(4, seed=3)).natural() * 0.2
    objective = LocalObjective(prior("full", 4), rho=0.25, weight=0.5, tilt=tilt)
    lam = 0.5 / 0.25
    found = von(objective, loss, steps=1, a=lam, b=lam, draws=0)
    exact = newton_solver(loss)(objective, {})[0]
    torch.testing.assert_close(found.mean["w"], exact.mean["w"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.precision, exact.precision, rtol=1e-10, atol=1e-10)


def test_von_with_draws_satisfies_its_stationarity():
    loss = logistic_losses()[0]
    objective = LocalObjective(prior("full", 4), rho=0.5, weight=1.0)
    stream = torch.Generator().manual_seed(0)
    q = von(objective, loss, steps=400, a=0.3, b=0.3, draws=8, generator=stream)
    theta = q.sample(torch.Generator().manual_seed(1), 20_000)["w"]
    grad = torch.stack([loss.grad(t) for t in theta[:4000]]).mean(0)
    hess = torch.stack([loss.hess(t) for t in theta[:4000]]).mean(0)
    S = objective.prior.precision
    torch.testing.assert_close(q.precision, S + hess / 0.5, rtol=0.05, atol=0.2)
    assert float((grad + 0.5 * S @ q.mean["w"]).norm()) < 0.25


def test_newton_solves_softmax_regression_with_a_tilt():
    X = normal(30, 3, seed=1)
    y = torch.arange(30) % 4
    loss = LinearModel(Categorical(), X, y, 4)
    theta = 0.1 * normal(12, seed=2)
    grad = torch.func.grad(loss.value)(theta)
    hess = torch.func.hessian(loss.value)(theta)
    torch.testing.assert_close(loss.grad(theta), grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.hess(theta), hess, rtol=1e-10, atol=1e-10)
    tilt = prior("full", 12, mean=normal(12, seed=3)).natural() * 0.1
    objective = LocalObjective(prior("full", 12), rho=0.8, weight=2.0, tilt=tilt, ridge=0.1)
    found = newton(objective, loss)
    total = torch.func.grad(lambda t: 2.0 * loss.value(t) + objective.penalty({"w": t}))(found)
    assert float(total.norm()) < 1e-9
    pull = torch.func.grad(lambda t: objective.penalty({"w": t}))(theta)
    torch.testing.assert_close(objective.pull({"w": theta})["w"], pull, rtol=1e-10, atol=1e-10)
    bend = torch.func.hessian(lambda t: objective.penalty({"w": t}))(theta)
    torch.testing.assert_close(objective.hessian(), bend, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["isotropic", "diagonal", "full"])
def test_penalty_pull_and_hessian_agree_in_every_family(family):
    q = prior(family, 4, mean=normal(4, seed=1))
    tilt = prior(family, 4, delta=2.0, mean=normal(4, seed=2)).natural() * 0.3
    objective = LocalObjective(q, rho=0.6, weight=1.0, tilt=tilt, ridge=0.2)
    theta = normal(4, seed=3)
    pull = torch.func.grad(lambda t: objective.penalty({"w": t}))(theta)
    bend = torch.func.hessian(lambda t: objective.penalty({"w": t}))(theta)
    torch.testing.assert_close(objective.pull({"w": theta})["w"], pull, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(objective.hessian(), bend, rtol=1e-12, atol=1e-12)


def test_a_server_precision_below_the_floor_is_raised_and_counted():
    algorithm = BayesianADMM(rho=1.0, gamma=1.0, floor=0.1)
    state = algorithm.start(prior("diagonal", 4), 1)
    message = algorithm.message(state)

    def shrinking(objective, carried):
        s = torch.tensor([1e-3, 0.7, 0.7, 0.7], dtype=torch.float64)
        return DiagonalGaussian(objective.prior.mean, {"w": s}), {}

    reply, _ = algorithm.client_update(message, algorithm.client_start(state, 0), 0, 1, shrinking)
    after = replace(algorithm, gamma=3.0).server_update(state, [reply])
    assert after.info["clamped"] == 0.25
    torch.testing.assert_close(
        after.posterior.precision["w"],
        torch.tensor([0.07, 0.7, 0.7, 0.7], dtype=torch.float64),
    )


def test_families_that_do_not_fit_are_refused():
    with pytest.raises(Unsupported, match="FedLapCov"):
        FedLap().start(prior("full", 2), 2)
    with pytest.raises(Unsupported, match="learns a covariance"):
        FedLapCov().start(IsotropicGaussian({"w": torch.zeros(2)}, 1.0), 2)
    bent = [Quadratic(-0.2 * q.H, q.b) for q in quadratics()]
    with pytest.raises(ImproperDistribution):
        states(BayesianADMM(rho=1.0, gamma=50.0), prior("full", 4), bent, 3)
