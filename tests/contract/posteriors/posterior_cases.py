"""The table of posterior families that the contract walks: adding a family adds a row.

Each row builds the family over the parameters of `SCHEMA` together with an independent reference,
assembled here with NumPy from the same ingredients (see `posterior_references`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from exponential_references import Matrices, Numbers, Simplices, betas, gammas, one_hots
from posterior_references import Gaussians, States, signs
from torch import Tensor

from bayesrule.posteriors import (
    Bernoulli,
    Beta,
    Categorical,
    DiagonalGaussian,
    Dirichlet,
    DropoutPosterior,
    FullGaussian,
    Gamma,
    GaussMarkov,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    PointMass,
    Posterior,
    Wishart,
)

Reference = Gaussians | States | Numbers | Simplices | Matrices
SCHEMA = {"layer.weight": (2, 3), "layer.bias": (2,)}
ONE_D = {"w": (1,)}
Schema = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """One family: how to build it, what it must be, and what it promises.

    `features`: draws, density, smooth (the density has a gradient), closed (entropy and kl),
    natural, expectation, cone (not every natural parameter is proper), uniform (lambda = 0 is),
    mode, linear (J Sigma J^T). `partner` names the family of other members that it is combined
    with, `one_d` has one degree of freedom, `schema` has eight numbers.
    """

    name: str
    build: Callable[[Schema, int], Posterior]
    reference: Callable[[Schema, int], Reference]
    features: frozenset[str]
    partner: str = "full"
    schema: Schema = field(default_factory=lambda: SCHEMA)
    one_d: Schema = field(default_factory=lambda: ONE_D)

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


def bernoulli_ref(schema: Schema, seed: int) -> States:
    return signs(1.0 / (1.0 + np.exp(-2.0 * flat(tensors(schema, seed)))))


def categorical(schema: Schema, seed: int) -> Categorical:
    return Categorical(tensors(schema, seed), buffers=BUFFERS)


def _rows(values: dict[str, Tensor]) -> list[np.ndarray]:
    return [row for t in values.values() for row in t.numpy().reshape(-1, t.shape[-1])]


def categorical_ref(schema: Schema, seed: int) -> States:
    return one_hots([np.exp(row) / np.exp(row).sum() for row in _rows(tensors(schema, seed))])


def _positive(schema: Schema, seed: int, low: float = 1.2) -> dict[str, Tensor]:
    return {name: 4.0 * (t - low) + low for name, t in tensors(schema, seed, low).items()}


def dirichlet(schema: Schema, seed: int) -> Dirichlet:
    return Dirichlet(_positive(schema, seed), buffers=BUFFERS)


def dirichlet_ref(schema: Schema, seed: int) -> Simplices:
    return Simplices(_rows(_positive(schema, seed)))


def beta(schema: Schema, seed: int) -> Beta:
    return Beta(_positive(schema, seed), _positive(schema, seed + 500), buffers=BUFFERS)


def beta_ref(schema: Schema, seed: int) -> Numbers:
    return betas(flat(_positive(schema, seed)), flat(_positive(schema, seed + 500)))


def gamma(schema: Schema, seed: int) -> Gamma:
    return Gamma(_positive(schema, seed), _positive(schema, seed + 500, 0.4), buffers=BUFFERS)


def gamma_ref(schema: Schema, seed: int) -> Numbers:
    return gammas(flat(_positive(schema, seed)), flat(_positive(schema, seed + 500, 0.4)))


def _wishart_parts(schema: Schema, seed: int) -> dict[str, tuple[float, Tensor]]:
    return {
        name: (shape[0] + 1.3 + i + 0.1 * (seed % 7), _spd(shape[0], seed + 600 + len(name)))
        for i, (name, shape) in enumerate(sorted(schema.items()))
    }


def wishart(schema: Schema, seed: int) -> Wishart:
    parts = _wishart_parts(schema, seed)
    df = {name: torch.tensor(parts[name][0], dtype=torch.float64) for name in schema}
    rate = {name: torch.linalg.inv(parts[name][1]) for name in schema}
    return Wishart(df, rate, buffers=BUFFERS)


def wishart_ref(schema: Schema, seed: int) -> Matrices:
    parts = _wishart_parts(schema, seed)
    return Matrices([(parts[name][0], parts[name][1].numpy()) for name in schema])


def _chain(schema: Schema, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    diagonal, lower = {}, {}
    for i, (name, shape) in enumerate(sorted(schema.items())):
        T, d = shape[0], int(np.prod(shape)) // shape[0]
        g = torch.Generator().manual_seed(seed + 700 + i)
        diagonal[name] = torch.stack(
            [_spd(d, seed + 10 * i + t) for t in range(T)]
        ) + 1.5 * torch.eye(d, dtype=torch.float64)
        lower[name] = 0.4 * torch.randn(T - 1, d, d, generator=g, dtype=torch.float64)
    return {name: diagonal[name] for name in schema}, {name: lower[name] for name in schema}


def gauss_markov(schema: Schema, seed: int) -> GaussMarkov:
    return GaussMarkov(tensors(schema, seed), *_chain(schema, seed), buffers=BUFFERS)


def gauss_markov_ref(schema: Schema, seed: int) -> Gaussians:
    S, start = np.zeros((_size(schema),) * 2), 0
    for D, B in zip(*(group.values() for group in _chain(schema, seed)), strict=True):
        for t in range(len(D)):
            here = slice(start, start + D.shape[-1])
            S[here, here] = D[t].numpy()
            if t + 1 < len(D):
                below = slice(here.stop, here.stop + D.shape[-1])
                S[below, here], S[here, below] = B[t].numpy(), B[t].numpy().T
            start = here.stop
    return Gaussians([(1.0, flat(tensors(schema, seed)), np.linalg.inv(S))])


_SMOOTH = frozenset({"draws", "density", "smooth"})
_GAUSSIAN = _SMOOTH | {"closed", "mode", "linear"}
_ALGEBRA = _GAUSSIAN | {"natural", "cone"}
_EXPONENTIAL = _SMOOTH | {"closed", "mode", "natural", "expectation", "cone"}
_DISCRETE = frozenset({"draws", "density", "closed", "mode", "natural", "expectation", "uniform"})
SQUARE = {"layer.weight": (2, 2), "layer.bias": (2, 2)}

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
    Case("gauss_markov", gauss_markov, gauss_markov_ref, _ALGEBRA | {"expectation"}),
    Case("bernoulli", bernoulli, bernoulli_ref, _DISCRETE | {"linear"}, partner="bernoulli"),
    Case(
        "categorical", categorical, categorical_ref, _DISCRETE,
        partner="categorical", one_d={"w": (2,)},
    ),
    Case(
        "dirichlet", dirichlet, dirichlet_ref, _EXPONENTIAL | {"uniform"},
        partner="dirichlet", one_d={"w": (2,)},
    ),
    Case("beta", beta, beta_ref, _EXPONENTIAL | {"uniform"}, partner="beta"),
    Case("gamma", gamma, gamma_ref, _EXPONENTIAL, partner="gamma"),
    Case(
        "wishart", wishart, wishart_ref, _EXPONENTIAL,
        partner="wishart", schema=SQUARE, one_d={"w": (1, 1)},
    ),
]  # fmt: skip

BY_NAME = {case.name: case for case in CASES}


def having(*features: str) -> list[Case]:
    return [case for case in CASES if set(features) <= case.features]


def lacking(feature: str) -> list[Case]:
    return [case for case in CASES if feature not in case.features]
