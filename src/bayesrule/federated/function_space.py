"""FedLap-Func: sites that also keep soft labels on a few inputs (Swaroop et al., 2025).

Client k shares the inputs M_k; M is their union, known to everybody. h is softmax, f_i(w) the
network's output at input i, t >= 0 the weight of function space, delta the prior's precision, v_k
FedLap's dual (in FedLap's units, so eta_k = (delta v_k, 0)). The site of client k is

    site_k(w)  = -delta v_k^T w + t sum_{i in M_k} CE( yhat_{k,i}, f_i(w) )
    yhat_{k,i} = h(f_i(w_k))

whose functional part has gradient zero at w_k: v_k keeps FedLap's meaning, M_k carries curvature::

    server  w_g = argmin delta/2 ||w - sum_k v_k||^2 + t sum_k sum_{i in M_k} CE(yhat_{k,i}, f_i(w))
    client  w_k = argmin l_k(w) + delta v_k^T w - t sum_{i in M_k} CE(yhat_{k,i}, f_i(w))
                         + delta/2 ||w - w_g||^2 + t sum_{i in M} CE(h(f_i(w_g)), f_i(w))
    dual    v_k <- v_k + rho (w_k - w_g);       yhat_{k,i} <- h(f_i(w_k))

`yhat` starts at h(f_i(w_init)). With t = 0 this is FedLap. The derivation is ours, consistent with
the paper's description; its exact equations could not be compared. The dual step is the
displacement: the alternative v_k <- (1 - rho) v_k - (rho/delta) grad l_k(w_k) needs exact solves
and diverged on networks in pilot runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.federated.algorithm import ServerSolve, require_replies
from bayesrule.federated.local import LocalObjective, SoftLabels, Solve
from bayesrule.federated.messages import ClientState, Message, Reply, ServerState
from bayesrule.federated.sites import FedLap
from bayesrule.posteriors import IsotropicGaussian, NaturalGaussian
from bayesrule.posteriors.params import Params

__all__ = ["FedLapFunc"]

Outputs = Callable[[Params, Tensor], Tensor]


@dataclass(frozen=True)
class FedLapFunc(FedLap):
    """FedLap with soft labels on shared inputs.

    Attributes:
        outputs: f(w, inputs): the network's outputs (M, C) at weights w.
        memory: M_k of each client, in the order of their numbers.
        tau: t, the weight of function space.
    """

    outputs: Outputs | None = None
    memory: tuple[Tensor, ...] = ()
    tau: float = 1.0

    def start(
        self, prior: NaturalGaussian, num_clients: int, init: Params | None = None
    ) -> ServerState:
        """Start at the initial weights, all soft labels being those of the initial network."""
        if self.outputs is None or len(self.memory) != num_clients:
            raise Unsupported("FedLapFunc needs the network's outputs and one memory per client")
        state = super().start(prior, num_clients, init)
        w = state.posterior.mean
        labels = {str(k): self._labels(w, inputs) for k, inputs in enumerate(self.memory)}
        return replace(state, tensors={"labels": labels})

    def _labels(self, w: Params, inputs: Tensor) -> Tensor:
        assert self.outputs is not None
        with torch.no_grad():
            return self.outputs(w, inputs).softmax(-1)

    def message(self, state: ServerState) -> Message:
        """Return the weights; the shared inputs travel once, in the first round."""
        message = super().message(state)
        inputs = {str(k): t for k, t in enumerate(self.memory)}
        once = ("inputs",) if state.round == 0 else ()
        return replace(message, extra={"inputs": inputs}, sent=(*message.sent, *once))

    def client_start(self, state: ServerState, client: int) -> ClientState:
        """Return a client with its first dual and the labels of the initial network."""
        labels = {"mine": state.tensors["labels"][str(client)]}
        return replace(super().client_start(state, client), tensors={"labels": labels})

    def reply_extra(self, state: ServerState, client: int) -> dict[str, Params]:
        """Return the client's labels."""
        return {"labels": {"mine": state.tensors["labels"][str(client)]}}

    def objective(self, message: Message, state: ClientState, client: int) -> LocalObjective:
        """Return FedLap's with what everybody's labels say instead of the client's own."""
        flat = super().objective(message, state, client)
        if not self.tau:
            return flat
        inputs = message.extra["inputs"]
        union = torch.cat(list(inputs.values()))
        soft = (
            SoftLabels(inputs[str(client)], state.tensors["labels"]["mine"], -self.tau),
            SoftLabels(union, self._labels(message.posterior.mean, union), self.tau),
        )
        return replace(flat, soft=soft)

    def client_update(
        self, message: Message, state: ClientState, client: int, num_items: int, solve: Solve
    ) -> tuple[Reply, ClientState]:
        """Minimise the client's objective, move the dual, make new labels."""
        reply, after = super().client_update(message, state, client, num_items, solve)
        mine = message.extra["inputs"][str(client)]
        labels = {"labels": {"mine": self._labels(reply.posterior.mean, mine)}}
        reply = replace(reply, extra=labels, sent=(*reply.sent, "labels"))
        return reply, replace(after, tensors=labels)

    def server_update(
        self, state: ServerState, replies: Sequence[Reply], solve: ServerSolve | None = None
    ) -> ServerState:
        """Add the dual steps, take the new labels, and search for w_g.

        Raises:
            Unsupported: Without a server's solver.
        """
        require_replies(replies)
        labels = dict(state.tensors["labels"])
        for reply in replies:
            labels[str(reply.client)] = reply.extra["labels"]["mine"]
        flat = super().server_update(state, replies)
        if self.tau == 0.0:
            return replace(flat, tensors={"labels": labels})
        if solve is None:
            raise Unsupported("FedLapFunc's server has a search of its own: give it a solver")
        assert isinstance(flat.posterior, IsotropicGaussian)
        soft = tuple(
            SoftLabels(inputs, labels[str(k)], self.tau) for k, inputs in enumerate(self.memory)
        )
        objective = LocalObjective(
            flat.posterior, rho=1.0, weight=0.0, start=state.posterior.mean, soft=soft
        )
        q = IsotropicGaussian(solve(objective), flat.posterior.precision)
        return replace(flat, posterior=q, tensors={"labels": labels})
