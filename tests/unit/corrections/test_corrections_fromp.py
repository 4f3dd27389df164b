"""FROMP: the identities of its equations, and the whole algorithm beside a slow one of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesrule.corrections import fromp
from bayesrule.corrections.base import Past
from bayesrule.corrections.fromp import FROMP, FunctionalPrior, kernels, surrogate, variance, whiten
from bayesrule.curvature import jacobians
from bayesrule.data.arrays import ArraySplit
from bayesrule.data.streams import Experience, Stream
from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.likelihoods import Bernoulli, Categorical, Gaussian, Head
from bayesrule.models.mlp import MLP
from bayesrule.optim import AdamW

D, H = 3, 5


def network(n_outputs: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(D, n_outputs, hidden=[H], activation="tanh").to(dtype)


def experience(t: int, columns: tuple[int, ...], n: int = 24) -> Experience:
    rng = np.random.default_rng(t)
    y = np.arange(n) % len(columns)
    x = (rng.normal(size=(n, D)) + y[:, None]).astype(np.float32)
    split = ArraySplit(x, torch.tensor(y))
    return Experience(t, split, None, split, columns, columns)


def past_of(
    model: nn.Module, *, batch_size: int = 7, experiences: tuple[Experience, ...] = ()
) -> Past:
    optimizer = AdamW(model.named_parameters(), lr=0.01, weight_decay=0.0)
    stream = Stream("split", "task", experiences, 4, (D,), "", {})
    return Past(model, optimizer, Categorical(), stream, 0, batch_size)


def shake(model: nn.Module, seed: int = 9, scale: float = 0.3) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn_like(p))


def gradient(model: nn.Module, value: Tensor) -> Tensor:
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(model.parameters(), grads, strict=True)
        ]
    )


def two_tasks(**options) -> tuple[FROMP, nn.Module, Past]:
    """Two heads learnt (here: moved to), a third task begun."""
    model = network(6)
    past = past_of(model)
    correction = FROMP(**{"memory": 6, "tau": 0.7, "delta": 0.1, "eps": 1e-4, **options})
    for t in range(2):
        one = experience(t, (2 * t, 2 * t + 1))
        correction.begin(one, past)
        shake(model, seed=t)
        correction.absorb(one, past)
    correction.begin(experience(2, (4, 5)), past)
    return correction, model, past


def jac_of_probabilities(model: nn.Module, head: Head, x: Tensor) -> Tensor:
    """G_MCP = Lambda J."""
    return head.hessian(model(x)).detach() @ jacobians(model, None, x)


def test_gradient_of_the_surrogate_is_the_explicit_one() -> None:
    correction, model, past = two_tasks()
    at_snapshot = []
    F = torch.cat([f.flatten() for f in correction.ggn.values()])
    v = 1 / (F + 0.1)
    for memory in correction.memories:
        head = past.head(memory.columns)
        G0 = jac_of_probabilities(model, head, memory.input)
        m = head.predict(model(memory.input)).detach()
        at_snapshot.append((head, memory, G0, m))
    shake(model)
    expected = torch.zeros_like(v)
    for head, memory, G0, m in at_snapshot:
        G = jac_of_probabilities(model, head, memory.input)
        D_MC = head.predict(model(memory.input)).detach() - m
        for c, k in enumerate(memory.columns):
            K = G0[:, k] @ torch.diag(v) @ G0[:, k].T + 1e-4 * torch.eye(len(memory), dtype=v.dtype)
            expected += 0.7 * G[:, k].T @ torch.linalg.inv(K) @ D_MC[:, c]
    found = gradient(model, correction.loss(model))
    assert (found - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_accumulated_curvature_is_the_summed_diagonal_ggn(batch_size: int) -> None:
    model = network(4)
    past, correction = past_of(model, batch_size=batch_size), FROMP(memory=4)
    expected = 0.0
    for t in range(2):
        one = experience(t, (2 * t, 2 * t + 1))
        correction.begin(one, past)
        shake(model, seed=t)
        correction.absorb(one, past)
        x = one.train.whole()["input"].double()
        J = jacobians(model, None, x)
        Lambda = past.head(one.columns).hessian(model(x)).detach()
        expected = expected + torch.einsum("bcp,bcd,bdp->p", J, Lambda, J)
        if t == 0:  # weights of the other head know nothing: covariance 1 / delta
            v = variance(correction.ggn, 0.5)
            assert (v["head.weight"][2:] == 2.0).all()
            assert (v["head.weight"][:2] < 2.0).all()
    found = torch.cat([F.flatten() for F in correction.ggn.values()])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", ["gp", "identity"])
def test_the_surrogate_is_exactly_zero_at_the_snapshot(kernel: str) -> None:
    model = network(4, dtype=torch.float32)
    past, correction = past_of(model), FROMP(memory=6, kernel=kernel, eps=1e-6)
    for t in range(2):
        correction.begin(experience(t, (2 * t, 2 * t + 1)), past)
        correction.absorb(experience(t, (2 * t, 2 * t + 1)), past)
    correction.begin(experience(2, (0, 1)), past)
    loss = correction.loss(model)
    assert loss.item() == 0.0
    assert (gradient(model, loss) == 0).all()


def test_no_memory_no_term() -> None:
    model = network(2)
    correction = FROMP()
    correction.begin(experience(0, (0, 1)), past_of(model))
    assert correction.loss(model) is None


def test_a_linear_model_with_full_memory_is_regularised_in_weight_space() -> None:
    """D^T K^{-1} D = (w - w0)^T diag(1/v) (w - w0) for f = X w with X invertible and eps -> 0."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    v = {"weight": torch.rand(1, 4, generator=generator, dtype=torch.float64) + 0.5}
    head = Head(Gaussian(1.0), (0,))
    m, w0 = model(X).detach(), model.weight.detach().clone()
    prior = FunctionalPrior(m, whiten(kernels(model, head, X, v), 1e-14))
    shake(model)
    penalty = 0.5 * ((model.weight - w0).square() / v["weight"]).sum()
    assert surrogate(model(X), prior).item() == pytest.approx(penalty.item(), rel=1e-8)


