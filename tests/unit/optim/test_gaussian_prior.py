"""Yesterday's posterior as today's prior: two tasks one after the other are both at once.

Linear regression with orthogonal columns, where the mean-field posterior is the exact one: task t
has n_t examples with X^T X = n_t a_t I and known noise, so that with temperature tau

    precision = sum_t n_t a_t / tau + delta
    mean      = sum_t X_t^T y_t / (sum_t n_t a_t + tau delta)
"""

from __future__ import annotations

import copy

import pytest
import torch

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.optim import BBB, IVON, OGN, VOGN, AdamW
from bayesrule.optim.ivon import ivon_update
from bayesrule.posteriors import DiagonalGaussian, IsotropicGaussian

F64 = torch.float64
DELTA = 3.0


class ExactSquares(VOGN):
    """VOGN with the squares of the inputs: the Gauss-Newton diagonal without residuals."""

    inputs = torch.zeros(0)

    def collect(self, stage):
        self.accumulate("grad", self.gradients())
        self.accumulate("grad_sq", [self.inputs.square().mean(0, keepdim=True)], local=True)


class Antithetic:
    """+1 for one sample, -1 for the next: all odd moments vanish and the second one is exact."""

    def __init__(self) -> None:
        self.sign = -1.0

    def __call__(self, like):
        self.sign = -self.sign
        return torch.full_like(like, self.sign)


def task(index):
    H = torch.ones(1, 1, dtype=F64)
    for _ in range(4):
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    n, scale = (16, 1.0) if index == 0 else (8, 2.0)
    X = H[:n, 1:4] * scale
    truth = torch.tensor([[0.8, -0.5, 1.2], [-0.3, 0.9, 0.6]], dtype=F64)[index]
    return X, X @ truth + 0.3 * H[:n, 5]


def exact(tau, tasks=(0, 1)):
    gram = sum(task(t)[0].square().sum(0) for t in tasks)
    moment = sum(task(t)[0].T @ task(t)[1] for t in tasks)
    return moment / (gram + tau * DELTA), gram / tau + DELTA


def vogn(tempering, tau):
    def build(model, index, prior):
        X, _ = task(index)
        opt = ExactSquares(
            model.named_parameters(), lr=0.2, ess=float(len(X)), beta1=0.5, hess_rate=0.1, tau=tau,
            prior_prec=DELTA, damping=0.3, tempering=tempering, noise=torch.zeros_like, model=model,
        )  # fmt: skip
        opt.inputs = X
        return opt

    return build


def ivon(tau):
    def build(model, index, prior):
        ess = len(task(index)[0]) / tau
        return IVON(
            model.named_parameters(), lr=0.3, ess=ess, hess_init=0.5, beta1=0.5, beta2=0.95,
            weight_decay=DELTA / ess, mc_samples=2, noise=Antithetic(),
        )  # fmt: skip

    return build


def bbb(tau):
    def build(model, index, prior):
        return BBB(
            model.named_parameters(), lr=0.05, ess=float(len(task(index)[0])), rho_init=-1.0,
            prior_prec=DELTA, tau=tau, beta2=0.9, mc_samples=2, noise=Antithetic(),
        )  # fmt: skip

    return build


METHODS = {
    "vogn code": (vogn("code", 1.0), 1.0, 1e-9),
    "vogn code cold": (vogn("code", 0.4), 0.4, 1e-9),
    "vogn text": (vogn("text", 1.0), 1.0, 1e-9),
    "vogn text cold": (vogn("text", 0.4), 0.4, 1e-9),
    "ivon": (ivon(1.0), 1.0, 1e-9),
    "ivon cold": (ivon(0.4), 0.4, 1e-9),
    "bbb": (bbb(1.0), 1.0, 1e-3),
    "bbb cold": (bbb(0.4), 0.4, 1e-3),
}


