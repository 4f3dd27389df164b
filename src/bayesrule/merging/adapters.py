"""Merging low-rank adapters in the product: rules act on Delta W = s B A, never on the factors.

PEFT's `linear` combination adds A's and B's separately, which is not sum_t w_t B_t A_t (it has the
cross terms B_t A_s). Here::

    cat   A = [A_1; ...; A_T],  B = [w_1 s_1 B_1, ..., w_T s_T B_T]     exact, rank sum_t r_t
    svd   the best approximation of rank r of the merged Delta W        (Eckart-Young)

`cat` is for methods that are linear in the models; the others make a dense Delta W of one layer at
a time, and factorise it. The base model is Delta W = 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bayesrule.errors import ConfigError
from bayesrule.merging.folders import ModelFolder
from bayesrule.merging.methods import Method
from bayesrule.merging.tensor_files import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from bayesrule.merging.engine import Merger

__all__ = ["Adapter", "AdapterMerge", "check_adapters", "factorise", "make_source"]

_A, _B = ".lora_A.weight", ".lora_B.weight"
_UNKNOWN = ("lora_embedding", "lora_magnitude", "lora_bias")


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA folder.

    Attributes:
        folder: The folder.
        layers: Names of the adapted layers, in the file's order.
        others: Whole tensors beside them (a classifier's head).
        rank: r.
        scaling: s, lora_alpha / r (or / sqrt r).
    """

    folder: ModelFolder
    layers: tuple[str, ...]
    others: tuple[str, ...]
    rank: int
    scaling: float

    @classmethod
    def of(cls, folder: ModelFolder) -> Adapter:
        """Describe a folder; no torch.

        Raises:
            ConfigError: If it is not a LoRA adapter whose product is B A times one number.
        """
        config, where = folder.config(), folder.path
        if config.get("peft_type") not in (None, "LORA"):
            raise ConfigError(f"{where} is a {config['peft_type']} adapter; LoRA ones are merged")
        strange = [n for n in folder.specs if any(word in n for word in _UNKNOWN)]
        if strange or config.get("use_dora") or config.get("alpha_pattern"):
            what = strange[0] if strange else "use_dora or alpha_pattern"
            raise ConfigError(f"{where}: {what} is no plain product B A; merge whole models")
        layers = tuple(n.removesuffix(_A) for n in folder.specs if n.endswith(_A))
        ranks = {folder.specs[name + _A].shape[0] for name in layers}
        if len(ranks) != 1 or any(name + _B not in folder.specs for name in layers):
            raise ConfigError(f"{where}: expected one rank for all layers, found {sorted(ranks)}")
        (rank,) = ranks
        alpha = float(config.get("lora_alpha", rank))
        scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        others = tuple(n for n in folder.specs if not n.endswith((_A, _B)))
        return cls(folder, layers, others, rank, scaling)

    def shape(self, layer: str) -> tuple[int, int]:
        """Return (out, in) of a layer's Delta W."""
        specs = self.folder.specs
        return specs[layer + _B].shape[0], specs[layer + _A].shape[1]

    def factors(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return s B (out, r) and A (r, in), as doubles."""
        B, A = self.folder.read(layer + _B).double(), self.folder.read(layer + _A).double()
        return self.scaling * B, A


def check_adapters(
    folders: Sequence[ModelFolder], method: Method, how: str | None, rank: int | None
) -> list[Adapter]:
    """Describe adapters, and check that they fit each other and the method.

    Raises:
        ConfigError: Naming the first layer that differs, or what the method cannot do.
    """
    adapters = [Adapter.of(folder) for folder in folders]
    first = adapters[0]
    for other in adapters[1:]:
        both = (first.folder.path, other.folder.path)
        for layer in (*first.layers, *other.layers):
            if layer not in first.layers or layer not in other.layers:
                raise ConfigError(f"{both[0]} and {both[1]}: {layer} is adapted in one only")
            if first.shape(layer) != other.shape(layer):
                raise ConfigError(f"{both[0]} and {both[1]}: {layer} has different shapes")
        if set(first.others) != set(other.others):
            name = sorted(set(first.others) ^ set(other.others))[0]
            raise ConfigError(f"{both[0]} and {both[1]}: {name} is in one only")
    if method.curvature != "none":
        raise ConfigError(
            f"{method.name} weighs by a curvature of Delta W, which adapters have none of: merge "
            "whole models (`merge_and_unload` of PEFT makes them), or choose task_arithmetic, "
            "ties or dare"
        )
    if how == "cat" and not method.linear:
        raise ConfigError(f"{method.name} is not linear in the models: use --factors svd")
    if how == "cat" and rank is not None:
        raise ConfigError("--rank is for --factors svd; cat has the sum of the ranks")
    return adapters


def make_source(adapters: Sequence[Adapter]) -> Any:
    """Return the layers' Delta W as what is merged, with base 0."""
    import torch

    from bayesrule.merging.engine import Piece, Source

    class DeltaSource(Source):
        """One layer's Delta W of all adapters at a time."""

        n_models, has_base = len(adapters), True
        n_curvatures, has_base_curvature = 0, False

        def names(self) -> list[str]:
            return list(adapters[0].layers)

        def numel(self, name: str) -> int:
            out, fan_in = adapters[0].shape(name)
            return out * fan_in

        def piece(self, name: str, start: int, stop: int) -> Piece:
            deltas = [B @ A for B, A in (each.factors(name) for each in adapters)]
            return Piece(name, 0, deltas, torch.zeros_like(deltas[0]))

        def pieces(self, name: str, *, whole: bool = False) -> Iterator[Piece]:
            del whole  # a product is made as a whole
            yield self.piece(name, 0, self.numel(name))

    return DeltaSource()


def factorise(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return B (out, r), A (r, in) with B A the best approximation, and its relative error."""
    import torch

    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    r = min(rank, len(S))
    root = S[:r].sqrt()
    total = float(S.square().sum())
    error = (float(S[r:].square().sum()) / total) ** 0.5 if total > 0 else 0.0
    B, A = U[:, :r] * root, root[:, None] * Vh[:r]
    if r < rank:  # a layer smaller than the rank: further directions are zero
        B = torch.nn.functional.pad(B, (0, rank - r))
        A = torch.nn.functional.pad(A, (0, 0, 0, rank - r))
    return B, A, error


class AdapterMerge:
    """Merged factors of every layer, in the order of the first adapter's file.

    Args:
        adapters: What is merged.
        merger: The method, with its factors alpha.
        how: ``cat`` or ``svd``; None: cat where the method is linear.
        rank: Rank of the result for svd; None: the sum of the ranks.
    """

    def __init__(
        self, adapters: Sequence[Adapter], merger: Merger, how: str | None, rank: int | None
    ) -> None:
        self.adapters, self.merger = adapters, merger
        self.how = how or ("cat" if merger.method.linear else "svd")
        self.rank = rank or sum(each.rank for each in adapters)
        self.errors: dict[str, float] = {}
        self._source = make_source(adapters)
        merger.prepare(self._source)
        self._kept: tuple[str, Tensor, Tensor] | None = None

    def specs(self) -> list[TensorSpec]:
        """Return what the merged file holds."""
        first = self.adapters[0]
        found = []
        for name, spec in first.folder.specs.items():
            shape = spec.shape
            if name.endswith(_A):
                shape = (self.rank, spec.shape[1])
            elif name.endswith(_B):
                shape = (spec.shape[0], self.rank)
            found.append(TensorSpec(name, spec.dtype, shape))
        return found

    def config(self) -> dict[str, Any]:
        """Return the adapter's configuration: rank and alpha equal, so that s = 1."""
        found = self.adapters[0].folder.config()
        found |= {"r": self.rank, "lora_alpha": self.rank, "rank_pattern": {}}
        return found | ({"use_rslora": False} if "use_rslora" in found else {})

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the merged file, as doubles."""
        if name in self.adapters[0].others:
            return self._other(name)
        layer = name.removesuffix(_A).removesuffix(_B)
        if self._kept is None or self._kept[0] != layer:
            self._kept = (layer, *self._factors(layer))
        return self._kept[2] if name.endswith(_A) else self._kept[1]

    def _other(self, name: str) -> Tensor:
        """Return the weighted mean of whole tensors, whose base is not known here."""
        from bayesrule.merging.rules import average, weighted

        tensors = [each.folder.read(name).double() for each in self.adapters]
        alphas = self.merger.alphas
        return weighted(tensors, alphas) if min(alphas) > 0 else average(tensors)

    def _factors(self, layer: str) -> tuple[Tensor, Tensor]:
        import torch

        if self.how == "cat":
            alphas = self.merger.alphas
            total = 1.0 if self.merger.method.base else sum(alphas)
            pairs = [each.factors(layer) for each in self.adapters]
            B = torch.cat([a / total * B for a, (B, _) in zip(alphas, pairs, strict=True)], 1)
            return B, torch.cat([A for _, A in pairs], 0)
        delta = self.merger(next(iter(self._source.pieces(layer))))
        B, A, self.errors[layer] = factorise(delta, self.rank)
        return B, A
