"""From a data config to a `DataBundle`: locate, decode, split, add noise, scale, describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.data.answers import load_answers
from bayesrule.data.arrays import ArraySplit, MatchShape
from bayesrule.data.arrow import ArrowImageSplit, as_targets, labels_of
from bayesrule.data.augment import CropFlip
from bayesrule.data.bundle import DataBundle, Source, Split, fingerprint
from bayesrule.data.catalogue import complete
from bayesrule.data.decode import RawSet, class_names_of, decode, input_shape
from bayesrule.data.generated import generate, generate_texts
from bayesrule.data.joined import join
from bayesrule.data.scaling import Scaling, array_chunks, fit_scaling
from bayesrule.data.sources import Found, locate
from bayesrule.data.splits import (
    Partition,
    long_tail,
    noisy_labels,
    partition,
    published_partition,
)
from bayesrule.data.text import load_text
from bayesrule.data.texts import TextSplit, load_texts
from bayesrule.errors import ConfigError, DataUnavailable
from bayesrule.seeding import child_seed, numpy_generator

__all__ = ["load_data"]

OOD_TARGET = -100  # companions have no class of this set; the value that losses ignore


def load_data(cfg: Mapping[str, Any], *, seed: int, cache_dir: Path) -> DataBundle:
    """Load, split, corrupt and scale one data set, as its config says.

    Every draw comes from a named stream below `split_seed` (or `seed` where it is null), so the
    same config and seed give the same bundle on every machine; augmentation and window offsets
    are drawn below `seed`.

    Args:
        cfg: A resolved ``conf/data`` mapping; missing options take their declared defaults, so
            ``{"name": "digits"}`` is enough.
        seed: The run's seed.
        cache_dir: Folder of prepared files, shared by all runs.

    Raises:
        ConfigError: An unknown name, option or value.
        DataUnavailable: No source serves the set; the message lists the three ways.
    """
    cfg = complete(cfg)
    cache_dir = Path(cache_dir)
    options = {key: _plain(value) for key, value in cfg.items()}
    split_seed = int(seed if cfg["split_seed"] is None else cfg["split_seed"])
    if cfg["kind"] == "lm" and cfg["format"] == "answers":
        return load_answers(
            locate(cfg, cache_dir), cfg, split_seed=split_seed, options=options, cache_dir=cache_dir
        )
    if cfg["kind"] == "lm":
        return load_text(
            locate(cfg, cache_dir), cfg, seed=seed, options=options, cache_dir=cache_dir
        )
    if cfg.get("parts"):
        return join(
            cfg, options, split_seed, lambda part: load_data(part, seed=seed, cache_dir=cache_dir)
        )
    if cfg["kind"] == "classification":
        load = _Classification(cfg, options, seed, split_seed, cache_dir)
        if cfg["storage"] == "arrow":
            return load.from_arrow(locate(cfg, cache_dir))
        if cfg["format"] == "text":
            return load.from_texts()
        return load.from_arrays()
    return _load_regression(cfg, options, split_seed, cache_dir)


def _raw(cfg: Mapping[str, Any], split_seed: int, cache_dir: Path) -> RawSet:
    if cfg["generator"] is not None:
        return generate(cfg, seed=split_seed)
    return decode(locate(cfg, cache_dir), cfg, cache_dir)


class _Classification:
    """The steps of a classification set, shared by arrays and Arrow tables."""

    def __init__(
        self,
        cfg: Mapping[str, Any],
        options: dict[str, Any],
        seed: int,
        split_seed: int,
        cache_dir: Path,
    ) -> None:
        self.cfg, self.options, self.cache_dir = cfg, options, cache_dir
        self.split_seed = split_seed
        self.augment_seed = child_seed(seed, "augment")
        self.shape = input_shape(cfg)
        self.n_outputs = int(cfg["n_outputs"])

    def from_arrays(self) -> DataBundle:
        """Build the bundle of a set that is one array."""
        cfg = self.cfg
        raw = _raw(cfg, self.split_seed, self.cache_dir)
        inputs, labels = raw.train
        parts, targets, notes = self._rows(labels, None if raw.test is None else raw.test[1])
        scaling = fit_scaling(
            cfg["scaling"], array_chunks(inputs, parts.train), max_value=cfg["max_value"]
        )
        choice = cfg.get("augment", "none")
        if choice not in ("none", "crop_flip"):
            raise ConfigError(f"data.augment={choice}: choose none or crop_flip.")
        augment = CropFlip(self.augment_seed) if choice == "crop_flip" else None
        test_inputs = inputs if raw.test is None else raw.test[0]
        splits: dict[str, Split] = {
            "train": ArraySplit(inputs, targets["train"], parts.train, scaling, augment),
            "test": ArraySplit(test_inputs, targets["test"], parts.test, scaling),
        }
        if len(parts.val):
            splits["val"] = ArraySplit(inputs, targets["val"], parts.val, scaling)
        return self._bundle(raw.source, splits, scaling, raw.class_names, notes)

    def from_arrow(self, found: Found) -> DataBundle:
        """Build the bundle of a set that stays on disk."""
        cfg = self.cfg
        if found.tables is None:
            raise ConfigError("data.storage=arrow: a set that a package ships is one array.")
        if cfg["test_split"] is None:
            raise ConfigError("data.storage=arrow: needs an official test_split.")
        tables = found.tables(cfg["hub_config"], self.cache_dir / "datasets")
        train, test = tables[cfg["train_split"]], tables[cfg["test_split"]]
        column, target = cfg["input_column"], cfg["target_column"]
        parts, targets, notes = self._rows(labels_of(train, target), labels_of(test, target))
        plain = ArrowImageSplit(train, column, targets["train"], parts.train, self.shape)
        scaling = fit_scaling(cfg["scaling"], plain.scaling_chunks(), max_value=cfg["max_value"])
        choice = cfg["augment"]
        if choice not in ("none", "resized_crop_flip"):
            raise ConfigError(f"data.augment={choice}: choose none or resized_crop_flip.")
        augment = self.augment_seed if choice == "resized_crop_flip" else None
        splits: dict[str, Split] = {
            part: ArrowImageSplit(table, column, targets[part], rows, self.shape, scaling, draw)
            for part, table, rows, draw in (
                ("train", train, parts.train, augment),
                ("val", train, parts.val, None),
                ("test", test, parts.test, None),
            )
            if len(rows)
        }
        return self._bundle(found.source, splits, scaling, class_names_of(train, target), notes)

    def from_texts(self) -> DataBundle:
        """Build the bundle of a set of labelled texts."""
        cfg, made = self.cfg, self.cfg["generator"] is not None
        items = generate_texts(cfg, seed=self.split_seed) if made else {}
        found = None if made else locate(cfg, self.cache_dir)
        raw = load_texts(found, cfg, items, self.cache_dir)
        parts, targets, notes = self._rows(raw.train[2], None if raw.test is None else raw.test[2])
        tokens, lengths, _ = raw.train
        test_tokens, test_lengths, _ = raw.train if raw.test is None else raw.test
        splits: dict[str, Split] = {
            "train": TextSplit(tokens, lengths, targets["train"], parts.train),
            "test": TextSplit(test_tokens, test_lengths, targets["test"], parts.test),
        }
        if len(parts.val):
            splits["val"] = TextSplit(tokens, lengths, targets["val"], parts.val)
        scaling = Scaling("none", np.zeros(()), np.ones(()), 0)
        return self._bundle(raw.source, splits, scaling, raw.class_names, notes | raw.facts)

    def _rows(
        self, train_labels: np.ndarray, test_labels: np.ndarray | None
    ) -> tuple[Partition, dict[str, Tensor], dict[str, Any]]:
        """Choose rows and draw noise; return rows, targets and facts for the record."""
        cfg, seed, k = self.cfg, self.split_seed, self.n_outputs
        for labels in (train_labels, test_labels):
            if labels is not None and (labels.min() < 0 or labels.max() >= k):
                raise ConfigError(
                    f"data.n_outputs={k}: {cfg['name']} has labels from "
                    f"{labels.min()} to {labels.max()}."
                )
        parts = partition(
            len(train_labels),
            None if test_labels is None else len(test_labels),
            seed=seed,
            train_size=cfg["train_size"],
            test_size=cfg["test_size"],
            test_fraction=cfg["test_fraction"],
            val_fraction=cfg["val_fraction"],
        )
        if cfg["imbalance"] is not None:
            kept = long_tail(train_labels, parts.train, float(cfg["imbalance"]), k, seed=seed)
            parts = replace(parts, train=kept)
        rate = float(cfg["label_noise"])
        noisy = noisy_labels(train_labels, rate, k, seed=seed, stream="train")
        clean_test = train_labels if test_labels is None else test_labels
        noisy_test = clean_test
        if cfg["noisy_test"]:
            noisy_test = noisy_labels(clean_test, rate, k, seed=seed, stream="test")
        targets = {
            "train": as_targets(noisy[parts.train]),
            "val": as_targets(noisy[parts.val]),
            "test": as_targets(noisy_test[parts.test]),
        }
        notes: dict[str, Any] = {}
        if rate > 0.0:
            changed = noisy != train_labels, noisy_test != clean_test
            notes["label_noise_train"] = float(np.mean(changed[0][parts.train]))
            notes["label_noise_test"] = float(np.mean(changed[1][parts.test]))
        return parts, targets, notes

    def _bundle(
        self,
        source: Source,
        splits: dict[str, Split],
        scaling: Scaling,
        class_names: list[str] | None,
        notes: dict[str, Any],
    ) -> DataBundle:
        cfg = self.cfg
        ood, sources = self._companions(scaling)
        sources[cfg["name"]] = source.sha256
        everything = splits | {f"ood/{name}": split for name, split in ood.items()}
        return DataBundle(
            name=cfg["name"],
            kind="classification",
            train=splits["train"],
            val=splits.get("val"),
            test=splits["test"],
            ood=ood,
            n_outputs=self.n_outputs,
            input_shape=self.shape,
            class_names=class_names,
            target_mean=0.0,
            target_std=1.0,
            source=source,
            fingerprint=fingerprint(sources, self.options, everything),
            scaling=scaling.describe(),
            options=self.options,
            notes=notes,
        )

    def _companions(self, scaling: Scaling) -> tuple[dict[str, Split], dict[str, str]]:
        """Load out-of-distribution sets in this set's shape and scaling."""
        ood: dict[str, Split] = {}
        sources: dict[str, str] = {}
        for name in self.cfg.get("ood") or []:
            other = complete({"name": name})
            if other.get("format") != "image" or other["storage"] != "decoded":
                raise ConfigError(f"data.ood: {name} is not an image set that fits in memory.")
            if name == self.cfg["name"]:
                raise ConfigError(f"data.ood: {name} cannot be its own companion.")
            raw = _raw(other, self.split_seed, self.cache_dir)
            inputs = raw.train[0] if raw.test is None else raw.test[0]
            rows = np.arange(len(inputs))
            if self.cfg["ood_size"] is not None:
                order = numpy_generator(self.split_seed, "split", "ood", name).permutation(rows)
                rows = order[: int(self.cfg["ood_size"])]
            gain = float(self.cfg["max_value"]) / float(other["max_value"])
            targets = torch.full((len(rows),), OOD_TARGET, dtype=torch.int64)
            ood[name] = ArraySplit(
                inputs, targets, rows, scaling, match=MatchShape(self.shape, gain)
            )
            sources[f"ood/{name}"] = raw.source.sha256
        return ood, sources


