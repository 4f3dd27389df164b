"""One-of-K variables: the family of mixture indicators.

theta is one-hot along the last axis. Minimal form, with the last class as reference::

    q(theta) = prod_k p_k^theta_k
    T(theta) = (theta_1, ..., theta_{K-1}),   lambda_k = log(p_k / p_K),   mu_k = p_k
    A(lambda) = log(1 + sum_{k<K} exp(lambda_k)),                          log h = 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesrule.errors import ImproperDistribution
from bayesrule.posteriors.constant_base import (
    ConstantBaseMeasure,
    require_inside,
    require_shape,
)
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import Params, own, total, tree_map

__all__ = ["Categorical"]


class Categorical(ConstantBaseMeasure):
    """Independent one-hot vectors; each parameter is (..., K), its last axis one vector.

    nat1 = log(p_k / p_K) and mean1 = p_k for k < K, both (..., K - 1); nat2 and mean2 are empty.

    Args:
        logits: Unnormalised log-probabilities (..., K), by parameter name.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: A logit is not finite: a probability of exactly 0 or 1 has no
            natural parameter.
        Unsupported: A parameter has no axis of classes.
    """

    family: ClassVar[str] = "categorical"
    space: ClassVar[str] = "one-hot vectors"
    own_mode: ClassVar[bool] = True

    def __init__(
        self, logits: Mapping[str, Tensor], *, buffers: Mapping[str, Tensor] | None = None
    ) -> None:
        for name, t in logits.items():
            require_shape(t.ndim > 0 and t.shape[-1] > 0, "Categorical", name, t, "(..., K)")
            if not bool(torch.isfinite(t).all()):
                raise ImproperDistribution(
                    f"not a proper Categorical: a logit of {name!r} is not finite (a probability "
                    "of exactly 0 or 1 has no natural parameter)"
                )
        odds = {name: t[..., :-1] - t[..., -1:] for name, t in logits.items()}
        super().__init__(tree_map(_probs, odds), buffers)
        self._log_odds = own(odds)

    @classmethod
    def from_probs(
        cls, probs: Mapping[str, Tensor], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return q with probabilities proportional to `probs` > 0, (..., K) by parameter name."""
        require_inside("Categorical", probs, "probabilities")
        return cls(tree_map(torch.log, dict(probs)), buffers=buffers)

    @property
    def probs(self) -> Params:
        """p, (..., K) by parameter name; also the mean of the one-hot vector."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw one-hot vectors."""
        draws = {}
        for name, p in self._mean.items():
            K = p.shape[-1]
            rows = p.reshape(-1, K).to("cpu" if generator is None else generator.device)
            picks = torch.multinomial(rows, n or 1, replacement=True, generator=generator)
            one_hot = F.one_hot(picks.mT, K).to(dtype=p.dtype, device=p.device)
            one_hot = one_hot.reshape(n or 1, *p.shape)
            draws[name] = one_hot[0] if n is None else one_hot
        return draws

    @property
    def mode(self) -> Params:
        """The most probable one-hot vector (the first, where several are), by parameter name."""
        return {
            name: F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype) for name, p in self._mean.items()
        }

    def statistics(self, theta: Mapping[str, Tensor]) -> Expectation[Params]:
        """Return the one-hot vectors without their last entry."""
        return Expectation({name: theta[name][..., :-1] for name in self._mean}, {})

    def log_partition(self) -> Tensor:
        """Return sum log(1 + sum_k exp(lambda_k))."""
        return total(torch.logsumexp(_padded(t), -1) for t in self._log_odds.values())

    def _in_space(self, theta: Tensor) -> bool:
        return bool((((theta == 0) | (theta == 1)).all(-1) & (theta.sum(-1) == 1)).all())

    def natural(self) -> Natural[Params]:
        """Return (log p_k / p_K, nothing)."""
        return Natural(dict(self._log_odds), {})

    def expectation(self) -> Expectation[Params]:
        """Return (p_k for k < K, nothing)."""
        return Expectation({name: p[..., :-1] for name, p in self._mean.items()}, {})

    @classmethod
    def from_natural(
        cls, natural: Natural[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with log-odds nat1; every finite nat1 is one."""
        return cls(tree_map(_padded, natural.nat1), buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with probabilities mean1 of the first K - 1 classes."""

        def complete(p: Tensor) -> Tensor:
            return torch.cat([p, 1.0 - p.sum(-1, keepdim=True)], -1)

        return cls.from_probs(tree_map(complete, expectation.mean1), buffers=buffers)

    def _groups(self) -> dict[str, Params]:
        return {"mean": self._mean, "log_odds": self._log_odds, "buffers": self._buffers}

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(tree_map(_padded, dict(groups["log_odds"])), buffers=groups["buffers"])


def _padded(odds: Tensor) -> Tensor:
    """Return the K logits of K - 1 log-odds: the last is 0."""
    return F.pad(odds, (0, 1))


def _probs(odds: Tensor) -> Tensor:
    return torch.softmax(_padded(odds), -1)
