"""Network clients: SiteIVON, optimisers as solvers, FedLap-Func, messages."""

from dataclasses import replace

import ivon as ivon_opt
import pytest
import torch
from federated_cases import normal, prior
from torch import nn

from bayesrule.errors import NonFiniteLoss, Unsupported
from bayesrule.federated import (
    ADMM,
    BayesianADMM,
    ClientState,
    FedADMM,
    FedAvg,
    FedDyn,
    FedLap,
    FedLapFunc,
    FedProx,
    LinearModel,
    NetworkClient,
    Reply,
    ServerState,
    SiteIVON,
    SoftLabels,
    newton,
    newton_solver,
    num_bytes,
    refusal,
    run_rounds,
    state_refusal,
    von,
)
from bayesrule.federated.local import LocalObjective
from bayesrule.federated.training import minimise_soft
from bayesrule.likelihoods import Categorical
from bayesrule.optim import IVON, SGD, VOGN, AdamW
from bayesrule.posteriors import DiagonalGaussian, FullGaussian, IsotropicGaussian


def data(n=24, D=3, C=3, seed=0):
    return normal(n, D, seed=seed), torch.arange(n) % C


def model(D=3, C=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, C, bias=False)).double()


def client(net, optimizer, *, n=24, seed=0, **options):
    X, y = data(n, seed=seed)

    def batch(rows, epoch):
        return {"input": X[rows], "target": y[rows]}

    options = {"epochs": 1, "batch_size": n, "seed": 3, **options}
    return NetworkClient(net, Categorical(), batch, n, optimizer, **options)


def weights(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def diagonal(net, precision=1.0, mean=None):
    w = weights(net)
    mean = {n: torch.zeros_like(t) for n, t in w.items()} if mean is None else mean
    return DiagonalGaussian(mean, {n: torch.full_like(t, precision) for n, t in w.items()})


def test_site_ivon_without_dual_is_ivon_opt_step_by_step():
    X, y = data()
    ours, theirs = model(), model()
    N, delta, h0 = len(X), 2.0, 0.25  # a power of two: ivon-opt keeps it in float32
    draws = [normal(9, seed=100 + i) for i in range(8)]
    feed = iter(draws)
    mine = SiteIVON(
        ours.named_parameters(), lr=0.05, hess_init=h0, beta2=0.95, seed=0,
        noise=lambda like: next(feed).reshape(like.shape),
    )  # fmt: skip
    objective = LocalObjective(diagonal(ours, delta), rho=1.0, weight=1.0, start=weights(ours))
    mine.set_objective(objective, N, ours)
    reference = ivon_opt.IVON(
        theirs.parameters(), lr=0.05, ess=N, weight_decay=delta / N, hess_init=h0, beta2=0.95,
        rescale_lr=False,
    )  # fmt: skip

    def closure():
        mine.zero_grad()
        loss = nn.functional.cross_entropy(ours(X), y)
        loss.backward()
        return loss

    for eps in draws:
        mine.step(closure)
        group = reference.param_groups[0]
        scale = (N * (group["hess"] + delta / N)).sqrt()
        real = torch.randn
        torch.randn = lambda *a, eps=eps, **k: eps  # its one draw, divided by the same scale
        try:
            with reference.sampled_params(train=True):
                reference.zero_grad()
                nn.functional.cross_entropy(theirs(X), y).backward()
        finally:
            torch.randn = real
        assert scale.shape == eps.shape
        reference.step()
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-12)