def _load_regression(
    cfg: Mapping[str, Any], options: dict[str, Any], split_seed: int, cache_dir: Path
) -> DataBundle:
    raw = _raw(cfg, split_seed, cache_dir)
    inputs, values = raw.train
    if cfg["split"] is not None:
        if raw.published_tests is None:
            raise DataUnavailable(
                f"data.split={cfg['split']}: {raw.source.where} has no published splits "
                "(only the local mirror has them); use split: null for a split drawn by the seed."
            )
        if cfg["train_size"] is not None or cfg["test_size"] is not None:
            raise ConfigError("data.split: a published split has its own sizes; leave them null.")
        parts = published_partition(
            len(inputs),
            raw.published_tests,
            int(cfg["split"]),
            seed=split_seed,
            val_fraction=cfg["val_fraction"],
        )
    else:
        parts = partition(
            len(inputs),
            None if raw.test is None else len(raw.test[0]),
            seed=split_seed,
            train_size=cfg["train_size"],
            test_size=cfg["test_size"],
            test_fraction=cfg["test_fraction"],
            val_fraction=cfg["val_fraction"],
        )
    scaling = fit_scaling(cfg["scaling"], array_chunks(inputs, parts.train))
    mean, std = 0.0, 1.0
    if cfg["standardise_target"]:
        mean, std = float(values[parts.train].mean()), float(values[parts.train].std()) or 1.0
    test_inputs, test_values = (inputs, values) if raw.test is None else raw.test
    splits: dict[str, Split] = {}
    for part, x, y, rows in (
        ("train", inputs, values, parts.train),
        ("val", inputs, values, parts.val),
        ("test", test_inputs, test_values, parts.test),
    ):
        if len(rows):
            target = torch.from_numpy(((y[rows] - mean) / std).astype(np.float32))[:, None]
            splits[part] = ArraySplit(x, target, rows, scaling)
    return DataBundle(
        name=cfg["name"],
        kind="regression",
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        ood={},
        n_outputs=int(cfg["n_outputs"]),
        input_shape=input_shape(cfg),
        class_names=None,
        target_mean=mean,
        target_std=std,
        source=raw.source,
        fingerprint=fingerprint({cfg["name"]: raw.source.sha256}, options, splits),
        scaling=scaling.describe(),
        options=options,
    )


def _plain(value: Any) -> Any:
    """Return lists and mappings as plain, JSON-able ones."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
