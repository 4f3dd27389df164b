"""The table of optimisers that the contract walks: adding an optimiser adds a row.

Also the small problem that all of them learn: a two-layer network on batches of ten.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from bayesrule.likelihoods import Categorical
from bayesrule.optim import (
    ASAM,
    BBB,
    BSAM,
    IVON,
    KFAC,
    OGN,
    PMF,
    SAM,
    SGD,
    STE,
    VOGN,
    AdamW,
    BayesBiNN,
    Bop,
    NoisyKFAC,
    PosteriorOptimizer,
    SAMAdamW,
)

F32, F64 = torch.float32, torch.float64


def known(model: torch.nn.Module) -> torch.nn.Module:
    """Let each parameter know its (outermost) model, for optimisers that take ``model=``."""
    for param in model.parameters():
        param.of_model = model
    return model


@dataclass(frozen=True)
class Conjugate:
    """What a method should find on linear regression (see `test_optim_conjugate`).

    `options` for that problem of 64 examples and residual variance 1, the prior precision `delta`
    that they stand for, and tolerances: of the mean, and relative of the precision if it has one.
    """

    options: dict[str, Any]
    delta: float = 0.0
    mean: float = 1e-6
    precision: float | None = None


@dataclass(frozen=True)
class Case:
    """One optimiser with sensible options.

    `oracle` is a `torch.optim` optimiser that it must equal bit by bit; `wrong` are options out of
    range, each with the name that the error must mention; `per_group` is an option that groups may
    set, with a value unlike the default. `exact` says that the layout of tensors in memory
    changes no bit: not so for a norm over all elements, or where vector code rounds otherwise.
    """

    name: str
    kind: type[PosteriorOptimizer]
    options: dict[str, Any]
    wrong: dict[str, Any]
    oracle: Callable[[Any], torch.optim.Optimizer] | None = None
    per_group: tuple[str, float] = ("weight_decay", 0.3)
    state: tuple[str, ...] = field(default=())
    exact: bool = True
    conjugate: Conjugate | None = None
    learnt: str = ""  # the state that is learnt where the parameters are only its image

    def __call__(self, params: Any, **options: Any) -> PosteriorOptimizer:
        seed = {} if "generator" in options else {"seed": 7}
        params = list(params)
        if self.takes_model:
            options.setdefault("model", _first(params).of_model)
        return self.kind(params, **{**self.options, **seed, **options})

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def example(self) -> PosteriorOptimizer:
        return self(Net().parameters())

    @property
    def stochastic(self) -> bool:
        """Training draws noise."""
        return self.example.stochastic

    @property
    def random(self) -> bool:
        """Drawing for prediction takes noise."""
        return self.example.random

    @property
    def at_mean(self) -> bool:
        """Gradients are taken where the parameters are, so `step()` can do without a closure."""
        opt = self.example
        return not (opt.stochastic or opt.relaxed or opt.observes or opt.stages > 1)

    def learnt_of(self, opt: PosteriorOptimizer, param: torch.Tensor) -> torch.Tensor:
        """What is learnt about a parameter."""
        return (opt.state[param][self.learnt] if self.learnt else param).detach().clone()

    @property
    def stages(self) -> int:
        return self.kind.stages

    def of_same(self, cases: list[Case]) -> bool:
        """Return whether another row of the same class names a conjugate target."""
        return any(case.kind is self.kind and case.conjugate for case in cases)

    @staticmethod
    def rounding(tensor: torch.Tensor) -> float:
        """Return the tolerance within which orders of summation agree."""
        return 1e-12 if tensor.dtype == F64 else 1e-6

    @property
    def takes_model(self) -> bool:
        """Whether it watches the network's layers."""
        return "model" in inspect.signature(self.kind).parameters


def _first(params: list[Any]) -> torch.Tensor:
    """Return the first parameter of parameters, named parameters or groups."""
    first = params[0]
    if isinstance(first, dict):
        first["params"] = list(first["params"])
        first = first["params"][0]
    return first[1] if isinstance(first, tuple) else first


_SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
_ADAMW = {"lr": 0.01, "weight_decay": 0.1}
_IVON = {"lr": 0.1, "ess": 40.0, "hess_init": 0.5, "beta2": 0.99, "weight_decay": 0.02}
_BSAM = {"lr": 0.1, "ess": 40.0, "rho": 0.1, "prec_init": 0.8, "beta2": 0.9, "weight_decay": 0.02}
_VOGN = {
    "lr": 0.05, "ess": 40.0, "hess_init": 0.5, "hess_rate": 0.1, "prior_prec": 0.8, "tau": 0.5,
    "damping": 0.01,
}  # fmt: skip
_KFAC = {
    "lr": 0.05, "ess": 40.0, "factor_init": 0.5, "factor_rate": 0.2, "prior_prec": 0.8, "tau": 0.5,
    "damping": 0.05, "inverse_every": 1,
}  # fmt: skip
_FACTORS = ("momentum", "row_factor", "row_used")  # and col_... of matrices
_BBB = {"lr": 0.01, "ess": 40.0, "rho_init": -2.0, "tau": 0.5}
_WRONG_SGD = {"lr": -0.1, "momentum": 1.0, "weight_decay": -1.0, "mc_samples": 0}
_WRONG_IVON = {
    "lr": -1.0, "ess": 0.0, "hess_init": 0.0, "beta1": 1.5, "beta2": -0.1, "weight_decay": -0.1,
    "clip_radius": 0.0, "hess_approx": "newton", "mc_samples": 1.5, "sync": "none",
}  # fmt: skip
_BAYESBINN = {"lr": 0.05, "ess": 2.0, "tau": 0.7, "lam_init": 0.75, "binary": "all"}
_WRONG_BAYESBINN = {
    "lr": -1.0, "ess": 0.0, "tau": 0.0, "beta": 1.0, "lam_init": -1.0, "kl_weight": -1.0,
    "eps": -1.0, "estimator": "exact", "binary": "some", "real_lr_factor": -1.0, "mc_samples": 0,
}  # fmt: skip
_WRONG_STE = {"lr": -1.0, "beta1": 1.0, "beta2": -0.1, "eps": 0.0, "clip": 0.0}

