"""Posterior predictive p(y | x) = E_q[ p(y | f(x; theta)) ], by rule.

=============  ====================================================================================
rule           predictive
=============  ====================================================================================
``mean``       plug-in: p(y | f(x; E_q[theta]))
``mode``       plug-in: p(y | f(x; argmax q)), such as binary weights
``mc<K>``      (1/K) sum_s p(y | f(x; theta_s)); exact, with its weights, if q has finite support
``lin``        linearised network: f ~ N(f(x; m), J Sigma J^T); probit approximation for classes,
               exact for the Gaussian likelihood (eq. in `bayesrule.posteriors.linear`)
``lin_mc<K>``  as ``lin``, with K logit draws instead of the probit approximation
=============  ====================================================================================

Draw number s comes from the generator ``child_seed(seed, "predict", s)``. It can be made again at
any time, so draws are never stored, one draw is used for all batches of a data set, and the first
8 of 64 draws are the 8 draws of ``mc8``. The model is run in evaluation mode through
`torch.func.functional_call`: its own parameters are never written, its modes are restored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bayesrule.errors import ConfigError, Unsupported
from bayesrule.posteriors.base import Posterior
from bayesrule.posteriors.collect import ClassCollector, MomentCollector, Predictions
from bayesrule.posteriors.linear import Input, eval_mode, forward_outputs, linearise, move_input
from bayesrule.seeding import child_seed, generator

__all__ = [
    "PredictiveLikelihood",
    "Predictor",
    "Rule",
    "forward_log_probs",
    "predict",
    "predict_dataset",
]

Batch = Mapping[str, Any]
Prepare = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class PredictiveLikelihood(Protocol):
    """What prediction needs of a likelihood (see `bayesrule.likelihoods`)."""

    @property
    def kind(self) -> str:
        """Return ``classification`` or ``regression``."""

    def log_probs(self, outputs: Tensor) -> Tensor:
        """Return log p(y = k | outputs), classes on the last axis."""

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of y given the outputs."""

    def integrate(self, mean_BC: Tensor, cov_BCC: Tensor) -> Tensor:
        """Return log E[p(y = k | f)] for f ~ N(mean, cov), approximately."""


@dataclass(frozen=True)
class Rule:
    """How predictions average over the posterior.

    Attributes:
        kind: ``mean``, ``mode``, ``mc``, ``lin`` or ``lin_mc``.
        n_samples: Number of draws; 0 for rules without.
    """

    kind: Literal["mean", "mode", "mc", "lin", "lin_mc"]
    n_samples: int = 0

    @classmethod
    def parse(cls, text: str | Rule) -> Rule:
        """Read a rule's name: ``mean``, ``mode``, ``mc64``, ``lin``, ``lin_mc1000``.

        Raises:
            ConfigError: The name is not a rule.
        """
        if isinstance(text, Rule):
            return text
        match = re.fullmatch(r"(mean|mode|lin)|(mc|lin_mc)([1-9]\d*)", text)
        if match is None:
            raise ConfigError(
                f"{text!r} is not a prediction rule; use 'mean', 'mode', 'mc<K>' (such as 'mc64'), "
                "'lin' or 'lin_mc<K>'"
            )
        plain, sampled, count = match.groups()
        kind: Any = plain or sampled
        return cls(kind, int(count or 0))

    def __str__(self) -> str:
        return f"{self.kind}{self.n_samples or ''}"


def forward_log_probs(
    model: nn.Module, state: Mapping[str, Tensor], input: Input, likelihood: PredictiveLikelihood
) -> Tensor:
    """Return log p(y = k | f(x; state)), in the model's current mode.

    Args:
        model: Any module.
        state: Parameters and buffers by name; what is missing comes from the model.
        input: A tensor or a mapping of keyword arguments.
        likelihood: A classification likelihood.

    Returns:
        Log-probabilities (B, K), or (B, T, K) for sequences.
    """
    return likelihood.log_probs(forward_outputs(model, state, input))


@dataclass(frozen=True)
class _Draw:
    """One weighted draw of a prediction; its state is made when asked for."""

    weight: float
    seed: int
    make: Callable[[], dict[str, Tensor]]
    random: bool = True


