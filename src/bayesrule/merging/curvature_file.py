"""Curvature beside a model: ``curvature.safetensors`` with H by name, and its description.

H is a sum over the data set, without any prior: where only n of N items were used, N/n times their
sum. Kinds:

    ggn       sum_i J_i^T Lambda_i J_i, diagonal: the Fisher with exact expectation over labels
    sampled   sum_i g_i^2 with labels drawn from the model (Monte-Carlo Fisher)
    observed  sum_i g_i^2 with the observed labels (empirical Fisher)
    posterior precision that the optimiser learnt (IVON, VOGN), less the prior's
    gram      sum of x x^T over the inputs of linear layers (regmean)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.errors import ConfigError, CorruptFile
from bayesrule.merging.tensor_files import DTYPES, TensorFile, TensorSpec, write_tensors
from bayesrule.runs.files import read_json, sha256_file, write_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GRAM", "KINDS", "NAME", "CurvatureFile", "load_curvature", "save_curvature"]

NAME = "curvature.safetensors"
GRAM = "gram.safetensors"
KINDS = ("ggn", "sampled", "observed", "posterior", "gram")
SCHEMA = 1


@dataclass(frozen=True)
class CurvatureFile:
    """A curvature on disk; tensors are read when asked for.

    Attributes:
        file: The tensors.
        kind: One of `KINDS`.
        n_used: Items that were looked at.
        n_data: Items that the sum is scaled to.
        data: Name and fingerprint of the data set.
    """

    file: TensorFile
    kind: str
    n_used: int
    n_data: int
    data: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> CurvatureFile:
        """Read the description; no torch.

        Args:
            path: The file, or a folder that has one.
            verify: Whether to check the tensors' bytes against their checksum.

        Raises:
            ConfigError: If there is none.
            CorruptFile: If a file is damaged or missing.
        """
        path = Path(path)
        path = path / NAME if path.is_dir() else path
        if not path.is_file():
            raise ConfigError(
                f"no curvature file {path}; `bayesrule evaluate RUN --curvature ggn --out DIR` "
                "makes one"
            )
        about = path.with_suffix(".json")
        try:
            meta = read_json(about)
        except FileNotFoundError:
            raise CorruptFile(f"{about} is missing beside {path.name}") from None
        if meta.get("schema") != SCHEMA or meta.get("kind") not in KINDS:
            raise CorruptFile(f"{about} does not describe a curvature of this version")
        if verify and sha256_file(path) != meta["tensors_sha256"]:
            raise CorruptFile(f"{path} is not what its checksum in {about.name} says")
        return cls(TensorFile(path), meta["kind"], meta["n_used"], meta["n_data"], meta["data"])


def save_curvature(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    *,
    kind: str,
    n_used: int,
    n_data: int,
    data: Mapping[str, Any],
) -> Path:
    """Write a curvature and its description.

    Args:
        tensors: H by parameter name, scaled to `n_data` items.
        path: The tensor file, or the folder to put it into (made if missing).
        kind: One of `KINDS`.
        n_used: Items that were looked at.
        n_data: Items that the sum is scaled to.
        data: Name and fingerprint of the data set.

    Returns:
        The path of the tensor file.
    """
    if kind not in KINDS:
        raise ConfigError(f"curvature kind {kind!r}: one of {', '.join(KINDS)}")
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / (GRAM if kind == "gram" else NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    code = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
    specs = [
        TensorSpec(name, code[str(t.dtype).removeprefix("torch.")], tuple(t.shape))
        for name, t in tensors.items()
    ]

    def pieces(name: str) -> Iterator[Tensor]:
        yield tensors[name]

    temporary = path.with_name(f".{path.name}.tmp")
    digest = write_tensors(temporary, specs, pieces, {"format": "pt"})
    temporary.replace(path)
    write_json(
        path.with_suffix(".json"),
        {
            "schema": SCHEMA,
            "kind": kind,
            "n_used": n_used,
            "n_data": n_data,
            "data": dict(data),
            "tensors_sha256": digest,
        },
    )
    return path


def load_curvature(path: str | Path) -> dict[str, Tensor]:
    """Return H by parameter name; see `CurvatureFile.open`."""
    found = CurvatureFile.open(path)
    return {name: found.file.read(name) for name in found.file.specs}
