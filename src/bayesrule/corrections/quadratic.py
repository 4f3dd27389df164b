"""The quadratic around the past: all that a Gaussian remembers of finished tasks.

::

    Q(theta) = 1/2 (theta - m)^T S (theta - m) + c,      S >= 0

Of a Gaussian q = N(m, S^-1) it is -log q up to a constant; S may be singular here (a Fisher that is
zero for a weight says nothing about it), which is why this is no posterior. EWC, online Laplace, SI
and the weight-space part of K-priors are such quadratics. Where S is diagonal, a sum of quadratics
is one quadratic (the product of the Gaussians), so that a penalty per past task takes the memory
of one::

    S = S_1 + S_2,      S m = S_1 m_1 + S_2 m_2
    c = c_1 + c_2 + 1/2 (m_1 - m_2)^T S_1 S^+ S_2 (m_1 - m_2)

No data count or temperature enters: S counts nats of a SUM over items, unless a method says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    GaussianPosterior,
    IsotropicGaussian,
    KroneckerGaussian,
)
from bayesrule.posteriors.params import Params, check_same_schema, flatten, own, total, unflatten

__all__ = ["KroneckerSum", "QuadraticAnchor"]

Factors: TypeAlias = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class KroneckerSum:
    """S = sum_k G_k (x) A_k + delta I per parameter, read as a matrix of its first axis' rows.

    A sum of Kronecker products is not one: the terms are kept, so memory grows with their number.

    Attributes:
        terms: Per term, name -> (G, A), symmetric of shape (r, r) and (c, c).
        delta: Isotropic part.
    """

    terms: tuple[Factors, ...] = ()
    delta: float = 0.0

    def times(self, vector: Mapping[str, Tensor]) -> Params:
        """Return S v."""
        result = {}
        for name, v in vector.items():
            X = v.reshape(len(v) if v.ndim else 1, -1)
            Y = self.delta * X
            for factors in self.terms:
                G, A = factors[name]
                Y = Y + G @ X @ A
            result[name] = Y.reshape(v.shape)
        return result

    def plus(self, factors: Factors) -> KroneckerSum:
        """Return S + G (x) A."""
        return replace(self, terms=(*self.terms, factors))

    def tensors(self) -> list[Tensor]:
        """Return every factor."""
        return [f for term in self.terms for pair in term.values() for f in pair]


Precision: TypeAlias = float | Mapping[str, Tensor] | KroneckerSum | Tensor
"""Isotropic, diagonal by name, Kronecker, or dense (P, P) flattened in the mean's key order."""


