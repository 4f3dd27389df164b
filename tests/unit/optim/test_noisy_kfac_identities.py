"""Identities of Noisy K-FAC and K-FAC, against loops over examples and dense matrices."""

import pytest
import torch

from bayesrule.curvature import PerExampleRecorder
from bayesrule.errors import Unsupported
from bayesrule.models import build_model
from bayesrule.optim import KFAC, NoisyKFAC
from bayesrule.optim.noisy_kfac import damped, noisy_kfac_update

F64 = torch.float64
OPTIONS = {
    "lr": 0.05, "ess": 30.0, "factor_init": 0.4, "beta1": 0.8, "factor_rate": 0.1,
    "prior_prec": 2.0, "tau": 0.5, "damping": 0.02, "inverse_every": 1,
}  # fmt: skip
HAND = {n: value for n, value in OPTIONS.items() if n not in ("factor_init", "inverse_every")}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
        ).double()


def data(n=6):
    return randn(n, 4, seed=1), torch.arange(n) % 3


def closure_of(opt, net, x, y):
    def closure():
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    return closure


def loop_factors(net, x, y):
    """G and H of every parameter from one backward pass per example."""
    first, last = net[0], net[2]
    G = {name: 0.0 for name, _ in net.named_parameters()}
    H = {name: 0.0 for name, _ in net.named_parameters()}
    for xi, yi in zip(x, y, strict=True):
        s1 = first(xi).detach().requires_grad_()
        h = s1.tanh()
        s2 = last(h.detach()).detach().requires_grad_()
        torch.nn.functional.cross_entropy(s2, yi).backward()
        s1_grad = torch.autograd.grad(h, s1, last.weight.T @ s2.grad)[0]
        for i, a, d in ((0, xi, s1_grad), (2, h, s2.grad)):
            G[f"{i}.weight"] = G[f"{i}.weight"] + torch.outer(d, d) / len(x)
            G[f"{i}.bias"] = G[f"{i}.weight"]
            H[f"{i}.weight"] = H[f"{i}.weight"] + torch.outer(a, a).detach() / len(x)
            H[f"{i}.bias"] = torch.ones(1, 1, dtype=F64)
    return G, H


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------- factors


def test_recorded_factors_equal_a_loop_over_examples():
    net, (x, y) = network(), data()
    recorder = PerExampleRecorder(net, statistic="factors")
    with recorder.recording():
        for part in (slice(0, 2), slice(2, 6)):
            loss = torch.nn.functional.cross_entropy(net(x[part]), y[part])
            (loss * len(y[part]) / 6).backward()
    G, H = loop_factors(net, x, y)
    for name, (found_G, found_H) in recorder.factors().items():
        close(found_G, G[name])
        close(found_H, H[name])


def test_one_example_is_the_dense_fisher():
    net, (x, y) = network(), data(1)
    recorder = PerExampleRecorder(net, statistic="factors")
    with recorder.recording():
        torch.nn.functional.cross_entropy(net(x), y).backward()
    for name, (G, H) in recorder.factors().items():
        g = dict(net.named_parameters())[name].grad.flatten()
        close(torch.kron(G, H), torch.outer(g, g))


def test_factors_of_a_convolution_and_a_norm():
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(2, 3, 2, stride=2), torch.nn.GroupNorm(1, 3)
    net = torch.nn.Sequential(conv, norm, torch.nn.Flatten()).double()
    x = randn(5, 2, 4, 6)
    recorder = PerExampleRecorder(net, statistic="factors")
    kept = {}
    conv.register_forward_hook(lambda m, a, out: kept.update(out=out) or out.retain_grad())
    with recorder.recording():
        net(x).sin().sum(1).mean().backward()
    factors = recorder.factors()
    d = 5 * kept["out"].grad.flatten(2)  # (B, O, T), of an example's own loss
    a = torch.nn.functional.unfold(x, 2, stride=2)
    close(factors["0.weight"][0], torch.einsum("bot,bpt->op", d, d) / 5)
    close(factors["0.weight"][1], torch.einsum("bit,bjt->ij", a, a) / (5 * a.shape[-1]))
    rows = PerExampleRecorder(net, ["0.bias", "1.weight", "1.bias"], statistic="gradients")
    with rows.recording():
        net(x).sin().sum(1).mean().backward()
    for name, g in rows.gradients().items():  # exact, whatever the positions
        close(factors[name][0], g.T @ g / 5)
        close(factors[name][1], torch.ones(1, 1, dtype=F64))