def test_site_ivon_settles_where_the_objective_is_stationary():
    """On a quadratic loss q_k is known: S = S_g + (w H - V)/rho entry by entry, and the mean."""
    net = nn.Linear(2, 1, bias=False).double()
    H, b, N = torch.tensor([3.0, 5.0]).double(), torch.tensor([1.0, -2.0]).double(), 10
    q_g = DiagonalGaussian(
        {"weight": normal(1, 2, seed=1)}, {"weight": torch.full((1, 2), 2.0).double()}
    )
    tilt = DiagonalGaussian(
        {"weight": normal(1, 2, seed=2)}, {"weight": torch.full((1, 2), 1.5).double()}
    ).natural()
    rho, w = 0.5, 0.8
    objective = LocalObjective(q_g, rho=rho, weight=w, tilt=tilt)
    opt = SiteIVON(net.named_parameters(), lr=0.02, beta1=0.5, beta2=0.99, mc_samples=4, seed=1)
    opt.set_objective(objective, N, net)

    def closure():
        opt.zero_grad()
        theta = net.weight[0]
        loss = (0.5 * (H * theta.square()).sum() - (b * theta).sum()) / N
        loss.backward()
        return loss

    mean, S = torch.zeros(2).double(), torch.zeros(2).double()
    for step in range(600):
        opt.step(closure)
        if step >= 200:
            q = opt.posterior(net)
            mean += q.mean["weight"][0] / 400
            S += q.precision["weight"][0] / 400
    V, v = 1.5, tilt.nat1["weight"][0]
    expected = 2.0 + (w * H - V) / rho
    torch.testing.assert_close(S, expected, rtol=0.08, atol=0)
    stationary = torch.linalg.solve(
        torch.diag(w * H - V + rho * 2.0), w * b - v + rho * 2.0 * q_g.mean["weight"][0]
    )
    torch.testing.assert_close(mean, stationary, rtol=0, atol=0.05)


def test_site_ivon_refuses_what_is_no_diagonal_gaussian():
    net = model()
    opt = SiteIVON(net.named_parameters(), lr=0.1)
    with pytest.raises(Unsupported, match="diagonal Gaussians"):
        opt.set_objective(
            LocalObjective(IsotropicGaussian(weights(net), 1.0), rho=1.0, weight=1.0), 10, net
        )


def make_sgd(net, ess, seed):
    return SGD(net.named_parameters(), lr=1.0, momentum=0.0, seed=seed)


def test_a_point_optimiser_finds_what_newton_finds():
    net = model()
    X, y = data()
    tilt = diagonal(net, 1.0, mean={"0.weight": normal(3, 3, seed=4)}).natural() * 0.5
    q_g = diagonal(net, 2.0)
    objective = LocalObjective(q_g, rho=0.7, weight=1.0, tilt=tilt)
    q, _ = client(net, make_sgd, epochs=700)(objective, {})
    exact, _ = newton_solver(LinearModel(Categorical(), X, y, 3))(objective, {})
    torch.testing.assert_close(q.mean, exact.mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(q.precision, exact.precision, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda net, ess, seed: IVON(net.named_parameters(), lr=0.05, ess=ess, weight_decay=0.0,
                                    hess_init=0.5, beta2=0.99, rescale_lr=False, seed=seed),
        lambda net, ess, seed: VOGN(net.named_parameters(), lr=0.05, ess=ess, model=net, seed=seed),
        lambda net, ess, seed: SiteIVON(net.named_parameters(), lr=0.05, beta2=0.99, seed=seed),
    ],
    ids=["ivon", "vogn", "site_ivon"],
)  # fmt: skip
def test_optimisers_with_a_gaussian_posterior_are_solvers(make):
    net = model()
    algorithm = BayesianADMM(rho=0.5, gamma=0.2)
    state = algorithm.start(diagonal(net), 2, weights(net))
    before = nn.functional.cross_entropy(net(data()[0]), data()[1]).item()
    clients = [(24, client(net, make, epochs=20, seed=s)) for s in (0, 1)]
    for found in run_rounds(algorithm, state, clients, 3):
        assert isinstance(found.posterior, DiagonalGaussian)
    with torch.no_grad():
        net[0].weight.copy_(found.posterior.mean["0.weight"])
    assert nn.functional.cross_entropy(net(data()[0]), data()[1]).item() < before


def test_a_solver_of_another_family_is_refused_and_divergence_is_noticed():
    net = model()
    full = FullGaussian(weights(net), torch.eye(9).double())
    with pytest.raises(Unsupported, match="point estimator"):
        client(net, make_sgd)(LocalObjective(full, rho=1.0, weight=1.0), {})

    def wild(net, ess, seed):
        return SGD(net.named_parameters(), lr=1e300, momentum=0.0, seed=seed)

    with pytest.raises(NonFiniteLoss):
        client(net, wild, epochs=5)(LocalObjective(diagonal(net), rho=1.0, weight=1.0), {})