@dataclass(frozen=True)
class QuadraticAnchor:
    """Q(theta) = 1/2 (theta - m)^T S (theta - m) + c, a value.

    Example:
        >>> anchor = QuadraticAnchor(weights, precision=ggn_diag(model, likelihood, batches))
        >>> loss = likelihood.loss(model(x), y) + anchor.value(model) / len(train)

    Attributes:
        mean: m, by parameter name. Parameters of a model that are not named are free.
        precision: S: a number, tensors by name (diagonal), a `KroneckerSum`, or a dense matrix.
        constant: c.
    """

    mean: Params
    precision: Precision
    constant: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.precision, Mapping):
            check_same_schema(self.mean, self.precision, "mean and precision")
            object.__setattr__(self, "precision", own(self.precision))
            for name, s in self.precision.items():
                if not bool((torch.isfinite(s) & (s >= 0)).all()):
                    raise ImproperDistribution(
                        f"the precision of {name!r} around the past must be finite and not "
                        f"negative (smallest entry: {s.min().item():.6g})"
                    )
        object.__setattr__(self, "mean", own(self.mean))

    @classmethod
    def of(cls, q: GaussianPosterior) -> QuadraticAnchor:
        """Return the quadratic -log q, without its constant, of any Gaussian."""
        if isinstance(q, IsotropicGaussian):
            return cls(q.mean, float(q.precision))
        if isinstance(q, KroneckerGaussian):
            scaled = {n: (q.scale[n] * G, A) for n, (G, A) in q.factors.items()}
            deltas = {float(d) for d in q.delta.values()}
            if len(deltas) == 1:
                return cls(q.mean, KroneckerSum((scaled,), deltas.pop()))
        if q.is_diagonal:
            return cls(q.mean, q.precision_diag())
        return cls(q.mean, q.precision_matrix())

    def posterior(self) -> GaussianPosterior:
        """Return N(m, S^-1) in the smallest family that holds it.

        Raises:
            ImproperDistribution: S is singular.
        """
        S = self.precision
        if isinstance(S, KroneckerSum):
            if len(S.terms) == 1:
                return KroneckerGaussian(self.mean, S.terms[0], S.delta)
            S = self.matrix()
        if isinstance(S, Tensor):
            return FullGaussian(self.mean, S)
        if isinstance(S, Mapping):
            return DiagonalGaussian(self.mean, S)
        return IsotropicGaussian(self.mean, S)

    def matrix(self) -> Tensor:
        """Return S as a dense matrix (P, P), flattened in the mean's key order."""
        S = self.precision
        if isinstance(S, Tensor):
            return S
        flat = flatten(self.mean)
        if isinstance(S, KroneckerSum):  # a row at a time; S is symmetric
            eye = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
            rows = [flatten(self.precision_times(unflatten(e, self.mean))) for e in eye]
            return torch.stack(rows)
        s = self.diagonal()
        return torch.diag(flatten({name: s[name] for name in self.mean}))

    def precision_times(self, vector: Mapping[str, Tensor]) -> Params:
        """Return S v, differentiable in v."""
        S = self.precision
        if isinstance(S, KroneckerSum):
            return S.times(vector)
        if isinstance(S, Tensor):
            return unflatten(S @ flatten({n: vector[n] for n in self.mean}), self.mean)
        if isinstance(S, Mapping):
            return {n: s * vector[n] for n, s in S.items()}
        return {n: S * vector[n] for n in self.mean}

    def _offset(self, theta: Mapping[str, Tensor] | nn.Module) -> Params:
        named: Mapping[str, Tensor] = theta if isinstance(theta, Mapping) else _named(theta)
        for name in self.mean:
            if name not in named:
                raise Unsupported(f"the quadratic has a parameter {name!r} that is not there")
        return {name: named[name] - m for name, m in self.mean.items()}

    def value(self, theta: Mapping[str, Tensor] | nn.Module) -> Tensor:
        """Return Q(theta), 0-d and differentiable.

        Args:
            theta: Tensors by name, or the model that holds them.
        """
        d = self._offset(theta)
        Sd = self.precision_times(d)
        return 0.5 * total(d[name] * Sd[name] for name in d) + self.constant

    def gradient(self, theta: Mapping[str, Tensor] | nn.Module) -> Params:
        """Return S (theta - m), by name."""
        return self.precision_times(self._offset(theta))

    def __add__(self, other: QuadraticAnchor) -> QuadraticAnchor:
        """Return the sum, exactly; both must be diagonal over the same parameters.

        Raises:
            Unsupported: One of the two is not diagonal.
        """
        left, right = _diagonal(self), _diagonal(other)
        check_same_schema(self.mean, other.mean, "the two quadratics")
        mean, precision, between = {}, {}, []
        for name, m in self.mean.items():
            s, r, n = left[name], right[name], other.mean[name]
            both = s + r
            share = torch.where(both > 0, r / torch.where(both > 0, both, 1.0), 0.5)
            mean[name], precision[name] = m + share * (n - m), both
            between.append(0.5 * s * share * (n - m).square())
        constant = self.constant + other.constant + float(total(between))
        return QuadraticAnchor(mean, precision, constant)

    def diagonal(self) -> Params:
        """Return S by name, of a diagonal or isotropic S.

        Raises:
            Unsupported: S is neither.
        """
        return dict(_diagonal(self))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> QuadraticAnchor:
        """Return the same quadratic on a device, in a precision; itself where it is that."""
        first = next(iter(self.mean.values()))
        if (first.device, first.dtype) == (device, dtype or first.dtype):
            return self

        def moved(tensors: Mapping[str, Tensor]) -> Params:
            return {name: t.to(device, dtype) for name, t in tensors.items()}

        mean, S = moved(self.mean), self.precision
        if isinstance(S, KroneckerSum):
            terms = (
                {n: (G.to(device, dtype), A.to(device, dtype)) for n, (G, A) in term.items()}
                for term in S.terms
            )
            S = KroneckerSum(tuple(terms), S.delta)
        elif isinstance(S, Mapping):
            S = moved(S)
        elif isinstance(S, Tensor):
            S = S.to(device, dtype)
        return QuadraticAnchor(mean, S, self.constant)

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors."""
        S = self.precision
        if isinstance(S, KroneckerSum):
            kept: Any = {"terms": [{n: list(p) for n, p in t.items()} for t in S.terms]}
            kept["delta"] = S.delta
        else:
            kept = dict(S) if isinstance(S, Mapping) else S
        kind = "kronecker" if isinstance(S, KroneckerSum) else "plain"
        return {"mean": self.mean, "kind": kind, "precision": kept, "constant": self.constant}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> QuadraticAnchor:
        """Return the quadratic that `state_dict` described."""
        S = state["precision"]
        if state["kind"] == "kronecker":
            terms = ({n: (p[0], p[1]) for n, p in term.items()} for term in S["terms"])
            S = KroneckerSum(tuple(terms), S["delta"])
        return cls(state["mean"], S, state["constant"])

    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        S = self.precision
        if isinstance(S, KroneckerSum):
            held = S.tensors()
        else:
            held = list(S.values()) if isinstance(S, Mapping) else []
            held += [S] if isinstance(S, Tensor) else []
        return sum(t.numel() * t.element_size() for t in (*self.mean.values(), *held))


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name, those of a compiled model without its prefix."""
    return {name.removeprefix("_orig_mod."): p for name, p in model.named_parameters()}


def _diagonal(anchor: QuadraticAnchor) -> Mapping[str, Tensor]:
    """Return S by name."""
    S = anchor.precision
    if isinstance(S, Mapping):
        return S
    if isinstance(S, float | int):
        return {name: torch.full_like(m, float(S)) for name, m in anchor.mean.items()}
    raise Unsupported(
        "quadratics are added exactly where both are diagonal; add Kronecker factors with "
        "`KroneckerSum.plus` around one mean"
    )