@pytest.mark.parametrize("name", METHODS)
def test_two_tasks_one_after_the_other_are_the_posterior_of_both(name):
    build, tau, tol = METHODS[name]
    model = torch.nn.Linear(3, 1, bias=False, dtype=F64)
    torch.nn.init.zeros_(model.weight)
    prior, steps = None, 600
    for index in range(2):
        X, y = task(index)
        opt = build(model, index, prior)
        opt.zero_grad()
        if prior is not None:
            opt.set_prior(prior)
            torch.testing.assert_close(opt.prior().precision, prior.precision)
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: max(1 - t / steps, 1e-3))

        def closure(opt=opt, X=X, y=y):
            opt.zero_grad()
            loss = 0.5 * (model(X).squeeze(1) - y).square().mean()
            loss.backward()
            return loss

        for _ in range(steps):
            opt.step(closure)
            schedule.step()
        prior = opt.as_prior()
        mean, precision = exact(tau, range(index + 1))
        torch.testing.assert_close(prior.mean["weight"][0], mean, rtol=tol, atol=tol)
        torch.testing.assert_close(prior.precision["weight"][0], precision, rtol=tol, atol=tol)


def random_gaussian(shape=(2, 3), seed=0, least=0.5):
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(*shape, generator=g, dtype=F64)
    return DiagonalGaussian({"weight": mean}, {"weight": mean.abs() + least})


def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2, bias=False, dtype=F64)


def squared(opt, model, seed):
    g = torch.Generator().manual_seed(seed)
    X, y = (torch.randn(5, k, generator=g, dtype=F64) for k in (3, 2))

    def closure():
        opt.zero_grad()
        loss = 0.5 * (model(X) - y).square().sum(1).mean()
        loss.backward()
        return loss

    return closure


