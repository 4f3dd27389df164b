"""Noisy K-FAC (Zhang et al., 2018, arXiv 1712.02390), and K-FAC.

Each weight, read as a matrix W of outputs times inputs, has a matrix-variate Gaussian posterior
around `mean`; the prior is N(0, I / delta) with delta = `prior_prec`, the objective
ess E_q[loss] + tau KL(q || prior), and the loss a **mean** over examples. With a the inputs of a
layer and d the gradient of an example's own loss with respect to its outputs, one step is
(algorithm 2)::

    gamma_in = tau delta / ess,    gamma = gamma_in + damping
    theta = mean + sqrt(tau / ess) S_in^(-1/2) noise A_in^(-1/2),   noise ~ N(0, I)    perturb
    g, a, d of the batch at theta                                                      observe
    G = mean_i sum_t d_it d_it^T,    H = mean_it a_it a_it^T                           statistic
    S <- (1 - r) S + r G,    A <- (1 - r) A + r H      (every `factor_every` steps)    update
    momentum <- beta1 momentum + (1 - beta1) (g + gamma_in mean)
    mean <- mean - lr S_gamma^(-1) momentum A_gamma^(-1)

with r = `factor_rate`, and factors damped so that their product is about S (x) A + gamma I::

    S_gamma = S + sqrt(gamma) / pi I,    A_gamma = A + pi sqrt(gamma) I
    pi^2 = (tr A / dim A) / (tr S / dim S)

(the subscript "in" stands for gamma_in). What is inverted is as it was at the last multiple of
`inverse_every` steps. The precision of the posterior is (ess / tau) S_in (x) A_in. With
``damp="eigenvalues"`` it is (ess / tau) S (x) A + delta I, without the cross terms of the product,
and the mean moves by (S (x) A + gamma I)^(-1) momentum; this is not in the paper.

Parameters of one column (biases, norms) have A = 1 and the exact S, damped by gamma I. Positions t
of convolutions and sequences, and repeated uses of a weight, count as in K-FAC "expand".

Deviations from the paper: biases are blocks of their own instead of one more column of the weight;
gamma_in pulls at the mean, the average of the draws at which the paper takes it; the momentum is of
gradients (the authors' code has that of preconditioned ones, and bounds the step's length). The
Fisher is the empirical one: d is taken at the observed targets.

K-FAC (Martens & Grosse, 2015, arXiv 1503.05671) is the same without noise; it learns a point.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bayesrule.curvature.layer_rules import columns
from bayesrule.errors import Unsupported
from bayesrule.optim.base import Noise, PosteriorOptimizer, Sync
from bayesrule.optim.checks import check, check_groups
from bayesrule.optim.watching import recorder_of
from bayesrule.posteriors import KroneckerGaussian, PointMass, Posterior

__all__ = ["KFAC", "NoisyKFAC", "damped", "noisy_kfac_update"]

Damp = Literal["factors", "eigenvalues"]
Group = dict[str, Any]


def damped(S: Tensor, A: Tensor | None, gamma: float) -> tuple[Tensor, Tensor]:
    """Return (S_gamma, A_gamma), the factors of the damped block.

    Args:
        S: Factor over rows, (r, r).
        A: Factor over columns, (c, c); None for a parameter of one column.
        gamma: What the product adds to S (x) A, about.
    """
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    if A is None:
        return S + gamma * eye, S.new_ones(1, 1)
    pi = _pi(S, A)
    eye_A = torch.eye(len(A), dtype=A.dtype, device=A.device)
    return S + gamma**0.5 / pi * eye, A + gamma**0.5 * pi * eye_A


def _pi(S: Tensor, A: Tensor) -> Tensor:
    """Return sqrt((tr A / dim A) / (tr S / dim S)), or 1 where a factor is zero."""
    s, a = S.diagonal().mean(), A.diagonal().mean()
    return torch.where((s > 0) & (a > 0), (a / s).sqrt(), torch.ones_like(a))


def noisy_kfac_update(
    mean: Tensor,
    momentum: Tensor,
    S: Tensor,
    A: Tensor,
    grad: Tensor,
    row_stat: Tensor,
    col_stat: Tensor,
    *,
    lr: float,
    ess: float,
    beta1: float,
    factor_rate: float,
    prior_prec: float,
    tau: float,
    damping: float,
    damp: Damp = "factors",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (mean, momentum, S, A) of one matrix after one update, by dense inverses.

    The optimiser takes the same step through eigenvectors, with the options that say how often.

    Args:
        mean: Posterior mean, (r, c).
        momentum: Average of gradients, (r, c).
        S: Factor over rows, (r, r).
        A: Factor over columns, (c, c).
        grad: g.
        row_stat: G.
        col_stat: H.
        lr: Learning rate alpha.
        ess: Effective sample size N.
        beta1: Decay of the momentum.
        factor_rate: Weight of the new statistics in the factors.
        prior_prec: delta.
        tau: Weight of the KL term.
        damping: Extrinsic damping.
        damp: How gamma enters, see the module docstring.
    """
    S = (1.0 - factor_rate) * S + factor_rate * row_stat
    A = (1.0 - factor_rate) * A + factor_rate * col_stat
    gamma_in = tau * prior_prec / ess
    gamma = gamma_in + damping
    momentum = beta1 * momentum + (1.0 - beta1) * (grad + gamma_in * mean)
    if damp == "factors":
        S_gamma, A_gamma = damped(S, A, gamma)
        direction = torch.linalg.inv(S_gamma) @ momentum @ torch.linalg.inv(A_gamma)
    else:
        block = torch.kron(S, A) + gamma * torch.eye(mean.numel(), dtype=mean.dtype)
        direction = torch.linalg.solve(block, momentum.reshape(-1)).reshape(mean.shape)
    return mean - lr * direction, momentum, S, A