def test_uses_of_a_shared_weight_are_positions():
    """A layer used twice on two halves is the layer used once on a sequence of two."""

    class Twice(torch.nn.Module):
        def __init__(self, at_once):
            super().__init__()
            self.inner, self.at_once = torch.nn.Linear(4, 3), at_once

        def forward(self, x):
            if self.at_once:
                return self.inner(x).sin().sum(1)
            return self.inner(x[:, 0]).sin() + self.inner(x[:, 1]).sin()

    x, found = randn(5, 2, 4), []
    for at_once in (True, False):
        torch.manual_seed(0)
        net = Twice(at_once).double()
        recorder = PerExampleRecorder(net, statistic="factors")
        with recorder.recording():
            net(x).square().sum(1).mean().backward()
        found.append(recorder.factors())
    for name, factors in found[0].items():
        for one, two in zip(factors, found[1][name], strict=True):
            close(one, two)


def test_layers_without_factors_are_refused_at_once():
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2), torch.nn.Flatten())
    with pytest.raises(Unsupported, match=r"'0' \(Conv2d\): a convolution in 2 groups"):
        NoisyKFAC(net.parameters(), lr=0.1, ess=10.0, model=net)
    words = torch.nn.Sequential(torch.nn.Embedding(5, 3))
    with pytest.raises(Unsupported, match=r"'0' \(Embedding\): 'weight' is a matrix"):
        KFAC(words.parameters(), lr=0.1, ess=10.0, model=words)
    with pytest.raises(Unsupported, match=r"KFAC needs .* pass model="):
        KFAC(words.parameters(), lr=0.1, ess=10.0)


# --------------------------------------------------------------------------------- steps


def blocks_of(opt, net):
    """S and A of every parameter, dense."""
    state = {name: opt.state[p] for name, p in net.named_parameters()}
    one = torch.ones(1, 1, dtype=F64)
    return {
        n: (s["row_factor"].clone(), s.get("col_factor", one).clone()) for n, s in state.items()
    }


def symmetric_root_of_covariance(S, A, damp):
    """Of a block, dense: ((ess / tau) (damped block))^(-1/2)."""
    gamma = OPTIONS["tau"] * OPTIONS["prior_prec"] / OPTIONS["ess"]
    if damp == "factors" and len(A) > 1:
        block = torch.kron(*damped(S, A, gamma))
    else:
        block = torch.kron(S, A) + gamma * torch.eye(len(S) * len(A), dtype=F64)
    values, Q = torch.linalg.eigh(block * OPTIONS["ess"] / OPTIONS["tau"])
    return (Q * values.rsqrt()) @ Q.T


@pytest.mark.parametrize("kind", [NoisyKFAC, KFAC])
@pytest.mark.parametrize("damp", ["factors", "eigenvalues"])
def test_steps_by_hand_with_dense_inverses(kind, damp):
    """Statistics by a loop over examples, at the drawn weights; K-FAC: at the mean."""
    net, (x, y), draws = network(), data(), []

    def noise(like):
        draws.append(randn(*like.shape, seed=len(draws)))
        return draws[-1]

    opt = kind(net.named_parameters(), **OPTIONS, damp=damp, model=net, noise=noise)
    opt._learnt()  # makes the factors
    hand = {n: (p.detach().clone(), torch.zeros_like(p)) for n, p in net.named_parameters()}
    factors, points = blocks_of(opt, net), {}

    def closure():
        points.update({n: p.detach().clone() for n, p in net.named_parameters()})
        return closure_of(opt, net, x, y)()

    for step in range(4):
        opt.step(closure)
        twin = network()
        twin.load_state_dict(points)
        loss = torch.nn.functional.cross_entropy(twin(x), y)
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        G, H = loop_factors(twin, x, y)
        for index, (name, p) in enumerate(net.named_parameters()):
            (mean, momentum), (S, A) = hand[name], factors[name]
            offset = torch.zeros_like(mean)
            if kind is NoisyKFAC:
                root = symmetric_root_of_covariance(S, A, damp)
                offset = (root @ draws[4 * step + index].flatten()).reshape(p.shape)
            close(points[name], mean + offset, 1e-9)
            column = [t.reshape(len(p), -1) for t in (mean, momentum, grads[index])]
            mean, momentum, S, A = noisy_kfac_update(
                *column[:2], S, A, column[2], G[name], H[name], **HAND,
                damp=damp if p.ndim == 2 else "eigenvalues",
            )  # fmt: skip
            hand[name], factors[name] = (mean.reshape(p.shape), momentum.reshape(p.shape)), (S, A)
            close(p.detach(), hand[name][0], 1e-9)


