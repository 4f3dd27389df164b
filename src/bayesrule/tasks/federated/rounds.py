"""The rounds of a federated run, in one place for every engine, resumable after each client.

The loop decides who takes part, counts what is sent, refuses what cannot be used, keeps every
client's state and writes checkpoints; where a client's work is done is the engine's affair
(`bayesrule.tasks.federated.engine`). What may go wrong with a client is part of a round: it does
not answer, it has time for a part of its work, its training diverges or fails, or it sends what
cannot be used. Such a client keeps the dual it had, its site stays in the server's sums, the
others' replies are used, and the history says who was refused and why. A round with fewer than
`min_replies` sound replies ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bayesrule.errors import BayesruleError, NonFiniteLoss, Unsupported
from bayesrule.federated import (
    Algorithm,
    ClientState,
    Message,
    Reply,
    ServerState,
    num_bytes,
    refusal,
    state_refusal,
)
from bayesrule.federated.algorithm import ServerSolve
from bayesrule.runs import CheckpointFolder
from bayesrule.tasks.federated.engine import Answer, Engine, Job
from bayesrule.tasks.federated.schedule import Participation
from bayesrule.tasks.history import History
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.signals import StopRequest

__all__ = ["Rounds"]


@dataclass
class Rounds:
    """Rounds of one federated run.

    Attributes:
        algorithm: The two pure functions.
        state: The server's start; afterwards where it stands.
        engine: Does the clients' work.
        server_solve: See `Algorithm.server_update`.
        participation: Who takes part.
        seed: Of participation.
        rounds: R.
        min_replies: Fewest sound replies of a round.
        measure: Returns metrics of a server state after a round (empty: not measured).
        checkpoints: Where the position is kept.
        history: Where rows go.
        stop: The request to stop, by a signal.
        checkpoint_seconds: Wall time between checkpoints.
        tamper: Changes a reply on its way, for tests; None: the network is sound.
    """

    algorithm: Algorithm
    state: ServerState
    engine: Engine
    server_solve: ServerSolve | None
    participation: Participation
    seed: int
    rounds: int
    min_replies: int
    measure: Callable[[ServerState], dict[str, float]]
    checkpoints: CheckpointFolder
    history: History
    stop: StopRequest
    checkpoint_seconds: float = 30.0
    tamper: Callable[[Reply, int], Reply] | None = None
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0

    def __post_init__(self) -> None:
        K = self.participation.clients
        self.clients = [self.algorithm.client_start(self.state, k) for k in range(K)]
        self._replies: list[Reply] = []
        self._done: list[int] = []  # clients of this round that were dealt with
        self._round_bytes = [0, 0]
        self._diverged = False
        self._last_save, self._saved = time.monotonic(), -1

    # --------------------------------------------------------------------- rounds

    def run(self, progress: Progress) -> ServerState:
        """Do all rounds, from the last checkpoint if there is one.

        Raises:
            BayesruleError: If a round has too few sound replies.
            Unsupported: If a client says that its work cannot be done as configured.
            Stopped: If a signal asked for a stop; a checkpoint was written.
        """
        if not self._restore():
            self.history.rewind(0)
        progress.first = self.state.round
        while self.state.round < self.rounds:
            self._one_round()
            shown = {name: points[-1][1] for name, points in self.curves.items() if points}
            progress.update(self.state.round, {n: v for n, v in shown.items() if "acc@mean" in n})
            self._boundary()
        self._save()
        return self.state

    def _one_round(self) -> None:
        message, r = self.algorithm.message(self.state), self.state.round
        who, jobs = self.participation, []
        for k in who.asked(self.seed, r):
            if k in self._done:
                continue
            if who.answers(self.seed, r, k):
                jobs.append(Job(k, message, self.clients[k], who.is_straggler(self.seed, r, k)))
            else:
                self._settle(k, message)
        for answer in self.engine.work(jobs):
            if answer is not None:
                self._take(answer, message)
            self._boundary()
        if len(self._replies) < self.min_replies:
            self._too_few()
        self.state = self.algorithm.server_update(self.state, self._replies, self.server_solve)
        self._record(len(self._replies))
        self._replies, self._done, self._round_bytes = [], [], [0, 0]

    def _settle(self, k: int, message: Message) -> None:
        """Count what was sent to a client that is dealt with."""
        self._round_bytes[0] += num_bytes(message.payload())
        self._done.append(k)

    def _take(self, answer: Answer, message: Message) -> None:
        """Deal with an answer: the reply joins the round's, or it is left out with a reason."""
        k, reply = answer.client, answer.reply
        if answer.kind == "unfit":
            raise Unsupported(str(answer.problem))
        self._settle(k, message)
        if reply is None or answer.state is None:
            self._diverged = self._diverged or answer.kind == "diverged"
            self._refuse(k, answer.problem or "sent nothing")
            return
        if self.tamper is not None:
            reply = self.tamper(reply, self.state.round)
        reason = refusal(reply, message, self.algorithm.reply_extra(self.state, k))
        if reply.client != k:
            reason = f"answered as client {reply.client}"
        reason = reason or state_refusal(answer.state, self.clients[k])
        self._round_bytes[1] += num_bytes(reply.payload())
        if reason is not None:
            self._refuse(k, reason)
            return
        self._replies.append(reply)
        self.clients[k] = answer.state

    def _refuse(self, k: int, reason: str) -> None:
        row = {"round": self.state.round, "client": k, "reason": reason}
        self.refused.append(row)
        self.history.append(self._row({"client": k, "refused": reason}))

    def _too_few(self) -> None:
        here = [row for row in self.refused if row["round"] == self.state.round]
        why = f"; client {here[0]['client']}: {here[0]['reason']}" if here else ""
        kind = NonFiniteLoss if self._diverged else BayesruleError
        raise kind(
            f"round {self.state.round + 1}: {len(self._replies)} of {len(self._done)} clients "
            f"sent a sound reply, and task.min_replies={self.min_replies}{why}"
        )

    def _record(self, replied: int) -> None:
        self.bytes_down += self._round_bytes[0]
        self.bytes_up += self._round_bytes[1]
        values = {
            **self.measure(self.state),
            **{f"server/{name}": value for name, value in self.state.info.items()},
            "comm/down": float(self._round_bytes[0]),
            "comm/up": float(self._round_bytes[1]),
            "comm/replies": float(replied),
        }
        for name, value in values.items():
            self.curves.setdefault(name, []).append([float(self.state.round), value])
        self.history.append(self._row(values))

    def _row(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"phase": "rounds", "step": self.state.round, "epoch": 0, **values}

    # ---------------------------------------------------------------- checkpoints

    def _boundary(self) -> None:
        if self.stop.signum is not None:
            self._save()
            self.stop.check()
        due = time.monotonic() - self._last_save >= self.checkpoint_seconds
        if due and self._position != self._saved:  # an engine that waits has nothing new
            self._save()

    @property
    def _position(self) -> int:
        return self.state.round * (self.participation.clients + 1) + len(self._done)

    def _save(self) -> None:
        state = {
            "server": self.state.to_plain(),
            "clients": [client.to_plain() for client in self.clients],
            "replies": [reply.to_plain() for reply in self._replies],
            "done": self._done,
            "round_bytes": self._round_bytes,
            "bytes": [self.bytes_up, self.bytes_down],
            "curves": self.curves,
            "refused": self.refused,
            "history_length": self.history.sync(),
        }
        self.checkpoints.save_object(state, self._position)
        self._last_save, self._saved = time.monotonic(), self._position

    def _restore(self) -> bool:
        """Take up the last checkpoint; return whether there is one."""
        found = self.checkpoints.load_latest_object()
        if found is None:
            return False
        _, saved = found
        self.state = ServerState.from_plain(saved["server"])
        self.clients = [ClientState.from_plain(plain) for plain in saved["clients"]]
        self._replies = [Reply.from_plain(plain) for plain in saved["replies"]]
        self._done, self._round_bytes = list(saved["done"]), list(saved["round_bytes"])
        self.bytes_up, self.bytes_down = saved["bytes"]
        self.curves, self.refused = saved["curves"], saved["refused"]
        self.history.rewind(int(saved["history_length"]))
        return True