def test_ivon_with_a_prior_equals_the_pure_update_and_is_saved():
    model, prior = linear(), random_gaussian()
    options = {"lr": 0.1, "ess": 20.0, "hess_init": 0.3, "beta1": 0.9, "beta2": 0.9}
    noise = {"noise": torch.ones_like}
    opt = IVON(model.named_parameters(), **options, weight_decay=0.01, **noise)
    before = opt.posterior().precision["weight"]
    opt.set_prior(prior)
    torch.testing.assert_close(before, torch.full_like(before, 20 * 0.31))
    mean, momentum = model.weight.detach().clone(), torch.zeros(2, 3, dtype=F64)
    hess, s0 = torch.full_like(mean, 0.3), prior.precision["weight"]
    for t in range(1, 5):
        theta = linear()
        offset = (20.0 * hess + s0).rsqrt()
        theta.weight.data.copy_(mean + offset)
        squared(theta, theta, t)()
        grad = theta.weight.grad
        mean, momentum, hess = ivon_update(
            mean, momentum, hess, grad, offset * grad, steps=t, **options, weight_decay=0.01,
            prior_mean=prior.mean["weight"], prior_prec=s0,
        )  # fmt: skip
        opt.step(squared(opt, model, t))
        torch.testing.assert_close(model.weight.detach(), mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(opt.posterior().precision["weight"], 20.0 * hess + s0)
    assert torch.equal(opt.prior().precision["weight"], s0)  # nothing wrote into it
    assert torch.equal(opt.prior().mean["weight"], prior.mean["weight"])
    other = linear()
    second = IVON(other.named_parameters(), **options, weight_decay=0.01, **noise)
    other.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(opt.state_dict()))
    for o, m in ((opt, model), (second, other)):
        o.step(squared(o, m, 9))
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("n", [3, 20_000], ids=["gathered", "in pieces"])
@pytest.mark.parametrize("kind", [IVON, BBB, OGN])
def test_the_options_prior_given_as_a_gaussian_changes_nothing(kind, n):
    torch.manual_seed(0)
    models = [torch.nn.Linear(n, 1, bias=False, dtype=F64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(4, n, generator=torch.Generator().manual_seed(1), dtype=F64)
    for model, given in zip(models, (False, True), strict=True):
        more = {"model": model} if kind is OGN else {}
        delta = {"weight_decay": 0.05} if kind is IVON else {"prior_prec": 0.5}
        opt = kind(model.named_parameters(), lr=0.01, ess=10.0, seed=0, **delta, **more)
        if given:
            opt.set_prior(opt.prior())
        for _ in range(3):

            def closure(opt=opt, model=model):
                opt.zero_grad()
                loss = (model(x) - 1.0).square().mean()
                loss.backward()
                return loss

            opt.step(closure)
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [IVON, BBB, VOGN])
def test_a_posterior_is_gone_on_from(kind):
    model, prior, q = linear(), random_gaussian(seed=1), random_gaussian(seed=2, least=4.0)
    own = {"model": model, "damping": 0.01} if kind is VOGN else {}
    opt = kind(model.named_parameters(), 0.1, 10.0, **own)
    opt.step(squared(opt, model, 0))
    opt.set_prior(prior)
    opt.set_posterior(q)
    found = opt.posterior()
    torch.testing.assert_close(found.mean["weight"], q.mean["weight"])
    torch.testing.assert_close(found.precision["weight"], q.precision["weight"])
    opt.step(squared(opt, model, 1))  # and goes on
    if kind is VOGN:  # its hess is never negative
        opt.set_posterior(prior)
        assert float(opt.state[model.weight]["hess"].min()) == 0.0


def test_damping_is_no_information_and_tempering_is_applied_once():
    model = linear()
    for tempering, weight in (("code", 20.0 / 0.5), ("text", 20.0)):
        opt = VOGN(
            model.named_parameters(), 0.1, 20.0, hess_init=0.4, prior_prec=2.0, tau=0.5,
            damping=0.7, tempering=tempering, model=model,
        )  # fmt: skip
        assert float(opt.as_prior().precision["weight"].mean()) == pytest.approx(0.4 * weight + 2.0)
        drawn = opt.posterior().precision["weight"]
        assert float(drawn.mean()) == pytest.approx((0.4 + 0.5 * 2 / 20 + 0.7) * weight)


def test_a_group_of_parameters_added_later_is_learnt():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model.double()
    opt = VOGN(model[0].parameters(), 0.1, 10.0, tau_init=0.1, tau_warmup=3, model=model, seed=0)
    opt.step(squared(opt, model, 0))
    opt.add_param_group({"params": list(model[2].parameters()), "prior_prec": 5.0})
    model.zero_grad()
    before = model[2].weight.detach().clone()
    for seed in range(4):
        opt.step(squared(opt, model, seed))
    assert not torch.equal(model[2].weight, before)
    assert [group["tau_now"] for group in opt.param_groups] == [1.0, 1.0]
    assert set(opt.posterior(model).names) == {n for n, _ in model.named_parameters()}


def test_what_is_refused():
    model = linear()
    opt = IVON(model.named_parameters(), 0.1, 10.0, weight_decay=0.0)
    with pytest.raises(ImproperDistribution):
        opt.prior()
    isotropic = IsotropicGaussian({"weight": model.weight}, 1.0)
    for take in (opt.set_prior, opt.set_posterior):
        with pytest.raises(Unsupported, match="diagonal Gaussian"):
            take(isotropic)
    with pytest.raises(ValueError, match="no parameter 'weight'"):
        opt.set_prior(DiagonalGaussian({"other": torch.ones(1)}, {"other": torch.ones(1)}))
    with pytest.raises(Unsupported, match="as prior"):
        AdamW(model.named_parameters(), 0.1).set_prior(random_gaussian())
    cold = OGN(model.named_parameters(), 0.1, 10.0, tau=0.0, damping=0.1, model=model)
    with pytest.raises(Unsupported, match="tau > 0"):
        cold.as_prior()