class _Block(NamedTuple):
    """Eigenvectors and eigenvalues of the factors in use, S = U diag(s) U^T, A = V diag(a) V^T."""

    S: Tensor
    A: Tensor | None
    versions: tuple[int, int]
    U: Tensor
    s: Tensor
    V: Tensor | None
    a: Tensor | None

    def eigenvalues(self, gamma: float, damp: Damp) -> Tensor:
        """Return the eigenvalues (r, c) of the damped block."""
        if self.A is None or self.a is None:
            return (self.s + gamma).unsqueeze(1)
        if damp == "eigenvalues":
            return torch.outer(self.s, self.a) + gamma
        pi = _pi(self.S, self.A)
        return torch.outer(self.s + gamma**0.5 / pi, self.a + gamma**0.5 * pi)

    def apply(self, values: Tensor, X: Tensor) -> Tensor:
        """Return U (values * (U^T X V)) V^T in the shape of X, a function of the block times X."""
        matrix = X.reshape(values.shape)
        rotated = self.U.mT @ matrix if self.V is None else self.U.mT @ matrix @ self.V
        result = self.U @ rotated.mul_(values)
        return (result if self.V is None else result @ self.V.mT).reshape(X.shape)


class NoisyKFAC(PosteriorOptimizer):
    """Noisy K-FAC, see the module docstring for the equations.

    Example:
        >>> opt = NoisyKFAC(model.parameters(), lr=0.01, ess=len(train_set), model=model)
        >>> loss = opt.step(closure)         # hooks on the layers take the factors

    Args:
        params: Parameters, named parameters or parameter groups; every option below up to
            `damping` may be set per group.
        lr: Learning rate alpha.
        ess: Effective sample size N, the number of training examples (times a factor when data
            are augmented).
        factor_init: The blocks S (x) A start at factor_init I.
        beta1: Decay of the gradient average, in [0, 1).
        factor_rate: Weight of the new statistics in the factors, in [0, 1].
        prior_prec: delta > 0.
        tau: Weight of the KL term, in (0, 1]; 1 is Bayes, smaller is colder.
        damping: Extrinsic damping >= 0 of the mean's step; the noise has none.
        damp: ``"factors"`` (the paper) or ``"eigenvalues"``, see the module docstring.
        factor_every: Steps between two updates of the factors.
        inverse_every: Steps between two inversions.
        mc_samples: Samples S per step.
        model: The network whose layers are watched for inputs and output gradients; required.
        seed: See `PosteriorOptimizer.setup`, as for `generator`, `noise` and `sync`.
        generator: The noise stream.
        noise: Replacement of the standard normal draw.
        sync: How several processes share one posterior.

    Raises:
        ValueError: If an option is out of range.
        Unsupported: If a layer has no Kronecker factors, or `model` is missing.
    """

    stochastic = True
    observes = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        ess: float,
        factor_init: float = 0.1,
        beta1: float = 0.9,
        factor_rate: float = 0.05,
        prior_prec: float = 1.0,
        tau: float = 1.0,
        damping: float = 1e-3,
        damp: Damp = "factors",
        factor_every: int = 1,
        inverse_every: int = 10,
        mc_samples: int = 1,
        *,
        model: nn.Module | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        if damp not in ("factors", "eigenvalues"):
            raise ValueError(f"damp must be 'factors' or 'eigenvalues', got {damp!r}")
        for name, every in (("factor_every", factor_every), ("inverse_every", inverse_every)):
            if every < 1 or int(every) != every:
                raise ValueError(f"{name} must be a whole number >= 1, got {every}")
        defaults = {
            "lr": lr,
            "ess": ess,
            "factor_init": factor_init,
            "beta1": beta1,
            "factor_rate": factor_rate,
            "prior_prec": prior_prec,
            "tau": tau,
            "damping": damping,
        }
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            ess=check("> 0"),
            factor_init=check("> 0"),
            beta1=check(">= 0", "< 1"),
            factor_rate=check(">= 0", "<= 1"),
            prior_prec=check("> 0") if self.stochastic else check(">= 0"),
            tau=check("> 0", "<= 1") if self.stochastic else check(">= 0", "<= 1"),
            damping=check(">= 0"),
        )
        for group in self.param_groups:
            if group["damping"] + group["tau"] * group["prior_prec"] <= 0:
                raise ValueError(
                    "damping and tau * prior_prec are both 0: the factors would be inverted without"
                    " any damping, and they are singular"
                )
        self.damp: Damp = damp
        self.factor_every, self.inverse_every = int(factor_every), int(inverse_every)
        self._blocks: dict[Tensor, _Block] = {}
        self.setup(mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync)
        self._watched = model
        self._recorder = recorder_of(type(self).__name__, model, self.trainable(), "factors")

    # ----------------------------------------------------------------- state

    def _learnt(self) -> list[tuple[Tensor, dict[str, Any], Group]]:
        """Return (parameter, its state, its group) for every trainable parameter, in order."""
        return [
            (p, self._factor_state(p, group), group)
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def _factor_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        """Return the state: momentum, running factors, and the factors in use."""
        if self._parallel.is_sharded(param):
            raise Unsupported(f"{type(self).__name__} cannot learn sharded parameters (FSDP)")
        state = self.param_state(param, momentum=0.0)
        cols = columns(param)
        sides = {"row": param.numel() // cols} | ({"col": cols} if cols > 1 else {})
        for side, size in sides.items():
            if f"{side}_factor" not in state:
                start = group["factor_init"] ** (0.5 if cols > 1 else 1.0)
                eye = torch.eye(size, dtype=param.dtype, device=param.device)
                state[f"{side}_factor"], state[f"{side}_used"] = start * eye, start * eye
            for name in (f"{side}_factor", f"{side}_used"):
                state[name] = state[name].to(param.device, param.dtype)
        return state

    def _block(self, param: Tensor, state: dict[str, Any]) -> _Block:
        """Return the factors in use with their eigenvectors, decomposed when they changed."""
        S, A = state["row_used"], state.get("col_used")
        versions = (S._version, 0 if A is None else A._version)
        block = self._blocks.get(param)
        same = block is not None and block.S is S and block.A is A and block.versions == versions
        if block is None or not same:
            U, s = _eigh(S)
            V, a = (None, None) if A is None else _eigh(A)
            block = self._blocks[param] = _Block(S, A, versions, U, s, V, a)
        return block

    # ------------------------------------------------------------------ step

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to theta = mean + (precision of the posterior)^(-1/2) noise, by symmetric roots."""
        if noise is None:  # K-FAC
            return
        with _full_precision(noise):
            for (param, state, group), eps in zip(self._learnt(), noise, strict=True):
                block = self._block(param, state)
                values = block.eigenvalues(_gamma_in(group), self.damp)
                scale = (group["tau"] / group["ess"]) ** 0.5
                param.add_(block.apply(values.rsqrt_(), eps), alpha=scale)

    def observing(self) -> AbstractContextManager[None]:
        """Watch the layers in steps that update the factors."""
        return self._recorder.recording() if self._due() else nullcontext()

    def unobserved(self) -> AbstractContextManager[None]:
        """Watch no passes that are not over the batch's examples."""
        return self._recorder.paused()

    def _due(self) -> bool:
        """Return whether the coming step updates the factors."""
        return self.param_groups[0].get("steps", 0) % self.factor_every == 0

    def collect(self, stage: int) -> None:
        """Keep the mean gradient, and the factors' statistics if the layers were watched."""
        self.accumulate("grad", self.gradients())
        if not self._due():
            return
        names, factors = self.names(self._watched), self._recorder.factors()
        learnt = [(p, *factors[names[p]]) for p in self.trainable()]
        self.accumulate("row", [G.to(p.dtype) for p, G, _ in learnt], local=True)
        self.accumulate("col", [H.to(p.dtype) for p, _, H in learnt], local=True)

    def update(self, statistics: dict[str, list[Tensor]]) -> None:
        """Move factors and mean, parameter by parameter."""
        past = self.param_groups[0]["steps"] - 1
        none = [None] * len(statistics["grad"])
        rows = zip(
            self._learnt(),
            statistics["grad"],
            statistics.get("row", none),
            statistics.get("col", none),
            strict=True,
        )
        with _full_precision(statistics["grad"]):
            for (mean, state, group), grad, G, H in rows:
                if G is not None:
                    state["row_factor"].lerp_(G, group["factor_rate"])
                if H is not None and "col_factor" in state:
                    state["col_factor"].lerp_(H, group["factor_rate"])
                if past % self.inverse_every == 0:
                    for name in ("row", "col") if "col_factor" in state else ("row",):
                        state[f"{name}_used"].copy_(state[f"{name}_factor"])
                gamma_in, momentum = _gamma_in(group), state["momentum"]
                momentum.lerp_(grad.add(mean, alpha=gamma_in), 1.0 - group["beta1"])
                block = self._block(mean, state)
                values = block.eigenvalues(gamma_in + group["damping"], self.damp)
                direction = block.apply(values.reciprocal_(), momentum)
                mean.sub_(direction, alpha=float(group["lr"]))

    def posterior(self, model: nn.Module | None = None) -> Posterior:
        """Return q = N(mean, ((ess / tau) S_in (x) A_in)^-1), what samples are drawn from."""
        names = self.names(model)
        factors, delta, scale = {}, {}, {}
        for param, state, group in self._learnt():
            name, gamma_in = names[param], _gamma_in(group)
            S, A = state["row_used"], state.get("col_used")
            scale[name], delta[name] = group["ess"] / group["tau"], 0.0
            if self.damp == "eigenvalues" and A is not None:
                factors[name], delta[name] = (S, A), group["prior_prec"]
            else:
                factors[name] = damped(S, A, gamma_in)
        return KroneckerGaussian(self.named_mean(model), factors, delta, scale)


class KFAC(NoisyKFAC):
    """K-FAC: `NoisyKFAC` without noise, its gradients taken at the mean; the options are the same.

    `prior_prec` times `tau` over `ess` is a weight decay in mean-loss scale, and may be 0.
    """

    stochastic = False

    def posterior(self, model: nn.Module | None = None) -> PointMass:
        """Return the point mass at the parameters."""
        return PointMass(self.named_mean(model))


def _gamma_in(group: Group) -> float:
    return float(group["tau"] * group["prior_prec"] / group["ess"])


def _eigh(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvectors and eigenvalues, found in float64 and not below zero."""
    values, vectors = torch.linalg.eigh(factor.double())
    return vectors.to(factor.dtype), values.clamp_min(0.0).to(factor.dtype)


def _full_precision(tensors: list[Tensor]) -> AbstractContextManager[Any]:
    """Keep matrix products out of an autocast region around the step."""
    device = tensors[0].device.type if tensors else "cpu"
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
