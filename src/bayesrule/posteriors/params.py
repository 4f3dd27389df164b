"""Arithmetic on `Params`, the dictionaries name -> tensor that posteriors are made of.

The order of a dictionary is part of its value: flattening concatenates the row-major entries in
key order. Binary operations go by name and take the order of the first operand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from bayesrule.errors import Unsupported

__all__ = [
    "Params",
    "Tree",
    "check_same_schema",
    "flatten",
    "num_params",
    "project_variance",
    "standard_normal",
    "total",
    "tree_map",
    "unflatten",
]

Params: TypeAlias = dict[str, Tensor]
Tree: TypeAlias = dict[str, Tensor] | Tensor
TreeT = TypeVar("TreeT", dict[str, Tensor], Tensor)


def own(params: Mapping[str, Tensor]) -> Params:
    """Return a detached copy of `params`, so that later in-place training cannot change a value."""
    return {name: tensor.detach().clone() for name, tensor in params.items()}


def num_params(params: Mapping[str, Tensor]) -> int:
    """Return P, the number of scalar entries over all tensors."""
    return sum(tensor.numel() for tensor in params.values())


def tree_map(fn: Callable[..., Tensor], *trees: TreeT) -> TreeT:
    """Apply `fn` tensor by tensor to trees of the same form (a tensor, or a dict by name).

    Args:
        fn: Function of one tensor per tree.
        *trees: The trees; the first gives the order of the names.

    Returns:
        A tree of the form of the first.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return fn(*trees)
    return {name: fn(*(tree[name] for tree in trees)) for name in first}


def check_same_schema(
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    what: str = "the two posteriors",
    *,
    leading: int = 0,
) -> None:
    """Require that both have the same names and shapes.

    Args:
        left: First dictionary; its order decides which difference is the first.
        right: Second dictionary.
        what: The pair, in words, for the message.
        leading: Number of extra leading axes (samples) of `right` to leave out of the comparison.

    Raises:
        Unsupported: Naming the first key that differs, and how.
    """
    for name, tensor in left.items():
        if name not in right:
            raise Unsupported(
                f"{what} do not have the same parameters: {name!r} is only in the first "
                f"({len(left)} names against {len(right)})"
            )
        shape = tuple(right[name].shape[leading:])
        if tuple(tensor.shape) != shape:
            raise Unsupported(
                f"{what} differ in the shape of {name!r}: {tuple(tensor.shape)} against {shape}"
            )
    for name in right:
        if name not in left:
            raise Unsupported(
                f"{what} do not have the same parameters: {name!r} is only in the second "
                f"({len(left)} names against {len(right)})"
            )


def flatten(params: Mapping[str, Tensor], *, leading: int = 0) -> Tensor:
    """Concatenate all entries in key order.

    Args:
        params: Tensors of shape (*batch, *shape) with `leading` common batch axes.
        leading: Number of batch axes to keep.

    Returns:
        Tensor of shape (*batch, P).
    """
    return torch.cat(
        [
            tensor.flatten(start_dim=leading) if tensor.ndim > leading else tensor.unsqueeze(-1)
            for tensor in params.values()
        ],
        dim=-1,
    )


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Params:
    """Inverse of `flatten`: cut (*batch, P) into tensors of shape (*batch, *shape).

    Args:
        vector: Tensor of shape (*batch, P).
        like: Gives names, order, shapes and dtypes.

    Returns:
        The dictionary of the pieces.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    pieces = torch.split(vector, sizes, dim=-1)
    batch = vector.shape[:-1]
    return {
        name: piece.reshape((*batch, *tensor.shape)).to(tensor.dtype)
        for (name, tensor), piece in zip(like.items(), pieces, strict=True)
    }


def project_variance(jac: Mapping[str, Tensor], var: Mapping[str, Tensor]) -> Tensor:
    """Return cov_BCC = sum_p J_bcp J_bdp var_p, without the (P, P) matrix.

    Args:
        jac: Jacobian by parameter, each (B, C, *shape).
        var: Variance by parameter, each of that shape.
    """
    cov: Tensor | None = None
    for name, v in var.items():
        jac_BCP = jac[name].flatten(start_dim=2) if v.ndim else jac[name].unsqueeze(-1)
        term = torch.einsum("bcp,p,bdp->bcd", jac_BCP, v.flatten(), jac_BCP)
        cov = term if cov is None else cov + term
    assert cov is not None
    return cov


def standard_normal(
    shape: Iterable[int], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw N(0, 1) of the given shape in the dtype and on the device of `like`.

    The draw is made on the generator's device, so that a CPU generator gives the same numbers
    whatever device the parameters are on. Without a generator torch's default one is used.
    """
    device = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype, device=device).to(
        like.device
    )


def total(terms: Iterable[Tensor]) -> Tensor:
    """Sum all entries of all terms, accumulated in float64 where the device has it.

    Args:
        terms: Tensors of any shape; at least one.

    Returns:
        0-d tensor in the widest dtype of the terms.
    """
    terms = list(terms)
    wide = torch.float32 if terms[0].device.type == "mps" else torch.float64
    result = torch.stack([term.sum(dtype=wide) for term in terms]).sum()
    dtype = terms[0].dtype
    for term in terms[1:]:
        dtype = torch.promote_types(dtype, term.dtype)
    return result.to(dtype)
