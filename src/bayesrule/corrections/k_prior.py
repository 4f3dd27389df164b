"""Knowledge-adaptation priors: the past as a few soft labels and a pull towards its weights.

::

    K(w) = sum_{m in M} s_m T^2 l( h(f_m(w*) / T), f_m(w) / T )  +  1/2 (w - w*)^T S (w - w*)

    grad K(w) = sum_m s_m T J_m(w)^T [ h(f_m(w) / T) - h(f_m(w*) / T) ]  +  S (w - w*)

(Khan and Swaroop, 2021.) l(y, f) = -y f + A(f) is the negative log-likelihood, h = A' the inverse
link; the first sum is in function space, with the past model's predictions h(f*) as labels, the
second in weight space; S = delta I is the paper's, any `QuadraticAnchor` will do. s_m = 1 is the
paper's, s_m = N / |M| makes the sum over a random memory an unbiased estimate of the one over the
data. T is a temperature (1 in the paper; the scale T^2 keeps gradients comparable).

For a generalised linear model, M = D, s = T = 1 and w* the minimiser of the past objective with
regulariser (delta / 2) |w|^2, grad K is the past objective's gradient everywhere: labels drop out.
Everything here is a SUM over items, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesrule.corrections.anchored import weights, zeros
from bayesrule.corrections.base import Correction, Past
from bayesrule.corrections.memory import Memory
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.corrections.selection import Strategy, select
from bayesrule.data.streams import Experience
from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Head, Likelihood
from bayesrule.posteriors import eval_mode
from bayesrule.seeding import generator

__all__ = ["DataTerm", "KPrior", "KPriorCorrection", "exchange_prior"]

Outputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DataTerm:
    """sum_m s_m T^2 l(y_m, f_m / T): what is asked of a model's outputs at some inputs.

    Attributes:
        input: Inputs, shape (M, ...).
        target: Labels, or expectations of labels (soft labels).
        weight: s_m of either sign, shape (M,).
        temperature: T.
        columns: The outputs that are the items' head; None: all.
    """

    input: Tensor
    target: Tensor
    weight: Tensor
    temperature: float = 1.0
    columns: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.weight)

    @classmethod
    def of_labels(cls, input: Tensor, target: Tensor, weight: float = 1.0) -> DataTerm:
        """Return the negative log-likelihood of labelled items; weight -1 takes them away."""
        dtype = input.dtype if input.is_floating_point() else torch.get_default_dtype()
        return cls(input, target, torch.full((len(target),), weight, dtype=dtype))

    @classmethod
    def of_memory(
        cls,
        memory: Memory,
        likelihood: Likelihood,
        weight: float | Tensor = 1.0,
        temperature: float = 1.0,
    ) -> DataTerm:
        """Return the term of a memory, with the labels h(f(w*) / T) of the model that made it.

        Args:
            memory: Its `outputs` are the past model's, of the items' own head.
            likelihood: Of one head.
            weight: s_m, one for all or one each.
            temperature: T.

        Raises:
            Unsupported: If the memory does not have the past model's outputs.
        """
        if memory.outputs is None:
            raise Unsupported("a K-prior's memory needs the past model's outputs")
        soft = likelihood.predict(memory.outputs / temperature)
        each = torch.as_tensor(weight, dtype=soft.dtype).expand(len(memory))
        return cls(memory.input, soft, each, temperature, memory.columns or None)

    def to(self, like: Tensor) -> DataTerm:
        """Return the term on another tensor's device, its real numbers of that tensor's type."""
        input, target, weight = (_like(t, like) for t in (self.input, self.target, self.weight))
        return DataTerm(input, target, weight, self.temperature, self.columns)

    def value(self, outputs: Tensor, likelihood: Likelihood) -> Tensor:
        """Return the sum, 0-d and differentiable in the outputs.

        Args:
            outputs: f_m of all heads, shape (M, C).
            likelihood: Of one head.
        """
        own = outputs if self.columns is None else Head(likelihood, self.columns).own(outputs)
        nll = likelihood.nll(own / self.temperature, self.target)
        return self.temperature**2 * (self.weight * nll).sum()

    def residual(self, outputs: Tensor, likelihood: Likelihood) -> Tensor:
        """Return the derivative with respect to the outputs of the term's head."""
        scaled = likelihood.residual(outputs / self.temperature, self.target)
        return self.temperature * self.weight.unsqueeze(-1) * scaled


