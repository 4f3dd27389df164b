"""Algorithms on weight vectors: FedAvg, FedProx, federated ADMM, FedADMM, FedDyn.

w is the server's weights, w_k client k's, l_k its summed and lbar_k its mean loss, N = sum_k N_k,
R the clients that answered (all K of them where the equations say nothing else).

FedAvg (McMahan et al., 2017)::

    w_k = argmin lbar_k(w_k) started at w, stopped early
    w  <- sum_{k in R} N_k w_k / sum_{k in R} N_k

FedProx (Li et al., 2020): the same server, and

    w_k = argmin lbar_k(w_k) + mu/2 ||w_k - w||^2

Federated ADMM, consensus form with the prior delta/2 ||w||^2 at the server::

    w_k  = argmin l_k(w_k) + v_k^T w_k + rho/2 ||w_k - w||^2
    v_k <- v_k + rho (w_k - w)
    w   <- (rho K mean_{k in R} w_k + sum_{all k} v_k) / (delta + K rho)

FedADMM (Gong et al., 2022): the same client, without a prior, and

    D_k  = (w_k + v_k/rho) - (w_k_old + v_k_old/rho) = 2 w_k - w - w_k_old
    w   <- w + (eta/K) sum_{k in R} D_k

FedDyn (Acar et al., 2021)::

    w_k  = argmin l_k(w_k) - <g_k, w_k> + a/2 ||w_k - w||^2 + ridge/2 ||w_k||^2
    g_k <- g_k - a (w_k - w)
    hist <- hist - (a/K) sum_{k in R} (w_k - w);      w <- mean_{k in R} w_k - hist/a

`units` says whether losses are means (as published) or sums over a client's items. FedDyn minimises
the *unweighted* mean of its losses without a prior: with sums and ridge = delta/K it has the joint
optimum of sum_k l_k + delta/2 ||w||^2. Penalties are squared norms, as in the papers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayesrule.federated.algorithm import (
    Pointwise,
    ServerSolve,
    check_units,
    mean_of,
    require_replies,
)
from bayesrule.federated.local import LocalObjective, Solve, zero_natural
from bayesrule.federated.messages import ClientState, Message, Reply, ServerState
from bayesrule.posteriors import IsotropicGaussian, NaturalGaussian
from bayesrule.posteriors.natural import Natural
from bayesrule.posteriors.params import Params, tree_map

__all__ = ["ADMM", "FedADMM", "FedAvg", "FedDyn", "FedProx"]


def _add(a: Params, b: Params, scale: float = 1.0) -> Params:
    return tree_map(lambda s, t: s + scale * t, a, b)


def _next(state: ServerState, w: Params, **changes: Any) -> ServerState:
    return replace(
        state, round=state.round + 1, posterior=IsotropicGaussian(w, 1.0), start=None, **changes
    )


@dataclass(frozen=True)
class FedAvg(Pointwise):
    """Federated averaging."""

    mu: float = 0.0

    def client_update(
        self, message: Message, state: ClientState, client: int, num_items: int, solve: Solve
    ) -> tuple[Reply, ClientState]:
        """Minimise lbar_k + mu/2 ||w_k - w||^2."""
        objective = LocalObjective(message.posterior, rho=self.mu, weight=1.0 / num_items)
        q, carried = solve(objective, state.carried)
        return Reply(client, num_items, q), replace(state, calls=state.calls + 1, carried=carried)

    def server_update(
        self, state: ServerState, replies: Sequence[Reply], solve: ServerSolve | None = None
    ) -> ServerState:
        """Average the clients, weighted by their number of items."""
        require_replies(replies)
        N = sum(reply.num_items for reply in replies)
        shares = [reply.num_items / N for reply in replies]
        return _next(state, mean_of([reply.posterior.mean for reply in replies], shares))


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term of weight `mu`, in units of the mean loss."""

    mu: float = 0.01


class _WithDual(Pointwise):
    """Clients with a dual vector v_k (the natural parameter (v_k, 0)) and a penalty of weight p.

    ::

        w_k  = argmin l_k(w_k) + v_k^T w_k + p/2 ||w_k - w||^2 + ridge/2 ||w_k||^2
        v_k <- v_k + p (w_k - w)
    """

    units: str
    ridge: float = 0.0

    @property
    @abstractmethod
    def penalty(self) -> float:
        """The weight p, in the units of the loss."""

    def client_start(self, state: ServerState, client: int) -> ClientState:
        """Return a client with dual zero."""
        return ClientState(zero_natural(state.posterior))

    def client_update(
        self, message: Message, state: ClientState, client: int, num_items: int, solve: Solve
    ) -> tuple[Reply, ClientState]:
        """Minimise the penalised loss, then move the dual."""
        weight = 1.0 if check_units(self.units) == "sum" else 1.0 / num_items
        objective = LocalObjective(
            message.posterior, self.penalty, weight, tilt=state.dual, ridge=self.ridge
        )
        q, carried = solve(objective, state.carried)
        assert state.dual is not None
        dual = state.dual + self.dual_step(q, message.posterior)
        after = replace(state, dual=dual, calls=state.calls + 1, carried=carried)
        return Reply(client, num_items, q), after

    def dual_step(self, q: NaturalGaussian, server: NaturalGaussian) -> Natural[Any]:
        """Return (p (w_k - w), 0)."""
        move = {n: self.penalty * t for n, t in _add(q.mean, server.mean, -1.0).items()}
        return Natural(move, zero_natural(server).nat2)