class Predictor:
    """Predicts batches under one posterior and one rule.

    Args:
        model: Network; left as it was after every call.
        posterior: Over all or some of the model's parameters; the others come from the model.
        likelihood: Maps outputs to probabilities or moments.
        rule: A `Rule` or its name.
        seed: The run's seed; draw s uses ``child_seed(seed, "predict", s)``.
        prepare: Changes the state of every network before it predicts, such as its running
            statistics (`bayesrule.posteriors.reestimate_batch_norm`).

    Raises:
        ConfigError: The rule's name is not known.
        Unsupported: The posterior has parameters or buffers that the model lacks, or another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        posterior: Posterior,
        likelihood: PredictiveLikelihood,
        rule: str | Rule = "mean",
        seed: int = 0,
        prepare: Prepare | None = None,
    ) -> None:
        self.model, self.posterior, self.likelihood = model, posterior, likelihood
        self.rule, self.seed, self.prepare = Rule.parse(rule), seed, prepare
        self._linear_posterior: Posterior | None = None
        _check_names(model, posterior)

    def draws(self) -> list[_Draw]:
        """Return the weighted draws of the rule (none for the linearised ones)."""
        q, rule = self.posterior, self.rule
        if rule.kind == "mean":
            return [_Draw(1.0, 0, q.mean_state, random=False)]
        if rule.kind == "mode":
            return [_Draw(1.0, 0, q.mode_state, random=False)]
        if rule.kind != "mc":
            return []
        support = q.support()
        if support is not None:
            return [
                _Draw(weight, 0, lambda state=state: state, random=False)  # type: ignore[misc]
                for weight, state in support
            ]

        def draw(s: int) -> _Draw:
            def make() -> dict[str, Tensor]:
                return q.nth_sample_state(s, generator(self.seed, "predict", s))

            return _Draw(1.0 / rule.n_samples, child_seed(self.seed, "predict", s), make)

        return [draw(s) for s in range(rule.n_samples)]

    @contextmanager
    def running(self, draw: _Draw) -> Iterator[Callable[[Input], Tensor]]:
        """Within this context the yielded function gives the outputs under `draw`."""
        state = draw.make()
        if self.prepare is not None:
            state = self.prepare(state)
        with eval_mode(self.model), torch.no_grad():
            if not draw.random:
                yield lambda input: forward_outputs(self.model, state, input)
            else:
                with self.posterior.sampling(self.model, draw.seed):
                    yield lambda input: forward_outputs(self.model, state, input)

    def outputs(self, input: Input) -> tuple[Tensor, Tensor]:
        """Return the outputs under every draw, (S, B, ...), and the weights (S,)."""
        draws = self.draws()
        if not draws:
            raise Unsupported(f"the rule {self.rule} has no parameter draws; use 'mc<K>'")
        results = []
        for draw in draws:
            with self.running(draw) as forward:
                results.append(forward(input))
        weights = torch.tensor([draw.weight for draw in draws], dtype=torch.float64)
        return torch.stack(results), weights

    def per_sample(self, input: Input) -> tuple[Tensor, Tensor]:
        """Return log_probs_SBK under every draw and the weights (S,), for classification."""
        outputs_SBC, weights_S = self.outputs(input)
        return self.likelihood.log_probs(outputs_SBC), weights_S

    def __call__(self, input: Input) -> Any:
        """Predict one batch.

        Args:
            input: A tensor or a mapping of keyword arguments.

        Returns:
            Classification: averaged log-probabilities (B, K), or (B, T, K). Regression: the pair
            mu_SB, sigma_SB of the predictive mixture (S = 1 for `mean` and `lin`).
        """
        if self.rule.kind in {"lin", "lin_mc"}:
            return self._linear(input)
        if self.likelihood.kind == "regression":
            return self.likelihood.moments(self.outputs(input)[0])
        log_probs_SBK, weights_S = self.per_sample(input)
        log_w = weights_S.log().to(log_probs_SBK)
        shape = (-1,) + (1,) * (log_probs_SBK.ndim - 1)
        return torch.logsumexp(log_probs_SBK + log_w.reshape(shape), dim=0)

    def _prepared(self) -> Posterior:
        """Return the posterior with the companions that its mean has after `prepare`."""
        if self.prepare is None:
            return self.posterior
        state = self.prepare(self.posterior.mean_state())
        own = set(self.posterior.names)
        return self.posterior.with_buffers({n: t for n, t in state.items() if n not in own})

    def _linear(self, input: Input) -> Any:
        if self._linear_posterior is None:
            self._linear_posterior = self._prepared()
        mean_BC, cov_BCC = linearise(self.model, self._linear_posterior, input)
        if self.likelihood.kind == "regression":
            mu, sigma = self.likelihood.moments(mean_BC)
            spread = cov_BCC.diagonal(dim1=-2, dim2=-1).clamp_min(0)
            return mu.unsqueeze(0), (sigma.square() + spread).sqrt().unsqueeze(0)
        if self.rule.kind == "lin":
            return self.likelihood.integrate(mean_BC, cov_BCC)
        logits_SBC = _draw_logits(mean_BC, cov_BCC, self.rule.n_samples, self.seed)
        log_probs_SBK = self.likelihood.log_probs(logits_SBC)
        return torch.logsumexp(log_probs_SBK, dim=0) - math.log(self.rule.n_samples)


def _draw_logits(mean_BC: Tensor, cov_BCC: Tensor, n: int, seed: int) -> Tensor:
    """Draw f_s = mean + cov^(1/2) eps_s, with eps_s shared by all items of a data set."""
    values, vectors = torch.linalg.eigh(cov_BCC)
    root_BCC = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    eps_SC = torch.randn(
        n, mean_BC.shape[-1], generator=generator(seed, "predict", "lin"), dtype=mean_BC.dtype
    ).to(mean_BC.device)
    return mean_BC + torch.einsum("bcd,sd->sbc", root_BCC, eps_SC)


def _check_names(model: nn.Module, posterior: Posterior) -> None:
    own = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in posterior.mean_state().items():
        if name not in own:
            raise Unsupported(
                f"the posterior has {name!r}, which {type(model).__name__} lacks; it was learnt on "
                "another model"
            )
        if own[name].shape != tensor.shape:
            raise Unsupported(
                f"the posterior and {type(model).__name__} differ in the shape of {name!r}: "
                f"{tuple(tensor.shape)} against {tuple(own[name].shape)}"
            )


def predict(
    model: nn.Module,
    posterior: Posterior,
    input: Input,
    rule: str | Rule,
    likelihood: PredictiveLikelihood,
    seed: int = 0,
) -> Any:
    """Predict one batch; see `Predictor`."""
    return Predictor(model, posterior, likelihood, rule, seed)(input)


def predict_dataset(
    model: nn.Module,
    posterior: Posterior,
    batches: Callable[[], Iterable[Batch]],
    rule: str | Rule,
    likelihood: PredictiveLikelihood,
    *,
    seed: int = 0,
    prefixes: Sequence[int] = (),
    keep: Literal["all", "target"] = "all",
    prepare: Prepare | None = None,
) -> Predictions:
    """Predict a data set: for each draw, all batches, with running sums over the draws.

    Memory is O(N K) for classes whatever the number of draws, O(N S) for regression.

    Args:
        model: Network; left as it was.
        posterior: Over all or some of the model's parameters.
        batches: Called once per draw; gives mappings with ``input`` and ``target`` (and, if there,
            ``index``), the same items in the same order each time.
        rule: A `Rule` or its name.
        likelihood: Maps outputs to probabilities or moments. Items whose target is its
            `ignore_index` are left out; sequences become one item per kept token.
        seed: The run's seed.
        prefixes: Numbers of draws at which the predictive of the first draws is kept as well.
        keep: ``target`` keeps only log p(target), for vocabularies where N x K is too large.
        prepare: See `Predictor`.

    Returns:
        The predictions, on the CPU.

    Raises:
        Unsupported: Shapes do not fit, or `batches` changed between two calls.
    """
    predictor = Predictor(model, posterior, likelihood, rule, seed, prepare)
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    ignore = getattr(likelihood, "ignore_index", None)
    collector: ClassCollector | MomentCollector
    if likelihood.kind == "regression":
        collector = MomentCollector(str(predictor.rule))
    else:
        collector = ClassCollector(str(predictor.rule), prefixes, keep, ignore)

    draws = predictor.draws()
    for draw in draws:
        with predictor.running(draw) as forward:
            for batch in batches():
                outputs = forward(move_input(batch["input"], device))
                if isinstance(collector, MomentCollector):
                    collector.add(*likelihood.moments(outputs), batch)
                else:
                    collector.add(likelihood.log_probs(outputs), batch, outputs)
        collector.end_of_draw(draw.weight)
    if not draws:
        for batch in batches():
            predicted = predictor(move_input(batch["input"], device))
            if isinstance(collector, MomentCollector):
                collector.add(predicted[0][0], predicted[1][0], batch)
            else:
                collector.add(predicted, batch, None)
        collector.end_of_draw(1.0)
    return collector.finish()
