"""Per-example gradients of a training step from one backward pass, by hooks.

Let L = (1/B) sum_i l_i be the mean loss that `backward` is called on. The gradient d_i of L with
respect to example i's rows of a layer's output is 1/B times that of its own loss l_i, so with
`LayerRule.rows` (which sums over positions) and every use of the parameter in the forward pass

    g_i = d l_i / d theta = B sum_uses rows_i                                          per example

and the statistics of the batch are

    squares     (1/B) sum_i g_i^2                              diagonal of the empirical Fisher
    gradients   g_i                                            (B, *shape)
    factors     G = B sum_it d_it d_it^T,  A = (1/B) sum_i mean_t a_it a_it^T
                                                               empirical Fisher of W ~ G (x) A

The uses of a weight that is used more than once count as positions t in its factors.

Micro-batches whose losses are weighted by their share of the batch are the whole batch: B counts
the examples of all forward passes that a backward pass reached.

What must hold: every layer keeps the examples on its leading axis, and a parameter takes part in
the forward pass only inside the layer that owns it. Both are checked while recording. A model's
outputs and gradients are the same bits with and without a recorder.

Measured on one CPU thread (`benchmarks/per_example_gradients.py`; a LeNet-5 and ``model=cnn``): a
forward and a backward pass with squares take 1.4 to 1.6 times as long as without at batch 128, 1.5
to 1.9 times at batch 32; the squares alone cost 1.0 to 1.9 backward passes.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bayesrule.curvature.layer_rules import LayerRule, accumulation_dtype, own, rule_for
from bayesrule.curvature.statistics import Collected, Factors, Gradients, Squares, Use
from bayesrule.errors import Unsupported
from bayesrule.posteriors.params import Params

__all__ = ["PerExampleRecorder", "Statistic"]

Statistic = Literal["squares", "gradients", "factors"]
_STATISTICS: dict[str, type[Collected]] = {
    "squares": Squares,
    "gradients": Gradients,
    "factors": Factors,
}


@dataclass(eq=False)
class _Layer:
    """A layer with parameters to cover: its own name of each -> the model's name."""

    name: str
    module: nn.Module
    rule: LayerRule
    params: dict[str, str]


@dataclass(eq=False)
class _Pass:
    """One forward pass of the model and what is still waiting for gradients in it."""

    index: int
    examples: int | None
    open: bool = True
    reached: bool = False
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waiting: dict[str, list[Use]] = field(default_factory=lambda: defaultdict(list))