@dataclass(frozen=True)
class KPrior:
    """K(w), a value that adaptation, continual learning, merging and federated sites can hold.

    Attributes:
        terms: The part in function space, one term per head.
        anchor: The part in weight space, or None.
        likelihood: Of one head.
    """

    terms: tuple[DataTerm, ...]
    anchor: QuadraticAnchor | None
    likelihood: Likelihood

    def functional_only(self) -> KPrior:
        """Return the soft labels alone."""
        return replace(self, anchor=None)

    def weight_only(self) -> KPrior:
        """Return the pull towards w* alone: a Gaussian prior."""
        return replace(self, terms=())

    def to(self, like: Tensor) -> KPrior:
        """Return the K-prior on another tensor's device, its real numbers of that tensor's type."""
        anchor = None if self.anchor is None else self.anchor.to(like.device, like.dtype)
        return replace(self, terms=tuple(term.to(like) for term in self.terms), anchor=anchor)

    def functional(self, outputs: Outputs) -> Tensor:
        """Return the sum over the memory, by one call of the model.

        Args:
            outputs: The model as a function of inputs; all heads' outputs.
        """
        terms = [term for term in self.terms if len(term)]
        if not terms:
            return torch.zeros(())
        parts = outputs(torch.cat([term.input for term in terms])).split([len(t) for t in terms])
        values = [term.value(f, self.likelihood) for term, f in zip(terms, parts, strict=True)]
        return torch.stack(values).sum()

    def value(self, model: nn.Module) -> Tensor:
        """Return K at the model's parameters; the memory passes in evaluation mode."""
        with eval_mode(model):
            found = self.functional(model)
        return found if self.anchor is None else found + self.anchor.value(model)


def _like(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like) if tensor.is_floating_point() else tensor.to(like.device)


def exchange_prior(anchor: QuadraticAnchor, old: float, new: float) -> QuadraticAnchor:
    """Return the anchor with another strength of the regulariser, up to a constant.

    ::

        1/2 (w - w*)^T S (w - w*)  - old/2 |w|^2  + new/2 |w|^2
        = 1/2 (w - m)^T (S - old + new) (w - m),     (S - old + new) m = S w*

    The quadratic of q(w) N(w; 0, 1/new) / N(w; 0, 1/old); isotropic S >= old.
    """
    if not isinstance(anchor.precision, float | int):
        raise Unsupported("the regulariser is exchanged in an isotropic weight term only")
    precision = float(anchor.precision) - old + new
    ratio = anchor.precision / precision
    return QuadraticAnchor({name: ratio * m for name, m in anchor.mean.items()}, precision)


# ------------------------------------------------------------------- continual learning


@dataclass
class _Kept:
    """The memory of one experience, and N / |M| of when it was chosen."""

    memory: Memory
    ratio: float


