"""What holds exactly for a K-prior of a generalised linear model with all past inputs in memory."""

from __future__ import annotations

import pytest
import torch
from adaptation_cases import LIKELIHOODS, P, batch_objective, fitted, k_prior, problem, randn
from sklearn.linear_model import LogisticRegression

from bayesrule.corrections.k_prior import DataTerm, exchange_prior
from bayesrule.corrections.quadratic import KroneckerSum, QuadraticAnchor
from bayesrule.errors import BayesruleError
from bayesrule.likelihoods import Bernoulli, Categorical
from bayesrule.tasks.adaptation.objective import WEIGHT, Objective, gradient, hessian, solve

DELTA = 0.7
walk = pytest.mark.parametrize("name", LIKELIHOODS)


def close(a, b, tolerance=1e-8):
    torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance)


def adapted(prior, likelihood, extra=(), anchor=None):
    objective = Objective((*extra, *prior.terms), anchor or prior.anchor, likelihood)
    return solve(objective, prior.anchor.mean[WEIGHT], tolerance=1e-13)


@walk
def test_the_gradient_is_the_past_objectives_everywhere(name):
    likelihood, C, x, y = problem(name)
    w_star = fitted(likelihood, C, x, y, DELTA)
    prior = k_prior(likelihood, x, w_star, DELTA)
    ours = Objective(prior.terms, prior.anchor, likelihood)
    for seed in range(3):
        w = randn(C, P, seed=10 + seed)
        theirs = gradient(batch_objective(likelihood, C, x, y, DELTA), w)
        close(gradient(ours, w), theirs, 1e-10)


@walk
def test_adding_removing_and_another_regulariser_give_the_batch_solution(name):
    likelihood, C, x, y = problem(name)
    more_x, more_y = problem(name, n=9, seed=50)[2:]
    w_star = fitted(likelihood, C, x, y, DELTA)
    prior = k_prior(likelihood, x, w_star, DELTA)

    both = torch.cat([x, more_x]), torch.cat([y, more_y])
    added = adapted(prior, likelihood, (DataTerm.of_labels(more_x, more_y),))
    close(added, fitted(likelihood, C, *both, DELTA))

    removed = adapted(prior, likelihood, (DataTerm.of_labels(x[:7], y[:7], -1.0),))
    close(removed, fitted(likelihood, C, x[7:], y[7:], DELTA))

    for new in (0.1, 4.0):
        anchor = exchange_prior(prior.anchor, DELTA, new)
        close(adapted(prior, likelihood, (), anchor), fitted(likelihood, C, x, y, new))


@walk
def test_a_nested_model_is_the_batch_solution_of_the_smaller_one(name):
    likelihood, C, x, y = problem(name, p=6)
    w_star = fitted(likelihood, C, x, y, DELTA)
    prior = k_prior(likelihood, x, w_star, DELTA)
    term = prior.terms[0]
    smaller = DataTerm(x[:, :3], term.target, term.weight)
    anchor = QuadraticAnchor({WEIGHT: w_star[:, :3]}, DELTA)
    found = solve(Objective((smaller,), anchor, likelihood), w_star[:, :3], tolerance=1e-13)
    close(found, fitted(likelihood, C, x[:, :3], y, DELTA))


@walk
def test_add_then_remove_returns_the_first_weights(name):
    likelihood, C, x, y = problem(name)
    more_x, more_y = problem(name, n=9, seed=50)[2:]
    w_star = fitted(likelihood, C, x, y, DELTA)
    added = adapted(
        k_prior(likelihood, x, w_star, DELTA), likelihood, (DataTerm.of_labels(more_x, more_y),)
    )
    after = k_prior(likelihood, torch.cat([x, more_x]), added, DELTA)
    back = adapted(after, likelihood, (DataTerm.of_labels(more_x, more_y, -1.0),))
    close(back, w_star)


@walk
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_k_is_flat_at_the_past_weights_and_has_the_past_hessian(name, temperature):
    likelihood, C, x, y = problem(name)
    w_star = fitted(likelihood, C, x, y, DELTA)
    prior = k_prior(likelihood, x, w_star, DELTA, temperature)
    ours = Objective(prior.terms, prior.anchor, likelihood)
    close(gradient(ours, w_star), torch.zeros(C, P, dtype=torch.float64), 1e-12)
    for part in (prior.functional_only(), prior.weight_only()):
        w = w_star.clone().requires_grad_()
        value = part.functional(lambda inputs, w=w: inputs @ w.mT)
        value = value if part.anchor is None else value + part.anchor.value({WEIGHT: w})
        grad = torch.autograd.grad(value, w)[0] if value.requires_grad else torch.zeros_like(w)
        close(grad, torch.zeros_like(w), 1e-12)
    if temperature == 1.0:
        past = hessian(batch_objective(likelihood, C, x, y, DELTA), w_star)
        close(hessian(ours, w_star), past, 1e-12)