class PerExampleRecorder:
    """Statistics of per-example gradients, collected during ordinary training passes.

    Example:
        >>> rec = PerExampleRecorder(model)
        >>> with rec.recording():
        ...     loss = criterion(model(x), y)  # a mean over examples
        ...     loss.backward()
        >>> hess = rec.mean_squares()  # {name: (1/B) sum_i g_i^2}

    Args:
        model: Any module whose covered parameters lie in layers with a rule (see `layer_rules`) or
            in modules without children. Wrap it (DDP) as you like; call the whole of it.
        names: Parameters to cover, as in ``model.named_parameters()``; the trainable ones when
            None.
        statistic: What to collect: ``"squares"``, ``"gradients"`` or ``"factors"``.

    Raises:
        Unsupported: A layer has no per-example gradients; the message names it and its type.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Collection[str] | None = None,
        *,
        statistic: Statistic = "squares",
    ) -> None:
        if statistic not in _STATISTICS:
            raise ValueError(f"statistic must be one of {list(_STATISTICS)}, got {statistic!r}")
        self.model = model
        self.statistic = statistic
        self.params = _wanted(model, names)
        self._layers = _layers(model, {id(p): name for name, p in self.params.items()})
        for layer in self._layers if statistic == "factors" else ():
            reason = layer.rule.factor_refusal(layer.module, layer.params)
            if reason is not None:
                raise _refusal(layer, f"{reason}. Freeze it")
        self._collected: Collected | None = None  # of the last recording
        self._sink: Collected | None = None  # of the recording that goes on
        self._passes: list[_Pass] = []
        self._current: _Pass | None = None
        self._inside_model = self._inside_layer = 0
        self._busy = False

    # ------------------------------------------------------------------- recording

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Collect the statistic from the forward and backward passes of the body.

        The hooks exist inside only. What an earlier recording collected is forgotten.
        """
        if self._sink is not None:
            raise RuntimeError("this recorder is already recording: do not nest")
        handles: list[Any] = []
        self._collected, self._sink = None, _STATISTICS[self.statistic]()
        self._inside_model = self._inside_layer = 0
        try:
            self._attach(handles)
            yield
            self._finish(self._sink)
            self._collected = self._sink
        finally:
            for handle in handles:
                handle.remove()
            self._sink, self._passes, self._current = None, [], None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing of the passes in the body, which may be inside of a recording or not.

        For passes that are not over the batch's examples. A backward pass in the body must be of
        forward passes in the body.
        """
        busy, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = busy

    def _attach(self, handles: list[Any]) -> None:
        """Register the hooks: the model's own outermost, and all of them also on errors."""
        before = [(self.model, self._enter_model)]
        after = [(self.model, self._leave_model)]
        for layer in self._layers:
            before.append((layer.module, self._enter_layer))
            after.insert(0, (layer.module, self._after(layer)))
        for module, enter in before:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        for module, leave in after:
            handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))

    def _enter_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._busy:
            return
        self._inside_model += 1
        if self._inside_model > 1:
            return
        if torch.compiler.is_compiling():
            raise Unsupported("per-example gradients need a model that is not compiled")
        self._current = _Pass(len(self._passes), _leading_size([*args, *kwargs.values()]))
        self._passes.append(self._current)
        self._watch = _ParameterWatch(self)
        self._watch.__enter__()

    def _leave_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._busy:
            return
        self._inside_model -= 1
        if self._inside_model == 0 and self._current is not None:
            self._watch.__exit__(None, None, None)
            self._current.open = False
            self._current = None

    def _enter_layer(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inside_layer += not self._busy

    def _after(self, layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._busy:
                return
            self._inside_layer -= 1
            if output is None or not torch.is_grad_enabled():
                return  # an error in the layer, or a pass without gradients
            if not isinstance(output, Tensor):
                raise _refusal(layer, "it returns something other than one tensor")
            if kwargs and (args or len(kwargs) > 1):
                raise _refusal(layer, "it was called with keyword arguments")
            with torch._C.DisableTorchFunction():  # the watch is not for what we do here
                self._follow(layer, (*args, *kwargs.values()), output)

        return hook

    def _follow(self, layer: _Layer, args: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the layer's rule needs until the gradient of its output arrives."""
        names = [name for name in layer.params if own(layer.module, name).requires_grad]
        current = self._current
        if not names or not output.requires_grad:
            return
        if current is None:
            output.register_hook(lambda _: self._outside(layer))
            return
        try:
            with torch.no_grad(), self._at_work(output):
                kept = layer.rule.keep(layer.module, args)
        except Unsupported as error:
            raise _refusal(layer, str(error)) from error
        self._check_rows(layer, current, (*kept, output))
        for name in names:
            current.calls[layer.params[name]] += 1
        use = Use(layer.rule, layer.module, kept)
        output.register_hook(self._on_gradient(layer, current, names, use))

    def _check_rows(self, layer: _Layer, current: _Pass, tensors: tuple[Tensor, ...]) -> None:
        for tensor in tensors:
            rows = tensor.shape[0] if tensor.ndim else 0
            current.examples = rows if current.examples is None else current.examples
            if rows != current.examples:
                raise _refusal(
                    layer,
                    f"it works on {rows} rows in a forward pass over {current.examples} examples, "
                    "and every layer must keep the examples on its leading axis",
                )

    def _outside(self, layer: _Layer) -> None:
        raise _refusal(
            layer,
            "it was called outside a forward pass of the recorder's model: call the model itself, "
            "not a part of it, and checkpoint activations with use_reentrant=False",
        )

    # ------------------------------------------------------------------- gradients

    def _on_gradient(
        self, layer: _Layer, current: _Pass, names: list[str], use: Use
    ) -> Callable[[Tensor], None]:
        recorder = weakref.ref(self)

        def hook(grad: Tensor) -> None:
            self = recorder()
            if self is None or self._sink is None or current not in self._passes:
                return  # a backward pass after the recording
            if current.open:
                raise _refusal(layer, "its gradient was taken inside the forward pass")
            if use.grad is not None or use.done:
                raise _refusal(layer, "two backward passes went through one forward pass")
            with torch.no_grad(), self._at_work(grad):
                use.receive(grad.detach(), accumulation_dtype(own(layer.module, names[0])))
                self._arrived(self._sink, layer, current, names, use)

        return hook

    def _arrived(
        self, sink: Collected, layer: _Layer, current: _Pass, names: list[str], use: Use
    ) -> None:
        """Collect parameters with one use at once; wait for the other uses of the rest."""
        current.reached = True
        alone = {n: layer.params[n] for n in names if current.calls[layer.params[n]] == 1}
        try:
            if alone:
                sink.add(current.index, use, alone)
            for short in names:
                name = layer.params[short]
                if short in alone:
                    continue
                current.waiting[name].append(use.of(short))
                if len(current.waiting[name]) == current.calls[name]:
                    sink.add_shared(current.index, name, current.waiting.pop(name))
        except Unsupported as error:
            raise _refusal(layer, str(error)) from error
        use.forget()

    def _finish(self, collected: Collected) -> None:
        """Collect parameters of which some uses never got a gradient; count the examples."""
        reached = [p for p in self._passes if p.reached]
        with torch.no_grad():
            for one in reached:
                for name, uses in one.waiting.items():
                    with self._at_work(uses[0].grad):
                        collected.add_shared(one.index, name, uses)
        collected.examples = {p.index: p.examples or 0 for p in reached}

    @contextmanager
    def _at_work(self, like: Tensor | None) -> Iterator[None]:
        """Compute without hooks and outside autocast."""
        device = "cpu" if like is None else like.device.type
        outside: AbstractContextManager[Any] = nullcontext()
        if torch.is_autocast_enabled(device):
            outside = torch.autocast(device, enabled=False)
        busy, self._busy = self._busy, True
        try:
            with outside:
                yield
        finally:
            self._busy = busy

    # --------------------------------------------------------------------- results

    @property
    def examples(self) -> int:
        """Number of examples B that the last recording saw."""
        return sum(self._results().examples.values())

    def _results(self) -> Collected:
        if self._collected is None:
            raise RuntimeError("nothing recorded: run forward and backward in `with recording():`")
        if not self._collected.examples:
            raise RuntimeError("no backward pass went through the model's layers while recording")
        return self._collected

    def mean_squares(self) -> Params:
        """Return (1/B) sum_i g_i^2 by parameter name; zero for a parameter without gradients."""
        collected = self._results()
        if not isinstance(collected, Squares):
            raise RuntimeError(f"the recorder collects {self.statistic}, not squares")
        return collected.result(self.params)

    def gradients(self) -> Params:
        """Return every g_i by parameter name, (B, *shape), in the order of the forward passes."""
        collected = self._results()
        if not isinstance(collected, Gradients):
            raise RuntimeError(f"the recorder collects {self.statistic}, not gradients")
        return collected.result(self.params)

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (G, A) by parameter name: the mean empirical Fisher of each is ~ G (x) A.

        A parameter of shape (r, ...) is read as a matrix of r rows; G is (r, r), A (c, c). One with
        c = 1 (biases, norms) has A = 1 and the exact G. Without gradients, G = 0 and A = 0.
        """
        collected = self._results()
        if not isinstance(collected, Factors):
            raise RuntimeError(f"the recorder collects {self.statistic}, not factors")
        return collected.result(self.params)


class _ParameterWatch(TorchFunctionMode):
    """Refuses a parameter that enters the forward pass outside the layer that owns it."""

    def __init__(self, recorder: PerExampleRecorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._names = {  # not `recorder.params`: `functional_call` puts others in their place
            id(layer.module._parameters[short]): name
            for layer in recorder._layers
            for short, name in layer.params.items()
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._recorder._inside_layer == 0 and _differentiable(output):
            for arg in _flat([*args, *(kwargs or {}).values()]):
                if id(arg) in self._names:
                    name = self._names[id(arg)]
                    where = getattr(func, "__name__", str(func))
                    raise Unsupported(
                        f"no per-example gradients for parameter {name!r}: the forward pass uses "
                        f"it outside the layer that owns it (in {where}). Put that computation "
                        "into the layer's own forward, or freeze the parameter"
                    )
        return output


def _flat(values: Collection[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _differentiable(output: Any) -> bool:
    if isinstance(output, Tensor):
        return output.grad_fn is not None
    return isinstance(output, list | tuple) and any(map(_differentiable, output))


def _leading_size(inputs: Collection[Any]) -> int | None:
    """Return the leading size of the first tensor among a model's arguments."""
    for value in inputs:
        if isinstance(value, Tensor) and value.ndim:
            return value.shape[0]
        if isinstance(value, Mapping | list | tuple):
            nested = value.values() if isinstance(value, Mapping) else value
            found = _leading_size(list(nested))
            if found is not None:
                return found
    return None


def _refusal(layer: _Layer, reason: str) -> Unsupported:
    return Unsupported(
        f"no per-example gradients for layer {layer.name!r} ({type(layer.module).__name__}): "
        f"{reason}"
    )


def _wanted(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    """Return the parameters to cover by name, in the model's order."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in names or ():
        if name not in trainable:
            raise Unsupported(f"{type(model).__name__} has no trainable parameter {name!r}")
    if names is None and not trainable:
        raise Unsupported(f"{type(model).__name__} has no trainable parameters")
    return {n: p for n, p in trainable.items() if names is None or n in names}


def _layers(model: nn.Module, wanted: Mapping[int, str]) -> list[_Layer]:
    """Return the layers that own the wanted parameters, with their rules."""
    layers = []
    for name, module in model.named_modules():
        params = {n: wanted[id(p)] for n, p in module._parameters.items() if id(p) in wanted}
        if params:
            where = name or type(model).__name__
            layers.append(_Layer(where, module, rule_for(where, module, list(params)), params))
    return layers
