"""What a federated algorithm is: two pure functions, and the round that is made of them.

::

    message             = server.message(state)
    reply_k, client_k'  = client_update(message, client_k, N_k, solve_k)    every k that takes part
    state'              = server_update(state, replies)

Both are functions of values: nothing is changed in place, nothing is drawn. Randomness, data and
networks are behind `solve_k` (see `bayesrule.federated.local.Solve`); placement, losses of messages
and checkpoints are the engine's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bayesrule.errors import BayesruleError, Unsupported
from bayesrule.federated.local import LocalObjective, Solve
from bayesrule.federated.messages import ClientState, Message, Reply, ServerState
from bayesrule.posteriors import IsotropicGaussian, NaturalGaussian, PointMass, Posterior
from bayesrule.posteriors.params import Params, tree_map

__all__ = ["Algorithm", "Pointwise", "check_units", "mean_of", "run_rounds"]

ServerSolve = Callable[[LocalObjective], Params]


class Algorithm(ABC):
    """A federated algorithm; hyperparameters are attributes, state is in the values it is given."""

    @abstractmethod
    def start(
        self, prior: NaturalGaussian, num_clients: int, init: Params | None = None
    ) -> ServerState:
        """Return the server before the first round.

        Args:
            prior: p_0, in the family of the messages.
            num_clients: K.
            init: Initial weights of a network; None: everything starts at the prior's mean.
        """

    @abstractmethod
    def client_start(self, state: ServerState, client: int) -> ClientState:
        """Return a client before its first round, given the server before any round."""

    def message(self, state: ServerState) -> Message:
        """Return what the server sends to every client."""
        return Message(
            state.round,
            state.posterior,
            state.start if state.round == 0 else None,
            sent=self.sends(state),
        )

    def sends(self, state: ServerState) -> tuple[str, ...]:
        """Return which parts of a message travel."""
        del state
        return ("mean",)

    def reply_extra(self, state: ServerState, client: int) -> dict[str, Params]:
        """Return tensors like those that a client's reply holds beside its posterior, by part."""
        del state, client
        return {}

    @abstractmethod
    def client_update(
        self, message: Message, state: ClientState, client: int, num_items: int, solve: Solve
    ) -> tuple[Reply, ClientState]:
        """Do a client's part of a round.

        Args:
            message: From the server.
            state: The client's own.
            client: Its number.
            num_items: N_k.
            solve: Minimises a local objective on its data.
        """

    @abstractmethod
    def server_update(
        self, state: ServerState, replies: Sequence[Reply], solve: ServerSolve | None = None
    ) -> ServerState:
        """Do the server's part of a round.

        Args:
            state: The server's.
            replies: Of the clients that answered, in the order of their numbers.
            solve: Minimises an objective without data of its own; `FedLapFunc` alone needs it.
        """

    def predictive(self, state: ServerState) -> Posterior:
        """Return the distribution that the server predicts with."""
        return state.posterior


class Pointwise(Algorithm):
    """An algorithm on weight vectors: its messages are Gaussians of precision 1, its q a point."""

    def start(
        self, prior: NaturalGaussian, num_clients: int, init: Params | None = None
    ) -> ServerState:
        """Start at `init`, or at the prior's mean."""
        w = IsotropicGaussian(prior.mean if init is None else init, 1.0)
        return ServerState(0, num_clients, w, prior)

    def client_start(self, state: ServerState, client: int) -> ClientState:
        """Return a client without a dual."""
        return ClientState()

    def predictive(self, state: ServerState) -> Posterior:
        """Return the point mass at the server's weights."""
        return PointMass(state.posterior.mean, buffers=state.posterior.buffers)


def check_units(units: str) -> str:
    """Return `units` if it is ``sum`` or ``mean``.

    Raises:
        Unsupported: Otherwise.
    """
    if units not in ("sum", "mean"):
        raise Unsupported(
            f"units={units!r}: losses are taken as 'sum' or 'mean' over a client's items"
        )
    return units


def mean_of(params: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None) -> Params:
    """Return sum_k a_k w_k, with a_k = 1/K unless given."""
    weights = [1.0 / len(params)] * len(params) if weights is None else weights
    total = {name: weights[0] * t for name, t in params[0].items()}
    for one, a in zip(params[1:], weights[1:], strict=True):
        total = tree_map(lambda s, t, a=a: s + a * t, total, dict(one))
    return total


def run_rounds(
    algorithm: Algorithm,
    state: ServerState,
    solvers: Sequence[tuple[int, Solve]],
    rounds: int,
    server_solve: ServerSolve | None = None,
) -> Iterator[ServerState]:
    """Yield the server's state after each round, all clients taking part: the least loop.

    Args:
        algorithm: The two pure functions.
        state: The server's start.
        solvers: N_k and the solver of each client.
        rounds: How many.
        server_solve: See `Algorithm.server_update`.
    """
    clients = [algorithm.client_start(state, k) for k in range(len(solvers))]
    for _ in range(rounds):
        message = algorithm.message(state)
        replies = []
        for k, (num_items, solve) in enumerate(solvers):
            reply, clients[k] = algorithm.client_update(message, clients[k], k, num_items, solve)
            replies.append(reply)
        state = algorithm.server_update(state, replies, server_solve)
        yield state


def require_replies(replies: Sequence[Reply]) -> None:
    """Refuse an update without replies.

    Raises:
        BayesruleError: If there are none.
    """
    if not replies:
        raise BayesruleError("no client answered: the server has nothing to update from")
