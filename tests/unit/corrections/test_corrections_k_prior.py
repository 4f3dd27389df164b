"""K-priors as values, and as the correction of a stream of experiences."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bayesrule.corrections import Memory
from bayesrule.corrections.base import Past
from bayesrule.corrections.k_prior import DataTerm, KPrior, KPriorCorrection, exchange_prior
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.data.arrays import ArraySplit
from bayesrule.data.streams import Experience, Stream
from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Categorical, Head
from bayesrule.optim import SGD
from bayesrule.posteriors import DiagonalGaussian

D, COLUMNS = 3, ((0, 1), (2, 3))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def experience(t: int, n: int = 20) -> Experience:
    inputs = randn(n, D, seed=t).numpy()
    target = torch.randint(2, (n,), generator=torch.Generator().manual_seed(9 + t))
    split = ArraySplit(inputs, target)
    return Experience(t, split, None, split, COLUMNS[t], (2 * t, 2 * t + 1))


STREAM = Stream("two", "task", (experience(0), experience(1, n=30)), 4, (D,), "", {})


def past(seed: int = 0, hidden: int = 4) -> Past:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(D, hidden), nn.Tanh(), nn.Dropout(0.5), nn.Linear(hidden, 4))
    optimizer = SGD(model.named_parameters(), lr=0.1)
    return Past(model, optimizer, Categorical(), STREAM, seed=3)


def moved(correction: KPriorCorrection, now: Past) -> None:
    """Two experiences; the weights move in between."""
    for t, one in enumerate(STREAM):
        correction.begin(one, now)
        with torch.no_grad():
            for p in now.model.parameters():
                p += 0.3 * randn(*p.shape, seed=20 + t)
        correction.absorb(one, now)
    correction.begin(STREAM[0], now)


def test_before_the_first_experience_it_is_the_regulariser():
    correction, now = KPriorCorrection(prior_prec=2.0), past()
    correction.begin(STREAM[0], now)
    squares = sum(float(p.detach().square().sum()) for p in now.model.parameters())
    assert float(correction.loss(now.model).detach()) == pytest.approx(squares / 20, rel=1e-6)


@pytest.mark.parametrize("weight", ["one", "ratio"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_papers_formula_over_n(weight, temperature):
    correction = KPriorCorrection(6, memory_weight=weight, temperature=temperature, prior_prec=0.5)
    now = past()
    moved(correction, now)
    before = {name: p.detach().clone() for name, p in now.model.named_parameters()}
    now.model.eval()
    soft = []
    for kept, columns in zip(correction.kept, COLUMNS, strict=True):
        f = now.model(kept.memory.input)[:, list(columns)].detach()
        soft.append((f / temperature).softmax(-1))
    with torch.no_grad():
        for p in now.model.parameters():
            p += 0.2
    expected = 0.0
    for t, (kept, h) in enumerate(zip(correction.kept, soft, strict=True)):
        f = now.model(kept.memory.input)[:, list(COLUMNS[t])]
        each = -(h * (f / temperature).log_softmax(-1)).sum()
        scale = {"one": 1.0, "ratio": len(STREAM[t].train) / 6}[weight]
        expected += scale * temperature**2 * each
    named = now.model.named_parameters()
    expected += 0.25 * sum((p - before[name]).square().sum() for name, p in named)
    now.model.train()  # the memory passes without dropout
    torch.testing.assert_close(correction.loss(now.model), expected / 20)
    assert now.model.training


def test_its_gradient_is_zero_at_the_last_weights_for_any_memory():
    correction, now = KPriorCorrection(6, selection="random"), past()
    moved(correction, now)
    correction.loss(now.model).backward()
    for p in now.model.parameters():
        torch.testing.assert_close(p.grad, torch.zeros_like(p), atol=1e-7, rtol=0.0)


def test_parts_centre_and_memory_are_options():
    for terms in ("functional", "weight"):
        correction, now = KPriorCorrection(6, terms=terms), past()
        moved(correction, now)
        assert bool(correction.kept) == (terms == "functional")
        assert (correction._k_prior.anchor is None) == (terms == "functional")
    correction, now = KPriorCorrection(6, center="zero"), past()
    moved(correction, now)
    assert all(not m.any() for m in correction.anchor.mean.values())
    assert [len(kept.memory) for kept in correction.kept] == [6, 6]
    assert correction.nbytes() > 0


@pytest.mark.parametrize("selection", ["k_centre", "leverage", "lambda_ascend"])
def test_every_selection_keeps_a_balanced_memory(selection):
    correction, now = KPriorCorrection(4, selection=selection), past()
    moved(correction, now)
    for kept in correction.kept:
        assert torch.bincount(kept.memory.target).tolist() == [2, 2]


def test_state_goes_through_a_file_and_the_loss_is_the_same(tmp_path):
    correction, now = KPriorCorrection(6, memory_weight="ratio"), past()
    moved(correction, now)
    torch.save(correction.state_dict(), tmp_path / "state.pt")
    again = KPriorCorrection(6, memory_weight="ratio")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again.begin(STREAM[0], now)
    with torch.no_grad():
        for p in now.model.parameters():
            p += 0.1
    assert torch.equal(again.loss(now.model), correction.loss(now.model))


def test_it_follows_the_model_to_double_precision():
    correction, now = KPriorCorrection(6), past()
    moved(correction, now)
    single = float(correction.loss(now.model).detach())
    now.model.double()
    assert correction.loss(now.model).dtype == torch.float64
    assert float(correction.loss(now.model).detach()) == pytest.approx(single, rel=1e-5)


def test_exchanging_the_prior_is_the_algebra_of_gaussians():
    m, w = {"w": randn(5).double()}, {"w": randn(5, seed=1).double()}
    anchor = exchange_prior(QuadraticAnchor(m, 2.0), 2.0, 0.5)
    direct = QuadraticAnchor(m, 2.0).gradient(w)["w"] + (0.5 - 2.0) * w["w"]
    torch.testing.assert_close(anchor.gradient(w)["w"], direct)
    zero, one = {"w": torch.zeros(5).double()}, torch.ones(5).double()
    old, new = (DiagonalGaussian(zero, {"w": delta * one}) for delta in (2.0, 0.5))
    q = QuadraticAnchor(m, {"w": torch.full((5,), 3.0).double()}).posterior() * new / old
    same = exchange_prior(QuadraticAnchor(m, 3.0), 2.0, 0.5)
    torch.testing.assert_close(q.mean["w"], same.mean["w"])
    assert float(q.precision["w"][0]) == pytest.approx(same.precision)
    with pytest.raises(Unsupported, match="isotropic"):
        exchange_prior(QuadraticAnchor(m, m | {"w": m["w"].abs()}), 1.0, 2.0)


def test_a_head_s_term_sees_its_own_columns_only():
    f = randn(4, 4).double().requires_grad_()
    memory = Memory(randn(4, D), torch.zeros(4).long(), (2, 3), randn(4, 2, seed=2).double())
    term = DataTerm.of_memory(memory, Categorical())
    term.value(f, Categorical()).backward()
    head = Head(Categorical(), (2, 3))
    torch.testing.assert_close(f.grad, head.residual(f.detach(), term.target))
    assert not f.grad[:, :2].any()
    with pytest.raises(Unsupported, match="past model's outputs"):
        DataTerm.of_memory(Memory(randn(4, D), torch.zeros(4).long(), ()), Categorical())


def test_an_empty_memory_is_a_weight_prior():
    model = SimpleNamespace(w=torch.ones(2))
    anchor = QuadraticAnchor({"w": torch.zeros(2)}, 1.0)
    prior = KPrior((), anchor, Categorical())
    assert float(prior.functional(lambda x: x)) == 0.0
    assert prior.weight_only() == prior
    assert float(prior.anchor.value({"w": model.w})) == 1.0
