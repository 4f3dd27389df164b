"""Nested plain data with tensors, as Flower's records, and back bit for bit.

Tensors become one `ArrayRecord`, keyed by their number; everything around them is canonical JSON in
a `ConfigRecord`, where ``{"tensor": i}`` stands for tensor number i. Nothing is pickled, so nothing
that is received can run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import RecordDict

__all__ = ["pack", "unpack"]

_TENSOR, _MAPPING, _TUPLE = "tensor", "mapping", "tuple"


def pack(value: Any, **labels: str) -> RecordDict:
    """Return plain data as records.

    Args:
        value: Mappings with string keys, lists, tuples, tensors, numbers, strings, None.
        **labels: Further strings that travel beside it.
    """
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    tensors: list[Any] = []
    text = json.dumps(_outline(value, tensors))
    arrays = {str(i): Array(t) for i, t in enumerate(tensors)}
    head = ConfigRecord({"outline": text, **labels})
    return RecordDict({"tensors": ArrayRecord(arrays), "head": head})


def unpack(content: RecordDict) -> tuple[Any, dict[str, str]]:
    """Return the plain data and the labels of `pack`.

    Raises:
        ValueError, KeyError, TypeError: If the records are not of that form.
    """
    import torch
    from flwr.app import ArrayRecord, ConfigRecord

    head, arrays = content["head"], content["tensors"]
    if not isinstance(head, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise ValueError("no head and tensors")
    tensors = {int(i): torch.from_numpy(array.numpy()) for i, array in arrays.items()}
    labels = {str(name): str(text) for name, text in head.items() if name != "outline"}
    return _filled(json.loads(str(head["outline"])), tensors), labels


def _outline(value: Any, tensors: list[Any]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        tensors.append(value.detach().cpu().contiguous())
        return {_TENSOR: len(tensors) - 1}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("keys must be strings")
        return {_MAPPING: {name: _outline(item, tensors) for name, item in value.items()}}
    if isinstance(value, tuple):
        return {_TUPLE: [_outline(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_outline(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _filled(outline: Any, tensors: Mapping[int, Any]) -> Any:
    if isinstance(outline, list):
        return [_filled(item, tensors) for item in outline]
    if not isinstance(outline, dict):
        return outline
    ((kind, inner),) = outline.items()
    if kind == _TENSOR:
        return tensors[inner]
    if kind == _TUPLE:
        return tuple(_filled(item, tensors) for item in inner)
    if kind != _MAPPING:
        raise ValueError(f"no such part: {kind}")
    return {name: _filled(item, tensors) for name, item in inner.items()}
