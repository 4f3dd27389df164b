"""What travels between server and clients, what each side keeps, and what is refused.

Messages carry posteriors and natural parameters of the shared algebra and nothing else; raw data
never travel. The server keeps the sum of all duals, so a client that is away keeps its site in the
sums, and comes back with its own dual, which it (or the engine on its behalf) kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bayesrule.posteriors import NaturalGaussian
from bayesrule.posteriors.base import FAMILIES
from bayesrule.posteriors.natural import Natural
from bayesrule.posteriors.params import Params

__all__ = [
    "ClientState",
    "Message",
    "Reply",
    "ServerState",
    "num_bytes",
    "refusal",
    "state_refusal",
]


@dataclass(frozen=True)
class Message:
    """From the server to a client.

    Attributes:
        round: Number of the round, from 0.
        posterior: q_g.
        start: Where networks begin in the first round, when that is not the mean of q_g.
        extra: Further tensors.
        sent: Which parts travel: of ``mean``, ``precision``, ``start`` and the names in `extra`.
    """

    round: int
    posterior: NaturalGaussian
    start: Params | None = None
    extra: dict[str, Params] = field(default_factory=dict)
    sent: tuple[str, ...] = ("mean",)

    def payload(self) -> dict[str, Params]:
        """Return the tensors that travel, by part."""
        parts = {**_parts(self.posterior), **self.extra, "start": self.start or {}}
        return {name: parts[name] for name in self.sent}

    def to_plain(self) -> dict[str, Any]:
        """Return tensors and plain data, to be sent to another process."""
        return {
            "round": self.round,
            "posterior": posterior_to_plain(self.posterior),
            "start": self.start,
            "extra": self.extra,
            "sent": list(self.sent),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Message:
        """Inverse of `to_plain`."""
        return cls(
            int(plain["round"]),
            posterior_from_plain(plain["posterior"]),
            plain["start"],
            plain["extra"],
            tuple(plain["sent"]),
        )


@dataclass(frozen=True)
class Reply:
    """From a client to the server.

    Attributes:
        client: Number of the client.
        num_items: N_k, its number of training items.
        posterior: q_k.
        extra: Further tensors.
        sent: Which parts travel.
    """

    client: int
    num_items: int
    posterior: NaturalGaussian
    extra: dict[str, Params] = field(default_factory=dict)
    sent: tuple[str, ...] = ("mean",)

    def payload(self) -> dict[str, Params]:
        """Return the tensors that travel, by part."""
        parts = {**_parts(self.posterior), **self.extra}
        return {name: parts[name] for name in self.sent}

    def to_plain(self) -> dict[str, Any]:
        """Return tensors and plain data, for a checkpoint."""
        return {
            "client": self.client,
            "num_items": self.num_items,
            "posterior": posterior_to_plain(self.posterior),
            "extra": self.extra,
            "sent": list(self.sent),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Reply:
        """Inverse of `to_plain`; raises if it is no such thing, for a client may send anything."""
        reply = cls(
            int(plain["client"]),
            int(plain["num_items"]),
            posterior_from_plain(plain["posterior"]),
            _tensors(plain["extra"]),
            tuple(plain["sent"]),
        )
        reply.payload()
        return reply


@dataclass(frozen=True)
class ClientState:
    """What a client keeps from round to round.

    Attributes:
        dual: Its dual variable eta_k, or None for methods without.
        calls: Rounds that it has taken part in.
        tensors: Further tensors of the algorithm, by part.
        carried: What its solver keeps (optimiser moments).
    """

    dual: Natural[Any] | None = None
    calls: int = 0
    tensors: dict[str, Params] = field(default_factory=dict)
    carried: dict[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return tensors and plain data, for a checkpoint."""
        return {
            "dual": None if self.dual is None else _natural_to_plain(self.dual),
            "calls": self.calls,
            "tensors": self.tensors,
            "carried": self.carried,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ClientState:
        """Inverse of `to_plain`; raises if it is no such thing, for a client may send anything."""
        dual = plain["dual"]
        state = cls(
            None if dual is None else Natural(dual["nat1"], dual["nat2"]),
            int(plain["calls"]),
            plain["tensors"],
            dict(plain["carried"]),
        )
        _tensors(_state_parts(state))
        return state


@dataclass(frozen=True)
class ServerState:
    """What the server keeps from round to round.

    Attributes:
        round: Rounds that are done.
        num_clients: K.
        posterior: q_g.
        prior: p_0.
        dual_sum: sum_k eta_k over all clients, present or not; None for methods without duals.
        start: Where clients begin in round 0.
        tensors: Further tensors of the algorithm, by part.
        info: Numbers about the last round, for the history.
    """

    round: int
    num_clients: int
    posterior: NaturalGaussian
    prior: NaturalGaussian
    dual_sum: Natural[Any] | None = None
    start: Params | None = None
    tensors: dict[str, Params] = field(default_factory=dict)
    info: dict[str, float] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return tensors and plain data, for a checkpoint."""
        return {
            "round": self.round,
            "num_clients": self.num_clients,
            "posterior": posterior_to_plain(self.posterior),
            "prior": posterior_to_plain(self.prior),
            "dual_sum": None if self.dual_sum is None else _natural_to_plain(self.dual_sum),
            "start": self.start,
            "tensors": self.tensors,
            "info": self.info,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ServerState:
        """Inverse of `to_plain`."""
        duals = plain["dual_sum"]
        return cls(
            int(plain["round"]),
            int(plain["num_clients"]),
            posterior_from_plain(plain["posterior"]),
            posterior_from_plain(plain["prior"]),
            None if duals is None else Natural(duals["nat1"], duals["nat2"]),
            plain["start"],
            plain["tensors"],
            plain["info"],
        )


def _parts(q: NaturalGaussian) -> dict[str, Params]:
    groups = q._groups()
    return {"mean": groups["mean"], "precision": groups["precision"]}


def _natural_to_plain(natural: Natural[Any]) -> dict[str, Any]:
    return {"nat1": natural.nat1, "nat2": natural.nat2}


def posterior_to_plain(q: NaturalGaussian) -> dict[str, Any]:
    """Return a posterior as tensors and plain data."""
    return {"family": q.family, "groups": q._groups(), "hyper": q._hyper()}


def posterior_from_plain(plain: Mapping[str, Any]) -> NaturalGaussian:
    """Inverse of `posterior_to_plain`."""
    found = FAMILIES[plain["family"]]._from_groups(plain["groups"], plain["hyper"])
    assert isinstance(found, NaturalGaussian)
    return found


def num_bytes(payload: Mapping[str, Params]) -> int:
    """Return the bytes of all tensors of a payload, headers left out."""
    return sum(t.numel() * t.element_size() for part in payload.values() for t in part.values())


def refusal(
    reply: Reply, message: Message, extra: Mapping[str, Params] | None = None
) -> str | None:
    """Return why a reply is refused, or None if it is sound.

    A reply must have the names, shapes and types of the message's posterior, its family, the extra
    parts of the algorithm, at least one item, and finite numbers throughout.

    Args:
        reply: What a client sent.
        message: What it was an answer to.
        extra: See `Algorithm.reply_extra`.
    """
    if reply.posterior.family != message.posterior.family:
        return f"sent a {reply.posterior.family}, not a {message.posterior.family}"
    if reply.num_items < 1:
        return f"says that it has {reply.num_items} items"
    mine = {**_parts(reply.posterior), **reply.extra}
    return _unlike(mine, {**_parts(message.posterior), **(extra or {})})


def state_refusal(state: ClientState, before: ClientState) -> str | None:
    """Return why a client's new state is refused, or None: it would spoil all its next rounds.

    Args:
        state: What came back with its reply.
        before: Its state before this round.
    """
    if state.calls != before.calls + 1:
        return f"counts {state.calls} rounds after {before.calls}"
    if (state.dual is None) != (before.dual is None):
        return "has another kind of dual"
    return _unlike(_state_parts(state), _state_parts(before))


def _state_parts(state: ClientState) -> dict[str, Params]:
    if state.dual is None:
        return state.tensors
    nat2 = state.dual.nat2
    second = {"all": nat2} if isinstance(nat2, torch.Tensor) else nat2
    return {"first of the dual": state.dual.nat1, "second of the dual": second, **state.tensors}


def _tensors(parts: Any) -> dict[str, Params]:
    """Return tensors by part and name, if they are that."""
    for tensors in dict(parts).values():
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name!r} is a {type(tensor).__name__}, not a tensor")
    return dict(parts)


def _unlike(parts: Mapping[str, Params], like: Mapping[str, Params]) -> str | None:
    """Return the first difference of names, shapes and types, or what is not finite."""
    if parts.keys() != like.keys():
        return f"has the parts {', '.join(sorted(parts))}, not {', '.join(sorted(like))}"
    for part, tensors in parts.items():
        expected = like[part]
        for name in sorted(tensors.keys() ^ expected.keys()):
            return f"has other parameters than the server: {name!r} ({part})"
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                shapes = f"{tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
                return f"{part} of {name!r} has shape {shapes}"
            if tensor.dtype != expected[name].dtype:
                return f"{part} of {name!r} is of {tensor.dtype}, not {expected[name].dtype}"
            if not bool(torch.isfinite(tensor).all()):
                return f"{part} of {name!r} is not finite"
    return None
