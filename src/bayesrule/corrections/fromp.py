"""FROMP: functional regularisation of memorable past (Pan, Swaroop et al. 2020, arXiv:2004.14070).

A Gaussian-process view of a trained network says what its outputs at a few past inputs should stay
close to, and in which metric. With p_s(w) the probabilities of task s's own head, J the Jacobian of
its outputs and Lambda = diag(p) - p p^T, task t begins at w_{t-1} and minimises::

    F_t    = F_{t-1} + sum_{i in D_t} diag( J^T Lambda J )(x_i; w_t),   F_0 = 0   a sum, not a mean
    v_t    = 1 / (F_t + delta)                                          covariance of the weights
    M_t    = of each class the floor(m/C) items with the largest tr Lambda(x_i; w_t)
    m_sc   = [ p_c(x; w_{t-1}) ]_{x in M_s},    G_sc = [ d p_c(x; w) / dw ]_{w = w_{t-1}}
    K_sc   = G_sc diag(v_{t-1}) G_sc^T + eps I                          every s < t, every class c
    L_t(w) = lbar_t(w) + tau/2 sum_{s<t} sum_c D_sc^T K_sc^{-1} D_sc,   D_sc = p_sc(w) - m_sc

lbar_t is the mean loss of the current task, so tau is that of the authors' code: the paper's, which
stands beside the sum over N_t items, divided by N_t. (The code divides all of L_t by tau, which
moves nothing but the norm at which gradients are clipped.) F is never evaluated again; m and K are
taken anew for all past memories when a task begins, with the weights and v of that moment. The
whole memory is in every step, in evaluation mode; labels are used to balance classes only.

Ablations of the paper: ``kernel="identity"`` (the L2 variants), ``selection="random"`` (FRORP).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from bayesrule.corrections.anchored import labelled
from bayesrule.corrections.base import Correction, Past
from bayesrule.corrections.memory import Memory
from bayesrule.corrections.selection import Strategy, select
from bayesrule.curvature import ggn_diag, trainable
from bayesrule.data.streams import Experience
from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.likelihoods import Categorical, Head, Likelihood
from bayesrule.posteriors.linear import eval_mode, forward_outputs
from bayesrule.posteriors.params import Params
from bayesrule.seeding import generator

__all__ = [
    "FROMP",
    "FunctionalPrior",
    "kernels",
    "probabilities",
    "surrogate",
    "variance",
    "whiten",
]

_MAX_ROWS = 2**25
"""Largest number of entries of G held at once, unless one parameter tensor alone has more."""
_ESCALATIONS = 8


# ---------------------------------------------------------------- the equations, in their order


def variance(ggn: Mapping[str, Tensor], delta: float) -> Params:
    """Return v = 1 / (F + delta), the diagonal Laplace covariance of the weights.

    Args:
        ggn: F, the summed diagonal GGN of all tasks so far, by parameter.
        delta: Prior precision.
    """
    return {name: 1.0 / (F + delta) for name, F in ggn.items()}


def probabilities(head: Likelihood, outputs: Tensor) -> Tensor:
    """Return p_BC = E[y | f] of a head: (B, C) for softmax, (B, 1) for one logit."""
    p = head.predict(outputs)
    return p.unsqueeze(-1) if p.ndim == 1 else p


def kernels(model: nn.Module, head: Likelihood, input: Tensor, var: Mapping[str, Tensor]) -> Tensor:
    """Return K_c = G_c diag(v) G_c^T for every output c of a head, without the jitter.

    Rows of G_c are gradients of probabilities, Lambda[c, :] J, one reverse pass per class and block
    of parameters; the products are summed over blocks in float64, so each K_c is positive
    semi-definite up to rounding of that precision.

    Args:
        model: The network at w_{t-1}; run in evaluation mode, left as it was.
        head: Links outputs to probabilities.
        input: Memory of M items, shape (M, ...).
        var: v by parameter; parameters that it lacks are held fixed.

    Returns:
        kernel_CMM, float64.
    """
    at = {name: p for name, p in trainable(model).items() if name in var}
    M = len(input)
    with eval_mode(model), torch.no_grad():
        C = probabilities(head, forward_outputs(model, {}, input[:1])).shape[-1]
        total = torch.zeros(C, M, M, dtype=torch.float64, device=input.device)
        for names in _blocks(at, M):
            block = {name: at[name] for name in names}
            for c in range(C):
                total[c] += _gram(model, head, input, block, var, c)
    return total


def _gram(
    model: nn.Module,
    head: Likelihood,
    input: Tensor,
    block: Params,
    var: Mapping[str, Tensor],
    c: int,
) -> Tensor:
    """Return sum_p G_cip v_p G_cjp over the parameters of a block, (M, M) in float64."""

    def probability(theta: Params, x: Tensor) -> Tensor:
        return probabilities(head, forward_outputs(model, theta, x.unsqueeze(0)))[0, c]

    rows = vmap(grad(probability), in_dims=(None, 0))(block, input)
    gram = torch.zeros(len(input), len(input), dtype=torch.float64, device=input.device)
    for name, G in rows.items():
        half_MP = (G.double() * var[name].double().sqrt()).reshape(len(input), -1)
        gram += half_MP @ half_MP.mT
    return gram


def _blocks(params: Mapping[str, Tensor], rows: int) -> Iterator[list[str]]:
    """Yield names of parameters, in order, whose M rows of gradients fit `_MAX_ROWS`."""
    names: list[str] = []
    size = 0
    for name, p in params.items():
        if names and size + rows * p.numel() > _MAX_ROWS:
            yield names
            names, size = [], 0
        names.append(name)
        size += rows * p.numel()
    if names:
        yield names


def whiten(kernel_CMM: Tensor, eps: float) -> Tensor:
    """Return W_c = L_c^{-1} with L_c L_c^T = K_c + eps I, so that W^T W is the inverse.

    Where rounding leaves a K_c + eps I that is not positive definite, that class's jitter is made
    ten times larger, up to eight times.

    Args:
        kernel_CMM: Positive semi-definite matrices, float64.
        eps: Jitter.

    Returns:
        whitening_CMM, lower triangular, float64.

    Raises:
        NonFiniteLoss: If a kernel is not finite, or no jitter helps.
    """
    if not torch.isfinite(kernel_CMM).all():
        raise NonFiniteLoss(
            "the functional prior's kernel is not finite: the weights or their curvature overflow; "
            "try a smaller posterior.lr or a larger correction.delta"
        )
    C, M = kernel_CMM.shape[:2]
    eye = torch.eye(M, dtype=kernel_CMM.dtype, device=kernel_CMM.device)
    jitter = torch.full((C, 1, 1), eps, dtype=kernel_CMM.dtype, device=kernel_CMM.device)
    for _ in range(_ESCALATIONS + 1):
        lower, failed = torch.linalg.cholesky_ex(kernel_CMM + jitter * eye)
        if not failed.any():
            return torch.linalg.solve_triangular(lower, eye.expand(C, M, M), upper=False)
        jitter = torch.where(failed[:, None, None] > 0, 10.0 * jitter, jitter)
    raise NonFiniteLoss(
        f"the functional prior's kernel has no Cholesky factor, even with jitter "
        f"{float(jitter.max()):.1g}: use a larger correction.eps or correction.delta"
    )


@dataclass(frozen=True)
class FunctionalPrior:
    """N(m_c, K_c) over a head's probabilities at one memory, class by class.

    Attributes:
        mean: Probabilities at the snapshot, shape (M, C).
        whitening: (C, M, M): W_c with W_c^T W_c = K_c^{-1}; None for the identity (L2).
    """

    mean: Tensor
    whitening: Tensor | None

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors."""
        return {"mean": self.mean, "whitening": self.whitening}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FunctionalPrior:
        """Return the prior that `state_dict` described."""
        return cls(state["mean"], state["whitening"])

    def to(self, device: torch.device) -> FunctionalPrior:
        """Return the same on another device."""
        W = self.whitening
        return FunctionalPrior(self.mean.to(device), None if W is None else W.to(device))

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [self.mean] + ([] if self.whitening is None else [self.whitening])


