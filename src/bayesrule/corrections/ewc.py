"""Elastic weight consolidation (Kirkpatrick et al., 2017, arXiv 1612.00796), and its online form.

With w_s the weights after task s and F_s a diagonal Fisher there, a MEAN over the N_s items::

    F_s = (1/N_s) sum_i (d log p(y_i | x_i, w) / dw)^2   at w_s                  per-example squares
        y_i the label ("empirical"), a draw from the model ("sampled"), or its exact expectation
        ("exact": the GGN diagonal)

    EWC          loss = lbar_t(w) + lam/2 sum_{s<t} sum_j F_sj (w_j - w_sj)^2
    online EWC   loss = lbar_t(w) + lam/2 sum_j Ft_j (w_j - w_{t-1,j})^2,   Ft = gamma Ft + F_t

lbar_t is the mean loss. EWC has a quadratic per past task (Huszar, 2018, arXiv 1712.03847, on the
difference); their sum is one quadratic, which is what is kept, so that memory does not grow. Online
EWC is of Schwarz et al. (2018, arXiv 1805.06370). lam = 1 at equal N is the Bayesian weight.
"""

from __future__ import annotations

from typing import Literal

from bayesrule.corrections.anchored import Anchored, labelled, weights
from bayesrule.corrections.base import Past
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.curvature import fisher_diag, ggn_diag
from bayesrule.data.streams import Experience
from bayesrule.posteriors.params import Params
from bayesrule.seeding import generator

__all__ = ["EWC", "OnlineEWC", "mean_fisher"]

Fisher = Literal["empirical", "sampled", "exact"]


def mean_fisher(experience: Experience, past: Past, kind: Fisher) -> Params:
    """Return F, the mean diagonal Fisher of an experience at the model's weights, by name."""
    head, batches = past.head(experience.columns), labelled(experience, past)
    if kind == "exact":
        total = ggn_diag(past.model, head, batches)
    else:
        names, device = ("fisher", experience.index), str(past.device)
        draws = generator(past.seed, *names, device=device) if kind == "sampled" else None
        total = fisher_diag(past.model, head, batches, generator=draws)
    return {name: F / experience.train.n_items for name, F in total.items()}


class EWC(Anchored):
    """Elastic weight consolidation: a quadratic per past task.

    Args:
        lam: Weight of the past, in units of the mean loss.
        fisher: Whose labels the Fisher is of; see the module docstring.
    """

    def __init__(self, *, lam: float, fisher: Fisher) -> None:
        super().__init__(lam)
        self.fisher = fisher

    def absorb(self, experience: Experience, past: Past) -> None:
        """Add the quadratic of the finished task."""
        F = mean_fisher(experience, past, self.fisher)
        own = QuadraticAnchor(weights(past.model), F)
        self.anchor = own if self.anchor is None else self.anchor.to(past.device) + own


class OnlineEWC(EWC):
    """Online EWC: one quadratic around the last weights, whose Fisher decays.

    Args:
        lam: Weight of the past, in units of the mean loss.
        gamma: Decay of older Fishers, in (0, 1].
        fisher: As for `EWC`.
    """

    def __init__(self, *, lam: float, gamma: float, fisher: Fisher) -> None:
        super().__init__(lam=lam, fisher=fisher)
        self.gamma = gamma

    def absorb(self, experience: Experience, past: Past) -> None:
        """Decay the Fisher, add the finished task's, and centre on its weights."""
        F = mean_fisher(experience, past, self.fisher)
        if self.anchor is not None:
            older = self.anchor.to(past.device).diagonal()
            F = {name: self.gamma * older[name] + f for name, f in F.items()}
        self.anchor = QuadraticAnchor(weights(past.model), F)
