"""Posterior files: `posterior.safetensors` with the tensors, `posterior.json` with the rest.

No code runs from a file: tensors are read by safetensors (never pickle), and the family is looked
up by name in the list of known ones. The JSON holds the SHA-256 of the tensor file and of itself:
a truncated, mixed-up or bit-flipped pair is noticed. Each file is written to a temporary name,
flushed to disk and renamed; the JSON comes last, so a pair without a fitting JSON is not complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bayesrule.errors import CorruptFile
from bayesrule.posteriors.base import FAMILIES, Posterior
from bayesrule.posteriors.params import Params

__all__ = ["load_posterior", "save_posterior"]

SCHEMA = 1
_NAME = "posterior"


def _paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return the two files for a folder, or for a path ending in .safetensors or .json."""
    path = Path(path)
    if path.suffix in {".safetensors", ".json"}:
        return path.with_suffix(".safetensors"), path.with_suffix(".json")
    return path / f"{_NAME}.safetensors", path / f"{_NAME}.json"


def _write(path: Path, payload: bytes) -> None:
    """Write atomically: temporary name, flush, rename, flush the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _canonical(meta: Mapping[str, Any]) -> bytes:
    return json.dumps(meta, sort_keys=True, ensure_ascii=True).encode()


def save_posterior(q: Posterior, path: str | os.PathLike[str]) -> Path:
    """Write `q` to a folder (made if missing) or to `<name>.safetensors` with `<name>.json`.

    Args:
        q: The posterior.
        path: Folder, or a path ending in .safetensors.

    Returns:
        The path of the tensor file.
    """
    from safetensors.torch import save

    tensor_path, json_path = _paths(path)
    tensor_path.parent.mkdir(parents=True, exist_ok=True)
    groups = q._groups()
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, params in groups.items()
        for name, tensor in params.items()
    }
    payload = save(tensors)
    meta: dict[str, Any] = {
        "schema": SCHEMA,
        "family": q.family,
        "hyper": q._hyper(),
        "parameters": [
            {"name": name, "shape": list(m.shape), "dtype": str(m.dtype).removeprefix("torch.")}
            for name, m in q.mean.items()
        ],
        "groups": {group: list(params) for group, params in groups.items()},
        "tensors_sha256": _digest(payload),
    }
    meta["sha256"] = _digest(_canonical(meta))
    _write(tensor_path, payload)
    _write(json_path, (json.dumps(meta, indent=1) + "\n").encode())
    return tensor_path


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CorruptFile(f"no posterior at {path}: the file is missing") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFile(
            f"{path} is not valid JSON ({error}); it was truncated or altered"
        ) from None
    if not isinstance(meta, dict) or "schema" not in meta:
        raise CorruptFile(f"{path} does not describe a posterior")
    if meta["schema"] != SCHEMA:
        raise CorruptFile(
            f"{path} has schema {meta['schema']!r}; this version reads schema {SCHEMA}"
        )
    stated = meta.pop("sha256", None)
    if stated != _digest(_canonical(meta)):
        raise CorruptFile(f"{path} is not what its checksum says; it was altered")
    return meta


def load_posterior(
    path: str | os.PathLike[str], device: torch.device | str | None = None
) -> Posterior:
    """Read what `save_posterior` wrote, bit for bit.

    Args:
        path: Folder, or a path ending in .safetensors or .json.
        device: Where to put the tensors; CPU when None.

    Returns:
        The posterior, of the family it was saved from.

    Raises:
        CorruptFile: A file is missing, truncated, altered, of an unknown family or format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    tensor_path, json_path = _paths(path)
    meta = _read_meta(json_path)
    family = FAMILIES.get(meta["family"])
    if family is None:
        raise CorruptFile(
            f"{json_path} names the unknown family {meta['family']!r}; known are "
            + ", ".join(sorted(FAMILIES))
        )
    try:
        payload = tensor_path.read_bytes()
    except FileNotFoundError:
        raise CorruptFile(f"{tensor_path} is missing beside its {json_path.name}") from None
    if _digest(payload) != meta["tensors_sha256"]:
        raise CorruptFile(
            f"{tensor_path} is not what its checksum in {json_path.name} says; it was truncated or "
            "altered"
        )
    try:
        tensors = load(payload)
    except SafetensorError as error:
        raise CorruptFile(f"{tensor_path} is not a safetensors file ({error})") from None
    try:
        groups: dict[str, Params] = {
            group: {name: tensors[f"{group}/{name}"] for name in names}
            for group, names in meta["groups"].items()
        }
        q = family._from_groups(groups, meta["hyper"])
    except KeyError as error:
        raise CorruptFile(f"{tensor_path} lacks the tensor group or tensor {error}") from None
    return q if device is None else q.to(device=device)