def surrogate(p_MC: Tensor, prior: FunctionalPrior) -> Tensor:
    """Return 1/2 sum_c D_c^T K_c^{-1} D_c = 1/2 sum_c |W_c D_c|^2 with D = p - m, a 0-d tensor.

    m and K are constants, so the gradient is sum_c G_c(w)^T K_c^{-1} D_c.
    """
    D_CM = (p_MC - prior.mean).mT
    if prior.whitening is None:
        return 0.5 * D_CM.square().sum()
    return 0.5 * (prior.whitening @ D_CM.unsqueeze(-1)).square().sum()


# ------------------------------------------------------------------------------- the correction


class FROMP(Correction):
    """Functional regularisation of the memorable past.

    Args:
        memory: Memorable items per task, m; every class of the task gets floor(m/C).
        tau: Weight of the functional term beside the mean loss. "Should be scaled with the number
            of memory points", the authors say.
        delta: Prior precision of the weights, within v.
        eps: Jitter of the kernels.
        kernel: ``gp``, or ``identity`` for the L2 variants.
        selection: ``lambda_descend``, or ``random`` (FRORP), or another of `select`.
    """

    def __init__(
        self,
        memory: int = 40,
        tau: float = 10.0,
        delta: float = 1e-3,
        eps: float = 1e-6,
        kernel: Literal["gp", "identity"] = "gp",
        selection: Strategy = "lambda_descend",
    ) -> None:
        self.memory, self.tau, self.delta, self.eps = memory, tau, delta, eps
        self.kernel, self.selection = kernel, selection
        self.vectors = 2 if kernel == "gp" else 0  # F, and v while the kernels are made
        self.ggn: Params = {}
        self.memories: list[Memory] = []
        self.priors: list[FunctionalPrior] = []
        self._likelihood: Likelihood = Categorical()

    def check(self, past: Past) -> None:
        """Refuse a memory that would leave a class without items.

        Raises:
            ConfigError: Says how many it takes.
        """
        for experience in past.stream:
            classes = len(experience.classes)
            if self.memory < classes:
                raise ConfigError(
                    f"correction.memory={self.memory} leaves none for some of the {classes} "
                    f"classes of task {experience.task + 1}: give at least {classes}"
                )

    def begin(self, experience: Experience, past: Past) -> None:
        """Take the snapshot of all past memories with the current weights and v."""
        self._likelihood = past.likelihood
        self._move(past.device)
        self.priors = self._snapshot(past) if self.memories else []

    def _snapshot(self, past: Past) -> list[FunctionalPrior]:
        """Return m and K of every past memory at the current weights and v."""
        with torch.no_grad():  # the pass of `loss`, so that D is 0 to the bit
            means = self._remembered(past.model)
        if self.kernel == "identity":
            return [FunctionalPrior(mean, None) for mean in means]
        var = variance(self.ggn, self.delta)
        priors = []
        for memory, mean in zip(self.memories, means, strict=True):
            kernel = kernels(past.model, past.head(memory.columns), memory.input, var)
            priors.append(FunctionalPrior(mean, whiten(kernel, self.eps).to(mean.dtype)))
        return priors

    def _remembered(self, model: nn.Module) -> list[Tensor]:
        """Return the probabilities at every memory, of its own head, from one pass."""
        with eval_mode(model):
            outputs = model(torch.cat([memory.input for memory in self.memories]))
        pieces = outputs.split([len(memory) for memory in self.memories])
        return [
            probabilities(Head(self._likelihood, memory.columns), piece)
            for memory, piece in zip(self.memories, pieces, strict=True)
        ]

    def _move(self, device: torch.device) -> None:
        """Put everything on the model's device."""
        self.ggn = {name: F.to(device) for name, F in self.ggn.items()}
        self.memories = [memory.to(device) for memory in self.memories]
        self.priors = [prior.to(device) for prior in self.priors]

    def loss(self, model: nn.Module) -> Tensor | None:
        """Return tau/2 sum_s sum_c D_sc^T K_sc^{-1} D_sc, from one pass over the whole memory."""
        if not self.memories:
            return None
        device = next(model.parameters()).device
        if self.memories[0].input.device != device:  # loaded from a checkpoint
            self._move(device)
        remembered = self._remembered(model)
        terms = [surrogate(p, prior) for p, prior in zip(remembered, self.priors, strict=True)]
        return self.tau * torch.stack(terms).sum()

    def absorb(self, experience: Experience, past: Past) -> None:
        """Add the task's GGN at w_t to F, and its memorable items to the memory."""
        head = past.head(experience.columns)
        train = experience.train
        if self.kernel == "gp":
            own = ggn_diag(past.model, head, labelled(experience, past))
            self.ggn = {name: self.ggn[name] + F for name, F in own.items()} if self.ggn else own
        with eval_mode(past.model), torch.no_grad():
            logits = torch.cat([head.own(past.model(x)).cpu() for x, _ in past.batches(train)])
        chosen = select(
            self.selection,
            self.memory,
            target=train.targets,
            logits=logits,
            input=train.whole()["input"] if self.selection == "k_centre" else None,
            generator=generator(past.seed, "memory", experience.index),
        )
        kept = train.batch(chosen)
        input, target = past.to_model(kept["input"]), past.to_model(kept["target"])
        self.memories.append(Memory(input, target, experience.columns))

    def state_dict(self) -> dict[str, Any]:
        """Return F, the memories and the snapshot."""
        return {
            "ggn": dict(self.ggn),
            "memories": [memory.state_dict() for memory in self.memories],
            "priors": [prior.state_dict() for prior in self.priors],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore F, the memories and the snapshot."""
        self.ggn = dict(state["ggn"])
        self.memories = [Memory.from_state(one) for one in state["memories"]]
        self.priors = [FunctionalPrior.from_state(one) for one in state["priors"]]

    def stored(self) -> list[Memory]:
        """Return the memory of every task so far."""
        return list(self.memories)

    def n_items(self) -> int:
        """Return the number of items of all memories."""
        return sum(len(memory) for memory in self.memories)

    def nbytes(self) -> int:
        """Return the bytes of F, the memories and the snapshot."""
        kept = [*self.ggn.values(), *(t for prior in self.priors for t in prior.tensors())]
        return sum(m.nbytes() for m in self.memories) + sum(
            t.numel() * t.element_size() for t in kept
        )
