"""The one loop behind every optimiser: perturb, take a gradient, keep a statistic, update.

Every method of the Bayesian learning rule moves a posterior q by gradients that are taken at chosen
or random points around its mean. One call of ``step(closure)`` is::

    for s = 1..S:                            # `mc_samples`; each rank takes its own S
        for stage = 1..`stages`:             # 1, or 2 where the point depends on a first gradient
            theta   = perturb(stage)         # written into the parameters
            loss_s  = closure()              # zero_grad, forward, mean loss, backward (`observing`)
            collect(stage)                   # adds the sufficient statistic of (theta, gradient)
            theta  <- mean                   # always, also when the closure raises
    statistics = mean over samples and ranks # one reduction
    update(statistics)                       # moves the posterior

`PosteriorOptimizer` owns the loop, the return of the mean, the noise streams, the reduction over
ranks and the saved state; a method (one file) owns `perturb`, `collect` and `update`.

The loss is a **mean** over the examples of the batch; what N is enters each method by `ess`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.optim.memory import Scratch, copy_tensors
from bayesrule.optim.own_gradients import OwnGradients
from bayesrule.optim.parallel import Parallel
from bayesrule.optim.streams import NoiseStreams

if TYPE_CHECKING:
    from bayesrule.posteriors import Posterior

__all__ = ["Closure", "Noise", "PosteriorOptimizer", "Sync"]

Closure = Callable[[], Tensor]
Noise = Callable[[Tensor], Tensor]
Sync = Literal["auto", "statistics", "gradients"]

_STATE_KEY = "bayesrule"


class PosteriorOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose parameters are the mean of a posterior.

    Subclasses call `torch.optim.Optimizer.__init__` (or a torch optimiser's) and then `setup`. They
    implement `perturb`, `collect`, `update` and `posterior`.

    Attributes:
        stages: Gradient evaluations per sample.
        stochastic: Whether `perturb` draws noise.
        observes: Whether the statistic needs more than ``.grad`` (see `observing`).
        relaxed: Whether gradients are taken at another point than the mean, without noise.
        shards: Whether it is exact on parameters sharded by ``fully_shard`` (held in the tests).
        mc_samples: Samples S per step (and per rank).
        batch_split: Parts of the batch that samples take in turn (see `part`).
        sample_index: Number s of the sample that the closure is being called for, from 0.
    """

    stages: int = 1
    stochastic: bool = False
    observes: bool = False
    relaxed: bool = False
    shards: bool = False

    # ---------------------------------------------------------------- set-up

    def setup(
        self,
        *,
        mc_samples: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
        batch_split: int = 1,
    ) -> None:
        """Prepare sampling; called once at the end of a subclass's ``__init__``.

        Args:
            mc_samples: Samples per step, S >= 1.
            seed: Seed of the optimiser's own noise stream (default: `torch.initial_seed()`).
            generator: The noise stream itself, instead of `seed`.
            noise: Replaces the standard draw: called once per parameter tensor and sample, in
                parameter order, with the tensor whose shape, dtype and device it must return.
            sync: Over several processes. ``"statistics"`` (what ``"auto"`` means): every rank draws
                its own noise and the statistics are averaged by `step`; DDP must not average
                gradients. ``"gradients"``: every rank draws the same noise and gradients are
                averaged outside (DDP, FSDP).
            batch_split: Parts of the batch, each with `mc_samples` samples of its own; see `part`.

        Raises:
            ValueError: If an option is out of range.
        """
        if batch_split < 1 or int(batch_split) != batch_split:
            raise ValueError(f"batch_split must be a whole number >= 1, got {batch_split}")
        if mc_samples < 1 or int(mc_samples) != mc_samples:
            raise ValueError(f"mc_samples must be a whole number >= 1, got {mc_samples}")
        if seed is not None and generator is not None:
            raise ValueError("give either seed= or generator=, not both")
        if sync not in ("auto", "statistics", "gradients"):
            raise ValueError(f"sync must be 'auto', 'statistics' or 'gradients', got {sync!r}")
        self.mc_samples = int(mc_samples) * int(batch_split)
        self.batch_split = int(batch_split)
        self.sample_index = 0
        self._noise = noise
        self._streams = NoiseStreams(seed, generator)
        self._parallel = Parallel("statistics" if sync == "auto" else sync, self.stochastic)
        self._sums: dict[str, list[Tensor]] = {}
        self._local: set[str] = set()
        self._collected = 0
        self._sampling = False
        self._scratch = Scratch()
        self._own = OwnGradients()
        for param in self._all_params():
            self._refuse_half(param)

    def _refuse_half(self, param: Tensor) -> None:
        if param.requires_grad and param.dtype in (torch.float16, torch.bfloat16):
            raise Unsupported(
                f"{type(self).__name__} keeps its posterior in the parameters, and "
                f"{param.dtype} loses it; keep the parameters in float32 and use autocast "
                "(trainer.precision=bf16-mixed)."
            )

    # ------------------------------------------------- what a method provides

    @abstractmethod
    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Write the point of gradient evaluation into the parameters (their mean is kept aside).

        Args:
            stage: 0, or 1 for the second gradient of a two-stage method.
            noise: One standard draw per trainable tensor when `stochastic` and `stage` is 0.
        """

    def place_draw(self, noise: list[Tensor] | None) -> None:
        """Write a draw theta ~ q for prediction into the parameters.

        The point of gradient evaluation, unless a method trains at a relaxed one.

        Args:
            noise: One standard draw per trainable tensor when `random`.
        """
        self.perturb(0, noise)

    @property
    def random(self) -> bool:
        """Whether draws for prediction need noise."""
        return self.stochastic

    @abstractmethod
    def collect(self, stage: int) -> None:
        """Turn the gradients in ``.grad`` into statistics with `accumulate`."""

    @abstractmethod
    def update(self, statistics: dict[str, list[Tensor]]) -> None:
        """Move the posterior by the statistics' means over samples and ranks."""

    @abstractmethod
    def posterior(self, model: torch.nn.Module | None = None) -> Posterior:
        """Return the posterior as a value, keyed by parameter name.

        Args:
            model: Gives the names when the optimiser was built from ``model.parameters()``. An
                optimiser built from ``model.named_parameters()`` knows them; without either, keys
                are ``"0"``, ``"1"``, ... in parameter order.
        """

    def observing(self) -> AbstractContextManager[None]:
        """Return the context in which a training sample's forward and backward passes run.

        A method whose statistic needs more than ``.grad`` watches the network here.
        """
        return nullcontext()

    def unobserved(self) -> AbstractContextManager[None]:
        """Return the context of passes inside a closure that are not over the batch's examples.

        A penalty's own passes (replay, functional regularisation) run here: their gradient counts,
        and a method that watches the network records nothing of them.
        """
        return nullcontext()

    def set_posterior(self, q: Posterior, model: torch.nn.Module | None = None) -> None:
        """Go on from `q` instead of the initial posterior.

        Args:
            q: A posterior of the method's family over its parameters.
            model: Gives the names, as for `posterior`.

        Raises:
            Unsupported: The method cannot start from this posterior.
        """
        raise Unsupported(f"{type(self).__name__} cannot start from a {type(q).__name__}")

    def set_prior(self, prior: Posterior, model: torch.nn.Module | None = None) -> None:
        """Make `prior` the prior of the objective ess E_q[loss] + KL(q || prior).

        In continual learning the prior is yesterday's posterior, as `as_prior` gives it.

        Args:
            prior: A distribution of the method's family over its parameters.
            model: Gives the names, as for `posterior`.

        Raises:
            Unsupported: The method has no prior that can be this distribution.
        """
        raise Unsupported(f"{type(self).__name__} cannot take a {type(prior).__name__} as prior")

    def as_prior(self, model: torch.nn.Module | None = None) -> Posterior:
        """Return what is known now as the prior of what comes next.

        The posterior, without anything in it that is no information (a damping, say): learning two
        data sets one after the other, with this as the second one's prior, composes exactly
        wherever the method is exact.

        Args:
            model: Gives the names, as for `posterior`.

        Raises:
            Unsupported: The method's options leave no posterior that composes.
        """
        return self.posterior(model)

    # ------------------------------------------------------------ parameters

    def _all_params(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def trainable(self) -> list[Tensor]:
        """Return the parameters that are learnt: those that require a gradient, in order."""
        return [param for param in self._all_params() if param.requires_grad]

    def names(self, model: torch.nn.Module | None = None) -> dict[Tensor, str]:
        """Return the name of each parameter (see `posterior`)."""
        if model is not None:
            known: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
            missing = [i for i, p in enumerate(self._all_params()) if p not in known]
            if missing:
                raise ValueError(f"parameter {missing[0]} of the optimiser is not in the model")
            return known
        names: dict[Tensor, str] = {}
        for group in self.param_groups:
            given = group.get("param_names") or [None] * len(group["params"])
            for param, name in zip(group["params"], given, strict=True):
                names[param] = name if name is not None else str(len(names))
        return names

    def named_mean(self, model: torch.nn.Module | None = None) -> dict[str, Tensor]:
        """Return a copy of the mean of every trainable parameter, by name."""
        self._refuse_inside_a_sample()
        names = self.names(model)
        return {names[param]: param.detach().clone() for param in self.trainable()}

    # ----------------------------------------------------------------- noise

    def standard_noise(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill `out` with the family's standard noise (a standard normal unless overridden)."""
        out.normal_(generator=generator)

    def _draw(self, stream: str) -> list[Tensor]:
        """Draw the noise of one sample: one tensor per trainable parameter, in order.

        The tensors are the caller's to overwrite; those of the next training draw are the same.
        """
        full, first = [], next(self._all_params())
        for param in self.trainable():
            like = self._parallel.full_like(param)
            # a prediction between two training samples must leave their statistic alone
            draw = self._scratch.like("noise", like) if stream == "train" else like.detach().clone()
            if self._noise is None:
                self.standard_noise(draw, self._streams.get(stream, first, self._parallel))
            else:
                given = self._noise(like)
                if given.shape != like.shape:
                    raise ValueError(
                        f"noise= returned shape {tuple(given.shape)} for a parameter of shape "
                        f"{tuple(like.shape)}"
                    )
                draw.copy_(given)
            full.append(draw)
        if stream == "train":
            self._parallel.check_noise(full)
        return [
            self._parallel.local_part(draw, param)
            for draw, param in zip(full, self.trainable(), strict=True)
        ]

    # ---------------------------------------------------------------- sample

    @contextmanager
    def sampled_params(self, train: bool = False) -> Iterator[None]:
        """Put a draw theta ~ q into the parameters; the mean is back afterwards, always.

        With ``train=True`` the gradients that the body leaves in ``.grad`` are collected as one
        sample, to be used by a following ``step()`` without a closure::

            for _ in range(S):
                with opt.sampled_params(train=True):
                    opt.zero_grad(); loss = ...; loss.backward()
            opt.step()

        Draws for prediction come from a stream of their own, so evaluating more or less often never
        changes training.

        Raises:
            Unsupported: With ``train=True`` for a method that needs several gradients per sample.
        """
        self._refuse_nesting()
        if train and self.stages > 1:
            raise Unsupported(
                f"{type(self).__name__} takes {self.stages} gradients per sample, the second at a "
                "point that depends on the first: use opt.step(closure)."
            )
        if train:
            if self._collected == 0:
                self._parallel.skip(self._parallel.samples_before(self.mc_samples), self._skip)
            self._forget_grads()
        noise = None
        if self.stochastic if train else self.random:
            with torch.no_grad():
                noise = self._draw("train" if train else "predict")
        with self._at(0, noise, train):
            with self.observing() if train else nullcontext():
                yield
            if train:
                with torch.no_grad():
                    self.collect(0)
                self._collected += 1

    @contextmanager
    def _at(self, stage: int, noise: list[Tensor] | None, train: bool = True) -> Iterator[None]:
        """Hold the parameters at the point of `stage`; restore the mean bit by bit."""
        params = self._perturbed(stage)
        with torch.no_grad():
            mean = self._scratch.copy("mean", params)
        self._sampling = True
        try:
            with torch.no_grad():
                self.perturb(stage, noise) if train else self.place_draw(noise)
            torch.clear_autocast_cache()  # it holds half-precision copies of other parameters
            yield
        finally:
            with torch.no_grad():
                copy_tensors(params, mean)
            torch.clear_autocast_cache()
            self._sampling = False

    def _perturbed(self, stage: int) -> list[Tensor]:
        """Return the parameters that `perturb` moves at this stage."""
        return self.trainable()

    def _refuse_nesting(self) -> None:
        if self._sampling:
            raise RuntimeError("a sample is already in the parameters: do not nest")

    def _refuse_inside_a_sample(self) -> None:
        if self._sampling:
            raise RuntimeError("a sample is in the parameters; ask for the posterior outside")

    def _skip(self) -> None:
        if self.stochastic:
            self._draw("train")

    def part(self, values: Tensor) -> Tensor:
        """Return the part of a batch that the current sample is for; all of it by default.

        With ``batch_split=k`` sample s takes part s mod k, and the update averages over parts
        (m-sharpness of SAM and bSAM). A closure of a plain loop calls it on inputs and targets.

        Raises:
            ValueError: If the batch has fewer items than there are parts.
        """
        if self.batch_split == 1:
            return values
        if len(values) < self.batch_split:
            raise ValueError(
                f"a batch of {len(values)} items cannot be split into batch_split="
                f"{self.batch_split} parts; drop the last batch or make it smaller"
            )
        return values.tensor_split(self.batch_split)[self.sample_index % self.batch_split]

    def accumulate(self, name: str, values: list[Tensor], *, local: bool = False) -> None:
        """Add one sample's statistic (one tensor per trainable parameter) to its running sum.

        The tensors are taken over: a method passes scratch tensors, or gradients as they are.

        Args:
            name: Name of the statistic.
            values: Its value for this sample.
            local: Whether it is of this rank's examples also where gradients are averaged outside.
        """
        if local:
            self._local.add(name)
        if name in self._sums:
            torch._foreach_add_(self._sums[name], values)
        elif self.mc_samples > 1:  # a sum of its own: `values` may be the .grad tensors themselves
            self._sums[name] = [value.clone() for value in values]
        else:
            self._sums[name] = values

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the trainable parameters; an unused one has gradient zero."""
        return [
            torch.zeros_like(param) if param.grad is None else param.grad
            for param in self.trainable()
        ]

    # ------------------------------------------------------------------ step

    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step of the method.

        Args:
            closure: Zeroes the gradients, computes the mean loss of the batch, calls backward and
                returns the loss. Called once per sample and stage. It may split the batch into
                micro-batches and clip gradients. Without it, the samples collected by
                ``sampled_params(train=True)`` are used.

        Returns:
            The loss averaged over samples and ranks (None without a closure).

        Raises:
            RuntimeError: If gradients of an earlier backward pass are still there, or nothing was
                collected.
        """
        self._refuse_nesting()
        loss: Tensor | None = None
        try:
            if closure is not None:
                loss = self._run(closure)
            elif self._collected == 0:
                self._collect_plain()
            if self._collected != self.mc_samples:
                raise RuntimeError(
                    f"{self._collected} samples were collected, mc_samples={self.mc_samples}"
                )
            with torch.no_grad():
                means, loss = self._parallel.reduce(
                    self._sums, self._collected, loss, self.trainable(), self._local
                )
                for group in self.param_groups:
                    group["steps"] = group.get("steps", 0) + 1
                self.update(means)
            torch.clear_autocast_cache()
            self._parallel.skip(self._parallel.samples_after(self.mc_samples), self._skip)
        finally:
            self._sums, self._local, self._collected = {}, set(), 0
        self._own.remember(self._all_params())
        return loss

    def _run(self, closure: Closure) -> Tensor:
        if self._collected:
            raise RuntimeError(
                "step(closure) after sampled_params(train=True): use one way or the other"
            )
        self._own.refuse_foreign(self._all_params())
        self._parallel.skip(self._parallel.samples_before(self.mc_samples), self._skip)
        total: Tensor | None = None
        for index in range(self.mc_samples):
            self.sample_index = index
            with torch.no_grad():
                noise = self._draw("train") if self.stochastic else None
            for stage in range(self.stages):
                self._forget_grads()
                with self._at(stage, noise if stage == 0 else None):
                    with torch.enable_grad(), self.observing():
                        loss = closure()
                    if loss is None:
                        raise RuntimeError("the closure must return the loss")
                    with torch.no_grad():
                        self.collect(stage)
                if stage == 0:
                    total = loss.detach() if total is None else total + loss.detach()
            self._collected += 1
        assert total is not None
        return total / self.mc_samples

    def _forget_grads(self) -> None:
        for param in self._all_params():
            param.grad = None

    def _collect_plain(self) -> None:
        """Take gradients left by a plain ``loss.backward()`` (taken at the mean)."""
        if self.stochastic or self.relaxed or self.stages > 1 or self.observes:
            raise RuntimeError(
                f"{type(self).__name__}.step() has no sample: pass a closure, or call backward "
                "inside `with opt.sampled_params(train=True)`."
            )
        if self.mc_samples != 1:
            raise RuntimeError("step() without a closure takes one sample")
        with torch.no_grad():
            self.collect(0)
        self._collected = 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        super().zero_grad(set_to_none)
        self._own.remember(self._all_params())

    # ----------------------------------------------------------------- state

    def param_state(self, param: Tensor, **fill: float) -> dict[str, Any]:
        """Return the parameter's state; make its tensors at first use, follow ``.to()``.

        Args:
            param: The parameter.
            **fill: Name and initial value of each state tensor.
        """
        state = self.state[param]
        for name, value in fill.items():
            if name not in state:
                self._refuse_half(param)
                state[name] = torch.full_like(param, value, requires_grad=False)
            elif (state[name].device, state[name].dtype) != (param.device, param.dtype):
                state[name] = state[name].to(param.device, param.dtype)
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return everything a bit-equal continuation needs, noise streams included."""
        saved = super().state_dict()
        saved[_STATE_KEY] = self._streams.state_dict()
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` saved.

        Raises:
            ValueError: If the state was not saved by an optimiser of bayesrule.
        """
        if _STATE_KEY not in state_dict:
            raise ValueError("no noise streams in this state: it is not from bayesrule")
        extra = state_dict[_STATE_KEY]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != _STATE_KEY})
        self._streams.load_state_dict(extra, next(self._all_params()).device)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{type(self).__name__} owns random streams; save state_dict() instead of pickling it"
        )
