"""The data of a run as its model reads them.

A text set leaves two choices to the model: which tokenizer cuts it, and whether it is a plain text
or a prompt. A model with a cached prefix reads the hidden states of its frozen lower layers, which
are computed once and kept in the cache under the hash of checkpoint, depth and data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesrule.cache import prepared
from bayesrule.config import Config, cache_dir
from bayesrule.data import DataBundle, Split, StateSplit, load_data
from bayesrule.errors import ConfigError
from bayesrule.models import prefix_network, reads_prompts, tokenizer_of
from bayesrule.pretrained import checkpoint_version

__all__ = ["as_read", "data_options", "load_inputs"]

_BATCH = 32


def data_options(config: Config) -> dict[str, Any]:
    """Return the ``data`` group with the choices that it leaves to the model.

    Args:
        config: A run's configuration; a task without a network has no model.
    """
    data = dict(config["data"])
    if "model" not in config:
        return data
    model = config["model"]
    if data.get("tokenizer") == "auto":
        data["tokenizer"] = tokenizer_of(model) or "auto"
    if data.get("form") == "auto":
        data["form"] = "prompt" if reads_prompts(model) else "plain"
    return data


def load_inputs(config: Config) -> DataBundle:
    """Load the data that a configuration names, as its model reads them."""
    data = load_data(data_options(config), seed=config["seed"], cache_dir=cache_dir())
    return as_read(config["model"], data) if "model" in config else data


def as_read(model: Mapping[str, Any], data: DataBundle) -> DataBundle:
    """Return a data set's texts as hidden states if the model has a cached prefix.

    Args:
        model: The ``model`` group of a configuration.
        data: The data set.

    Raises:
        ConfigError: If it is no set of texts.
    """
    if not model.get("cached_prefix"):
        return data
    if not isinstance(data.train.batch(torch.tensor([0]))["input"], Mapping):
        raise ConfigError(f"model.cached_prefix is for sets of texts, not for data={data.name}")
    keys = ("checkpoint", "revision", "weights", "attention", "cached_prefix")
    content = {key: model[key] for key in keys}
    content |= {"version": checkpoint_version(model["checkpoint"]), "data": data.fingerprint}
    content["tokens"] = data.notes.get("tokenizer_sha256")
    splits = {"train": data.train, "val": data.val, "test": data.test}
    present = {name: split for name, split in splits.items() if split is not None}
    folder, _ = prepared(
        cache_dir(),
        f"{data.name}-{model['name']}",
        content,
        lambda path: _compute(path, model, present),
        room="states",
    )
    read = {name: _read(folder, name, split) for name, split in present.items()}
    return dataclasses.replace(
        data, train=read["train"], val=read.get("val"), test=read["test"], ood={}
    )


def _compute(folder: Path, model: Mapping[str, Any], splits: Mapping[str, Split]) -> dict[str, Any]:
    """Run the frozen layers over all splits; write states and masks into `folder`."""
    network = prefix_network(model)
    for name, split in splits.items():
        states: np.ndarray | None = None
        masks = []
        for start in range(0, len(split), _BATCH):
            rows = torch.arange(start, min(start + _BATCH, len(split)))
            batch = split.batch(rows)["input"]
            hidden = network(**batch).numpy()
            if states is None:
                states = np.lib.format.open_memmap(
                    folder / f"{name}.states.npy",
                    mode="w+",
                    dtype=np.float32,
                    shape=(len(split), *hidden.shape[1:]),
                )
            states[start : start + len(rows)] = hidden
            masks.append(batch["attention_mask"].numpy())
        assert states is not None
        del states  # written
        np.save(folder / f"{name}.mask.npy", np.concatenate(masks))
    return {"splits": list(splits)}


def _read(folder: Path, name: str, split: Split) -> StateSplit:
    states = np.load(folder / f"{name}.states.npy", mmap_mode="r", allow_pickle=False)
    mask = np.load(folder / f"{name}.mask.npy", allow_pickle=False)
    return StateSplit(states, mask, split.targets)
