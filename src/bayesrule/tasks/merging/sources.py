"""Models that were trained before: finished runs, folders of weights, hub ids."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from bayesrule.config import runs_dir
from bayesrule.curvature import trainable
from bayesrule.errors import ConfigError, Unsupported
from bayesrule.merging.folders import ModelFolder, find_folder
from bayesrule.posteriors import Mixture, Params, load_posterior
from bayesrule.runs import RunStore, sha256_file

__all__ = ["describe_source", "load_weights"]

_RUN = re.compile(r"[0-9a-f]{4,16}")
_WRAPPER = "backbone."  # what a pretrained model's own names have in front of them here


def _opened(source: str) -> Any:
    """Return the run's posterior file's folder, or the model's."""
    if _RUN.fullmatch(source):
        return RunStore(runs_dir()).get(source)
    return ModelFolder(find_folder(source))


def describe_source(source: str) -> dict[str, str]:
    """Return the checksums of what a source holds, by file.

    Raises:
        ConfigError: If there is no such run, folder or hub id.
    """
    found = _opened(source)
    if isinstance(found, ModelFolder):
        return {name: sha256_file(file.path) for name, file in found.files.items()}
    path = found.path / "posterior.safetensors"
    if not path.is_file():
        raise ConfigError(f"run {found.id} has no posterior; it is not finished, or leaves none")
    return {path.name: sha256_file(path)}


def load_weights(source: str, model: nn.Module) -> Params:
    """Return the parameters that a network learns, from a run's mean or a folder's files.

    Args:
        source: A run's id (four digits or more), a folder, or a hub id.
        model: Says which parameters, and their shapes.

    Raises:
        ConfigError: Naming the first parameter that is missing or of another shape.
        Unsupported: If the run left an ensemble.
    """
    wanted, found = trainable(model), _opened(source)
    if isinstance(found, ModelFolder):
        names = {n: n if n in found.specs else n.removeprefix(_WRAPPER) for n in wanted}
        held = {n: found.read(own) for n, own in names.items() if own in found.specs}
    else:
        q = load_posterior(found.path)
        if isinstance(q, Mixture):
            raise Unsupported(f"run {found.id} left an ensemble, which is no one model to merge")
        held = {n: t for n, t in q.mean_state().items() if n in wanted}
    for name, tensor in wanted.items():
        if name not in held:
            raise ConfigError(f"{source} lacks {name}, which the model of this run learns")
        if held[name].shape != tensor.shape:
            raise ConfigError(
                f"{source}: {name} has shape {list(held[name].shape)}, the model of this run "
                f"{list(tensor.shape)}"
            )
    return {name: held[name].to(tensor.dtype) for name, tensor in wanted.items()}
