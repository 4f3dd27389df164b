"""Model folders in the Hugging Face layout, described without torch.

Weights are in ``model.safetensors``, in shards listed by ``model.safetensors.index.json``, or (a
low-rank adapter) in ``adapter_model.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.errors import ConfigError, CorruptFile
from bayesrule.merging.tensor_files import TensorFile, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ADAPTER", "INDEX", "SINGLE", "ModelFolder", "check_same_architecture", "find_folder"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
_HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]


class ModelFolder:
    """A folder with a model's weights; tensors are read when asked for.

    Args:
        path: The folder.

    Raises:
        ConfigError: If there is no such folder, or no weights in it.
        CorruptFile: If a file of weights is damaged or missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ConfigError(f"no folder {self.path}: give a model's folder")
        self.is_adapter = (self.path / ADAPTER).is_file()
        self.files = {name: TensorFile(self.path / name) for name in self._file_names()}
        self.specs: dict[str, TensorSpec] = {}
        self._file_of: dict[str, TensorFile] = {}
        for file in self.files.values():
            for name, spec in file.specs.items():
                if name in self.specs:
                    raise CorruptFile(f"{self.path} has {name} in two files")
                self.specs[name] = spec
                self._file_of[name] = file

    def _file_names(self) -> list[str]:
        """Return the weights' files, in the order of the index."""
        index = self.path / INDEX
        if self.is_adapter:
            return [ADAPTER]
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                names = list(dict.fromkeys(weight_map.values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise CorruptFile(f"{index} is damaged: it lists no weights") from None
            if wrong := [name for name in names if Path(name).name != name]:
                raise CorruptFile(f"{index} names a file outside its folder: {wrong[0]}")
            if missing := [name for name in names if not (self.path / name).is_file()]:
                raise CorruptFile(f"{self.path / missing[0]} is missing; {INDEX} lists it")
            return names
        if (self.path / SINGLE).is_file():
            return [SINGLE]
        other = sorted(p.name for p in self.path.glob("*.bin"))
        hint = f" ({other[0]} is a pickle: save the model with safetensors)" if other else ""
        raise ConfigError(f"{self.path} has no {SINGLE}, {INDEX} or {ADAPTER}{hint}")

    def __repr__(self) -> str:
        return f"ModelFolder({str(self.path)!r})"

    @property
    def sharded(self) -> bool:
        """Whether an index lists the files."""
        return not self.is_adapter and (self.path / INDEX).is_file()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return a tensor, or a range of its entries; see `TensorFile.read`."""
        return self._file_of[name].read(name, start, stop)

    def config(self) -> dict[str, Any]:
        """Return the model's configuration; empty if there is none."""
        path = self.path / ("adapter_config.json" if self.is_adapter else "config.json")
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise CorruptFile(f"{path} is no valid JSON") from None
        return found if isinstance(found, dict) else {}


def check_same_architecture(folders: Sequence[ModelFolder]) -> None:
    """Require the same tensors, of the same shapes, in all folders.

    Raises:
        ConfigError: Naming the first tensor that differs, and how.
    """
    first = folders[0]
    for other in folders[1:]:
        if first.is_adapter != other.is_adapter:
            kinds = {True: "an adapter", False: "a whole model"}
            raise ConfigError(
                f"{first.path} is {kinds[first.is_adapter]}, {other.path} is "
                f"{kinds[other.is_adapter]}: merge models of one kind"
            )
        if first.is_adapter:  # ranks may differ; `adapters` checks layers
            continue
        difference = first_difference(first.specs, other.specs)
        if difference is not None:
            raise ConfigError(
                f"{first.path} and {other.path} are of different architectures: {difference}"
            )


def first_difference(left: Mapping[str, TensorSpec], right: Mapping[str, TensorSpec]) -> str | None:
    """Return the first tensor (in the order of `left`) that differs in presence, kind or shape."""
    for name, spec in left.items():
        if name not in right:
            return f"{name} is in the first only"
        other = right[name]
        if spec.shape != other.shape:
            return f"{name} has shape {list(spec.shape)} and {list(other.shape)}"
        if spec.is_floating != other.is_floating:
            return f"{name} is of type {spec.dtype} and {other.dtype}"
    extra = next((name for name in right if name not in left), None)
    return None if extra is None else f"{extra} is in the second only"


def find_folder(name: str) -> Path:
    """Return the folder of a model: as given, or downloaded where it is a hub id.

    Raises:
        ConfigError: If there is no such folder and the hub cannot serve the name either.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    parts = name.split("/")
    if len(parts) != 2 or name.startswith((".", "/", "~")) or not all(parts):
        raise ConfigError(f"no folder {name} (a hub id is written OWNER/NAME)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub's client has many; the sentence is the same for all
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"no folder {name}, and the hub does not serve it as a model: {reason}"
        ) from None
