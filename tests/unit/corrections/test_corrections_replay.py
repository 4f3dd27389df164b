"""Replay and DER++ against slow oracles: Vitter's loop, and losses written out."""

import pytest
import torch
from scipy.stats import chisquare

from bayesrule.corrections import DERPlusPlus, Past, Replay, Reservoir
from bayesrule.corrections.replay import logit_distance
from bayesrule.data.arrays import ArraySplit
from bayesrule.data.streams import Experience, Stream
from bayesrule.likelihoods import Categorical
from bayesrule.optim import SGD
from bayesrule.seeding import generator


def algorithm_r(n, size, stream):
    """Vitter's loop, an item at a time."""
    slots = {}
    for number in range(1, n + 1):
        u = float(torch.rand(1, generator=stream, dtype=torch.float64))
        slot = number - 1 if number <= size else int(u * number)
        if slot < size:
            slots[slot] = number - 1
    return [slots[s] for s in range(min(n, size))]


def fill(size, sizes, seed=0):
    """Return the reservoir after batches of some sizes; each item is its own number."""
    reservoir, first = Reservoir(size, seed), 0
    for n in sizes:
        rows, slots = reservoir.choose(n)
        assert len(set(slots.tolist())) == len(slots)
        items = torch.arange(first, first + n)[rows]
        if len(rows):
            reservoir.put(slots, {"input": items.double()[:, None], "target": items})
        first += n
    return reservoir


@pytest.mark.parametrize("sizes", [[40], [7, 1, 12, 20], [1] * 40, [3]])
def test_equals_the_loop_for_any_batches(sizes):
    ours = fill(6, sizes).draw(None)["target"].tolist()
    assert ours == algorithm_r(sum(sizes), 6, generator(0, "reservoir", ""))


def test_every_item_is_as_likely_to_be_kept():
    kept = torch.cat([fill(5, [4, 9, 12], seed=s).draw(None)["target"] for s in range(600)])
    assert chisquare(torch.bincount(kept, minlength=25).numpy()).pvalue > 1e-3


def test_draws_are_without_replacement_and_go_on_from_saved_state():
    reservoir = fill(10, [30])
    state = reservoir.state_dict()
    drawn = [reservoir.draw(4)["target"] for _ in range(3)]
    assert all(len(set(each.tolist())) == 4 for each in drawn)
    assert len({tuple(each.tolist()) for each in drawn}) > 1
    again = Reservoir(10, 99)
    again.load_state_dict(state)
    assert all(torch.equal(again.draw(4)["target"], each) for each in drawn)
    assert len(reservoir.draw(50)["target"]) == 10
    assert reservoir.nbytes() == 10 * (8 + 8)


# ----------------------------------------------------------------- losses


@pytest.fixture
def two_heads():
    """Return (past, batches of two experiences) of a linear network with two heads."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5)).double()
    x = torch.randn(2, 8, 3)
    y = torch.randint(2, (2, 8))
    splits = [ArraySplit(x[t].double().numpy(), y[t]) for t in range(2)]
    experiences = tuple(
        Experience(t, splits[t], None, splits[t], (2 * t, 2 * t + 1), (0, 1)) for t in range(2)
    )
    stream = Stream("made", "task", experiences, 4, (3,), "", {})
    past = Past(model, SGD(model.parameters()), Categorical(), stream, seed=0)
    batches = [{"input": past.to_model(s.whole()["input"]), "target": s.targets} for s in splits]
    return past, batches


def go_through(correction, past, batches, *, epochs=1):
    """Show a correction whole experiences; return it as it begins a third."""
    for experience, batch in zip(past.stream, batches, strict=True):
        correction.begin(experience, past)
        for _ in range(epochs):
            for rows in torch.arange(8).split(3):
                correction.after_step({k: v[rows] for k, v in batch.items()}, past)
        correction.absorb(experience, past)
    correction.begin(past.stream[0], past)
    return correction


@pytest.mark.parametrize("add", ["step", "end"])
def test_whole_memory_is_the_mean_over_all_items_in_their_own_heads(two_heads, add):
    past, batches = two_heads
    replay = Replay(size=50, batch_size=None, weight=0.7, add=add)
    go_through(replay, past, batches, epochs=2)  # an item is offered once
    assert replay.n_items() == 16
    past.model.eval()
    losses = [
        torch.nn.functional.cross_entropy(
            past.model(batch["input"])[:, 2 * t : 2 * t + 2], batch["target"], reduction="sum"
        )
        for t, batch in enumerate(batches)
    ]
    assert replay.loss(past.model).item() == pytest.approx(0.7 * sum(losses).item() / 16)
    (stored,) = replay.stored()
    assert sorted(stored.target.tolist()) == sorted(
        [*batches[0]["target"].tolist(), *(batches[1]["target"] + 2).tolist()]
    )


def test_weight_null_stands_for_the_sum_over_all_past_items(two_heads):
    """mean over a draw x N_past / N_t: with the whole memory, the past's sum over N_t."""
    past, batches = two_heads
    replay = go_through(Replay(size=50, batch_size=None, weight=None, add="end"), past, batches)
    one = go_through(Replay(size=50, batch_size=None, weight=1.0, add="end"), past, batches)
    past.model.eval()
    assert replay.loss(past.model).item() == pytest.approx(16 / 8 * one.loss(past.model).item())