def test_l2_is_half_the_squared_distance_of_probabilities() -> None:
    correction, model, past = two_tasks(kernel="identity")
    assert correction.ggn == {}  # no pass over the data
    before = [past.head(m.columns).predict(model(m.input)).detach() for m in correction.memories]
    shake(model)
    distance = sum(
        (past.head(m.columns).predict(model(m.input)) - p).square().sum()
        for m, p in zip(correction.memories, before, strict=True)
    )
    torch.testing.assert_close(correction.loss(model), 0.35 * distance, rtol=1e-14, atol=0)


class Difference(nn.Module):
    """The one logit f_1 - f_0 of a network with two."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        f = self.inner(x)
        return f[:, 1:] - f[:, :1]


def test_two_class_softmax_is_twice_one_sigmoid() -> None:
    inner = network(2)
    one = Difference(inner)
    x = torch.randn(5, D, dtype=torch.float64)
    v = {name: torch.rand_like(p) for name, p in inner.named_parameters()}
    K_two = kernels(inner, Head(Categorical(), (0, 1)), x, v)
    K_one = kernels(one, Head(Bernoulli(), (0,)), x, {f"inner.{n}": t for n, t in v.items()})
    torch.testing.assert_close(K_two[0], K_two[1], rtol=1e-12, atol=0)  # G_0 = -G_1
    torch.testing.assert_close(K_one[0], K_two[0], rtol=1e-12, atol=0)
    softmax = FunctionalPrior(inner(x).softmax(-1).detach(), whiten(K_two, 1e-3))
    sigmoid = FunctionalPrior(one(x).sigmoid().detach(), whiten(K_one, 1e-3))
    shake(inner)
    twice = 2 * surrogate(one(x).sigmoid(), sigmoid)
    torch.testing.assert_close(surrogate(inner(x).softmax(-1), softmax), twice, rtol=1e-12, atol=0)


def test_memory_is_balanced_and_takes_the_least_certain() -> None:
    model, one = network(3), experience(0, (0, 1, 2), n=30)
    past = past_of(model)
    correction = FROMP(memory=8)
    correction.absorb(one, past)
    memory = correction.memories[0]
    assert torch.bincount(memory.target).tolist() == [2, 2, 2]
    batch = one.train.whole()
    p = model(batch["input"].double()).softmax(-1).detach()
    score = (p * (1 - p)).sum(-1)
    for c in range(3):
        largest = score.masked_fill(batch["target"] != c, -1).topk(2).indices
        torch.testing.assert_close(
            memory.input[memory.target == c], batch["input"][largest].double()
        )
    with torch.no_grad():
        model.head.bias.add_(3.0)  # a constant on all logits
    again = FROMP(memory=8)
    again.absorb(one, past)
    assert torch.equal(memory.input, again.memories[0].input)


def test_random_memory_is_a_named_stream_of_the_seed() -> None:
    model, one = network(2), experience(0, (0, 1))
    past = past_of(model)
    drawn = []
    for _ in range(2):
        correction = FROMP(memory=6, selection="random", kernel="identity")
        correction.absorb(one, past)
        drawn.append(correction.memories[0].input)
    assert torch.equal(*drawn)
    lambdas = FROMP(memory=6, kernel="identity")
    lambdas.absorb(one, past)
    assert not torch.equal(drawn[0], lambdas.memories[0].input)


def test_memory_is_seen_in_evaluation_mode_and_modes_are_restored() -> None:
    torch.manual_seed(0)
    model = MLP(D, 2, hidden=[H], dropout=0.5)
    correction, one = FROMP(memory=6), experience(0, (0, 1))
    past = past_of(model)
    correction.absorb(one, past)
    correction.begin(one, past)
    shake(model)
    model.train()
    assert correction.loss(model).item() == correction.loss(model).item()
    assert all(module.training for module in model.modules())


def test_blocks_of_parameters_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(3), torch.randn(4, D, dtype=torch.float64)
    v = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    head = Head(Categorical(), (0, 1, 2))
    whole = kernels(model, head, x, v)
    monkeypatch.setattr(fromp, "_MAX_ROWS", 1)
    torch.testing.assert_close(kernels(model, head, x, v), whole, rtol=1e-13, atol=1e-15)


def test_jitter_grows_where_the_factorisation_fails() -> None:
    good = torch.eye(3, dtype=torch.float64)
    bad = torch.ones_like(good) - 3e-5 * good
    W = whiten(torch.stack([bad, good]), 1e-6)
    torch.testing.assert_close(  # the class that does not fail keeps its jitter
        W[1].T @ W[1], good / (1 + 1e-6), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        torch.linalg.inv(W[0].T @ W[0]), bad + 1e-4 * good, rtol=1e-9, atol=1e-9
    )
    with pytest.raises(NonFiniteLoss, match=r"correction\.eps"):
        whiten((-1e6 * good).unsqueeze(0), 1e-6)
    with pytest.raises(NonFiniteLoss, match="not finite"):
        whiten(torch.full((1, 2, 2), math.nan, dtype=torch.float64), 1e-6)


def test_too_small_a_memory_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"correction\.memory=2 .* at least 3"):
        FROMP(memory=2).check(past_of(network(3), experiences=(experience(0, (0, 1, 2)),)))


def test_state_goes_on_where_it_stood() -> None:
    correction, model, past = two_tasks()
    shake(model)
    again = FROMP(memory=6, tau=0.7, delta=0.1, eps=1e-4)
    again.load_state_dict(correction.state_dict())
    assert torch.equal(again.loss(model), correction.loss(model))
    assert again.nbytes() == correction.nbytes() > 0
    assert again.n_items() == 12
    for one in (again, correction):
        one.absorb(experience(2, (4, 5)), past)
        one.begin(experience(3, (0, 1)), past)
    assert all(torch.equal(again.ggn[n], F) for n, F in correction.ggn.items())


# ------------------------------------------------------- the whole algorithm, written again, slowly


class Slow:
    """FROMP over a two-layer tanh network as loops over items, classes and weights."""

    def __init__(self, w: list[Tensor], m: int, tau: float, delta: float, eps: float) -> None:
        self.w, self.m, self.tau, self.delta, self.eps = w, m, tau, delta, eps
        self.F = [torch.zeros_like(x) for x in w]
        self.past: list[tuple[Tensor, tuple[int, int]]] = []

    @staticmethod
    def p(w: list[Tensor], x: Tensor, head: tuple[int, int]) -> Tensor:
        A, a, B, b = w
        f = (B @ torch.tanh(A @ x + a) + b)[list(head)]
        return f.exp() / f.exp().sum()

    def dp(self, x: Tensor, head: tuple[int, int], c: int) -> Tensor:
        w = [t.clone().requires_grad_() for t in self.w]
        grads = torch.autograd.grad(self.p(w, x, head)[c], w)
        return torch.cat([g.flatten() for g in grads])

    def snapshot(self) -> list[tuple[Tensor, tuple[int, int], list[Tensor], list[Tensor]]]:
        v = 1 / (torch.cat([F.flatten() for F in self.F]) + self.delta)
        taken = []
        for X, head in self.past:
            means, inverses = [], []
            for c in range(2):
                G = torch.stack([self.dp(x, head, c) for x in X])
                means.append(torch.stack([self.p(self.w, x, head)[c] for x in X]).detach())
                K = G @ torch.diag(v) @ G.T + self.eps * torch.eye(len(X), dtype=G.dtype)
                inverses.append(torch.linalg.inv(K))
            taken.append((X, head, means, inverses))
        return taken

    def objective(self, w: list[Tensor], X: Tensor, y: Tensor, head, taken) -> Tensor:
        """The authors' form: the mean loss over tau, and the functional term with weight 1."""
        loss = sum(-self.p(w, x, head)[int(k)].log() for x, k in zip(X, y, strict=True)) / len(X)
        total = loss / self.tau
        for Z, other, means, inverses in taken:
            for c in range(2):
                d = torch.stack([self.p(w, z, other)[c] for z in Z]) - means[c]
                total = total + 0.5 * d @ inverses[c] @ d
        return total

    def learn(self, X: Tensor, y: Tensor, head: tuple[int, int], batches: list, lr: float) -> list:
        taken, trace = self.snapshot(), []
        first = [torch.zeros_like(t) for t in self.w]
        second = [torch.zeros_like(t) for t in self.w]
        for step, rows in enumerate(batches, start=1):
            w = [t.clone().requires_grad_() for t in self.w]
            value = self.objective(w, X[rows], y[rows], head, taken)
            for i, g in enumerate(torch.autograd.grad(value, w)):
                g = self.tau * g  # so that Adam's epsilon means the same
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                up, root = first[i] / (1 - 0.9**step), (second[i] / (1 - 0.999**step)).sqrt()
                self.w[i] = self.w[i] - lr * up / (root + 1e-8)
            trace.append(torch.cat([t.flatten() for t in self.w]))
        for x in X:  # the sum over items of Lambda_cd J_c J_d
            p = self.p(self.w, x, head)
            rows = torch.stack([self.dp_logit(x, head, c) for c in range(2)])
            Lambda = torch.diag(p) - torch.outer(p, p)
            diagonal = torch.einsum("cp,cd,dp->p", rows, Lambda, rows)
            pieces = diagonal.split([t.numel() for t in self.F])
            self.F = [F + d.view_as(F) for F, d in zip(self.F, pieces, strict=True)]
        score = torch.stack([(q * (1 - q)).sum() for q in (self.p(self.w, x, head) for x in X)])
        kept = [
            sorted((y == c).nonzero().flatten().tolist(), key=lambda i: -float(score[i]))
            for c in range(2)
        ]
        chosen = [i for rows in kept for i in rows[: self.m // 2]]
        self.past.append((X[chosen], head))
        return trace

    def dp_logit(self, x: Tensor, head: tuple[int, int], c: int) -> Tensor:
        w = [t.clone().requires_grad_() for t in self.w]
        A, a, B, b = w
        f = (B @ torch.tanh(A @ x + a) + b)[head[c]]
        return torch.cat([g.flatten() for g in torch.autograd.grad(f, w)])


def test_three_tasks_step_by_step_beside_a_slow_implementation() -> None:
    model, tau = network(6, seed=3), 5.0
    correction = FROMP(memory=6, tau=tau, delta=0.05, eps=1e-3)
    slow = Slow([p.detach().clone() for p in model.parameters()], 6, tau, 0.05, 1e-3)
    for t in range(3):
        one, head = experience(t, (2 * t, 2 * t + 1)), (2 * t, 2 * t + 1)
        batch = one.train.whole()
        X, y = batch["input"].double(), batch["target"]
        batches = [torch.arange(24).roll(7 * k)[:8] for k in range(6)]
        expected = slow.learn(X, y, head, batches, lr=0.02)
        model.zero_grad()
        past = past_of(model)  # a new optimiser: moments and steps from 0
        past.optimizer.param_groups[0]["lr"] = 0.02
        correction.begin(one, past)
        for rows, w in zip(batches, expected, strict=True):

            def closure(rows: Tensor = rows) -> Tensor:
                past.optimizer.zero_grad()
                loss = past.head(head).loss(model(X[rows]), y[rows])
                extra = correction.loss(model)
                loss = loss if extra is None else loss + extra
                loss.backward()
                return loss

            past.optimizer.step(closure)
            found = torch.cat([p.detach().flatten() for p in model.parameters()])
            torch.testing.assert_close(found, w, rtol=1e-8, atol=1e-10)
        correction.absorb(one, past)
        torch.testing.assert_close(correction.memories[t].input, slow.past[t][0])