CASES = [
    Case(
        "sgd", SGD, _SGD, _WRONG_SGD,
        oracle=lambda params: torch.optim.SGD(params, **_SGD),
        conjugate=Conjugate({"weight_decay": 1 / 64}, delta=1.0),
        state=("momentum_buffer",),
    ),
    Case(
        "sgd_nesterov", SGD, {**_SGD, "nesterov": True}, {"momentum": 0.0},
        oracle=lambda params: torch.optim.SGD(params, **_SGD, nesterov=True),
        state=("momentum_buffer",),
    ),
    Case(
        "adamw", AdamW, _ADAMW,
        {"lr": -1.0, "beta1": 1.0, "beta2": -0.1, "eps": 0.0, "weight_decay": -1.0},
        oracle=lambda params: torch.optim.AdamW(params, **_ADAMW),
        per_group=("beta1", 0.5),
        conjugate=Conjugate({"lr": 0.05, "weight_decay": 0.0}, mean=1e-4),
        state=("exp_avg", "exp_avg_sq"),
    ),
    Case(
        "sam", SAM, {**_SGD, "rho": 0.05}, {"rho": -0.1, "batch_split": 0},
        conjugate=Conjugate({"weight_decay": 0.0, "rho": 0.01}, mean=1e-3),
        state=("momentum_buffer",),
        exact=False,
    ),
    Case(
        "asam", ASAM, {**_SGD, "rho": 0.3, "eta": 0.05}, {"rho": -0.1, "eta": -1.0},
        conjugate=Conjugate({"weight_decay": 0.0, "rho": 0.01}, mean=1e-3),
        state=("momentum_buffer",),
        exact=False,
    ),
    Case(
        "sam_adamw", SAMAdamW, {**_ADAMW, "rho": 0.05}, {"rho": -0.1, "beta1": 1.0},
        per_group=("beta1", 0.5),
        conjugate=Conjugate({"lr": 0.05, "weight_decay": 0.0, "rho": 0.01}, mean=1e-3),
        state=("exp_avg", "exp_avg_sq"),
        exact=False,
    ),
    Case(
        "bsam", BSAM, _BSAM,
        {
            "lr": -1.0, "ess": 0.0, "rho": -0.1, "prec_init": 0.0, "beta1": 1.0, "beta2": 1.1,
            "weight_decay": -0.1, "damping": -0.1, "mc_samples": 0, "batch_split": 1.5,
        },
        per_group=("rho", 1.0),
        conjugate=Conjugate({"ess": 64.0, "weight_decay": 0.0, "mc_samples": 8}, mean=0.02),
        state=("momentum", "prec"),
    ),
    Case(
        "bbb", BBB, _BBB,
        {
            "lr": -1.0, "ess": 0.0, "rho_init": float("nan"), "prior_prec": 0.0, "tau": -0.1,
            "beta1": 1.0, "beta2": 1.0, "eps": 0.0,
        },
        per_group=("prior_prec", 30.0),
        conjugate=Conjugate(
            {"ess": 64.0, "lr": 0.05, "tau": 1.0, "mc_samples": 8}, delta=1.0, mean=0.02,
            precision=0.1,
        ),
        state=("rho", "mean_avg", "mean_sq", "rho_avg", "rho_sq"),
        exact=False,
    ),
    Case(
        "vogn", VOGN, _VOGN,
        {
            "lr": -1.0, "ess": 0.0, "hess_init": -0.1, "beta1": 1.0, "hess_rate": 1.1,
            "prior_prec": -1.0, "tau": 1.1, "damping": -0.1, "tempering": "paper",
            "tau_init": -0.1, "tau_warmup": -1,
        },
        per_group=("prior_prec", 5.0),
        conjugate=Conjugate(
            {"ess": 64.0, "prior_prec": 1.0, "tau": 1.0, "damping": 0.0, "mc_samples": 8},
            delta=1.0, mean=0.02, precision=0.15,
        ),
        state=("momentum", "hess"),
    ),
    Case(
        "vogn_code", VOGN,
        {**_VOGN, "tempering": "code", "ema": False, "lr": 0.01, "tau_init": 0.1, "tau_warmup": 5},
        {},
        per_group=("damping", 0.5),
        state=("momentum", "hess"),
    ),
    Case(
        "ogn", OGN, _VOGN, {"lr": -1.0},
        per_group=("prior_prec", 5.0),
        state=("momentum", "hess"),
        conjugate=Conjugate(
            {"ess": 64.0, "prior_prec": 1.0, "tau": 1.0, "damping": 0.0, "lr": 0.2},
            delta=1.0, precision=0.01,
        ),
    ),
    Case(
        "noisy_kfac", NoisyKFAC, _KFAC,
        {
            "lr": -1.0, "ess": 0.0, "factor_init": 0.0, "beta1": 1.0, "factor_rate": 1.1,
            "prior_prec": 0.0, "tau": 0.0, "damping": -0.1, "damp": "both", "factor_every": 0,
            "inverse_every": 1.5,
        },
        per_group=("prior_prec", 5.0),
        conjugate=Conjugate(
            {"ess": 64.0, "prior_prec": 1.0, "tau": 1.0, "damping": 0.0, "mc_samples": 8},
            delta=1.0, mean=0.02,
        ),
        state=_FACTORS,
    ),
    Case(
        "noisy_kfac_lazy", NoisyKFAC,
        {**_KFAC, "damp": "eigenvalues", "factor_every": 2, "inverse_every": 3}, {},
        per_group=("damping", 0.5),
        state=_FACTORS,
    ),
    Case(
        "kfac", KFAC, {**_KFAC, "prior_prec": 0.0},
        {"lr": -1.0, "prior_prec": -1.0, "damping": 0.0},
        per_group=("prior_prec", 5.0),
        conjugate=Conjugate({"ess": 64.0, "prior_prec": 1.0, "tau": 1.0, "lr": 0.2}, delta=1.0),
        state=_FACTORS,
    ),
    Case(
        "ivon", IVON, _IVON, _WRONG_IVON,
        state=("momentum", "hess"),
        conjugate=Conjugate(
            {"ess": 64.0, "weight_decay": 1 / 64, "mc_samples": 8}, delta=1.0, mean=0.02,
            precision=0.1,
        ),
    ),
    Case(
        "ivon_gradsq", IVON, {**_IVON, "hess_approx": "gradsq", "clip_radius": 0.05}, {},
        per_group=("hess_init", 2.0),
        state=("momentum", "hess"),
    ),
    Case(
        "bayesbinn", BayesBiNN, _BAYESBINN, _WRONG_BAYESBINN,
        per_group=("kl_weight", 3.0), state=("lam", "momentum"), learnt="lam",
    ),
    Case(
        "bayesbinn_lagged", BayesBiNN, {**_BAYESBINN, "beta": 0.9, "lag_mu": True}, {},
        per_group=("tau", 0.2), state=("lam", "momentum", "lam_before"), learnt="lam",
    ),
    Case(
        "bayesbinn_mean", BayesBiNN, {**_BAYESBINN, "estimator": "mean"}, {},
        per_group=("ess", 4.0), state=("lam", "momentum"), learnt="lam",
    ),
    Case(
        "ste", STE, {"lr": 0.3, "binary": "all"}, _WRONG_STE,
        per_group=("clip", 0.01), state=("latent", "exp_avg", "exp_avg_sq"), learnt="latent",
    ),
    Case(
        "bop", Bop, {"lr": 0.5, "threshold": 0.01, "binary": "all"},
        {"lr": 1.5, "threshold": -1.0, "mc_samples": 0},
        per_group=("threshold", 0.3), state=("momentum",),
    ),
    Case(
        "pmf", PMF, {"lr": 0.05, "growth": 1.5, "growth_every": 2, "binary": "all"},
        {"growth": 0.9, "growth_every": 0, "beta_max": 0.0, "lr": -1.0, "eps": 0.0},
        per_group=("growth", 3.0), state=("latent", "exp_avg", "exp_avg_sq"), learnt="latent",
    ),
]  # fmt: skip


