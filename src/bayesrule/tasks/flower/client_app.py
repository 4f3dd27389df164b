"""The ClientApp: a client's part of a round, in whatever process Flower starts.

A deployment starts a process for every message, so what is imported before it is needed is little.
In a simulation a process serves many clients, rounds and runs, and keeps what it made of the last
configuration.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from bayesrule.tasks.flower.records import pack, unpack

if TYPE_CHECKING:
    from bayesrule.tasks.federated.clients import Clients

__all__ = ["app", "query", "train"]

_LAST: list[Any] = []  # the configuration of this process's last job, and its clients


def query(message: Message, context: Context) -> Message:
    """Say whose data this node has: node ids are random, and new after every start."""
    who = ConfigRecord({"partition-id": int(context.node_config["partition-id"])})
    return Message(RecordDict({"who": who}), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Do a job; whatever goes wrong is in the answer."""
    from bayesrule.errors import BayesruleError
    from bayesrule.tasks.federated.engine import Answer, Job

    plain, labels = unpack(message.content)
    job = Job.from_plain(plain)
    own = int(context.node_config["partition-id"])
    if own != job.client:
        text = f"the job of client {job.client} came to the node of client {own}"
        answer = Answer(job.client, problem=text, kind="failed")
    else:
        try:
            answer = _clients(labels["config"]).work(job)
        except BayesruleError as problem:  # its data are not on this machine, say
            answer = Answer(job.client, problem=str(problem), kind="failed")
    return Message(pack(answer.to_plain()), reply_to=message)


def _clients(text: str) -> Clients:
    from bayesrule.tasks.federated.clients import Clients

    if not _LAST or _LAST[0] != text:
        _LAST[:] = [text, Clients.of(json.loads(text))]
    found: Clients = _LAST[1]
    return found


app = ClientApp()
app.query()(query)
app.train()(train)