@walk
def test_derivatives_equal_autograd(name):
    likelihood, C, x, y = problem(name)
    prior = k_prior(likelihood, x, randn(C, P, seed=4), DELTA, temperature=1.7)
    weights = torch.linspace(0.2, 1.5, len(x), dtype=torch.float64)
    soft = DataTerm(x, prior.terms[0].target, weights, 1.7)
    objective = Objective((soft, DataTerm.of_labels(x, y, 0.5)), prior.anchor, likelihood)

    def value(w):
        total = sum(t.value(t.input @ w.mT, likelihood) for t in objective.terms)
        return total + objective.anchor.value({WEIGHT: w})

    w = randn(C, P, seed=5)
    close(gradient(objective, w), torch.func.grad(value)(w), 1e-10)
    dense = torch.func.hessian(value)(w).reshape(C * P, C * P)
    close(hessian(objective, w), dense, 1e-10)


@pytest.mark.parametrize("kind", ["diagonal", "dense", "kronecker"])
def test_any_weight_term_may_take_the_isotropic_ones_place(kind):
    likelihood, C, x, y = problem("softmax")
    mean = {WEIGHT: randn(C, P, seed=6)}
    half = randn(C * P, C * P, seed=7)
    rows, columns = randn(C, C, seed=8), randn(P, P, seed=9)
    S = {
        "diagonal": torch.diag(half.diagonal().square()),
        "dense": half @ half.mT,
        "kronecker": torch.kron(rows @ rows.mT, columns @ columns.mT)
        + 0.3 * torch.eye(C * P, dtype=torch.float64),
    }[kind]
    precision = {
        "diagonal": {WEIGHT: half.diagonal().square().reshape(C, P)},
        "dense": S,
        "kronecker": KroneckerSum(({WEIGHT: (rows @ rows.mT, columns @ columns.mT)},), 0.3),
    }[kind]
    objective = Objective((DataTerm.of_labels(x, y),), QuadraticAnchor(mean, precision), likelihood)
    w = solve(objective, mean[WEIGHT], tolerance=1e-12)
    plain = Objective(objective.terms, QuadraticAnchor(mean, 0.0), likelihood)
    pull = (S @ (w - mean[WEIGHT]).flatten()).reshape(C, P)
    close(gradient(plain, w) + pull, torch.zeros(C, P, dtype=torch.float64), 1e-9)
    close(hessian(objective, w) - hessian(plain, w), S, 1e-9)


def test_a_quadratic_loss_makes_k_the_full_gaussian_of_the_past():
    likelihood, C, x, y = problem("linear")
    w_star = fitted(likelihood, C, x, y, DELTA)
    prior = k_prior(likelihood, x, w_star, DELTA)
    S = x.mT @ x + DELTA * torch.eye(P, dtype=torch.float64)

    def excess(w):
        return prior.functional(lambda inputs: inputs @ w.mT) + prior.anchor.value({WEIGHT: w})

    w = randn(C, P, seed=8)
    d = w - w_star
    close(excess(w) - excess(w_star), 0.5 * (d @ S * d).sum(), 1e-10)
    # one Newton step on new data is ridge regression on all data
    more_x, more_y = problem("linear", n=9, seed=50)[2:]
    objective = Objective(
        (DataTerm.of_labels(more_x, more_y), *prior.terms), prior.anchor, likelihood
    )
    flat = torch.linalg.solve(hessian(objective, w), gradient(objective, w).flatten())
    all_x, all_y = torch.cat([x, more_x]), torch.cat([y, more_y])
    ridge = torch.linalg.solve(
        all_x.mT @ all_x + DELTA * torch.eye(P, dtype=torch.float64), all_x.mT @ all_y
    )
    close(w - flat.reshape(C, P), ridge.mT, 1e-10)


def test_soft_labels_have_the_gradient_of_probabilities():
    f_star, f = randn(6, 3, seed=1), randn(6, 3, seed=2).requires_grad_()
    term = DataTerm(f_star, Categorical().predict(f_star), torch.ones(6, dtype=torch.float64))
    grad = torch.autograd.grad(term.value(f, Categorical()), f)[0]
    close(grad, f.detach().softmax(-1) - f_star.softmax(-1), 1e-14)
    close(term.residual(f.detach(), Categorical()), grad, 1e-14)


def test_two_softmax_outputs_are_one_logit_of_half_the_strength():
    _, _, x, y = problem("logistic")
    two = fitted(Categorical(), 2, x, y, DELTA)
    one = fitted(Bernoulli(), 1, x, y, DELTA / 2)
    close(two[1:] - two[:1], one)


@pytest.mark.parametrize("name", ["logistic", "softmax"])
@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
def test_the_solver_agrees_with_scikit_learn(name, solver):
    likelihood, C, x, y = problem(name, n=60)
    objective = batch_objective(likelihood, C, x, y, DELTA)
    ours = solve(objective, torch.zeros(C, P, dtype=torch.float64), solver=solver, tolerance=1e-9)
    oracle = LogisticRegression(C=1.0 / DELTA, fit_intercept=False, tol=1e-12, max_iter=10_000)
    close(ours, torch.from_numpy(oracle.fit(x.numpy(), y.numpy()).coef_), 1e-6)


def test_taking_away_what_is_not_in_memory_is_noticed():
    likelihood, C, x, y = problem("logistic")
    w_star = fitted(likelihood, C, x, y, 1e-3)
    prior = k_prior(likelihood, x[:2], w_star, 1e-3)
    with pytest.raises(BayesruleError, match="not in the memory"):
        adapted(prior, likelihood, (DataTerm.of_labels(x[2:], y[2:], -1.0),))
