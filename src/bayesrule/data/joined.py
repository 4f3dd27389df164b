"""Several image sets as one: the classes of the first, then those of the second, and so on.

Labels of part k are shifted by the classes of the parts before it. The parts are of one shape and
scaled without statistics, so that their pixels mean the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bayesrule.data.bundle import DataBundle, Source, Split, fingerprint
from bayesrule.data.views import Union, View
from bayesrule.errors import ConfigError
from bayesrule.seeding import generator

__all__ = ["join", "part_options"]

_PASSED_ON = ("split_seed", "val_fraction", "scaling", "augment", "image_size", "invert")
_REFUSED: dict[str, Any] = {"label_noise": 0.0, "noisy_test": False, "imbalance": None, "ood": []}


def part_options(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the options of each part of a joined set.

    Args:
        cfg: A complete data config with `parts`.

    Raises:
        ConfigError: An option that a joined set does not have.
    """
    for key, neutral in _REFUSED.items():
        if cfg[key] != neutral:
            raise ConfigError(f"data.{key}={cfg[key]}: {cfg['name']} has parts: leave it out")
    return [{"name": name, **{key: cfg[key] for key in _PASSED_ON}} for name in cfg["parts"]]


def join(
    cfg: Mapping[str, Any],
    options: dict[str, Any],
    split_seed: int,
    load: Callable[[dict[str, Any]], DataBundle],
) -> DataBundle:
    """Return the union of the sets that ``cfg["parts"]`` names.

    Args:
        cfg: A complete data config.
        options: The same, as plain data.
        split_seed: Draws the rows where `train_size` or `test_size` asks for fewer.
        load: Loads a part from its options.

    Raises:
        ConfigError: If the parts have other shapes or numbers of classes than `cfg` declares.
    """
    parts = [load(each) for each in part_options(cfg)]
    shape, n_outputs = tuple(cfg["shape"]), sum(part.n_outputs for part in parts)
    if n_outputs != cfg["n_outputs"] or any(tuple(part.input_shape) != shape for part in parts):
        found = [tuple(part.input_shape) for part in parts]
        raise ConfigError(
            f"data={cfg['name']}: its parts {list(cfg['parts'])} have {n_outputs} classes and "
            f"shapes {found}, not {cfg['n_outputs']} of {shape}"
        )
    splits: dict[str, Split] = {}
    for name in ("train", "val", "test"):
        own = [getattr(part, name) for part in parts]
        if all(split is not None for split in own):
            splits[name] = _union(own, [part.n_outputs for part in parts])
            if cfg.get(f"{name}_size") is not None:
                drawn = generator(split_seed, "split", "joined", name)
                order = torch.randperm(len(splits[name]), generator=drawn)
                splits[name] = splits[name].subset(order[: int(cfg[f"{name}_size"])])
    names = [part.class_names for part in parts]
    sources = {part.name: part.source.sha256 for part in parts}
    digest = hashlib.sha256("/".join(sources.values()).encode()).hexdigest()
    where = " and ".join(f"{part.source.served_by} {part.source.where}" for part in parts)
    return DataBundle(
        name=cfg["name"],
        kind="classification",
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        ood={},
        n_outputs=n_outputs,
        input_shape=shape,
        class_names=[n for own in names for n in own or []] if all(names) else None,
        target_mean=0.0,
        target_std=1.0,
        source=Source(parts[0].source.served_by, where, None, digest),
        fingerprint=fingerprint(sources, options, splits),
        scaling=parts[0].scaling,
        options=options,
    )


def _union(splits: list[Split], n_classes: list[int]) -> Split:
    """Return one split of all items, labels shifted by the classes before."""
    shifted, first = [], 0
    for split, k in zip(splits, n_classes, strict=True):
        shifted.append(View(split, split.targets + first))
        first += k
    return Union(shifted)
