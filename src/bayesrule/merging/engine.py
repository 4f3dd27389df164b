"""One merge, piece by piece: sources hand out a few entries of all models, rules merge them.

A source holds theta_1..theta_T, and where the method wants them theta_0 and the curvatures, as
dictionaries or as files. A rule sees one piece of one tensor at a time, in double precision, so
the memory of a merge does not grow with the models. Rules that need a number over all tensors (a
threshold, a norm) take it in passes of their own beforehand (`prepare`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayesrule.errors import ConfigError
from bayesrule.merging import rules
from bayesrule.merging.methods import METHODS, Method, check_usage
from bayesrule.merging.sparsify import keep_mask, kth_magnitude
from bayesrule.posteriors import Params

__all__ = ["DictSource", "MergeOptions", "Merger", "Piece", "Source", "merge", "merge_pieces"]

PIECE = 1 << 20
"""Entries merged at once."""

_STATISTICS = ("running_mean", "running_var")


def is_statistic(name: str) -> bool:
    """Return whether a tensor is a running statistic, which every method averages."""
    return name.rpartition(".")[2] in _STATISTICS


@dataclass(frozen=True)
class MergeOptions:
    """Numbers of the methods.

    Attributes:
        alphas: Scaling factors: None, one for all models, or one a model.
        delta0: Added to H_0, so that entries without any curvature follow task arithmetic.
        floor: Least merged precision, as a share of H_0 (gradient_matching, fisher_base).
        normalize: Whether each H_t is divided by its norm over all tensors (fisher).
        density: Share of differences that stay (ties, dare).
        reduce: Whether agreeing differences are averaged or added (ties).
        off_diagonal: Factor of the Gram matrices' off-diagonal entries (regmean).
        seed: Of DARE's masks.
    """

    alphas: Sequence[float] | None = None
    delta0: float = 1e-12
    floor: float = 0.1
    normalize: bool = False
    density: float = 0.2
    reduce: rules.Reduce = "mean"
    off_diagonal: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(f"density={self.density}: expected a share in (0, 1]")
        if self.floor <= 0 or self.delta0 < 0:
            raise ConfigError("the floor must be positive, and delta0 not negative")
        if self.reduce not in ("mean", "sum"):
            raise ConfigError(f"reduce={self.reduce}: choose mean or sum")


@dataclass(frozen=True)
class Piece:
    """The same entries of all models, in double precision.

    Attributes:
        name: The tensor's name.
        start: First entry of the flattened tensor.
        models: theta_1..theta_T.
        base: theta_0.
        curvatures: H_1..H_T; Gram matrices, for regmean.
        base_curvature: H_0, without `MergeOptions.delta0`.
    """

    name: str
    start: int
    models: list[Tensor]
    base: Tensor | None = None
    curvatures: list[Tensor] | None = None
    base_curvature: Tensor | None = None


class Source(ABC):
    """Where the models come from."""

    n_models: int
    has_base: bool
    n_curvatures: int
    has_base_curvature: bool

    @abstractmethod
    def names(self) -> list[str]:
        """Return the tensors that are merged."""

    @abstractmethod
    def numel(self, name: str) -> int:
        """Return the number of entries of a tensor."""

    @abstractmethod
    def piece(self, name: str, start: int, stop: int) -> Piece:
        """Return entries of a tensor; in its shape where all are asked for."""

    def pieces(self, name: str, *, whole: bool = False) -> Iterator[Piece]:
        """Yield a tensor in pieces of `PIECE` entries, or whole."""
        total = self.numel(name)
        step = max(total, 1) if whole else PIECE
        for start in range(0, max(total, 1), step):
            yield self.piece(name, start, min(start + step, total))


class DictSource(Source):
    """Models held as dictionaries of tensors.

    Args:
        models: theta_t.
        base: theta_0.
        curvatures: H_t.
        base_curvature: H_0.
    """

    def __init__(
        self,
        models: Sequence[Mapping[str, Tensor]],
        base: Mapping[str, Tensor] | None = None,
        curvatures: Sequence[Mapping[str, Tensor]] = (),
        base_curvature: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.models, self.base = models, base
        self.curvatures, self.base_curvature = curvatures, base_curvature
        self.n_models, self.has_base = len(models), base is not None
        self.n_curvatures = len(curvatures)
        self.has_base_curvature = base_curvature is not None

    def names(self) -> list[str]:
        """Return the first model's names."""
        return list(self.models[0])

    def numel(self, name: str) -> int:
        """Return the number of entries."""
        return self.models[0][name].numel()

    def piece(self, name: str, start: int, stop: int) -> Piece:
        """Return entries as doubles."""

        def cut(tensors: Mapping[str, Tensor] | None) -> Tensor | None:
            if tensors is None or name not in tensors:
                return None
            tensor = tensors[name].detach().double()
            whole = stop - start == self.numel(name)
            return tensor if whole else tensor.reshape(-1)[start:stop]

        held = [cut(each) for each in self.curvatures]
        present = [each for each in held if each is not None]
        return Piece(
            name,
            start,
            [m for each in self.models if (m := cut(each)) is not None],
            cut(self.base),
            present if present and len(present) == self.n_models else None,
            cut(self.base_curvature),
        )


