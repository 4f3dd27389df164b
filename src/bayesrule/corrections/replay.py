"""Experience replay with a reservoir, and DER++: stored items beside the current batch.

With a reservoir B of fixed size over all items so far, and independent draws from it::

    replay    loss = CE(batch) + w mean_{(x, y) in draw 1} CE(f(x), y)          (ER, true labels)
    DER++     loss = CE(batch) + alpha mean_{(x, z) in draw 1} |f(x) - z|^2 / K
                               + beta  mean_{(x, y) in draw 2} CE(f(x), y)

z are the network's K outputs (of all heads) when the item was stored, at the mean of q and in
evaluation mode. ER: Chaudhry et al. (2019), arXiv 1902.10486; w = 1 there, and with `weight` null
w = N_past / N_t, so that the term estimates the sum over all past items in units of the mean loss
of N_t items. DER++: Buzzega et al. (2020), arXiv 2004.07211, equation 6.

``add=step`` stores items as they come, so the current experience is replayed as well; ``add=end``
stores them when an experience is over. An item is offered once, however many epochs there are.
Stored items are seen in training mode, in a forward pass of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesrule.corrections.base import Correction, Past
from bayesrule.corrections.memory import Memory
from bayesrule.corrections.reservoir import Reservoir
from bayesrule.data.streams import Experience
from bayesrule.likelihoods import Likelihood
from bayesrule.posteriors.linear import eval_mode

__all__ = ["DERPlusPlus", "Replay", "logit_distance"]

Add = Literal["step", "end"]


def logit_distance(outputs: Tensor, stored: Tensor) -> Tensor:
    """Return the mean over items and outputs of (f - z)^2."""
    return (outputs - stored).square().mean()


class Replay(Correction):
    """Experience replay.

    Args:
        size: Slots of the reservoir.
        batch_size: Stored items per step; None: all.
        weight: w; None: N_past / N_t.
        add: ``step``: items are stored as they come; ``end``: when their experience is over.
    """

    def __init__(
        self, *, size: int, batch_size: int | None, weight: float | None, add: Add
    ) -> None:
        self.size, self.batch_size, self.weight, self.add = size, batch_size, weight, add
        self._reservoir: Reservoir | None = None
        self._likelihood: Likelihood | None = None
        self._experience: Experience | None = None
        self._past, self._now, self._left = 0, 0, 0

    @property
    def reservoir(self) -> Reservoir:
        """The reservoir; there is one from the first experience on."""
        assert self._reservoir is not None
        return self._reservoir

    # ------------------------------------------------------------------ a stream

    def begin(self, experience: Experience, past: Past) -> None:
        """Count what is to come, and make the reservoir at the first experience."""
        if self._reservoir is None:
            self._reservoir = Reservoir(self.size, past.seed)
        self._likelihood, self._experience = past.heads(), experience
        self._now = self._left = experience.train.n_items

    def after_step(self, batch: Mapping[str, Any], past: Past) -> None:
        """Offer the batch's items, each in its first epoch."""
        n = min(self._left, len(batch["target"]))
        if n > 0 and self.add == "step":
            assert self._experience is not None
            self._offer(batch["input"][:n], batch["target"][:n], self._experience, past)

    def absorb(self, experience: Experience, past: Past) -> None:
        """Offer the experience's items in the order of its data, where that was not done before."""
        if self.add == "end":
            for inputs, targets in past.batches(experience.train):
                self._offer(inputs, targets, experience, past)
        self._past += experience.train.n_items

    def _offer(self, inputs: Tensor, targets: Tensor, experience: Experience, past: Past) -> None:
        self._left -= len(targets)
        rows, slots = self.reservoir.choose(len(targets))
        if len(rows) == 0:
            return
        x = inputs[rows.to(inputs.device)]
        columns = torch.tensor(experience.columns, device=targets.device)
        y = columns[targets[rows.to(targets.device)].long()]
        self.reservoir.put(slots, {"input": x, "target": y, **self._beside(x, past)})

    def _beside(self, inputs: Tensor, past: Past) -> dict[str, Tensor]:
        """Return what is stored beside inputs and labels."""
        return {}

    # ---------------------------------------------------------------------- loss

    def loss(self, model: nn.Module) -> Tensor | None:
        """Return w times the mean loss of a draw from the reservoir; None while it is empty."""
        if len(self.reservoir) == 0:
            return None
        weight = self._past / self._now if self.weight is None else self.weight
        return None if weight == 0 else weight * self._cross_entropy(model)

    def _cross_entropy(self, model: nn.Module) -> Tensor:
        assert self._likelihood is not None
        drawn = self._drawn(model)
        return self._likelihood.loss(model(drawn["input"]), drawn["target"])

    def _drawn(self, model: nn.Module) -> dict[str, Tensor]:
        """Return rows of the reservoir where the model is."""
        device = next(model.parameters()).device
        return {k: rows.to(device) for k, rows in self.reservoir.draw(self.batch_size).items()}

    # --------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return the reservoir and the counts."""
        reservoir = None if self._reservoir is None else self._reservoir.state_dict()
        counts = {"past": self._past, "now": self._now, "left": self._left}
        return {"reservoir": reservoir, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._past, self._now = int(state["past"]), int(state["now"])
        self._left = int(state["left"])
        self._reservoir = None
        if state["reservoir"] is not None:
            self._reservoir = Reservoir(self.size, 0)
            self._reservoir.load_state_dict(state["reservoir"])

    def stored(self) -> Sequence[Memory]:
        """Return the stored items in the order of slots; targets are outputs of the network."""
        if self._reservoir is None or len(self._reservoir) == 0:
            return ()
        rows = self._reservoir.draw(None)
        columns = tuple(range(int(rows["target"].max()) + 1))
        return (Memory(rows["input"], rows["target"], columns, rows.get("outputs")),)

    def n_items(self) -> int:
        """Return the number of stored items."""
        return 0 if self._reservoir is None else len(self._reservoir)

    def nbytes(self) -> int:
        """Return the bytes of the reservoir."""
        return 0 if self._reservoir is None else self._reservoir.nbytes()


class DERPlusPlus(Replay):
    """Dark experience replay with labels.

    Args:
        size: Slots of the reservoir.
        batch_size: Stored items per draw; None: all.
        alpha: Weight of the distance to stored outputs.
        beta: Weight of the loss of stored labels; 0: DER.
        add: ``step`` or ``end``, as for `Replay`.
    """

    def __init__(
        self, *, size: int, batch_size: int | None, alpha: float, beta: float, add: Add
    ) -> None:
        super().__init__(size=size, batch_size=batch_size, weight=beta, add=add)
        self.alpha = alpha

    def _beside(self, inputs: Tensor, past: Past) -> dict[str, Tensor]:
        with eval_mode(past.model), torch.no_grad():
            return {"outputs": past.model(past.to_model(inputs)).detach()}

    def loss(self, model: nn.Module) -> Tensor | None:
        """Return alpha times the distance of one draw plus beta times the loss of another."""
        if len(self.reservoir) == 0:
            return None
        drawn = self._drawn(model)
        distance = self.alpha * logit_distance(model(drawn["input"]), drawn["outputs"])
        labels = super().loss(model)
        return distance if labels is None else distance + labels