class Net(torch.nn.Sequential):
    """Five inputs, three classes."""

    def __init__(self, dtype: torch.dtype = F32) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            super().__init__(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
        known(self.to(dtype))


every_case = pytest.mark.parametrize("case", CASES, ids=str)
random_cases = pytest.mark.parametrize("case", [c for c in CASES if c.random], ids=str)
stochastic_cases = pytest.mark.parametrize("case", [c for c in CASES if c.stochastic], ids=str)
oracle_cases = pytest.mark.parametrize("case", [c for c in CASES if c.oracle], ids=str)


def batches(count: int, dtype: torch.dtype = F32, size: int = 10) -> list[dict[str, torch.Tensor]]:
    gen = torch.Generator().manual_seed(5)
    return [
        {
            "input": torch.randn(size, 5, generator=gen, dtype=F64).to(dtype),
            "target": torch.randint(0, 3, (size,), generator=gen),
        }
        for _ in range(count)
    ]


def shard(batch: dict[str, torch.Tensor], rank: int, world: int) -> dict[str, torch.Tensor]:
    return {name: value.chunk(world)[rank] for name, value in batch.items()}


def loss_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return Categorical().loss(model(batch["input"]), batch["target"])


def closure_of(
    opt: torch.optim.Optimizer,
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    micro: int | None = None,
    clip: float | None = None,
) -> Callable[[], torch.Tensor]:
    """The closure of a plain PyTorch loop."""

    def closure() -> torch.Tensor:
        opt.zero_grad()
        total = torch.zeros((), dtype=next(model.parameters()).dtype)
        size = len(batch["target"])
        for start in range(0, size, micro or size):
            part = {name: value[start : start + (micro or size)] for name, value in batch.items()}
            weight = len(part["target"]) / size
            loss = loss_of(model, part)
            (loss * weight).backward()
            total = total + loss.detach() * weight
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        return total

    return closure


def learn(
    opt: torch.optim.Optimizer,
    model: torch.nn.Module,
    steps: list[dict[str, torch.Tensor]],
    **options: Any,
) -> list[torch.Tensor]:
    """The plain PyTorch loop; returns the losses."""
    return [opt.step(closure_of(opt, model, batch, **options)) for batch in steps]


def params_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def everything(opt: PosteriorOptimizer) -> dict[str, torch.Tensor]:
    """Parameters, state and streams of an optimiser as a flat mapping."""
    out: dict[str, torch.Tensor] = {}
    saved = opt.state_dict()
    for i, param in enumerate(p for group in opt.param_groups for p in group["params"]):
        out[f"param {i}"] = param.detach().clone()
        for name, value in saved["state"].get(i, {}).items():
            out[f"{name} {i}"] = torch.as_tensor(value).clone()
    for i, group in enumerate(saved["param_groups"]):
        out[f"steps {i}"] = torch.tensor(group.get("steps", 0))
    for name, value in saved["bayesrule"]["streams"].items():
        out[f"stream {name}"] = value
    return out


def assert_identical(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype, name
        assert torch.equal(value, two[name]), f"{name} differs"


def assert_params_equal(one: torch.nn.Module, two: torch.nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q), f"{name} differs by {(p - q).abs().max():.2e}"
