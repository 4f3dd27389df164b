"""What a recorder makes of per-example gradients: their squares, themselves, or factors.

Each class adds up one statistic over the uses of parameters as their gradients arrive. `rows` are
gradients of the mean loss, 1/B of those of an example's own loss; `result` puts B back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesrule.curvature.layer_rules import (
    LayerRule,
    Rows,
    accumulation_dtype,
    add,
    columns,
    outer_factors,
    own,
    slices,
    sum_of_squares,
)
from bayesrule.posteriors.params import Params

__all__ = ["Collected", "Factors", "Gradients", "Squares", "Use"]


@dataclass(eq=False)
class Use:
    """One call of a layer: what its rule kept, then the gradient of its output."""

    rule: LayerRule
    module: nn.Module
    kept: tuple[Tensor, ...]
    grad: Tensor | None = None
    own: str = ""
    done: bool = False

    def receive(self, grad: Tensor, dtype: torch.dtype) -> None:
        """Take the gradient; everything is in `dtype` from here."""
        self.grad = grad.to(dtype)
        self.kept = tuple(t.to(dtype) if t.is_floating_point() else t for t in self.kept)

    def of(self, own: str) -> Use:
        """Return this use for one of the layer's parameters, to be collected later."""
        return Use(self.rule, self.module, self.kept, self.grad, own)

    def forget(self) -> None:
        """Let go of the tensors."""
        self.done, self.kept, self.grad = True, (), None

    def rows(self, part: slice = slice(None)) -> Tensor:
        """Return the rows of the parameter `own` of some examples."""
        assert self.grad is not None
        kept = tuple(t[part] for t in self.kept)
        return self.rule.rows(self.module, [self.own], kept, self.grad[part])[self.own]


class Collected(ABC):
    """Shared by the three statistics: examples per forward pass."""

    def __init__(self) -> None:
        self.examples: dict[int, int] = {}

    def total(self) -> int:
        """Return B."""
        return sum(self.examples.values())

    @abstractmethod
    def add(self, index: int, use: Use, names: Mapping[str, str]) -> None:
        """Add parameters (the layer's name -> the model's) whose only use in the pass is this."""

    @abstractmethod
    def add_shared(self, index: int, name: str, uses: list[Use]) -> None:
        """Add a parameter with all its uses in the pass."""


class Squares(Collected):
    """(1/B) sum_i g_i^2."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: Rows = {}

    def add(self, index: int, use: Use, names: Mapping[str, str]) -> None:
        """Add sum_i rows_i^2."""
        assert use.grad is not None
        for short, term in use.rule.squares(use.module, list(names), use.kept, use.grad).items():
            add(self.sums, names[short], term)

    def add_shared(self, index: int, name: str, uses: list[Use]) -> None:
        """Add sum_i (sum_uses rows_i)^2, a few examples at a time."""
        first = uses[0].grad
        assert first is not None
        largest = max(
            use.rule.elements(use.module, [use.own], use.kept, use.grad)
            for use in uses
            if use.grad is not None
        )
        for part in slices(len(first), largest, first.device):
            rows = uses[0].rows(part)
            for use in uses[1:]:
                rows = rows + use.rows(part)
            add(self.sums, name, sum_of_squares(rows))

    def result(self, params: Mapping[str, Tensor]) -> Params:
        """Return B sum_i rows_i^2 = (1/B) sum_i (B rows_i)^2."""
        B = self.total()
        return {
            name: self.sums[name] * B
            if name in self.sums
            else torch.zeros_like(p, dtype=accumulation_dtype(p), requires_grad=False)
            for name, p in params.items()
        }


class Gradients(Collected):
    """Every g_i."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, dict[int, Tensor]] = {}

    def add(self, index: int, use: Use, names: Mapping[str, str]) -> None:
        """Keep the rows of this forward pass."""
        assert use.grad is not None
        for short, rows in use.rule.rows(use.module, list(names), use.kept, use.grad).items():
            self.parts.setdefault(names[short], {})[index] = rows

    def add_shared(self, index: int, name: str, uses: list[Use]) -> None:
        """Keep the rows summed over uses."""
        rows = uses[0].rows()
        for use in uses[1:]:
            rows = rows + use.rows()
        self.parts.setdefault(name, {})[index] = rows

    def result(self, params: Mapping[str, Tensor]) -> Params:
        """Return B rows_i, in the order of the forward passes."""
        B, result = self.total(), {}
        for name, p in params.items():
            like = p.detach().to(accumulation_dtype(p))
            parts = self.parts.get(name, {})
            rows = [
                parts[index] if index in parts else like.new_zeros(n, *p.shape)
                for index, n in sorted(self.examples.items())
            ]
            result[name] = torch.cat(rows) * B
        return result


class Factors(Collected):
    """(G, A) of the empirical Fisher G (x) A."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, index: int, use: Use, names: Mapping[str, str]) -> None:
        """Add sum_it d d^T and sum_i mean_t a a^T."""
        assert use.grad is not None
        found = use.rule.factors(use.module, list(names), use.kept, use.grad)
        for short, (G, A) in found.items():
            self._add(names[short], G, A)

    def _add(self, name: str, G: Tensor, A: Tensor) -> None:
        if name in self.sums:
            G, A = self.sums[name][0] + G, self.sums[name][1] + A
        self.sums[name] = (G, A)

    def add_shared(self, index: int, name: str, uses: list[Use]) -> None:
        """Add the uses as if they were positions; one column is exact."""
        if columns(own(uses[0].module, uses[0].own)) == 1:
            rows = uses[0].rows()
            for use in uses[1:]:
                rows = rows + use.rows()
            self._add(name, *outer_factors(rows))
            return
        for use in uses:
            assert use.grad is not None
            G, A = use.rule.factors(use.module, [use.own], use.kept, use.grad)[use.own]
            self._add(name, G, A / len(uses))

    def result(self, params: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return G = B sum d d^T = (1/B) sum (B d)(B d)^T and A = (1/B) sum a a^T."""
        B, result = self.total(), {}
        for name, p in params.items():
            if name in self.sums:
                G, A = self.sums[name]
                result[name] = (G * B, A / B)
            else:
                like = p.detach().to(accumulation_dtype(p))
                cols = columns(p)
                rows = p.numel() // cols
                result[name] = (like.new_zeros(rows, rows), like.new_zeros(cols, cols))
        return result
