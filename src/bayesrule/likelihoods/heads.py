"""Several heads of one network at once: the likelihood of a batch that mixes tasks.

::

    p(y | f) = base( position of y in its head | f[columns of the head that has y] )

Targets are outputs of the network (global columns), so a target says which head it belongs to.
Where all heads are one and the same (domain- and class-incremental streams) this is that head's
likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.likelihoods.base import Likelihood

__all__ = ["Heads"]


class Heads(Likelihood):
    """A likelihood of classes whose softmax runs over the head of each item's target.

    Args:
        base: The likelihood of one head's outputs; a likelihood of classes.
        heads: Columns of each head; any two are the same or have none in common.

    Raises:
        Unsupported: If two heads share some columns only, or the base has no classes.
    """

    def __init__(self, base: Likelihood, heads: Sequence[Sequence[int]]) -> None:
        if base.kind != "classification":
            raise Unsupported("heads are of classes: a target must say which head it belongs to")
        self.base = base
        self.ignore_index = base.ignore_index
        self.heads = tuple(dict.fromkeys(tuple(head) for head in heads))
        columns = [column for head in self.heads for column in head]
        if len(set(columns)) < len(columns):
            raise Unsupported("two heads of one network share some of their outputs, not all")
        self._owner = torch.full((max(columns) + 1,), -1)
        for index, head in enumerate(self.heads):
            self._owner[list(head)] = index

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The base's."""
        return self.base.kind

    def own(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the outputs with those of other heads at minus infinity (a softmax ignores them).

        Args:
            outputs: Of all heads, shape (B, K).
            targets: Global columns, shape (B,).

        Raises:
            Unsupported: If a target belongs to no head.
        """
        if len(self.heads) == 1 and len(self.heads[0]) == outputs.shape[-1]:
            return outputs
        owner = self._owner.to(outputs.device)
        labels = targets if (known := self.mask(targets)) is None else targets.where(known, 0)
        heads_B = owner[labels.long()]
        if bool((heads_B < 0).any()):
            raise Unsupported("a target is an output of the network that belongs to no head")
        inside = outputs.new_zeros(len(self.heads), outputs.shape[-1], dtype=torch.bool)
        for index, head in enumerate(self.heads):
            inside[index, list(head)] = True
        return outputs.masked_fill(~inside[heads_B], -torch.inf)

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the nll of each item in the head of its target, shape (B,)."""
        return self.base.nll(self.own(outputs, targets), targets)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the base's prediction over all outputs (no head is known without a target)."""
        return self.base.predict(outputs)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return d nll / d f; zero outside the head of the target."""
        return self.base.residual(self.own(outputs, targets), targets)

    def hessian(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return Lambda of each item; zero outside the head of its target, which must be given."""
        return self.base.hessian(self.own(outputs, self._given(targets)), targets)

    def hessian_sqrt(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return R with R R^T = Lambda of each item."""
        return self.base.hessian_sqrt(self.own(outputs, self._given(targets)), targets)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Refuse: which head an item belongs to is known from its target alone.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported("targets of several heads cannot be drawn: take one head's likelihood")

    def log_probs(self, outputs: Tensor) -> Tensor:
        """Return log-probabilities over all outputs."""
        return self.base.log_probs(outputs)

    def _given(self, targets: Tensor | None) -> Tensor:
        if targets is None:
            raise Unsupported("the curvature of several heads needs the targets: they say which")
        return targets