def test_factors_and_inverses_are_taken_at_their_steps():
    net, (x, y) = network(), data()
    every = {"factor_every": 2, "inverse_every": 3}
    opt = KFAC(net.named_parameters(), **{**OPTIONS, **every}, model=net)
    changed = []
    for _ in range(7):
        before = {n: t.clone() for n, t in opt.state[net[0].weight].items()}
        opt.step(closure_of(opt, net, x, y))
        now = opt.state[net[0].weight]
        changed.append(
            [not before or not torch.equal(now[n], before[n]) for n in ("row_factor", "col_used")]
        )
    assert [c[0] for c in changed] == [True, False, True, False, True, False, True]
    assert [c[1] for c in changed] == [True, False, False, True, False, False, True]


# ----------------------------------------------------------------------------- posterior


@pytest.mark.parametrize("damp", ["factors", "eigenvalues"])
def test_the_posterior_is_what_is_sampled_from(damp):
    """Unit noise in every direction gives the columns of a root of its covariance."""
    net, (x, y) = network(), data()
    unit = [None]

    def noise(like):
        entry = unit[0]
        if not isinstance(entry, tuple):
            return torch.ones_like(like)
        out = torch.zeros_like(like)
        if like.shape == entry[0]:
            out.view(-1)[entry[1]] = 1.0
        return out

    opt = NoisyKFAC(net.named_parameters(), **OPTIONS, damp=damp, model=net, noise=noise)
    for _ in range(3):
        opt.step(closure_of(opt, net, x, y))
    q = opt.posterior()
    start = 0
    for name, p in net.named_parameters():
        columns = []
        for index in range(p.numel()):
            unit[0] = (p.shape, index)
            with opt.sampled_params():
                columns.append((p.detach() - q.mean[name]).flatten())
        root = torch.stack(columns, 1)
        block = q.covariance_matrix()[start : start + p.numel(), start : start + p.numel()]
        close(root @ root.T, block)
        start += p.numel()


@pytest.mark.parametrize(("damp", "exact"), [("factors", False), ("eigenvalues", True)])
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_linear_regression_ends_at_ridge(damp, exact, tau):
    """With the exact factors (unit residual variance): mean of ridge tau delta, precision N H / tau
    + delta with damped eigenvalues, with cross terms of the product otherwise."""
    n, delta = 40, 3.0
    X, truth = randn(n, 4), randn(4, 2, seed=1)
    Y = X @ truth + randn(n, 2, seed=2)
    net = torch.nn.Linear(4, 2, bias=False).double()
    opt = NoisyKFAC(
        net.named_parameters(), lr=0.5, ess=float(n), beta1=0.0, prior_prec=delta, tau=tau,
        damping=0.0, damp=damp, factor_rate=0.0, model=net, noise=torch.zeros_like,
    )  # fmt: skip
    state = opt._learnt()[0][1]
    for kind in ("factor", "used"):  # G = I: one residual variance for both outputs
        state[f"row_{kind}"] = torch.eye(2, dtype=F64)
        state[f"col_{kind}"] = X.T @ X / n

    def closure():
        opt.zero_grad()
        loss = 0.5 * (net(X) - Y).square().sum(1).mean()
        loss.backward()
        return loss

    for _ in range(300):
        opt.step(closure)
    ridge = torch.linalg.solve(X.T @ X + tau * delta * torch.eye(4, dtype=F64), X.T @ Y)
    q = opt.posterior()
    close(q.mean["weight"].T, ridge)
    truth_precision = torch.kron(torch.eye(2, dtype=F64), X.T @ X / tau) + delta * torch.eye(
        8, dtype=F64
    )
    worst = float((q.precision_matrix() - truth_precision).abs().max())
    assert (worst < 1e-9) == exact


def test_a_network_with_every_kind_of_layer_learns():
    cfg = {"name": "cnn", "widths": [4, 6], "groups": 2, "hidden": [8]}
    net = build_model(cfg, input_shape=(1, 8, 8), n_outputs=3, seed=0)
    y = torch.arange(12) % 3
    x = (randn(12, 1, 8, 8) + 2 * randn(3, 1, 8, 8, seed=1)[y]).float()
    opt = NoisyKFAC(net.parameters(), lr=0.1, ess=500.0, model=net, seed=0)
    closure = closure_of(opt, net, x, y)
    before = closure().item()
    opt.zero_grad()
    for _ in range(40):
        opt.step(closure)
    assert closure().item() < 0.2 * before