@dataclass
class Merger:
    """A method with its options, over the models of one source.

    Attributes:
        method: What it needs.
        options: Its numbers.
        alphas: The scaling factors, one a model.
        report: What a reader should know: how many entries were floored, thresholds.
    """

    method: Method
    options: MergeOptions
    alphas: list[float]
    report: dict[str, Any] = field(default_factory=dict)
    _thresholds: list[float] = field(default_factory=list)
    _norms: list[float] = field(default_factory=list)
    _floored: int = 0
    _seen: int = 0

    @classmethod
    def of(cls, name: str, options: MergeOptions, source: Source) -> Merger:
        """Return the method of that name, checked against what the source has.

        Raises:
            ConfigError: If something is missing.
        """
        method = METHODS[name]
        alphas = check_usage(
            method,
            source.n_models,
            base=source.has_base,
            curvatures=source.n_curvatures,
            base_curvature=source.has_base_curvature,
            alphas=options.alphas,
        )
        return cls(method, options, alphas)

    def prepare(self, source: Source) -> None:
        """Take the numbers that depend on all tensors, in passes over them."""
        if self.method.name == "ties":
            self._thresholds = [
                kth_magnitude(partial(self._differences, source, t), self.options.density)
                for t in range(source.n_models)
            ]
            self.report["thresholds"] = self._thresholds
        if self.method.name == "fisher" and self.options.normalize:
            squares = [0.0] * source.n_models
            for name in source.names():
                for piece in source.pieces(name):
                    for t, H in enumerate(piece.curvatures or ()):
                        squares[t] += float(H.square().sum())
            self._norms = [math.sqrt(s) or 1.0 for s in squares]
            self.report["curvature_norms"] = self._norms

    def _differences(self, source: Source, t: int) -> Iterator[Tensor]:
        for name in source.names():
            for piece in source.pieces(name):
                assert piece.base is not None
                yield piece.models[t] - piece.base

    def __call__(self, piece: Piece) -> Tensor:
        """Return the merged entries."""
        return self.with_precision(piece)[0]

    def with_precision(self, piece: Piece) -> tuple[Tensor, Tensor | None]:
        """Return the merged entries, and their posterior precision where the rule has one."""
        opts, alphas, name = self.options, self.alphas, self.method.name
        models, base = piece.models, piece.base
        if is_statistic(piece.name):
            return rules.average(models), None
        if name in ("average", "weighted"):
            return rules.weighted(models, alphas), None
        if name == "slerp":
            return rules.slerp(models[0], models[1], alphas[1] / sum(alphas)), None
        if name == "regmean":
            return self._regmean(piece), None
        if name == "fisher":
            return self._fisher(piece), None
        assert base is not None
        if name == "task_arithmetic":
            return rules.task_arithmetic(base, models, alphas), None
        if name == "ties":
            return rules.ties(base, models, alphas, self._thresholds, opts.reduce), None
        if name in ("dare", "dare_ties"):
            return self._dare(piece, base), None
        return self._bayesian(piece, base)

    def _regmean(self, piece: Piece) -> Tensor:
        grams = piece.curvatures
        if grams is None or piece.models[0].ndim != 2:
            return rules.weighted(piece.models, self.alphas)
        scaled = [a * G for a, G in zip(self.alphas, grams, strict=True)]
        return rules.regmean(piece.models, scaled, off_diagonal=self.options.off_diagonal)

    def _fisher(self, piece: Piece) -> Tensor:
        if piece.curvatures is None:  # a tensor without curvature, such as running statistics
            return rules.weighted(piece.models, self.alphas)
        norms = self._norms or [1.0] * len(piece.models)
        curvatures = [H / n for H, n in zip(piece.curvatures, norms, strict=True)]
        return rules.fisher(piece.models, curvatures, self.alphas, piece.base)

    def _dare(self, piece: Piece, base: Tensor) -> Tensor:
        opts = self.options
        deltas = []
        for t, (theta, a) in enumerate(zip(piece.models, self.alphas, strict=True)):
            shape = tuple(theta.shape)
            keep = keep_mask(shape, opts.density, opts.seed, t, piece.name, piece.start)
            deltas.append(a * rules.dare(theta - base, keep, opts.density))
        if self.method.name == "dare":
            return base + torch.stack(deltas).sum(0)
        return base + rules.agreeing(deltas, opts.reduce)

    def _bayesian(self, piece: Piece, base: Tensor) -> tuple[Tensor, Tensor | None]:
        if piece.curvatures is None or piece.base_curvature is None:
            return rules.task_arithmetic(base, piece.models, self.alphas), None
        H0 = piece.base_curvature + self.options.delta0
        args, floor = (base, piece.models, piece.curvatures, H0, self.alphas), self.options.floor
        precision = None
        if self.method.name == "fisher_base":
            merged, floored = rules.fisher_base(*args, floor=floor)
        else:
            q, floored = rules.gradient_matching(*args, floor=floor)
            merged, precision = q.mean["theta"], q.precision["theta"]
        self._floored, self._seen = self._floored + floored, self._seen + base.numel()
        self.report["floored"] = self._floored / self._seen
        return merged, precision


