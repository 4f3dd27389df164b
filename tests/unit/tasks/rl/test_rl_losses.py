"""Losses of Q-learning: gradients against hand-written ones, and the identities between methods."""

import copy

import pytest
import torch
from torch import nn

from bayesrule.tasks.rl.losses import Transitions, follow, q_learning_loss, taken, td_target

GAMMA = 0.97


@pytest.fixture
def problem():
    """Two different networks and a batch of which a third is terminal, in double precision."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        online, lagging = (
            nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double() for _ in range(2)
        )

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch = Transitions(
        obs=normal(30, 5),
        action=torch.randint(0, 3, (30,), generator=generator),
        reward=normal(30),
        next_obs=normal(30, 5),
        done=(torch.arange(30) % 3 == 0).double(),
    )
    return online, lagging, batch


def gradient(online, loss):
    grads = torch.autograd.grad(loss, list(online.parameters()))
    return torch.cat([g.flatten() for g in grads])


def loss_of(online, lagging, batch, **options):
    return q_learning_loss(online, lagging, batch, gamma=GAMMA, **options).total


def without_ends(batch):
    return Transitions(batch.obs, batch.action, batch.reward, batch.next_obs, 0.0 * batch.done)


def test_values_against_a_loop_over_transitions(problem):
    online, lagging, batch = problem
    kappa = 0.7
    sums = {"online": 0.0, "target": 0.0, "penalty": 0.0}
    with torch.no_grad():
        for i in range(30):
            q = float(online(batch.obs[i])[batch.action[i]])
            bar = float(lagging(batch.obs[i])[batch.action[i]])
            for name, network in (("online", online), ("target", lagging)):
                best = max(network(batch.next_obs[i]).tolist())
                y = float(batch.reward[i]) + GAMMA * (0.0 if batch.done[i] else best)
                sums[name] += (q - y) ** 2 / 30
            sums["penalty"] += kappa * (q - bar) ** 2 / 30
    for bootstrap in ("online", "target"):
        loss = q_learning_loss(
            online, lagging, batch, gamma=GAMMA, bootstrap=bootstrap, kappa=kappa
        )
        assert float(loss.td.detach()) == pytest.approx(sums[bootstrap], rel=1e-12)
        assert loss.penalty is not None
        assert float(loss.penalty.detach()) == pytest.approx(sums["penalty"], rel=1e-12)
        assert float(loss.total.detach()) == pytest.approx(
            sums[bootstrap] + sums["penalty"], rel=1e-12
        )


def test_without_weight_the_lagging_network_does_not_matter(problem):
    """I1: with kappa = 0 the gradient is bit-identical whatever wbar is, and wbar is not asked."""
    online, lagging, batch = problem
    plain = gradient(online, loss_of(online, lagging, batch, bootstrap="online", kappa=0.0))

    def never(obs):
        raise AssertionError("the lagging network was evaluated")

    again = gradient(online, loss_of(online, never, batch, bootstrap="online", kappa=0.0))
    assert torch.equal(plain, again)


def test_after_a_copy_all_methods_agree(problem):
    """I2: at w = wbar the gradients of FR, of TD(0) and of TN are the same."""
    online, lagging, batch = problem
    follow(lagging, online)
    assert all(torch.equal(a, b) for a, b in zip(online.parameters(), lagging.parameters()))
    grads = [
        gradient(online, loss_of(online, lagging, batch, **options))
        for options in (
            {"bootstrap": "online"},
            {"bootstrap": "target"},
            {"bootstrap": "online", "kappa": 3.0},
            {"bootstrap": "target", "kappa": 3.0},
            {"bootstrap": "online", "kappa": 3.0, "all_actions": True},
            {"bootstrap": "hybrid"},
        )
    ]
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kappa", [0.25, 1.0, 4.0])
def test_regularisation_is_regression_to_a_convex_mixture(problem, kappa):
    """I3: dL/dQ = 2 [(1 + kappa) Q - y - kappa Qbar] / B, and L = (1 + kappa) (Q - mixture)^2."""
    online, lagging, batch = problem
    with torch.no_grad():
        y = td_target(batch.reward, batch.done, online(batch.next_obs).amax(1), GAMMA)
        bar = taken(lagging(batch.obs), batch.action)
    loss = loss_of(online, lagging, batch, bootstrap="online", kappa=kappa)
    q = taken(online(batch.obs), batch.action)
    by_hand = torch.autograd.grad(
        q, list(online.parameters()), 2.0 * ((1 + kappa) * q.detach() - y - kappa * bar) / 30
    )
    by_hand = torch.cat([g.flatten() for g in by_hand])
    torch.testing.assert_close(gradient(online, loss), by_hand, rtol=1e-12, atol=1e-14)

    q = taken(online(batch.obs), batch.action)
    mixture = (y + kappa * bar) / (1 + kappa)
    regression = gradient(online, (1 + kappa) * (q - mixture).square().mean())
    torch.testing.assert_close(regression, by_hand, rtol=1e-12, atol=1e-14)


def test_a_target_network_is_td_plus_a_term_at_the_next_state(problem):
    """I5: the gradient of the hybrid loss with c = gamma is TN's where no transition is an end."""
    online, lagging, batch = problem
    batch = without_ends(batch)
    target = gradient(online, loss_of(online, lagging, batch, bootstrap="target"))
    hybrid = gradient(online, loss_of(online, lagging, batch, bootstrap="hybrid"))
    torch.testing.assert_close(hybrid, target, rtol=1e-12, atol=1e-14)
    plain = gradient(online, loss_of(online, lagging, batch, bootstrap="online"))
    assert (target - plain).norm() > 1e-3 * plain.norm()  # the term is there


def test_no_gradient_flows_through_the_bootstrap(problem):
    """The gradient is that of a regression to fixed numbers, checked by finite differences."""
    online, lagging, batch = problem
    with torch.no_grad():
        y = td_target(batch.reward, batch.done, online(batch.next_obs).amax(1), GAMMA)
        bar = taken(lagging(batch.obs), batch.action)
    found = gradient(online, loss_of(online, lagging, batch, bootstrap="online", kappa=0.5))
    weight = online[0].weight

    def fixed(shift):
        moved = copy.deepcopy(online)
        with torch.no_grad():
            moved[0].weight[2, 3] += shift
        q = taken(moved(batch.obs), batch.action)
        return float(((q - y).square().mean() + 0.5 * (q - bar).square().mean()).detach())

    step = 1e-5
    numeric = (fixed(step) - fixed(-step)) / (2 * step)
    assert numeric == pytest.approx(float(found[: weight.numel()].view_as(weight)[2, 3]), rel=1e-6)


def test_all_actions_is_another_penalty(problem):
    online, lagging, batch = problem
    options = {"gamma": GAMMA, "bootstrap": "online", "kappa": 2.0}
    loss = q_learning_loss(online, lagging, batch, all_actions=True, **options)
    expected = 2.0 * (online(batch.obs) - lagging(batch.obs)).square().mean()
    torch.testing.assert_close(loss.penalty, expected)


def test_polyak_averaging(problem):
    online, lagging, _ = problem
    before = [p.clone() for p in lagging.parameters()]
    follow(lagging, online, 0.1)
    for old, new, now in zip(before, online.parameters(), lagging.parameters()):
        torch.testing.assert_close(now.data, 0.9 * old + 0.1 * new)


def test_buffers_are_copied():
    online, lagging = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    online(torch.randn(8, 3))
    follow(lagging, online, 0.1)
    assert torch.equal(lagging.running_mean, online.running_mean)
    assert torch.equal(lagging.num_batches_tracked, online.num_batches_tracked)
