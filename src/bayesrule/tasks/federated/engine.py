"""Where the work of clients is done: the seam between the round loop and an engine.

The loop (`bayesrule.tasks.federated.rounds`) hands over jobs, a job for every client that is asked
and answers in a round, and takes their answers **in the order of the jobs**. A job holds all that
the work depends on beside the configuration: the server's message and the client's own state (dual,
optimiser moments). An engine is therefore free to use any process for any client, and all engines
give equal numbers:

* `LocalEngine`: in this process, one client after another;
* `bayesrule.tasks.flower.grid.GridEngine`: over a Flower grid, which is a simulation on
  Ray or a deployment of SuperNodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bayesrule.federated import ClientState, Message, Reply

if TYPE_CHECKING:
    from bayesrule.tasks.federated.clients import Clients

__all__ = ["Answer", "Engine", "Job", "LocalEngine"]


@dataclass(frozen=True)
class Job:
    """A client's part of a round.

    Attributes:
        client: Its number.
        message: From the server.
        state: The client's own, from its last round.
        straggler: Whether it has time for a part of its epochs only.
    """

    client: int
    message: Message
    state: ClientState
    straggler: bool = False

    def to_plain(self) -> dict[str, Any]:
        """Return tensors and plain data, to be sent."""
        return {
            "client": self.client,
            "message": self.message.to_plain(),
            "state": self.state.to_plain(),
            "straggler": self.straggler,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Job:
        """Inverse of `to_plain`."""
        return cls(
            int(plain["client"]),
            Message.from_plain(plain["message"]),
            ClientState.from_plain(plain["state"]),
            bool(plain["straggler"]),
        )


@dataclass(frozen=True)
class Answer:
    """What came of a job: a reply with the client's new state, or a problem.

    Attributes:
        client: The job's.
        reply: What the client sends to the server.
        state: The client's own for its next round.
        problem: Why there is no reply.
        kind: Of the problem: ``diverged``, ``failed``, ``absent``, or ``unfit`` for one of the
            configuration, which every client has in every round.
    """

    client: int
    reply: Reply | None = None
    state: ClientState | None = None
    problem: str | None = None
    kind: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Return tensors and plain data, to be sent."""
        return {
            "client": self.client,
            "reply": None if self.reply is None else self.reply.to_plain(),
            "state": None if self.state is None else self.state.to_plain(),
            "problem": self.problem,
            "kind": self.kind,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Answer:
        """Inverse of `to_plain`."""
        reply, state = plain["reply"], plain["state"]
        return cls(
            int(plain["client"]),
            None if reply is None else Reply.from_plain(reply),
            None if state is None else ClientState.from_plain(state),
            plain["problem"],
            str(plain["kind"]),
        )


class Engine(Protocol):
    """Does the clients' work."""

    def work(self, jobs: Sequence[Job]) -> Iterator[Answer | None]:
        """Yield an answer for every job, in the order of the jobs.

        None says that nothing has come yet, so that the caller can look at its own affairs (a
        checkpoint, a request to stop). A caller that goes away leaves open jobs behind.
        """


class LocalEngine:
    """All clients in this process, one after another.

    Args:
        clients: Who does the work.
    """

    def __init__(self, clients: Clients) -> None:
        self.clients = clients

    def work(self, jobs: Sequence[Job]) -> Iterator[Answer | None]:
        """Yield an answer for every job."""
        for job in jobs:
            yield self.clients.work(job)
