"""Safetensors files read and written piece by piece.

The format is eight bytes of length (little endian), a JSON header ``{name: {dtype, shape,
data_offsets}}`` and the tensors' bytes. The `safetensors` package maps a whole file into memory to
read and takes a whole dictionary to write; a merge of large models must do neither, so here a
reader takes any range of a tensor by a plain `read`, and a writer takes tensors as they come.
Headers are read without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bayesrule.errors import ConfigError, CorruptFile

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DTYPES", "FLOATING", "TensorFile", "TensorSpec", "read_header", "write_tensors"]

DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Name in files -> name in torch, and bytes of a number."""

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a file describes it.

    Attributes:
        name: Its name.
        dtype: Its type, as in `DTYPES`.
        shape: Its shape.
        start: First byte, from the beginning of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.numel * DTYPES[self.dtype][1]

    @property
    def is_floating(self) -> bool:
        """Whether its entries are real numbers, which can be merged."""
        return self.dtype in FLOATING


def read_header(path: Path) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """Return the tensors of a file by name, in the order of their bytes, and its metadata.

    Raises:
        CorruptFile: If the file is no whole safetensors file.
        ConfigError: If it has a type of numbers that is not known here.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > min(size - 8, _MAX_HEADER):
            raise CorruptFile(f"{path} is no safetensors file, or was cut short")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            specs = [
                _spec(name, entry, 8 + length, path)
                for name, entry in sorted(header.items(), key=lambda e: e[1]["data_offsets"][0])
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(f"the header of {path} is damaged ({error!r})") from None
    end = 8 + length
    for spec in specs:
        if spec.start != end:
            raise CorruptFile(f"{path}: tensor {spec.name} does not begin where the last one ends")
        end += spec.nbytes
    if end != size:
        raise CorruptFile(f"{path} has {size} bytes, its header says {end}: it was cut short")
    return {spec.name: spec for spec in specs}, dict(metadata)


def _spec(name: str, entry: Mapping[str, object], offset: int, path: Path) -> TensorSpec:
    dtype, shape, where = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ConfigError(f"{path}: {name} has numbers of type {dtype}, which cannot be merged")
    assert isinstance(shape, list)
    assert isinstance(where, list)
    spec = TensorSpec(name, str(dtype), tuple(int(n) for n in shape), offset + int(where[0]))
    if int(where[1]) - int(where[0]) != spec.nbytes:
        raise CorruptFile(f"{path}: the bytes of {name} do not fit its shape")
    return spec


class TensorFile:
    """One safetensors file.

    Args:
        path: The file; its header is read at once, without torch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.specs, self.metadata = read_header(path)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return entries of a tensor; of the tensor's shape where all are asked for.

        Args:
            name: The tensor.
            start: First entry of the flattened tensor.
            stop: One after the last.

        Raises:
            CorruptFile: If the file has become shorter.
        """
        import torch

        spec = self.specs[name]
        dtype, size = DTYPES[spec.dtype]
        stop = spec.numel if stop is None else stop
        buffer = bytearray((stop - start) * size)
        with self.path.open("rb") as file:
            file.seek(spec.start + start * size)
            if file.readinto(buffer) != len(buffer):
                raise CorruptFile(f"{self.path} became shorter while it was read")
        if not buffer:
            return torch.empty(spec.shape, dtype=getattr(torch, dtype))
        flat = torch.frombuffer(buffer, dtype=getattr(torch, dtype))
        return flat.view(spec.shape) if len(flat) == spec.numel else flat


def as_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's entries as a file holds them."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write_tensors(
    path: Path,
    specs: Iterable[TensorSpec],
    pieces: Callable[[str], Iterator[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write a file tensor by tensor, flushed to disk, and return its SHA-256.

    Args:
        path: The file; its folder exists.
        specs: Names, types and shapes, in the order in which they are asked for and written.
        pieces: Returns the tensor of a name, flattened, in pieces.
        metadata: Text by name for the header.

    Raises:
        ValueError: If the pieces of a tensor do not make it up.
    """
    wanted = list(specs)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in wanted:
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def put(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        put(len(text).to_bytes(8, "little") + text)
        for spec in wanted:
            written = 0
            for piece in pieces(spec.name):
                data = as_bytes(piece)
                put(data)
                written += len(data)
            if written != spec.nbytes:
                raise ValueError(f"{spec.name}: {written} bytes were given, not {spec.nbytes}")
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