def merge_pieces(merger: Merger, source: Source, name: str) -> Iterator[Tensor]:
    """Yield a merged tensor in pieces, as doubles."""
    for piece in source.pieces(name, whole=merger.method.whole):
        yield merger(piece)


def merge(
    method: str,
    models: Sequence[Mapping[str, Tensor]],
    *,
    base: Mapping[str, Tensor] | None = None,
    curvatures: Sequence[Mapping[str, Tensor]] = (),
    base_curvature: Mapping[str, Tensor] | None = None,
    options: MergeOptions | None = None,
) -> tuple[Params, Params | None, dict[str, Any]]:
    """Merge models that are held as dictionaries of tensors.

    Args:
        method: A name of `METHODS`.
        models: theta_t; all their tensors are merged.
        base: theta_0.
        curvatures: H_t by name, sums over data; Gram matrices for regmean.
        base_curvature: H_0.
        options: Numbers of the method.

    Returns:
        The merged tensors in the first model's types, the posterior precision where the method has
        one for all of them, and the report.

    Raises:
        ConfigError: If the method lacks something.
    """
    source = DictSource(models, base, curvatures, base_curvature)
    merger = Merger.of(method, options or MergeOptions(), source)
    merger.prepare(source)
    merged: Params = {}
    precisions: Params = {}
    for name in source.names():
        like = models[0][name]
        values, held = [], []
        for piece in source.pieces(name, whole=merger.method.whole):
            value, precision = merger.with_precision(piece)
            values.append(value.reshape(-1))
            if precision is not None:
                held.append(precision.reshape(-1))
        merged[name] = torch.cat(values).view(like.shape).to(like.dtype)
        if held:
            precisions[name] = torch.cat(held).view(like.shape).to(like.dtype)
    complete = bool(precisions) and len(precisions) == len(merged)
    return merged, precisions if complete else None, merger.report
