"""Online Laplace (Ritter et al., 2018, arXiv 1805.07810): the posterior as the next prior.

With w_t the weights after task t and H_t(w_t) the GGN (for these likelihoods: the Fisher), a SUM
over the N_t items, diagonal or Kronecker-factored::

    Prec_0 = delta I,   w_0 = 0;       Prec_t = Prec_{t-1} + H_t(w_t)
    loss   = (1/N_t) [ sum_i l_i(w) + lam/2 (w - w_{t-1})^T Prec_{t-1} (w - w_{t-1}) ]

lam = 1 is Bayes, exactly so where the losses are quadratic (and H is dense enough). The first task
has the prior N(0, I / delta): use an optimiser without weight decay of its own. A sum of Kronecker
products is not one, and each task's factors are kept: their memory grows with the tasks, the
diagonal's does not.
"""

from __future__ import annotations

from typing import Literal

import torch

from bayesrule.corrections.anchored import Anchored, labelled, weights, zeros
from bayesrule.corrections.base import Past
from bayesrule.corrections.quadratic import KroneckerSum, QuadraticAnchor
from bayesrule.curvature import ggn_diag, kfac
from bayesrule.data.streams import Experience

__all__ = ["OnlineLaplace"]

_FIRST = torch.zeros(1, dtype=torch.int64)


class OnlineLaplace(Anchored):
    """Online Laplace with a diagonal or Kronecker-factored precision.

    Args:
        lam: Weight of the past; 1 is Bayes.
        delta: Prior precision, in nats of the summed loss.
        structure: ``diag`` or ``kron``.
    """

    def __init__(self, *, lam: float, delta: float, structure: Literal["diag", "kron"]) -> None:
        super().__init__()
        self.lam, self.delta, self.structure = lam, delta, structure

    def check(self, past: Past) -> None:
        """Refuse, for ``kron``, layers without Kronecker factors."""
        if self.structure == "kron":
            split = past.stream[0].train
            first = next(iter(past.batches(split.subset(_FIRST), 1)))
            batch = {"input": first[0], "target": first[1]}
            kfac(past.model, past.head(past.stream[0].columns), [batch])

    def begin(self, experience: Experience, past: Past) -> None:
        """Weight the quadratic by lam / N_t; the first task has the prior."""
        if self.anchor is None:
            at = zeros(weights(past.model))
            kron = self.structure == "kron"
            self.anchor = QuadraticAnchor(at, KroneckerSum((), self.delta) if kron else self.delta)
        self.weight = self.lam / experience.train.n_items

    def absorb(self, experience: Experience, past: Past) -> None:
        """Add the finished task's curvature, and centre on its weights."""
        assert self.anchor is not None
        anchor, head = self.anchor.to(past.device), past.head(experience.columns)
        at, batches = weights(past.model), labelled(experience, past)
        if isinstance(anchor.precision, KroneckerSum):
            S = anchor.precision.plus(kfac(past.model, head, batches))
            self.anchor = QuadraticAnchor(at, S)
            return
        H, before = ggn_diag(past.model, head, batches), anchor.diagonal()
        self.anchor = QuadraticAnchor(at, {name: before[name] + h for name, h in H.items()})