@dataclass(frozen=True)
class ADMM(_WithDual):
    """Federated ADMM in consensus form.

    Attributes:
        rho: Penalty, in the units of the loss.
        delta: Prior precision at the server.
        units: ``sum`` or ``mean``.
    """

    rho: float = 1.0
    delta: float = 1.0
    units: str = "sum"

    @property
    def penalty(self) -> float:
        """The weight rho."""
        return self.rho

    def start(
        self, prior: NaturalGaussian, num_clients: int, init: Params | None = None
    ) -> ServerState:
        """Start at `init`, or at the prior's mean, with duals zero."""
        state = super().start(prior, num_clients, init)
        return replace(state, dual_sum=zero_natural(state.posterior))

    def server_update(
        self, state: ServerState, replies: Sequence[Reply], solve: ServerSolve | None = None
    ) -> ServerState:
        """Average clients and duals."""
        require_replies(replies)
        duals = state.dual_sum
        assert duals is not None
        for reply in replies:
            duals = duals + self.dual_step(reply.posterior, state.posterior)
        K, rho = state.num_clients, self.rho
        wbar = mean_of([reply.posterior.mean for reply in replies])
        total = _add(duals.nat1, wbar, rho * K)
        w = {name: t / (self.delta + K * rho) for name, t in total.items()}
        return _next(state, w, dual_sum=duals)


@dataclass(frozen=True)
class FedADMM(_WithDual):
    """FedADMM; messages up are the differences D_k.

    Attributes:
        rho: Penalty, in the units of the loss.
        eta: Server step size.
        units: ``sum`` or ``mean``.
    """

    rho: float = 0.1
    eta: float = 1.0
    units: str = "mean"

    @property
    def penalty(self) -> float:
        """The weight rho."""
        return self.rho

    def client_start(self, state: ServerState, client: int) -> ClientState:
        """Return a client with dual zero and weights at the server's."""
        return replace(super().client_start(state, client), tensors={"w": state.posterior.mean})

    def reply_extra(self, state: ServerState, client: int) -> dict[str, Params]:
        """Return one tensor per weight: D_k."""
        del client
        return {"difference": state.posterior.mean}

    def client_update(
        self, message: Message, state: ClientState, client: int, num_items: int, solve: Solve
    ) -> tuple[Reply, ClientState]:
        """Minimise the penalised loss, then move the dual; send D_k."""
        reply, after = super().client_update(message, state, client, num_items, solve)
        w, w_k, old = message.posterior.mean, reply.posterior.mean, state.tensors["w"]
        D = _add(_add(_add(w_k, w_k), w, -1.0), old, -1.0)
        reply = replace(reply, extra={"difference": D}, sent=("difference",))
        return reply, replace(after, tensors={"w": w_k})

    def server_update(
        self, state: ServerState, replies: Sequence[Reply], solve: ServerSolve | None = None
    ) -> ServerState:
        """Add the differences."""
        require_replies(replies)
        w = state.posterior.mean
        for reply in replies:
            w = _add(w, reply.extra["difference"], self.eta / state.num_clients)
        return _next(state, w)


@dataclass(frozen=True)
class FedDyn(_WithDual):
    """FedDyn. The dual kept is v_k = -g_k, so that the tilt has one sign in all methods.

    Attributes:
        a: Weight of the dynamic regulariser, in the units of the loss.
        ridge: Precision of a client's own penalty, in the units of the loss.
        units: ``sum`` or ``mean``.
    """

    a: float = 0.1
    ridge: float = 0.0
    units: str = "mean"

    @property
    def penalty(self) -> float:
        """The weight a."""
        return self.a

    def start(
        self, prior: NaturalGaussian, num_clients: int, init: Params | None = None
    ) -> ServerState:
        """Start at `init`, or at the prior's mean, with an empty history."""
        state = super().start(prior, num_clients, init)
        return replace(state, tensors={"hist": zero_natural(state.posterior).nat1})

    def server_update(
        self, state: ServerState, replies: Sequence[Reply], solve: ServerSolve | None = None
    ) -> ServerState:
        """Move the history, then the weights."""
        require_replies(replies)
        w = state.posterior.mean
        hist = state.tensors["hist"]
        for reply in replies:
            hist = _add(hist, _add(reply.posterior.mean, w, -1.0), -self.a / state.num_clients)
        wbar = mean_of([reply.posterior.mean for reply in replies])
        return _next(state, _add(wbar, hist, -1.0 / self.a), tensors={"hist": hist})