class KPriorCorrection(Correction):
    """The K-prior of a stream: memory grows by a part per experience, w* is the last weights.

    After every experience the soft labels of all memories are computed anew with its weights, as
    those of a base model that has learnt the past. The term is K(w) / N_t. Before
    the first experience K is (delta / 2) |w|^2. The optimiser's own weight decay should be zero.

    Args:
        memory_size: Items kept per experience.
        selection: See `bayesrule.corrections.selection`; leverage is that of the inputs.
        memory_weight: ``one`` (the paper) or ``ratio``: N_t / M_t of the item's experience.
        temperature: T of the soft labels.
        prior_prec: delta.
        center: Of the weight term: ``prev``, the last weights (the paper), or ``zero``.
        terms: ``both``, ``functional`` or ``weight`` (the other one is left out).
    """

    vectors = 1

    def __init__(
        self,
        memory_size: int = 40,
        selection: Strategy = "lambda_descend",
        memory_weight: Literal["one", "ratio"] = "one",
        temperature: float = 1.0,
        prior_prec: float = 1.0,
        center: Literal["prev", "zero"] = "prev",
        terms: Literal["both", "functional", "weight"] = "both",
    ) -> None:
        self.memory_size, self.selection, self.memory_weight = memory_size, selection, memory_weight
        self.temperature, self.prior_prec, self.center = temperature, prior_prec, center
        self.terms = terms
        self.kept: list[_Kept] = []
        self.anchor: QuadraticAnchor | None = None
        self._n_train = 1
        self._k_prior: KPrior | None = None
        self._placed: tuple[torch.device, torch.dtype] | None = None

    def begin(self, experience: Experience, past: Past) -> None:
        """Put K together; before the first experience it is the regulariser alone."""
        self._n_train = experience.train.n_items
        if self.anchor is None:
            self.anchor = self._around(past.model, first=True)
        self._k_prior, self._placed = self._assemble(past.likelihood), None

    def loss(self, model: nn.Module) -> Tensor | None:
        """Return K(w) / N_t."""
        if self._k_prior is None:
            return None
        weight = next(model.parameters())
        if self._placed != (weight.device, weight.dtype):
            self._k_prior = self._k_prior.to(weight)
            self._placed = (weight.device, weight.dtype)
        return self._k_prior.value(model) / self._n_train

    def absorb(self, experience: Experience, past: Past) -> None:
        """Choose this experience's memory, renew all soft labels, move w*."""
        if self.terms != "weight":
            self.kept.append(self._choose(experience, past))
            for one in self.kept:
                outputs = past.head(one.memory.columns).own(_outputs(past, one.memory.input))
                one.memory = replace(one.memory, outputs=outputs)
        self.anchor = self._around(past.model)

    def _around(self, model: nn.Module, *, first: bool = False) -> QuadraticAnchor:
        at = weights(model)
        mean = zeros(at) if first or self.center == "zero" else at
        return QuadraticAnchor(mean, self.prior_prec)

    def _assemble(self, likelihood: Likelihood) -> KPrior:
        terms = tuple(
            DataTerm.of_memory(
                one.memory,
                likelihood,
                one.ratio if self.memory_weight == "ratio" else 1.0,
                self.temperature,
            )
            for one in self.kept
        )
        anchor = None if self.terms == "functional" and self.kept else self.anchor
        return KPrior(terms, anchor, likelihood)

    def _choose(self, experience: Experience, past: Past) -> _Kept:
        split = experience.train
        inputs = split.whole()["input"]
        logits = past.head(experience.columns).own(_outputs(past, inputs))
        indices = select(
            self.selection,
            self.memory_size,
            target=split.targets,
            logits=logits,
            input=inputs,
            features=inputs.flatten(1) if self.selection == "leverage" else None,
            prior_prec=self.prior_prec,
            generator=generator(past.seed, "memory", experience.index),
        )
        memory = Memory(inputs[indices], split.targets[indices], experience.columns)
        return _Kept(memory, len(split) / max(len(indices), 1))

    def state_dict(self) -> dict[str, Any]:
        """Return memories, soft labels and w*."""
        return {
            "memories": [one.memory.state_dict() for one in self.kept],
            "ratios": [one.ratio for one in self.kept],
            "anchor": None if self.anchor is None else self.anchor.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; `begin` puts K together again."""
        memories = map(Memory.from_state, state["memories"])
        self.kept = [_Kept(m, r) for m, r in zip(memories, state["ratios"], strict=True)]
        anchor = state["anchor"]
        self.anchor = None if anchor is None else QuadraticAnchor.from_state(anchor)

    def stored(self) -> list[Memory]:
        """Return all memories."""
        return [one.memory for one in self.kept]

    def n_items(self) -> int:
        """Return the items of all memories."""
        return sum(len(one.memory) for one in self.kept)

    def nbytes(self) -> int:
        """Return the bytes of memories and w*."""
        held = sum(one.memory.nbytes() for one in self.kept)
        return held + (0 if self.anchor is None else self.anchor.nbytes())


@torch.no_grad()
def _outputs(past: Past, inputs: Tensor) -> Tensor:
    """Return the network's outputs of all heads, in evaluation mode, on the CPU."""
    with eval_mode(past.model):
        parts = [past.model(past.to_model(part)) for part in inputs.split(past.batch_size)]
    return torch.cat(parts).cpu()
