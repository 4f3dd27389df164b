"""On a conjugate target, linear regression, every optimiser finds the posterior it should.

The design has orthogonal +-1 columns, X^T X = 64 I, and the residual at the least-squares solution
is another such column: the exact posterior N(64 c / (64 + delta), 1 / (64 + delta)) is diagonal,
and every example's squared gradient there equals its Gauss-Newton term.
"""

import pytest
import torch
from optim_cases import CASES, F64, known

from bayesrule.optim.binary import BinaryOptimizer

N, STEPS = 64, 500


def design():
    columns = torch.ones(1, 1, dtype=F64)
    for _ in range(6):
        columns = torch.cat([torch.cat([columns, columns], 1), torch.cat([columns, -columns], 1)])
    truth = torch.tensor([0.8, -0.5, 0.3, 1.2], dtype=F64)
    inputs = columns[:, 1:5]
    return inputs, inputs @ truth + columns[:, 7], truth


@pytest.mark.parametrize("case", [c for c in CASES if c.conjugate], ids=str)
def test_converges_to_the_posterior(case):
    want, (inputs, targets, truth) = case.conjugate, design()
    model = torch.nn.Linear(4, 1, bias=False, dtype=F64)
    torch.nn.init.zeros_(model.weight)
    known(model)
    opt = case(model.named_parameters(), **want.options)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: max(1.0 - t / STEPS, 1e-3))

    def closure():
        opt.zero_grad()
        loss = 0.5 * (model(inputs).squeeze(1) - targets).square().mean()
        loss.backward()
        return loss

    for _ in range(STEPS):
        opt.step(closure)
        schedule.step()
    q = opt.posterior()
    mean = N * truth / (N + want.delta)
    worst = float((q.mean["weight"].squeeze(0) - mean).abs().max())
    assert worst < want.mean, f"mean off by {worst:.2e}"
    if want.precision is not None:
        ratio = q.precision["weight"] / (N + want.delta)
        assert float((ratio - 1).abs().max()) < want.precision, ratio


BINARY = [case for case in CASES if isinstance(case.example, BinaryOptimizer)]


@pytest.mark.parametrize("case", BINARY, ids=str)
def test_binary_weights_under_a_linear_loss(case):
    """The target that is conjugate to signs: q* has lambda = -N c, so its mode is -sign(c)."""
    c = torch.tensor([[0.8, -0.5, 0.3, -1.2], [0.1, 0.2, -0.7, 0.4]], dtype=F64)
    weight = torch.nn.Parameter(torch.full((2, 4), 0.1, dtype=F64))
    opt = case([("w", weight)])

    def closure():
        opt.zero_grad()
        loss = (c * weight).sum()
        loss.backward()
        return loss

    for _ in range(STEPS):
        opt.step(closure)
    q = opt.posterior()
    assert torch.equal(q.mode["w"], -c.sign())
    if q.family == "bernoulli" and not opt.stochastic:
        torch.testing.assert_close(q.lam["w"], -opt.defaults["ess"] * c, rtol=1e-9, atol=1e-9)


def test_every_optimiser_of_a_gaussian_or_a_point_is_among_them():
    rows = [case for case in CASES if case not in BINARY]
    without = {case.name for case in rows if not case.conjugate and not case.of_same(CASES)}
    assert not without, "rows that name no conjugate target"
