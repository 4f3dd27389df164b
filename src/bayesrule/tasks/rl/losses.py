"""Losses of Q-learning: which network bootstraps, and what keeps the online one near its past.

On a batch of transitions (s, a, r, s', d), with d = 1 at a true terminal only, an online network
Q_w and a lagging one Q_wbar (sg: no gradient)::

    y_online = r + gamma (1 - d) max_a' sg Q_w(s', a')
    y_target = r + gamma (1 - d) max_a' sg Q_wbar(s', a')

    TD(0)     mean (Q_w(s, a) - y_online)^2
    TN        mean (Q_w(s, a) - y_target)^2                                     target network
    FR        mean (Q_w(s, a) - y_online)^2 + kappa mean (Q_w(s, a) - sg Q_wbar(s, a))^2
    both      TN + kappa mean (Q_w(s, a) - sg Q_wbar(s, a))^2
    hybrid    mean (Q_w(s, a) - y_hybrid)^2 + 2 c mean sg[Q_w - Q_wbar](s', a*) Q_w(s, a)

    with a* = argmax_a' Q_wbar(s', a') and y_hybrid = r + gamma (1 - d) sg Q_w(s', a*)

The gradient of TN is that of hybrid with c = gamma where d = 0: a target network is the up-to-date
TD update plus a term in Q_w - Q_wbar at the *next* state. FR's term is at the *current* one, and is
the gradient of a convex quadratic of the function. The lagging network follows by

    wbar <- tau w + (1 - tau) wbar      every T steps

(tau = 1: a hard copy; T = 1 and a small tau: Polyak averaging).

Source: Piche et al., "Bridging the Gap Between Target Networks and Functional Regularization"
(arXiv 2210.12282, and 2106.02613 before it). Squared errors are means without the factor 1/2, as in
the authors' Atari code; their toy code has it, which halves all gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = [
    "Bootstrap",
    "QLoss",
    "Transitions",
    "follow",
    "hybrid_loss",
    "q_learning_loss",
    "taken",
    "td_target",
]

Bootstrap = Literal["online", "target", "hybrid"]
QFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Transitions:
    """A batch of B transitions.

    Attributes:
        obs: States s, shape (B, ...).
        action: Actions a, integers of shape (B,).
        reward: Rewards r, shape (B,).
        next_obs: States s' (the true final one at the end of an episode), shape (B, ...).
        done: 1 where s' is terminal, 0 elsewhere and where an episode was cut off; shape (B,).
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    done: Tensor

    def map(self, fn: Callable[[Tensor], Tensor]) -> Transitions:
        """Apply `fn` to every tensor."""
        return Transitions(**{one.name: fn(getattr(self, one.name)) for one in fields(self)})


@dataclass(frozen=True)
class QLoss:
    """A loss and its two terms, all scalars.

    Attributes:
        td: The squared temporal-difference error (with hybrid's linear term).
        penalty: kappa times the mean squared distance to the lagging network.
    """

    td: Tensor
    penalty: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.td if self.penalty is None else self.td + self.penalty


def taken(q_BA: Tensor, action_B: Tensor) -> Tensor:
    """Return Q(s, a) of the actions taken, shape (B,)."""
    return q_BA.gather(1, action_B[:, None]).squeeze(1)


def td_target(reward_B: Tensor, done_B: Tensor, next_value_B: Tensor, gamma: float) -> Tensor:
    """Return y = r + gamma (1 - d) v(s'), without a gradient, shape (B,)."""
    return (reward_B + gamma * (1.0 - done_B) * next_value_B).detach()


def q_learning_loss(
    online: QFunction,
    lagging: QFunction,
    batch: Transitions,
    *,
    gamma: float,
    bootstrap: Bootstrap = "target",
    kappa: float = 0.0,
    all_actions: bool = False,
) -> QLoss:
    """Return the loss of the online network on a batch; see the module.

    Args:
        online: Q_w, from (B, ...) to (B, A).
        lagging: Q_wbar, likewise; not called where neither bootstrap nor penalty needs it.
        batch: Transitions.
        gamma: Discount.
        bootstrap: The network that values s'.
        kappa: Weight of functional regularisation.
        all_actions: Regularise the mean over all actions instead of the action taken (an option of
            ours; the paper regularises the action taken).
    """
    q_BA = online(batch.obs)
    q_B = taken(q_BA, batch.action)
    with torch.no_grad():
        bootstrapping = lagging if bootstrap == "target" else online
        next_BA = bootstrapping(batch.next_obs)
        lag_next_BA = lagging(batch.next_obs) if bootstrap == "hybrid" else None
        lag_BA = lagging(batch.obs) if kappa else None
    if lag_next_BA is None:
        y_B = td_target(batch.reward, batch.done, next_BA.amax(1), gamma)
        td = (q_B - y_B).square().mean()
    else:
        td = hybrid_loss(q_B, next_BA, lag_next_BA, batch, gamma=gamma, weight=gamma)
    if lag_BA is None:
        return QLoss(td)
    if all_actions:
        return QLoss(td, kappa * (q_BA - lag_BA).square().mean())
    return QLoss(td, kappa * (q_B - taken(lag_BA, batch.action)).square().mean())


def hybrid_loss(
    q_B: Tensor,
    next_BA: Tensor,
    lag_next_BA: Tensor,
    batch: Transitions,
    *,
    gamma: float,
    weight: float,
) -> Tensor:
    """Return the hybrid loss: the up-to-date bootstrap plus a linear term; see the module.

    Args:
        q_B: Q_w(s, a), with its gradient.
        next_BA: Q_w(s', .).
        lag_next_BA: Q_wbar(s', .).
        batch: Transitions.
        gamma: Discount.
        weight: c; with c = gamma the gradient is that of a target network, where d = 0.
    """
    best_B = lag_next_BA.argmax(1)
    value_B = taken(next_BA, best_B).detach()
    drift_B = value_B - taken(lag_next_BA, best_B).detach()
    y_B = td_target(batch.reward, batch.done, value_B, gamma)
    return (q_B - y_B).square().mean() + 2.0 * weight * (drift_B * q_B).mean()


@torch.no_grad()
def follow(lagging: nn.Module, online: nn.Module, tau: float = 1.0) -> None:
    """Move the lagging network: wbar <- tau w + (1 - tau) wbar; buffers are copied.

    With tau = 1 the copy is bit by bit.
    """
    for old, new in zip(lagging.parameters(), online.parameters(), strict=True):
        if tau == 1.0:
            old.copy_(new)
        else:
            old.lerp_(new, tau)
    for kept, buffer in zip(lagging.buffers(), online.buffers(), strict=True):
        kept.copy_(buffer)
