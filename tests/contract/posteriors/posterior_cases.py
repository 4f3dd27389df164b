"""The table of posterior families that the contract walks: adding a family adds a row.

Each row builds the family over the parameters of `SCHEMA` together with an independent reference,
assembled here with NumPy from the same ingredients (see `posterior_references`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from posterior_references import Gaussians, Reference, Signs
from torch import Tensor

from bayesrule.posteriors import (
    Bernoulli,
    DiagonalGaussian,
    DropoutPosterior,
    FullGaussian,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    PointMass,
    Posterior,
)

SCHEMA = {"layer.weight": (2, 3), "layer.bias": (2,)}
ONE_D = {"w": (1,)}
Schema = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """One family: how to build it, what it must be, and what it promises.

    `features`: draws, density, smooth (the density has a gradient), closed (entropy and kl),
    natural, expectation, cone (not every natural parameter is proper), mode, linear (J Sigma J^T).
    `partner` names the family of other members that it is combined with.
    """

    name: str
    build: Callable[[Schema, int], Posterior]
    reference: Callable[[Schema, int], Reference]
    features: frozenset[str]
    partner: str = "full"

    def __str__(self) -> str:
        return self.name


def tensors(schema: Schema, seed: int, low: float | None = None) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    if low is None:
        return {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in schema.items()}
    return {k: low + torch.rand(s, generator=g, dtype=torch.float64) for k, s in schema.items()}


def flat(params: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([t.double().numpy().ravel() for t in params.values()])


def _spd(n: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, n + 2, generator=g, dtype=torch.float64)
    return X @ X.T / n + 0.3 * torch.eye(n, dtype=torch.float64)


def _size(schema: Schema) -> int:
    return sum(int(np.prod(s)) for s in schema.values())


BUFFERS = {"running": torch.tensor([1.5, 2.5]), "count": torch.tensor(7)}


def isotropic(schema: Schema, seed: int) -> IsotropicGaussian:
    return IsotropicGaussian(tensors(schema, seed), 1.7 + 0.1 * (seed % 7), buffers=BUFFERS)


def isotropic_ref(schema: Schema, seed: int) -> Gaussians:
    s = 1.7 + 0.1 * (seed % 7)
    return Gaussians([(1.0, flat(tensors(schema, seed)), np.eye(_size(schema)) / s)])


def diagonal(schema: Schema, seed: int) -> DiagonalGaussian:
    return DiagonalGaussian(
        tensors(schema, seed), tensors(schema, seed + 100, 0.4), buffers=BUFFERS
    )


def diagonal_ref(schema: Schema, seed: int) -> Gaussians:
    variances = 1 / flat(tensors(schema, seed + 100, 0.4))
    return Gaussians([(1.0, flat(tensors(schema, seed)), np.diag(variances))])


def full(schema: Schema, seed: int) -> FullGaussian:
    return FullGaussian(tensors(schema, seed), _spd(_size(schema), seed), buffers=BUFFERS)


def full_ref(schema: Schema, seed: int) -> Gaussians:
    S = _spd(_size(schema), seed).numpy()
    return Gaussians([(1.0, flat(tensors(schema, seed)), np.linalg.inv(S))])


def _kron_parts(schema: Schema) -> dict[str, tuple[Tensor, Tensor]]:
    parts = {}
    for i, (name, shape) in enumerate(schema.items()):
        rows = shape[0]
        parts[name] = (_spd(rows, 20 + i), _spd(int(np.prod(shape)) // rows, 40 + i))
    return parts


def kronecker(schema: Schema, seed: int) -> KroneckerGaussian:
    # All members share their factors, as algebra needs; scale and delta vary with the seed.
    scale = dict.fromkeys(schema, 0.8 + 0.1 * (seed % 5))
    return KroneckerGaussian(
        tensors(schema, seed), _kron_parts(schema), 0.5, scale, buffers=BUFFERS
    )


def kronecker_ref(schema: Schema, seed: int) -> Gaussians:
    P, start = _size(schema), 0
    S = 0.5 * np.eye(P)
    for G, A in _kron_parts(schema).values():
        block = (0.8 + 0.1 * (seed % 5)) * np.kron(G.numpy(), A.numpy())
        S[start : start + len(block), start : start + len(block)] += block
        start += len(block)
    return Gaussians([(1.0, flat(tensors(schema, seed)), np.linalg.inv(S))])


def _deviations(schema: Schema, seed: int) -> dict[str, Tensor]:
    return tensors({k: (3, *s) for k, s in schema.items()}, seed + 300)


def low_rank(schema: Schema, seed: int) -> LowRankGaussian:
    return LowRankGaussian(
        tensors(schema, seed),
        tensors(schema, seed + 200, 0.2),
        _deviations(schema, seed),
        buffers=BUFFERS,
    )


def low_rank_ref(schema: Schema, seed: int) -> Gaussians:
    D = np.concatenate(
        [t.numpy().reshape(3, -1) for t in _deviations(schema, seed).values()], axis=1
    )
    cov = np.diag(flat(tensors(schema, seed + 200, 0.2))) + D.T @ D
    return Gaussians([(1.0, flat(tensors(schema, seed)), cov)])


def mixture(schema: Schema, seed: int) -> Mixture:
    return Mixture([diagonal(schema, seed), full(schema, seed + 1)], [0.25, 0.75])


def mixture_ref(schema: Schema, seed: int) -> Gaussians:
    first, second = diagonal_ref(schema, seed), full_ref(schema, seed + 1)
    return Gaussians([(0.25, first.mean, first.cov), (0.75, second.mean, second.cov)])


def point_mass(schema: Schema, seed: int) -> PointMass:
    return PointMass(tensors(schema, seed), buffers=BUFFERS)


def point_ref(schema: Schema, seed: int) -> Gaussians:
    return Gaussians([(1.0, flat(tensors(schema, seed)), np.zeros((_size(schema),) * 2))])


def ensemble(schema: Schema, seed: int) -> Mixture:
    return Mixture([point_mass(schema, seed + k) for k in range(3)], [0.5, 0.25, 0.25])


def ensemble_ref(schema: Schema, seed: int) -> Gaussians:
    zero = np.zeros((_size(schema),) * 2)
    return Gaussians(
        [(w, flat(tensors(schema, seed + k)), zero) for k, w in enumerate([0.5, 0.25, 0.25])]
    )


def dropout(schema: Schema, seed: int) -> DropoutPosterior:
    return DropoutPosterior(tensors(schema, seed), 0.3, buffers=BUFFERS)


def bernoulli(schema: Schema, seed: int) -> Bernoulli:
    return Bernoulli(tensors(schema, seed), buffers=BUFFERS)


def bernoulli_ref(schema: Schema, seed: int) -> Signs:
    return Signs(1.0 / (1.0 + np.exp(-2.0 * flat(tensors(schema, seed)))))


_SMOOTH = frozenset({"draws", "density", "smooth"})
_GAUSSIAN = _SMOOTH | {"closed", "mode", "linear"}
_ALGEBRA = _GAUSSIAN | {"natural", "cone"}

CASES = [
    Case("isotropic", isotropic, isotropic_ref, _ALGEBRA | {"expectation"}),
    Case("diagonal", diagonal, diagonal_ref, _ALGEBRA | {"expectation"}),
    Case("full", full, full_ref, _ALGEBRA | {"expectation"}),
    Case("kronecker", kronecker, kronecker_ref, _ALGEBRA),
    Case("low_rank", low_rank, low_rank_ref, _GAUSSIAN),
    Case("mixture", mixture, mixture_ref, _SMOOTH),
    Case("point_mass", point_mass, point_ref, frozenset({"draws", "mode", "linear"})),
    Case("ensemble", ensemble, ensemble_ref, frozenset({"draws"})),
    Case("dropout", dropout, point_ref, frozenset()),
    Case(
        "bernoulli", bernoulli, bernoulli_ref,
        frozenset({"draws", "density", "closed", "mode", "linear", "natural", "expectation"}),
        partner="bernoulli",
    ),
]  # fmt: skip

BY_NAME = {case.name: case for case in CASES}


def having(*features: str) -> list[Case]:
    return [case for case in CASES if set(features) <= case.features]


def lacking(feature: str) -> list[Case]:
    return [case for case in CASES if feature not in case.features]
