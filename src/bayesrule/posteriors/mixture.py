"""Mixtures of posteriors: deep ensembles (of point masses) and Multi-IVON (of Gaussians).

q(theta) = sum_k w_k q_k(theta)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.base import FAMILIES, Posterior
from bayesrule.posteriors.dropout import DropoutPosterior
from bayesrule.posteriors.params import Params, check_same_schema

__all__ = ["Mixture"]


class Mixture(Posterior):
    """sum_k w_k q_k over the same parameters.

    Entropy and divergences have no closed form: use `entropy_mc` and `kl_mc`. Not an exponential
    family, so no algebra. The mean averages weights of different networks; it is there for the
    moments, not as a good predictor of an ensemble.

    Args:
        components: The q_k, at least one.
        weights: w_k >= 0; normalised to sum to one. Equal when None.

    Raises:
        ImproperDistribution: The weights are not finite, non-negative, with a positive sum.
        Unsupported: The components differ in names or shapes, or their number is not the weights'.
    """

    family: ClassVar[str] = "mixture"

    def __init__(
        self, components: Sequence[Posterior], weights: Sequence[float] | Tensor | None = None
    ) -> None:
        if not components:
            raise Unsupported("Mixture needs at least one component")
        if any(isinstance(q, DropoutPosterior) for q in components):
            raise Unsupported(
                "a DropoutPosterior cannot be a component of a Mixture: its noise is in the "
                "forward pass. Predict with each member and average"
            )
        first = components[0]
        for q in components[1:]:
            check_same_schema(first.mean, q.mean, "two components of the mixture")
        values = [1.0] * len(components) if weights is None else [float(w) for w in weights]
        if len(values) != len(components):
            raise Unsupported(f"Mixture has {len(components)} components but {len(values)} weights")
        if not all(math.isfinite(w) and w >= 0 for w in values) or sum(values) <= 0:
            raise ImproperDistribution(
                f"mixture weights must be finite, non-negative and not all zero, not {values}"
            )
        total = math.fsum(values)
        normalised = abs(total - 1.0) <= 1e-12  # left as they are, so that a reload is bit-equal
        self._components = tuple(components)
        self._weights = tuple(values if normalised else [w / total for w in values])
        super().__init__(*self._averages())

    def _averages(self) -> tuple[Params, Params]:
        """Return the mean, and buffers averaged where floating (integers: the first's)."""
        pairs = list(zip(self._weights, self._components))
        mean = {
            name: torch.stack([w * q.mean[name] for w, q in pairs]).sum(0)
            for name in self._components[0].names
        }
        buffers = {}
        for name, tensor in self._components[0].buffers.items():
            buffers[name] = tensor
            if tensor.is_floating_point() and all(name in q.buffers for _, q in pairs):
                buffers[name] = torch.stack([w * q.buffers[name] for w, q in pairs]).sum(0)
        return mean, buffers

    @property
    def components(self) -> tuple[Posterior, ...]:
        """The q_k."""
        return self._components

    @property
    def weights(self) -> tuple[float, ...]:
        """The w_k, summing to one."""
        return self._weights

    def component_of(self, s: int) -> int:
        """Return the component of draw `s` in the stratified order.

        Draw s goes to the component that lags most behind its share, max_k (s+1) w_k - n_k (the
        first among equals), so that every prefix of n draws has within one of n w_k draws of q_k;
        equal weights give 0, 1, ..., K-1, 0, 1, ...
        """
        return self._allocation(s + 1)[s]

    def _allocation(self, n: int) -> list[int]:
        counts = [0] * len(self._weights)
        order = []
        for s in range(n):
            lags = [(s + 1) * w - c if w > 0 else -math.inf for w, c in zip(self._weights, counts)]
            best = max(lags)
            # Ties up to rounding go to the first, so that 0.1 + 0.2 arithmetic cannot reorder.
            k = next(i for i, lag in enumerate(lags) if lag >= best - 1e-9)
            counts[k] += 1
            order.append(k)
        return order

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw: one from a random component, or `n` stratified over components.

        The n draws come in the stratified order of `component_of`: averages over them have the
        between-component variance removed, up to the rounding of n w_k.
        """
        if n is None:
            return self._components[self._pick(generator)].sample(generator)
        draws = [self._components[k].sample(generator) for k in self._allocation(n)]
        return {name: torch.stack([d[name] for d in draws]) for name in self.names}

    def _pick(self, generator: torch.Generator | None) -> int:
        device = "cpu" if generator is None else generator.device
        weights = torch.tensor(self._weights, dtype=torch.float32, device=device)
        return int(torch.multinomial(weights, 1, generator=generator))

    def sample_state(self, generator: torch.Generator | None = None) -> Params:
        """Draw from a random component, with that component's buffers."""
        return self._components[self._pick(generator)].sample_state(generator)

    def nth_sample_state(self, s: int, generator: torch.Generator | None = None) -> Params:
        """Draw number `s` from component `component_of(s)`, with its buffers."""
        return self._components[self.component_of(s)].sample_state(generator)

    def support(self) -> list[tuple[float, Params]] | None:
        """Return all states with their weights if every component has finitely many."""
        result = []
        for w, q in zip(self._weights, self._components):
            support = q.support()
            if support is None:
                return None
            result += [(w * weight, state) for weight, state in support]
        return result

    def log_prob(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Return log sum_k w_k q_k(theta)."""
        self._check_theta(theta)
        terms = [
            q.log_prob(theta) + math.log(w)
            for w, q in zip(self._weights, self._components)
            if w > 0
        ]
        return torch.logsumexp(torch.stack(terms), dim=0)

    def entropy(self) -> Tensor:
        """Refuse: no closed form."""
        raise Unsupported(
            "the entropy of a Mixture has no closed form; estimate it with "
            "`entropy_mc(generator, n)`"
        )

    def kl(self, other: Posterior) -> Tensor:
        """Refuse: no closed form."""
        raise Unsupported(
            "the divergence of a Mixture has no closed form; estimate it with "
            "`kl_mc(other, generator, n)`"
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return the mixture of the moved components."""
        return type(self)([q.to(device, dtype) for q in self._components], self._weights)

    def _groups(self) -> dict[str, Params]:
        return {
            f"{k}/{group}": params
            for k, q in enumerate(self._components)
            for group, params in q._groups().items()
        }

    def _hyper(self) -> dict[str, Any]:
        return {
            "weights": list(self._weights),
            "components": [{"family": q.family, "hyper": q._hyper()} for q in self._components],
        }

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        components = []
        for k, entry in enumerate(hyper["components"]):
            prefix = f"{k}/"
            own = {g.removeprefix(prefix): p for g, p in groups.items() if g.startswith(prefix)}
            components.append(FAMILIES[entry["family"]]._from_groups(own, entry["hyper"]))
        return cls(components, hyper["weights"])
