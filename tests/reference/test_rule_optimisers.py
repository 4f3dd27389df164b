"""The rule's recipes and the repository's optimisers are the same algorithms, step by step."""

import pytest
import torch
from torch import nn

from bayesrule.optim import OGN, SGD, VOGN, BayesBiNN
from bayesrule.posteriors import Bernoulli, DiagonalGaussian, IsotropicGaussian
from bayesrule.rule import (
    Approximations,
    BayesianLearningRule,
    BernoulliGradient,
    LossGradient,
    StepSizes,
    problems,
)

N, P, STEPS = 569, 6, 15


class Linear(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.layer = nn.Linear(P, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(start)

    def forward(self, x):
        return self.layer(x)[:, 0]


def train(model, optimizer, batches):
    x, y = problems.breast_cancer(P)
    path = []
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(x[batch]), y[batch])
            loss.backward()
            return loss

        optimizer.step(closure)
        path.append(model.layer.weight.detach().clone()[0])
    return path


@pytest.mark.parametrize("name", ["vogn", "ogn"])
def test_vogn_and_ogn_are_the_rule_in_the_scale_of_the_sum(name):
    """precision = N hess + prior_prec: the optimisers average the loss, the rule sums it."""
    prior_prec, hess, lr, b = 3.0, 0.2, 0.05, 0.1
    start = problems.start(0, P)
    batches = problems.batches(0, N, 32, STEPS)
    model, noise = Linear(start), problems.NoiseStream(0)
    make = VOGN if name == "vogn" else OGN
    optimizer = make(
        model.parameters(), lr=lr, ess=N, hess_init=hess, beta1=0.0, hess_rate=b,
        prior_prec=prior_prec, tau=1.0, noise=noise, model=model,
    )  # fmt: skip
    theirs = train(model, optimizer, batches)

    rule = BayesianLearningRule(
        DiagonalGaussian,
        LossGradient(problems.logistic(P, prior_prec), noise=problems.NoiseStream(0)),
        StepSizes(lr, scale=b),
        Approximations(delta=name == "ogn", minibatch=True, hess="gn", slow_scale=True),
    )
    scale = torch.full((P,), N * hess + prior_prec, dtype=torch.float64)
    state = rule.start(DiagonalGaussian({"w": start}, {"w": scale}))
    states = rule.run(state, STEPS, batches)
    for state, weight in zip(states, theirs, strict=True):
        torch.testing.assert_close(state.mean, weight, rtol=1e-12, atol=1e-13)
    posterior = optimizer.posterior(model)
    precision = next(iter(posterior.precision.values()))[0]
    torch.testing.assert_close(precision, states[-1].scale, rtol=1e-12, atol=0)


def test_sgd_with_momentum_is_the_rule_with_a_fixed_covariance():
    start, batches = problems.start(0, P), problems.batches(0, N, 32, STEPS)
    model = Linear(start)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    theirs = train(model, optimizer, batches)
    rule = BayesianLearningRule(
        IsotropicGaussian,
        LossGradient(problems.logistic(P, 0.0)),
        StepSizes(0.05 / N, momentum=0.9),
        Approximations(delta=True, minibatch=True, momentum="heavy_ball"),
    )
    state = rule.start(IsotropicGaussian({"w": start}, 1.0))
    for state, weight in zip(rule.run(state, STEPS, batches), theirs, strict=True):  # noqa: B020
        torch.testing.assert_close(state.mean, weight, rtol=1e-11, atol=1e-13)


def test_bayesbinn_is_the_rule_on_bernoulli_weights():
    start, batches = problems.start(0, P), problems.batches(0, N, 32, STEPS)
    model, lr, tau = Linear(start), 1e-3, 0.7
    optimizer = BayesBiNN(
        model.parameters(), lr=lr, ess=N, tau=tau, lam_init=0.1,
        noise=problems.NoiseStream(0, "uniform"),
    )  # fmt: skip
    train(model, optimizer, batches)
    rule = BayesianLearningRule(
        Bernoulli,
        BernoulliGradient(problems.logistic(P, 0.0), noise=problems.NoiseStream(0, "uniform")),
        StepSizes(lr),
        Approximations(minibatch=True, temp=tau),
    )
    state = rule.start(Bernoulli({"w": 0.1 * torch.where(start >= 0, 1.0, -1.0).double()}))
    ours = rule.posterior(rule.run(state, STEPS, batches)[-1])
    theirs = next(iter(optimizer.posterior(model).lam.values()))[0]
    torch.testing.assert_close(ours.lam["w"], theirs, rtol=1e-11, atol=1e-12)