@pytest.mark.parametrize("make", [
    lambda net, ess, seed: AdamW(net.named_parameters(), lr=0.01, weight_decay=0.0, seed=seed),
    lambda net, ess, seed: SiteIVON(net.named_parameters(), lr=0.05, seed=seed),
])  # fmt: skip
def test_optimiser_state_persists_over_rounds(make):
    """Two calls with carried state are one longer call, for the same minibatches."""
    net, far = model(), diagonal(model(), 1e-9)
    objective = LocalObjective(far, rho=1e-9, weight=1.0)
    q1, kept = client(net, make)(objective, {})
    assert kept["steps"] == [1]
    after = replace(objective, prior=diagonal(net, 1e-9, mean=q1.mean))
    q2, kept = client(net, make)(after, kept)
    q2_fresh, _ = client(net, make)(after, {})
    assert kept["steps"] == [2]
    assert not torch.equal(q2.mean["0.weight"], q2_fresh.mean["0.weight"])


# ------------------------------------------------------------- algorithms on weight vectors


def run(algorithm, solves, rounds=3, q0=None):
    start = algorithm.start(q0 or prior("isotropic", 2), len(solves))
    return list(run_rounds(algorithm, start, solves, rounds))


def to_point(point):
    """A solver that returns a fixed point, whatever the objective."""

    def solve(objective, carried):
        return IsotropicGaussian({"w": torch.tensor(point).double()}, 1.0), {}

    return solve


def test_fedavg_weights_clients_by_their_items():
    (state,) = run(FedAvg(), [(1, to_point([0.0, 4.0])), (3, to_point([4.0, 0.0]))], 1)
    assert state.posterior.mean["w"].tolist() == [3.0, 1.0]


def test_fedprox_penalty_is_on_the_mean_loss():
    seen = []

    def solve(objective, carried):
        seen.append(objective)
        return to_point([0.0, 0.0])(objective, carried)

    run(FedProx(mu=0.3), [(5, solve)], 1)
    theta = {"w": torch.tensor([2.0, 1.0]).double()}
    assert seen[0].weight == 0.2
    assert float(seen[0].penalty(theta)) == pytest.approx(0.15 * 5.0)


def test_fedadmm_and_feddyn_follow_their_equations():
    points = [[1.0, 2.0], [3.0, -1.0]]
    solves = [(1, to_point(p)) for p in points]
    a, b = (torch.tensor(p).double() for p in points)
    found = run(FedADMM(rho=0.5, eta=1.0), solves, 2)
    w1 = ((2 * a) + (2 * b)) / 2
    torch.testing.assert_close(found[0].posterior.mean["w"], w1)
    w2 = w1 + ((2 * a - w1 - a) + (2 * b - w1 - b)) / 2
    torch.testing.assert_close(found[1].posterior.mean["w"], w2)
    found = run(FedDyn(a=0.5), solves, 2)
    mean = (a + b) / 2
    hist = -0.25 * (a + b)
    w1 = mean - hist / 0.5
    torch.testing.assert_close(found[0].posterior.mean["w"], w1)
    hist = hist - 0.25 * (a + b - 2 * w1)
    torch.testing.assert_close(found[1].posterior.mean["w"], mean - hist / 0.5)


def test_an_absent_client_stays_in_the_sums():
    algorithm = ADMM(rho=1.0, delta=1.0)
    state = algorithm.start(prior("isotropic", 2), 2)
    clients = [algorithm.client_start(state, k) for k in (0, 1)]
    for present in ((0, 1), (0,)):
        message, replies = algorithm.message(state), []
        for k in present:
            reply, clients[k] = algorithm.client_update(
                message, clients[k], k, 1, to_point([1.0 + k, 2.0])
            )
            replies.append(reply)
        state = algorithm.server_update(state, replies)
    total = clients[0].dual + clients[1].dual
    torch.testing.assert_close(total.nat1["w"], state.dual_sum.nat1["w"])
    wbar = torch.tensor([1.0, 2.0]).double()  # of the client that answered, times K
    torch.testing.assert_close(state.posterior.mean["w"], (2 * wbar + total.nat1["w"]) / 3)


# ------------------------------------------------------------------------ function space


