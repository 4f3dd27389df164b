"""The engine over a Flower grid: jobs out, answers back in the order of the jobs.

A node is found by the number of its client, which it is asked for once: node ids are random, and a
SuperNode that is started anew has another. A client without a node, whose node dies, or which does
not answer in time, has not answered: the round goes on without it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bayesrule.errors import BayesruleError
from bayesrule.tasks.federated.engine import Answer, Job
from bayesrule.tasks.flower.records import pack, unpack

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

__all__ = ["GridEngine"]

_RAISED = 2  # Flower's error code for a ClientApp that raised; all others are of the transport


class GridEngine:
    """Jobs through a grid.

    Args:
        grid: Flower's.
        config: The run's configuration, which travels with every job.
        clients: K.
        timeout: Seconds until a client of a round has not answered; None: no limit.
        wait: Seconds to wait for all K nodes before the first round.
        poll: Seconds between looks at the grid.
        check: Raises if the grid has come to an end; called often, and before jobs are sent.
    """

    def __init__(
        self,
        grid: Grid,
        config: dict[str, Any],
        clients: int,
        *,
        timeout: float | None = None,
        wait: float = 120.0,
        poll: float = 0.02,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.grid, self.config, self.clients = grid, json.dumps(config), clients
        self.timeout, self.wait, self.poll, self.check = timeout, wait, poll, check
        self._node_of: dict[int, int] = {}  # client -> node
        self._asked: dict[str, int] = {}  # open question -> node
        self._known: set[int] = set()  # nodes that were asked who they are
        self._met = False

    # ----------------------------------------------------------------------- nodes

    def _look(self) -> None:
        """Ask new nodes who they are, take answers, forget nodes that are gone."""
        from flwr.app import Message, MessageType, RecordDict

        here = set(self.grid.get_node_ids())
        self._node_of = {k: node for k, node in self._node_of.items() if node in here}
        for node in sorted(here - self._known):
            sent = self._push(Message(RecordDict(), node, MessageType.QUERY))
            if sent is not None:
                self._known.add(node)
                self._asked[sent] = node
        for reply in self.grid.pull_messages(list(self._asked)) if self._asked else ():
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            with suppress(KeyError, TypeError, ValueError):  # an error, or no answer to that
                self._node_of[int(str(reply.content["who"]["partition-id"]))] = node

    def _meet(self, wanted: set[int]) -> Iterator[None]:
        """Wait for nodes: at the start for all wanted, later for those that have just come up."""
        if not wanted:
            return
        limit = time.monotonic() + self.wait
        self._look()
        while not wanted <= self._node_of.keys() and time.monotonic() < limit:
            if self._met and not self._asked:
                break
            self.check()
            yield None
            time.sleep(self.poll)
            self._look()
        if not self._met and not self._node_of:
            raise BayesruleError(
                f"no client's node has come up within {self.wait:g} s (engine.wait); a deployment "
                "needs a running flower-supernode for each client"
            )
        self._met = True

    # ------------------------------------------------------------------------ jobs

    def work(self, jobs: Sequence[Job]) -> Iterator[Answer | None]:
        """Yield an answer for every job, in the order of the jobs; None while there is none."""
        yield from self._meet({job.client for job in jobs})
        self.check()
        ready: dict[int, Answer] = {}
        sent: dict[str, int] = {}
        for i, job in enumerate(jobs):
            message_id = self._send(job)
            if message_id is None:
                ready[i] = _absent(job, "has no node")
            else:
                sent[message_id] = i
        limit = None if self.timeout is None else time.monotonic() + self.timeout
        for i in range(len(jobs)):
            while i not in ready:
                for reply in self.grid.pull_messages(list(sent)):
                    j = sent.pop(reply.metadata.reply_to_message_id)
                    ready[j] = self._answer(jobs[j], reply)
                if i in ready:
                    break
                if limit is not None and time.monotonic() > limit:
                    ready |= {j: _absent(jobs[j], "no answer in time") for j in sent.values()}
                    break
                self.check()
                yield None
                time.sleep(self.poll)
            yield ready.pop(i)

    def _send(self, job: Job) -> str | None:
        from flwr.app import Message, MessageType

        node = self._node_of.get(job.client)
        if node is None:
            return None
        content = pack(job.to_plain(), config=self.config)
        group = str(job.message.round)
        return self._push(
            Message(content, node, MessageType.TRAIN, ttl=self.timeout, group_id=group)
        )

    def _push(self, message: Message) -> str | None:
        """Send a message and return its id; None: its node has just gone."""
        found = [one for one in self.grid.push_messages([message]) if one]
        return found[0] if found else None

    def _answer(self, job: Job, reply: Message) -> Answer:
        if reply.has_error():
            lines = str(reply.error.reason).strip().splitlines() or [""]
            if reply.error.code == _RAISED:
                return Answer(job.client, problem=f"raised {lines[-1]}", kind="failed")
            self._known.discard(self._node_of.pop(job.client, 0))  # ask it again, if it is there
            return _absent(job, lines[0] or f"error {reply.error.code}")
        try:
            plain, _ = unpack(reply.content)
            answer = Answer.from_plain(plain)
        except Exception as error:  # whatever a client may send
            text = f"sent what cannot be read: {type(error).__name__}: {error}"
            return Answer(job.client, problem=text, kind="failed")
        if answer.client != job.client:
            text = f"answered as client {answer.client}"
            return Answer(job.client, problem=text, kind="failed")
        return answer


def _absent(job: Job, why: str) -> Answer:
    return Answer(job.client, problem=f"did not answer: {why}", kind="absent")