def test_a_minibatch_is_unbiased(two_heads):
    past, batches = two_heads
    replay = go_through(Replay(size=16, batch_size=5, weight=1.0, add="end"), past, batches)
    whole = go_through(Replay(size=16, batch_size=None, weight=1.0, add="end"), past, batches)
    past.model.eval()
    with torch.no_grad():
        draws = torch.stack([replay.loss(past.model) for _ in range(2000)])
    error = draws.std() / 2000**0.5
    assert abs(draws.mean() - whole.loss(past.model)) < 4 * error


def test_nothing_before_the_first_item(two_heads):
    past, _ = two_heads
    for correction in (
        Replay(size=5, batch_size=2, weight=1.0, add="step"),
        DERPlusPlus(size=5, batch_size=2, alpha=0.5, beta=0.5, add="step"),
    ):
        correction.begin(past.stream[0], past)
        assert correction.loss(past.model) is None
        assert correction.n_items() == correction.nbytes() == 0


def test_der_keeps_outputs_of_the_time_of_storing(two_heads):
    past, batches = two_heads
    der = DERPlusPlus(size=50, batch_size=None, alpha=0.3, beta=0.0, add="step")
    der.begin(past.stream[0], past)
    past.model.train()
    der.after_step(batches[0], past)
    assert past.model.training  # put back
    past.model.eval()
    before = past.model(batches[0]["input"]).detach()
    assert der.loss(past.model).item() == 0.0  # nothing has moved (beta = 0: DER)
    with torch.no_grad():
        past.model[0].bias.add_(0.5)
    (stored,) = der.stored()
    assert torch.equal(stored.outputs, before)
    loss = der.loss(past.model)
    assert loss.item() == pytest.approx(0.3 * 0.25)
    loss.backward()
    grad = 0.3 * 2 * 0.5 / 4  # d/db of alpha mean over items and 4 outputs of (f - z)^2
    assert torch.allclose(past.model[0].bias.grad, torch.full((4,), grad).double())


def test_der_pp_is_a_distance_and_a_replay(two_heads):
    past, batches = two_heads
    parts = {"size": 50, "batch_size": None, "add": "end"}
    both = go_through(DERPlusPlus(alpha=0.3, beta=0.7, **parts), past, batches)
    distance = go_through(DERPlusPlus(alpha=0.3, beta=0.0, **parts), past, batches)
    labels = go_through(Replay(weight=0.7, **parts), past, batches)
    past.model.eval()
    with torch.no_grad():
        past.model[0].weight.mul_(1.3)
    total = distance.loss(past.model) + labels.loss(past.model)
    assert both.loss(past.model).item() == pytest.approx(total.item())


def test_distance_is_a_mean_over_items_and_outputs():
    f, z = torch.randn(2, 5, 3, dtype=torch.float64)
    slow = sum(float(f[i, k] - z[i, k]) ** 2 for i in range(5) for k in range(3)) / 15
    assert logit_distance(f, z).item() == pytest.approx(slow)