class WithSoftTerms:
    """A client's loss (or none) and the function-space terms of an objective, in closed form."""

    def __init__(self, objective, loss=None):
        terms = [
            (t.weight, LinearModel(Categorical(), t.inputs, t.targets, 3)) for t in objective.soft
        ]
        self.terms = [(objective.weight, loss), *terms] if loss else terms

    def value(self, theta):
        return sum(a * loss.value(theta) for a, loss in self.terms)

    def grad(self, theta):
        return sum(a * loss.grad(theta) for a, loss in self.terms)

    def hess(self, theta):
        return sum(a * loss.hess(theta) for a, loss in self.terms)


def linear(w, inputs):
    return inputs @ w["w"].reshape(3, 3).mT


def minimise(objective, loss=None):
    whole = WithSoftTerms(objective, loss)
    return {"w": newton(replace(objective, weight=1.0, soft=()), whole)}


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_fedlap_func_ends_at_the_joint_map(tau):
    delta, losses, memory = 2.0, [], []
    for seed in (0, 1):
        X, y = data(10, seed=seed)
        losses.append(LinearModel(Categorical(), X, (y + seed) % 3, 3))
        memory.append(X[:4])

    def solver(loss):
        def solve(objective, carried):
            return IsotropicGaussian(minimise(objective, loss), delta), {}

        return solve

    solves = [(10, solver(loss)) for loss in losses]
    q0 = prior("isotropic", 9, delta=delta)
    algorithm = FedLapFunc(gamma=0.5, outputs=linear, memory=tuple(memory), tau=tau)
    found = list(run_rounds(algorithm, algorithm.start(q0, 2), solves, 200, minimise))
    w = found[-1].posterior.mean["w"]
    assert float((sum(loss.grad(w) for loss in losses) + delta * w).norm()) < 1e-6
    plain = list(run_rounds(FedLap(gamma=0.5), FedLap(gamma=0.5).start(q0, 2), solves, 2))
    same = torch.allclose(found[1].posterior.mean["w"], plain[1].posterior.mean["w"], atol=1e-9)
    assert same == (tau == 0.0)


def test_the_servers_search_minimises_its_objective():
    net = model()
    X, _ = data()
    labels = torch.softmax(normal(24, 3, seed=7), -1)
    q = IsotropicGaussian(weights(net), 2.0)
    objective = LocalObjective(q, rho=1.0, weight=0.0, soft=(SoftLabels(X, labels, 1.0),))
    flat = IsotropicGaussian({"w": weights(net)["0.weight"].flatten()}, 2.0)
    w = minimise_soft(net, objective, steps=400)["0.weight"]
    best = minimise(replace(objective, prior=flat))["w"]
    torch.testing.assert_close(w.flatten(), best, rtol=0, atol=1e-3)


def test_exact_solvers_refuse_the_terms_that_they_would_leave_out():
    X, y = data()
    loss = LinearModel(Categorical(), X, y, 3)
    term = SoftLabels(X, torch.softmax(normal(24, 3, seed=7), -1), 1.0)
    objective = LocalObjective(prior("full", 9), rho=1.0, weight=1.0)
    for extra in ({"soft": (term,)}, {"ridge": 0.5}):
        with pytest.raises(Unsupported, match="function-space"):
            von(replace(objective, **extra), loss, steps=1, a=1.0, b=1.0)
    with pytest.raises(Unsupported, match="function-space"):
        newton(replace(objective, soft=(term,)), loss)


# ---------------------------------------------------------------------------- messages


def reply_to(message, mean, precision=None):
    q = message.posterior
    if precision is None:
        return Reply(0, 5, IsotropicGaussian(mean, q.precision))
    return Reply(0, 5, DiagonalGaussian(mean, precision), sent=("mean", "precision"))


def test_bytes_are_those_of_what_travels():
    lap = FedLap()
    assert num_bytes(lap.message(lap.start(prior("isotropic", 10), 2)).payload()) == 80
    bayes = BayesianADMM()
    assert num_bytes(bayes.message(bayes.start(prior("diagonal", 10), 2)).payload()) == 160
    func = FedLapFunc(
        outputs=lambda w, x: x @ w["w"].reshape(2, 5).mT, memory=(torch.ones(3, 5).double(),) * 2
    )
    state = func.start(prior("isotropic", 10), 2)
    assert num_bytes(func.message(state).payload()) == 80 + 2 * 15 * 8  # the inputs, once
    assert num_bytes(func.message(replace(state, round=1)).payload()) == 80


