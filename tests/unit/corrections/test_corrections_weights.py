"""EWC, online Laplace, SI and VCL on problems with closed forms, in float64, without a trainer."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from bayesrule.corrections import EWC, SI, VCL, OnlineEWC, OnlineLaplace, Past
from bayesrule.corrections.ewc import mean_fisher
from bayesrule.corrections.si import importance
from bayesrule.corrections.vcl import reweighted
from bayesrule.curvature import trainable
from bayesrule.data import Experience, Split, Stream
from bayesrule.errors import ConfigError, Unsupported
from bayesrule.likelihoods import Categorical, Gaussian
from bayesrule.optim import BBB, IVON, SGD, VOGN, AdamW
from bayesrule.posteriors import DiagonalGaussian
from bayesrule.posteriors.params import flatten
from bayesrule.tasks.module import LearnModule

F64 = torch.float64
DELTA = 2.0


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stream_of(sets, columns) -> Stream:
    experiences = [
        Experience(t, s, None, s, cols, cols)
        for t, (s, cols) in enumerate(zip(sets, columns, strict=True))
    ]
    outputs = 1 + max(c for cols in columns for c in cols)
    shape = tuple(sets[0].whole()["input"].shape[1:])
    return Stream("test", "task", tuple(experiences), outputs, shape, "f" * 64, {})


class Rows(Split):
    """Items in float64."""

    def __init__(self, input, target):
        self.input, self.target = input, target

    def __len__(self):
        return len(self.target)

    @property
    def targets(self):
        return self.target

    def batch(self, indices, epoch=None):
        return {"input": self.input[indices], "target": self.target[indices], "index": indices}

    def subset(self, indices):
        return Rows(self.input[indices], self.target[indices])

    def digest(self):
        return ""


def regression():
    sets = [Rows(randn(n, 3, seed=n), randn(n, seed=n + 1)) for n in (9, 6, 7)]
    return stream_of(sets, [(0,)] * 3)


def classes():
    """Two tasks with heads (0, 1) and (2, 3) of one network."""
    sets = [Rows(randn(12, 4, seed=s), torch.arange(12) % 2) for s in (1, 2)]
    return stream_of(sets, [(0, 1), (2, 3)])


def past_of(stream, model, likelihood=None, optimizer=None) -> Past:
    if optimizer is None:
        optimizer = AdamW(model.named_parameters(), lr=0.01)

    def new(copied, n):
        return BBB(copied.named_parameters(), lr=0.05, ess=float(n), rho_init=-2.0, seed=1)

    return Past(model, optimizer, likelihood or Categorical(), stream, 0, 5, new)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def minimise(model, loss):
    """Find a minimum to rounding, by Newton steps on the flattened parameters of a quadratic."""
    names = list(trainable(model))

    def at(vector):
        state, start = {}, 0
        for name, p in model.named_parameters():
            state[name] = vector[start : start + p.numel()].reshape(p.shape)
            start += p.numel()
        return loss(state)

    w = flatten(trainable(model))
    g, H = torch.func.grad(at)(w), torch.func.hessian(at)(w)
    w = w - torch.linalg.solve(H, g)
    start = 0
    with torch.no_grad():
        for name in names:
            p = model.get_parameter(name)
            p.copy_(w[start : start + p.numel()].reshape(p.shape))
            start += p.numel()


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_online_laplace_is_exact_for_quadratics(structure):
    """Three tasks in turn give the ridge solution and the precision of all data at once."""
    stream = regression()
    if structure == "diag":  # columns at right angles, so that the diagonal is all there is
        H = torch.tensor([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]], dtype=F64)
        sets = [Rows(H * a, randn(4, seed=i)) for i, a in enumerate((1.0, 2.0, 0.5))]
        stream = stream_of(sets, [(0,)] * 3)
    model = nn.Linear(3, 1, bias=False, dtype=F64)
    correction = OnlineLaplace(lam=1.0, delta=DELTA, structure=structure)
    past = past_of(stream, model, Gaussian())
    correction.check(past)
    for experience in stream:
        correction.begin(experience, past)
        data = experience.train.whole()

        def loss(state, data=data, experience=experience):
            f = data["input"] @ state["weight"].T
            mean = past.head(experience.columns).loss(f, data["target"])
            return mean + correction.weight * correction.anchor.value(state)

        minimise(model, loss)
        correction.absorb(experience, past)
        seen = [e.train.whole() for e in stream[: experience.index + 1]]
        X = torch.cat([d["input"] for d in seen])
        y = torch.cat([d["target"] for d in seen])
        S = X.T @ X + DELTA * torch.eye(3, dtype=F64)
        torch.testing.assert_close(model.weight[0].detach(), torch.linalg.solve(S, X.T @ y))
        torch.testing.assert_close(correction.anchor.posterior().precision_matrix(), S)


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_online_laplace_weighs_the_past_by_lam_over_the_items(structure):
    stream, model = classes(), network()
    correction = OnlineLaplace(lam=3.0, delta=DELTA, structure=structure)
    past = past_of(stream, model)
    correction.begin(stream[0], past)
    expected = 3.0 / 12 * 0.5 * DELTA * flatten(trainable(model)).square().sum()
    torch.testing.assert_close(correction.loss(model).detach(), expected)
    correction.absorb(stream[0], past)
    correction.begin(stream[1], past)
    assert float(correction.loss(model).detach()) == 0.0  # the new centre
    other = network(seed=5)
    grads = torch.autograd.grad(correction.loss(other), list(other.parameters()))
    d = {n: p.detach() - correction.anchor.mean[n] for n, p in other.named_parameters()}
    S = correction.anchor.posterior().precision_matrix()
    torch.testing.assert_close(
        flatten(dict(enumerate(grads))), 3.0 / 12 * S @ flatten(d), rtol=1e-9, atol=1e-12
    )
    head = correction.anchor.precision_times({n: torch.ones_like(v) for n, v in d.items()})[
        "2.bias"
    ]
    if structure == "diag":  # the other head has the prior alone, until its task was learnt
        torch.testing.assert_close(head[2:], torch.full((2,), DELTA, dtype=F64))
        correction.absorb(stream[1], past)
        later = correction.anchor.diagonal()["2.bias"]
        assert torch.equal(later[:2], head[:2])
        assert float(later[2:].min()) > DELTA


def test_the_fisher_is_a_mean_of_squared_gradients_of_each_item():
    stream, model = classes(), network()
    past, (experience, _) = past_of(stream, model), stream
    data, head = experience.train.whole(), past.head((0, 1))
    squares = torch.zeros(49, dtype=F64)
    for x, y in zip(data["input"], data["target"], strict=True):
        grads = torch.autograd.grad(head.loss(model(x[None]), y[None]), list(model.parameters()))
        squares += flatten(dict(enumerate(grads))).square() / 12
    found = flatten(mean_fisher(experience, past, "empirical"))
    torch.testing.assert_close(found, squares)
    one, two = (mean_fisher(experience, past, "sampled") for _ in range(2))
    assert all(torch.equal(one[n], two[n]) for n in one)
    exact = flatten(mean_fisher(experience, past, "exact"))
    assert not torch.allclose(exact, found)


def test_ewc_is_a_quadratic_per_task_and_online_ewc_is_the_same_for_one():
    stream, model = classes(), network()
    past = past_of(stream, model)
    options = {"lam": 30.0, "fisher": "empirical"}
    ewc, online = EWC(**options), OnlineEWC(**options, gamma=0.5)
    assert ewc.loss(model) is None
    kept = []
    for t, experience in enumerate(stream):
        for correction in (ewc, online):
            correction.absorb(experience, past)
        kept.append((trainable(copy.deepcopy(model)), mean_fisher(experience, past, "empirical")))
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p += 0.1 * randn(*p.shape, seed=10 * t + i)
        apart = 15.0 * sum(
            (F[n] * (p - w[n]).square()).sum() for w, F in kept for n, p in model.named_parameters()
        )
        torch.testing.assert_close(ewc.loss(model), apart)
        (w, F), decay = kept[-1], 0.5
        last = {n: F[n] + (decay * kept[0][1][n] if t else 0.0) for n in F}
        one = 15.0 * sum((last[n] * (p - w[n]).square()).sum() for n, p in model.named_parameters())
        torch.testing.assert_close(online.loss(model), one)
        if t == 0:
            torch.testing.assert_close(ewc.loss(model), online.loss(model))
    assert ewc.nbytes() == online.nbytes() == 2 * 49 * 8


def test_synaptic_intelligence_integrates_the_losss_own_gradient():
    """Path integral by hand, with a penalty, clipping and momentum that it must not see."""
    stream, model = classes(), network()
    opt = SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    past, correction = past_of(stream, model, optimizer=opt), SI(c=0.7, xi=0.1)
    data, head = stream[0].train.whole(), past.head((0, 1))
    module = LearnModule(
        model, opt, head, lambda step: 1.0, clip_grad_norm=0.05,
        penalty=lambda m: 0.3 * sum(p.square().sum() for p in m.parameters()),
        see_gradients=correction.see_gradients,
    )  # fmt: skip
    correction.begin(stream[0], past)
    start = trainable(copy.deepcopy(model))
    omega, first = (
        torch.zeros(49, dtype=F64),
        head.loss(model(data["input"]), data["target"]).item(),
    )
    for _ in range(40):
        loss = head.loss(model(data["input"]), data["target"])
        g = flatten(dict(enumerate(torch.autograd.grad(loss, list(model.parameters())))))
        before = flatten(trainable(copy.deepcopy(model)))
        opt.step(module.closure(data, lambda loss: loss.backward()))
        correction.after_step(data, past)
        omega -= g * (flatten(trainable(model)) - before)
    torch.testing.assert_close(flatten(correction.omega), omega)
    last = head.loss(model(data["input"]), data["target"]).item()
    assert float(omega.sum()) == pytest.approx(first - last, rel=0.05)  # the loss's decrease
    correction.absorb(stream[0], past)
    distance = flatten(trainable(model)) - flatten(start)
    Omega = omega.clamp(min=0.0) / (distance.square() + 0.1)
    torch.testing.assert_close(importance(omega, distance, 0.1), Omega)
    w = flatten(trainable(model))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += randn(*p.shape, seed=i)
    found = correction.loss(model).detach()
    torch.testing.assert_close(
        found, 0.7 * (Omega * (flatten(trainable(model)) - w).square()).sum()
    )


def test_synaptic_intelligence_takes_the_mean_of_the_gradients_of_a_step():
    stream, model = classes(), network()
    past, correction = past_of(stream, model), SI(c=1.0, xi=0.1)
    correction.begin(stream[0], past)
    with torch.no_grad():
        for value in (1.0, 3.0):  # two samples
            for p in model.parameters():
                p.grad = torch.full_like(p, value)
            correction.see_gradients(model)
        for p in model.parameters():
            p -= 0.1
    correction.after_step({}, past)
    for omega in correction.omega.values():
        torch.testing.assert_close(omega, torch.full_like(omega, 2.0 * 0.1))


class Antithetic:
    """+1 for one sample, -1 for the next."""

    sign = -1.0

    def __call__(self, like):
        self.sign = -self.sign
        return torch.full_like(like, self.sign)


@pytest.mark.parametrize("start", ["posterior", "warm"])
def test_vcl_with_a_conjugate_model_is_recursive_bayes(start):
    H = torch.tensor([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]], dtype=F64)
    sets = [Rows(H * a, randn(4, seed=i)) for i, a in enumerate((1.0, 2.0, 0.5))]
    stream, model = stream_of(sets, [(0,)] * 3), nn.Linear(3, 1, bias=False, dtype=F64)
    correction, before = vcl(start=start), None
    for experience in stream:
        opt = IVON(
            model.named_parameters(), lr=0.3, ess=4.0, hess_init=0.5, beta1=0.5, beta2=0.9,
            weight_decay=DELTA / 4, mc_samples=2, noise=Antithetic(),
        )  # fmt: skip
        opt.zero_grad()
        past = past_of(stream, model, Gaussian(), before or opt)
        correction.begin(experience, past)
        if correction.prior() is not None:
            opt.set_prior(correction.prior())
            if start == "posterior":
                opt.set_posterior(before.posterior())
                torch.testing.assert_close(opt.posterior().precision, opt.prior().precision)
        module = LearnModule(model, opt, past.head((0,)), lambda step: 1.0)
        for _ in range(300):
            opt.step(module.closure(experience.train.whole(), lambda loss: loss.backward()))
        correction.absorb(experience, past_of(stream, model, Gaussian(), opt))
        before = opt
    X = torch.cat([s.whole()["input"] for s in sets])
    y = torch.cat([s.whole()["target"] for s in sets])
    S = X.square().sum(0) + DELTA
    q = correction.prior()
    torch.testing.assert_close(q.precision["weight"][0], S, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(q.mean["weight"][0], X.T @ y / S, rtol=1e-9, atol=1e-9)


def vcl(**options) -> VCL:
    defaults = {
        "start": "posterior", "weight": 1.0, "ml_epochs": 0, "ml_lr": 0.05, "coreset": 0,
        "selection": "random", "coreset_epochs": 20, "batch_size": 4,
    }  # fmt: skip
    return VCL(**{**defaults, **options})


@pytest.mark.parametrize("selection", ["random", "k_centre"])
def test_coresets_are_held_out_and_only_a_copy_learns_from_them(selection):
    stream, model = classes(), network()
    opt = BBB(model.named_parameters(), lr=0.01, ess=9.0, rho_init=-2.0, seed=0)
    past, correction = past_of(stream, model, optimizer=opt), vcl(coreset=3, selection=selection)
    assert correction.train_split(stream, 0).targets.unique().tolist() == [0, 1]
    assert correction.n_train([12, 12], 1) == 9
    q = opt.posterior()
    assert correction.predictive(q, past) is q
    for experience in stream:
        correction.begin(experience, past)
        held = correction.train_split(stream, experience.index)
        correction.absorb(experience, past)
        rows = {tuple(r.tolist()) for r in held.whole()["input"]}
        kept = {tuple(r.tolist()) for r in correction.memories[-1].input}
        everything = {tuple(r.tolist()) for r in experience.train.whole()["input"]}
        assert rows | kept == everything
        assert len(kept) == 3
        assert len(rows) == 9
        assert held.targets.min() == experience.columns[0]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    tuned, again = correction.predictive(q, past), correction.predictive(q, past)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert torch.equal(correction.prior().mean[name], before[name])
        assert torch.equal(tuned.mean[name], again.mean[name])
    nll = []
    for state in (before, tuned.mean):
        union = torch.cat([m.input for m in correction.memories])
        labels = torch.cat([torch.tensor(m.columns)[m.target] for m in correction.memories])
        nll.append(
            float(past.heads().loss(torch.func.functional_call(model, state, union), labels))
        )
    assert nll[1] < nll[0]
    assert correction.n_items() == 6
    made = []

    def keep(copied, n):
        made.append(past.new_optimizer(copied, n))
        return made[-1]

    correction.predictive(q, replace(past, new_optimizer=keep))
    for name in before:  # the copy's prior is q
        assert torch.equal(made[0].prior().mean[name], q.mean[name])
        assert torch.equal(made[0].prior().precision[name], q.precision[name])


def test_the_first_task_may_start_at_maximum_likelihood():
    stream, model = classes(), network()
    past, correction = past_of(stream, model, optimizer=_bbb(model)), vcl(ml_epochs=30)
    data, head = stream[0].train.whole(), past.head((0, 1))
    first = head.loss(model(data["input"]), data["target"]).item()
    correction.begin(stream[0], past)
    fitted = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert head.loss(model(data["input"]), data["target"]).item() < 0.8 * first
    correction.absorb(stream[0], past)
    correction.begin(stream[1], past)  # not again
    assert all(torch.equal(p, fitted[n]) for n, p in model.named_parameters())


def _bbb(model):
    return BBB(model.named_parameters(), lr=0.01, ess=12.0, seed=0)


def test_the_weight_of_a_task_multiplies_what_it_adds():
    q = DiagonalGaussian({"w": torch.ones(3)}, {"w": torch.tensor([2.0, 3.0, 0.5])})
    prior = DiagonalGaussian({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    r = reweighted(q, prior, 3.0)
    torch.testing.assert_close(r.precision["w"], torch.tensor([4.0, 7.0, 1.0]))
    assert torch.equal(r.mean["w"], q.mean["w"])
    stream, model = classes(), network()
    opt = VOGN(model.named_parameters(), 0.1, 12.0, hess_init=0.5, tau=0.5, model=model,
               tempering="code", damping=0.3)  # fmt: skip
    correction = vcl(weight=2.0, start="warm")
    correction.absorb(stream[0], past_of(stream, model, optimizer=opt))
    for value in correction.prior().precision.values():  # delta + c N s / tau, without the damping
        torch.testing.assert_close(value, torch.full_like(value, 1.0 + 2.0 * 12 * 0.5 / 0.5))


def test_what_is_refused():
    stream, model = classes(), network()
    with pytest.raises(Unsupported, match="AdamW takes no prior"):
        vcl().check(past_of(stream, model))
    past = past_of(stream, model, optimizer=_bbb(model))
    with pytest.raises(ConfigError, match="leaves nothing to learn"):
        vcl(coreset=12).check(past)
    norm = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).double()
    with pytest.raises(Unsupported, match="LayerNorm"):
        OnlineLaplace(lam=1.0, delta=1.0, structure="kron").check(past_of(stream, norm))
