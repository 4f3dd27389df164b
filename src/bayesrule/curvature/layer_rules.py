"""Per-example gradients of one layer from its inputs and output gradients, layer by layer.

Let the layer map a_i to s_i for example i (the leading axis), and let d_i = d L / d s_i. With
positions t (of a sequence or an image, where the weight is shared)

    Linear, Conv2d    g_i[W] = sum_t d_it a_it^T        g_i[b] = sum_t d_it
    Embedding         g_i[W][v] = sum_{t: token_it = v} d_it
    norms             g_i[gamma] = sum_t d_it * x̂_it    g_i[beta] = sum_t d_it

with x̂ the normalised input (of BatchNorm: by the statistics that the forward pass used, taken as
constants). Without positions sum_i g_i[W]^2 = (d * d)^T (a * a) needs no g_i (Goodfellow 2015,
arXiv:1510.01799); with positions the sum over t comes before the square, a few examples at a time.

Any other module that has parameters and no children is differentiated as it stands, one example at
a time under `torch.func.vmap`: exact whenever the module treats the examples one by one.
`register_rule` adds a rule for a type of layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from bayesrule.errors import Unsupported

__all__ = ["LayerRule", "register_rule", "rule_for"]

Rows = dict[str, Tensor]

_CPU_ELEMENTS = 2**19
"""Elements of the largest temporary on the CPU: what is summed is still in the cache."""
_DEVICE_ELEMENTS = 2**26
"""The same on an accelerator, where few large kernels win."""


_NO_BATCH_AXIS = "it was called without a leading axis of examples"


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the parameter's type, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def slices(n: int, per_example: int, device: torch.device) -> Iterator[slice]:
    """Cut n examples into parts whose temporaries of `per_example` elements stay small."""
    limit = _CPU_ELEMENTS if device.type == "cpu" else _DEVICE_ELEMENTS
    step = max(1, limit // max(1, per_example))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


class LayerRule(ABC):
    """How one call of a layer of some type becomes per-example gradients.

    A rule for another type of layer implements `rows`; `keep`, `refusal` and the two sums have
    defaults that hold for any layer.
    """

    parameters: tuple[str, ...] | None = ("weight", "bias")
    """Names that the rule knows; None for all."""

    def refusal(self, module: nn.Module) -> str | None:
        """Return why the layer has no per-example gradients, or None."""
        del module
        return None

    def keep(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Return what `rows` needs of the forward pass: tensors with the examples leading."""
        del module
        return (args[0].detach(),)

    @abstractmethod
    def rows(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> Rows:
        """Return sum_t of every example's gradient, each (B, *shape of the parameter).

        Args:
            module: The layer.
            names: Its own parameters to cover, as the layer calls them.
            kept: What `keep` returned, or the same examples of each.
            grad: Gradient with respect to the layer's output, (B, ...).
        """

    def squares(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> Rows:
        """Return sum_i rows_i^2 in the parameters' shapes, a few examples at a time."""
        total: Rows = {}
        for part in slices(len(grad), self.elements(module, names, kept, grad), grad.device):
            rows = self.rows(module, names, tuple(t[part] for t in kept), grad[part])
            for name, row in rows.items():
                add(total, name, sum_of_squares(row))
        return total

    def factors(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (sum_it d_it d_it^T, sum_i mean_t a_it a_it^T) of parameters read as matrices.

        A parameter of one column has the exact sum_i rows_i rows_i^T, and B as its second factor.
        """
        return {n: outer_factors(r) for n, r in self.rows(module, names, kept, grad).items()}

    def factor_refusal(self, module: nn.Module, names: Collection[str]) -> str | None:
        """Return why the parameters have no Kronecker factors, or None."""
        for name in names:
            if columns(own(module, name)) > 1:
                return f"{name!r} is a matrix, and its rule has no Kronecker factors for it"
        return None

    def elements(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> int:
        """Return the elements per example of the largest temporary of `rows`."""
        largest = max(own(module, name).numel() for name in names)
        return max(largest, *(t[0].numel() for t in kept), grad[0].numel())


def own(module: nn.Module, name: str) -> Tensor:
    """Return the module's own parameter of this name."""
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def columns(parameter: Tensor) -> int:
    """Return the columns of a parameter of shape (r, ...) read as a matrix of r rows."""
    return parameter[0].numel() if parameter.ndim and len(parameter) else 1


def outer_factors(row: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum_i rows_i rows_i^T, B) of a parameter of one column."""
    flat = row.reshape(len(row), -1)
    return flat.mT @ flat, flat.new_full((1, 1), len(flat))


def add(total: Rows, name: str, term: Tensor) -> None:
    """Add in place to the running sum of this name."""
    if name in total:
        total[name] += term
    else:
        total[name] = term


def sum_of_squares(row: Tensor) -> Tensor:
    """Return sum_b row_b^2, (*shape)."""
    return row.square().sum(0)


# ------------------------------------------------------------------------- Linear and convolution


class _MatrixRule(LayerRule):
    """Layers s = W a + b whose weight is read as (groups, outputs, inputs)."""

    @abstractmethod
    def positions(self, module: nn.Module, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, groups, I, T) and output gradients (B, groups, O, T)."""

    def rows(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> Rows:
        """Return sum_t d_t a_t^T and sum_t d_t."""
        rows: Rows = {}
        if "weight" in names:
            a_BGIT, d_BGOT = self.positions(module, kept[0], grad)
            rows["weight"] = (d_BGOT @ a_BGIT.mT).reshape(-1, *own(module, "weight").shape)
        if "bias" in names:
            rows["bias"] = self.bias_rows(grad)
        return rows

    @abstractmethod
    def bias_rows(self, grad: Tensor) -> Tensor:
        """Return sum_t d_t, (B, O)."""

    def factors(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (sum_it d_it d_it^T, sum_i mean_t a_it a_it^T); a bias has the exact Fisher."""
        result = {}
        if "weight" in names:
            a_BGIT, d_BGOT = self.positions(module, kept[0], grad)
            a, d = (t.squeeze(1).transpose(0, 1).flatten(1) for t in (a_BGIT, d_BGOT))
            result["weight"] = (d @ d.mT, a @ a.mT / a_BGIT.shape[-1])
        if "bias" in names:
            result["bias"] = outer_factors(self.bias_rows(grad))
        return result

    def factor_refusal(self, module: nn.Module, names: Collection[str]) -> str | None:
        """Only layers whose groups are one have factors."""
        groups = getattr(module, "groups", 1)
        if groups == 1 or "weight" not in names:
            return None
        return f"a convolution in {groups} groups has no Kronecker factors"


class _LinearRule(_MatrixRule):
    def keep(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        if args[0].ndim < 2:
            raise Unsupported(_NO_BATCH_AXIS)
        return super().keep(module, args)

    def positions(self, module: nn.Module, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        a, d = (t.reshape(len(t), 1, -1, t.shape[-1]).mT for t in (a, d))
        return a, d

    def bias_rows(self, grad: Tensor) -> Tensor:
        return grad if grad.ndim == 2 else grad.flatten(1, -2).sum(1)

    def squares(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> Rows:
        if grad.ndim > 2 and grad.shape[1:-1].numel() > 1:
            return super().squares(module, names, kept, grad)
        a, d = (t.reshape(len(t), -1) for t in (kept[0], grad))
        dd, sums = d.square(), {}
        if "weight" in names:
            sums["weight"] = dd.mT @ a.square()
        if "bias" in names:
            sums["bias"] = dd.sum(0)
        return sums


class _Conv2dRule(_MatrixRule):
    def keep(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        if args[0].ndim != 4:
            raise Unsupported(_NO_BATCH_AXIS)
        return super().keep(module, args)

    def positions(self, module: nn.Module, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(module, nn.Conv2d)
        patches = unfold(module, a).unflatten(1, (module.groups, -1))
        return patches, d.flatten(2).unflatten(1, (module.groups, -1))

    def bias_rows(self, grad: Tensor) -> Tensor:
        return grad.flatten(2).sum(2)

    def elements(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> int:
        assert isinstance(module, nn.Conv2d)
        unfolded = kept[0].shape[1] * math.prod(module.kernel_size) * grad[0, 0].numel()
        return max(unfolded, super().elements(module, names, kept, grad))


def unfold(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the inputs that meet the weight matrix, (B, C * kernel, T), for any padding.

    As `torch.nn.functional.unfold`, whose kernel takes two to ten times as long on a CPU.
    """
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
    elif any(conv._reversed_padding_repeated_twice):
        x = F.pad(x, conv._reversed_padding_repeated_twice)
    B, C, H, W = x.shape
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    out = [(n - r) // s + 1 for n, r, s in zip((H, W), reach, conv.stride, strict=True)]
    b, c, h, w = x.stride()
    windows = x.as_strided(
        (B, C, *conv.kernel_size, *out),
        (b, c, h * conv.dilation[0], w * conv.dilation[1], h * conv.stride[0], w * conv.stride[1]),
        x.storage_offset(),
    )
    return windows.reshape(B, -1, math.prod(out))


# ------------------------------------------------------------------------------------- Embeddings


class _EmbeddingRule(LayerRule):
    def refusal(self, module: nn.Module) -> str | None:
        assert isinstance(module, nn.Embedding)
        if module.scale_grad_by_freq:
            return "scale_grad_by_freq=True divides by counts over the whole batch"
        return None

    def _entries(
        self, module: nn.Module, kept: tuple[Tensor, ...], grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return token indices (B, T) and gradients (B, T, D), zero for the padding index."""
        assert isinstance(module, nn.Embedding)
        tokens = kept[0].reshape(len(grad), -1)
        d = grad.reshape(*tokens.shape, -1)
        if module.padding_idx is not None:
            d = d.masked_fill((tokens == module.padding_idx).unsqueeze(-1), 0.0)
        return tokens, d

    def rows(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> Rows:
        """Return the sum over each example's positions of one token, (B, V, D)."""
        tokens, d = self._entries(module, kept, grad)
        B, V = len(tokens), own(module, "weight").shape[0]
        keys = tokens + V * torch.arange(B, device=tokens.device).unsqueeze(1)
        rows = d.new_zeros(B * V, d.shape[-1]).index_add_(0, keys.flatten(), d.flatten(0, 1))
        return {"weight": rows.reshape(B, V, -1)}

    def squares(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> Rows:
        """As `rows`, squared and summed, over the tokens that occur only."""
        tokens, d = self._entries(module, kept, grad)
        B, V = len(tokens), own(module, "weight").shape[0]
        keys = tokens + V * torch.arange(B, device=tokens.device).unsqueeze(1)
        pairs, which = keys.unique(return_inverse=True)
        rows = d.new_zeros(len(pairs), d.shape[-1])
        rows.index_add_(0, which.flatten(), d.flatten(0, 1))
        sums = d.new_zeros(V, d.shape[-1])
        return {"weight": sums.index_add_(0, pairs % V, rows.square_())}


# ------------------------------------------------------------------------------------------ Norms


class _NormRule(LayerRule):
    """Layers gamma * x̂ + beta with one gamma per channel (axis 1)."""

    @abstractmethod
    def normalised(self, module: nn.Module, kept: tuple[Tensor, ...]) -> Tensor:
        """Return x̂."""

    def sum_positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """Sum over the positions that share a parameter."""
        del module
        return x if x.ndim == 2 else x.flatten(2).sum(2)

    def rows(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> Rows:
        """Return sum_t d_t x̂_t and sum_t d_t."""
        rows: Rows = {}
        if "weight" in names:
            product = self.normalised(module, kept).mul_(grad)
            rows["weight"] = self.sum_positions(module, product)
        if "bias" in names:
            rows["bias"] = self.sum_positions(module, grad)
        return rows


class _GroupNormRule(_NormRule):
    def normalised(self, module: nn.Module, kept: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(module, nn.GroupNorm)
        return F.group_norm(kept[0], module.num_groups, eps=module.eps)


class _LayerNormRule(_NormRule):
    def normalised(self, module: nn.Module, kept: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(module, nn.LayerNorm)
        return F.layer_norm(kept[0], module.normalized_shape, eps=module.eps)

    def sum_positions(self, module: nn.Module, x: Tensor) -> Tensor:
        shape: Any = module.normalized_shape
        return x.reshape(len(x), -1, *shape).sum(1)


class _RMSNormRule(_LayerNormRule):
    def normalised(self, module: nn.Module, kept: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(module, nn.RMSNorm)
        return F.rms_norm(kept[0], list(module.normalized_shape), eps=module.eps)


class _BatchNormRule(_NormRule):
    """The statistics that the forward pass normalised by are constants."""

    def keep(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        x = args[0].detach()
        x = x.to(accumulation_dtype(x))
        if module.training or module.running_mean is None or module.running_var is None:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            var, mean = torch.var_mean(x, axes, correction=0)
        else:
            var, mean = module.running_var, module.running_mean
        rstd = (var + module.eps).rsqrt()
        return (x, mean.clone().expand(len(x), -1), rstd.expand(len(x), -1))

    def normalised(self, module: nn.Module, kept: tuple[Tensor, ...]) -> Tensor:
        x, *statistics = kept
        mean, rstd = (s.reshape(*s.shape, *[1] * (x.ndim - 2)) for s in statistics)
        return (x - mean).mul_(rstd)


# --------------------------------------------------------------------------------- Anything else

_WITHOUT_RULE = (
    nn.RNNBase,
    nn.modules.batchnorm._BatchNorm,
    nn.EmbeddingBag,
    nn.ParameterList,
    nn.ParameterDict,
)
"""Leaf modules that the generic rule would get wrong: their leading axis may not be the examples',
they couple examples, or they are never called."""


class _GenericRule(LayerRule):
    """A leaf module on one example at a time, by `torch.func`."""

    parameters = None

    def refusal(self, module: nn.Module) -> str | None:
        if next(module.children(), None) is not None:
            return "it has parameters of its own beside its child modules"
        tracking = isinstance(module, nn.modules.instancenorm._InstanceNorm)
        if isinstance(module, _WITHOUT_RULE) or (tracking and module.track_running_stats):
            return "it has no rule, and differentiating it example by example would be wrong"
        return None

    def keep(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        if not all(isinstance(arg, Tensor) for arg in args):
            raise Unsupported("it takes arguments other than tensors and needs a rule of its own")
        return tuple(arg.detach() for arg in args)

    def rows(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> Rows:
        """Return the vector-Jacobian product of every example."""
        params = {name: own(module, name).detach() for name in names}

        def one(d: Tensor, *inputs: Tensor) -> Rows:
            items = tuple(t.unsqueeze(0) for t in inputs)
            pull = vjp(lambda theta: functional_call(module, theta, items), params)[1]
            return pull(d.unsqueeze(0))[0]

        try:
            rows: Rows = vmap(one)(grad, *kept)
        except RuntimeError as error:
            raise Unsupported(f"it cannot be differentiated example by example: {error}") from error
        return rows


# --------------------------------------------------------------------------------------- Registry

_GENERIC = _GenericRule()
_RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: _LinearRule(),
    nn.Conv2d: _Conv2dRule(),
    nn.Embedding: _EmbeddingRule(),
    nn.LayerNorm: _LayerNormRule(),
    nn.RMSNorm: _RMSNormRule(),
    nn.GroupNorm: _GroupNormRule(),
    nn.BatchNorm1d: _BatchNormRule(),
    nn.BatchNorm2d: _BatchNormRule(),
    nn.BatchNorm3d: _BatchNormRule(),
}


def register_rule(module_type: type[nn.Module], rule: LayerRule) -> None:
    """Use `rule` for layers of exactly this type (a subclass may compute something else).

    Args:
        module_type: The layers' class.
        rule: Turns their calls into per-example gradients.
    """
    _RULES[module_type] = rule


def rule_for(name: str, module: nn.Module, parameters: Collection[str]) -> LayerRule:
    """Return the rule for a layer's own parameters.

    Args:
        name: Where the layer is in its model, for the message.
        module: The layer.
        parameters: Its own parameters to cover, as the layer calls them.

    Raises:
        Unsupported: The layer has no per-example gradients; the message names it and its type.
    """
    rule = _RULES.get(type(module), _GENERIC)
    reason = rule.refusal(module)
    unknown = [p for p in parameters if rule.parameters is not None and p not in rule.parameters]
    if reason is None and unknown:
        reason = f"its parameter {unknown[0]!r} is not one of a plain {type(module).__name__}"
    if reason is not None:
        raise Unsupported(
            f"no per-example gradients for layer {name!r} ({type(module).__name__}) with trainable "
            f"{', '.join(parameters)}: {reason}. Freeze it, or give its type a rule with "
            "bayesrule.curvature.register_rule"
        )
    return rule