def test_unsound_replies_are_refused_with_a_reason():
    message = FedAvg().message(FedAvg().start(prior("isotropic", 3), 2))
    sound = {"w": torch.zeros(3).double()}
    assert refusal(reply_to(message, sound), message) is None
    nan = {"w": torch.tensor([0.0, float("nan"), 1.0]).double()}
    assert "not finite" in refusal(reply_to(message, nan), message)
    assert "shape (4,)" in refusal(reply_to(message, {"w": torch.zeros(4)}), message)
    assert "other parameters" in refusal(reply_to(message, {**sound, "x": torch.zeros(1)}), message)
    wrong = reply_to(message, sound, {"w": torch.ones(3).double()})
    assert "diagonal_gaussian" in refusal(wrong, message)
    single = {"w": torch.zeros(3)}
    assert "is of torch.float32, not torch.float64" in refusal(reply_to(message, single), message)
    assert "0 items" in refusal(replace(reply_to(message, sound), num_items=0), message)


def test_extra_parts_of_a_reply_are_those_of_the_algorithm():
    algorithm = FedADMM()
    state = algorithm.start(prior("isotropic", 3), 2)
    message, extra = algorithm.message(state), algorithm.reply_extra(state, 0)
    sound = reply_to(message, {"w": torch.zeros(3).double()})
    w = torch.zeros(3).double()

    def why(**parts):
        return refusal(replace(sound, extra=parts), message, extra)

    assert why(difference={"w": w}) is None
    assert "has the parts" in why()
    assert "has the parts" in why(difference={"w": w}, more={"w": w})
    assert "other parameters" in why(difference={})
    assert "shape (1,)" in why(difference={"w": w[:1]})
    assert "not finite" in why(difference={"w": w / 0.0})  # whether or not it says that it sent it


def test_a_state_that_would_spoil_a_clients_next_rounds_is_refused():
    algorithm = BayesianADMM()
    before = algorithm.client_start(algorithm.start(prior("diagonal", 3), 2), 0)
    after = replace(before, calls=1)
    assert state_refusal(after, before) is None
    assert "counts 0 rounds" in state_refusal(before, before)
    assert "another kind" in state_refusal(replace(after, dual=None), before)
    assert "not finite" in state_refusal(replace(after, dual=after.dual * float("inf")), before)
    spoilt = replace(after, tensors={"w": {"w": torch.zeros(3)}})
    assert "has the parts" in state_refusal(spoilt, before)


@pytest.mark.parametrize(
    "change", [{"sent": ["mean", "else"]}, {"extra": {"x": {"w": 1.0}}}, {"extra": {"x": 1.0}}]
)
def test_what_is_no_reply_is_not_read_as_one(change):
    message = FedAvg().message(FedAvg().start(prior("isotropic", 3), 2))
    plain = reply_to(message, {"w": torch.zeros(3).double()}).to_plain()
    Reply.from_plain(plain)
    with pytest.raises((KeyError, TypeError, AttributeError)):
        Reply.from_plain({**plain, **change})


def test_states_survive_a_checkpoint_bit_by_bit(tmp_path):
    from bayesrule.runs import load_verified, save_verified

    algorithm = BayesianADMM()
    state = algorithm.start(prior("diagonal", 3), 2, {"w": normal(3, seed=1)})
    kept = algorithm.client_start(state, 0)
    kept = replace(kept, carried={"state": {"0": {"m": normal(3, seed=2)}}, "steps": [4]})
    save_verified({"server": state.to_plain(), "client": kept.to_plain()}, tmp_path / "x.pt")
    plain = load_verified(tmp_path / "x.pt")
    again = ServerState.from_plain(plain["server"])
    assert torch.equal(again.start["w"], state.start["w"])
    assert torch.equal(again.posterior.precision["w"], state.posterior.precision["w"])
    client_again = ClientState.from_plain(plain["client"])
    assert torch.equal(client_again.carried["state"]["0"]["m"], normal(3, seed=2))
    assert torch.equal(client_again.dual.nat1["w"], kept.dual.nat1["w"])
