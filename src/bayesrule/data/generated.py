"""Data sets made by code: toy problems, and random data in the shape of a declared set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from bayesrule.data.answers import answer_targets
from bayesrule.data.arrays import ArraySplit
from bayesrule.data.augment import CropFlip
from bayesrule.data.bundle import DataBundle, Source, Split, fingerprint
from bayesrule.data.catalogue import complete, nearest
from bayesrule.data.decode import RawSet, input_shape
from bayesrule.data.packages import content_sha256
from bayesrule.data.prompts import Item
from bayesrule.data.scaling import Scaling
from bayesrule.data.text import TokenSplit
from bayesrule.data.texts import TextSplit
from bayesrule.errors import ConfigError
from bayesrule.seeding import child_seed, numpy_generator

__all__ = ["generate", "generate_texts", "random_like"]

Pair = tuple[np.ndarray, np.ndarray]


def generate(cfg: Mapping[str, Any], *, seed: int) -> RawSet:
    """Make the data set that `generator` names.

    Args:
        cfg: A complete data config with `generator`, `n_train` and `n_test`.
        seed: Seed of the split; training and test part have streams of their own.

    Raises:
        ConfigError: There is no generator of that name.
    """
    name = cfg["generator"]
    if name not in _GENERATORS:
        raise ConfigError(f"data.generator={name}: no such generator; {nearest(name, _GENERATORS)}")
    make = _GENERATORS[name]
    parts = {
        part: make(cfg, int(cfg[f"n_{part}"]), part, numpy_generator(seed, "generated", part))
        for part in ("train", "test")
    }
    arrays = [array for pair in parts.values() for array in pair]
    source = Source("generated", name, None, content_sha256(*arrays))
    return RawSet(source, parts["train"], parts["test"], None)


def generate_texts(cfg: Mapping[str, Any], *, seed: int) -> dict[str, list[Item]]:
    """Make the text set that `generator` names: eight words, two of them of the class, by part.

    Args:
        cfg: A complete data config with `n_train` and `n_test`.
        seed: Seed of the split.

    Raises:
        ConfigError: There is no such generator of texts.
    """
    if cfg["generator"] != "toy_text":
        raise ConfigError(f"data.generator={cfg['generator']}: the only one of texts is toy_text")
    items = {}
    for part in ("train", "test"):
        rng = numpy_generator(seed, "generated", part)
        items[part] = [_toy_text(rng, n % 2) for n in range(int(cfg[f"n_{part}"]))]
    return items


_SAYS = (
    ["dull", "weak", "awful", "poor", "boring", "bland", "sad", "bad"],
    ["bright", "strong", "lovely", "rich", "funny", "fresh", "warm", "good"],
)
_SAYS_NOTHING = [
    "the",
    "a",
    "film",
    "story",
    "actor",
    "scene",
    "plot",
    "one",
    "with",
    "and",
    "of",
    "in",
    "it",
    "this",
    "that",
    "long",
]


def _toy_text(rng: np.random.Generator, label: int) -> Item:
    """Return a sentence of eight words; one in five has a word of the other class as well."""
    words = list(rng.choice(_SAYS_NOTHING, size=8))
    places = rng.permutation(8)
    for place in places[:2]:
        words[place] = rng.choice(_SAYS[label])
    if rng.random() < 0.2:
        words[places[2]] = rng.choice(_SAYS[1 - label])
    return Item(" ".join(words), (), label)


def random_like(cfg: Mapping[str, Any], *, seed: int = 0, n_items: int = 64) -> DataBundle:
    """Return a tiny bundle of random data with a set's declared shape, touching no source.

    For dry runs: one real step of any experiment without its data.

    Args:
        cfg: A data config.
        seed: Seed of the random data.
        n_items: Training items; half as many test items, validation items and companions' items.
    """
    cfg = complete(cfg)
    kind, shape = cfg["kind"], input_shape(cfg)
    n_outputs = int(cfg["n_outputs"])
    splits: dict[str, Split] = {}
    sizes = {"train": n_items, "test": n_items // 2}
    if cfg["val_fraction"] > 0.0 or cfg.get("validation_split"):
        sizes["val"] = n_items // 2
    companions = list(cfg.get("ood") or [])
    sizes |= {f"ood/{name}": n_items // 2 for name in companions}
    for part, n in sizes.items():
        rng = numpy_generator(seed, "random_like", part)
        if cfg["format"] == "answers":
            T = int(cfg["max_length"])
            tokens = rng.integers(100, size=(n, T)).astype(np.int32)
            lengths = rng.integers(T // 2, T + 1, size=n)
            learnt = torch.from_numpy(answer_targets(tokens, lengths // 2, lengths))
            splits[part] = TextSplit(tokens, lengths, learnt, np.arange(n))
            continue
        if kind == "lm":
            block = int(cfg["block_size"])
            tokens = rng.integers(n_outputs, size=n * block + 2).astype(np.uint32)
            splits[part] = TokenSplit(tokens, block, seed=seed, train=part == "train")
            continue
        if cfg["format"] == "text":
            tokens = rng.integers(100, size=(n, *shape)).astype(np.int32)
            lengths = rng.integers(shape[0] // 2, shape[0] + 1, size=n)
            labels = torch.from_numpy(rng.integers(n_outputs, size=n))
            splits[part] = TextSplit(tokens, lengths, labels, np.arange(n))
            continue
        inputs = rng.standard_normal((n, *shape), dtype=np.float32)
        if kind == "regression":
            targets = torch.from_numpy(rng.standard_normal((n, n_outputs), dtype=np.float32))
        else:
            targets = torch.from_numpy(rng.integers(n_outputs, size=n))
        augment = None
        if part == "train" and cfg.get("augment", "none") != "none":
            augment = CropFlip(child_seed(seed, "augment"))
        splits[part] = ArraySplit(inputs, targets, augment=augment)
    digest = fingerprint({}, {"name": cfg["name"], "seed": seed}, splits)
    return DataBundle(
        name=cfg["name"],
        kind=kind,
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        ood={name: splits[f"ood/{name}"] for name in companions},
        n_outputs=n_outputs,
        input_shape=(int(cfg["block_size"]),) if "block_size" in cfg else shape,
        class_names=None,
        target_mean=0.0,
        target_std=1.0,
        source=Source("generated", "random_like", None, digest),
        fingerprint=digest,
        scaling=Scaling("none", np.zeros(()), np.ones(()), 0).describe(),
        notes={"random": "schema-shaped random data, for dry runs only"},
    )


def _toy_regression(cfg: Mapping[str, Any], n: int, part: str, rng: np.random.Generator) -> Pair:
    """Targets f(x) + noise; training inputs leave out |x| < gap, test inputs lie on a grid."""
    x = np.linspace(-4.0, 4.0, n)
    if part == "train":
        magnitude = rng.uniform(float(cfg["gap"]), 4.0, size=n)
        x = magnitude * rng.choice([-1.0, 1.0], size=n)
    clean = {"cubic": x**3 / 10.0, "sine": np.sin(2.0 * x)}[cfg["function"]]
    return x[:, None], clean + float(cfg["noise_std"]) * rng.standard_normal(n)


def _two_moons(cfg: Mapping[str, Any], n: int, part: str, rng: np.random.Generator) -> Pair:
    """Half circles (cos a, sin a) and (1 - cos a, 1/2 - sin a) plus noise, a uniform on [0, pi]."""
    labels = rng.permutation(np.arange(n) % 2)
    angle = rng.uniform(0.0, np.pi, size=n)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    clean = np.where(labels[:, None] == 0, upper, lower)
    return clean + float(cfg["noise_std"]) * rng.standard_normal((n, 2)), labels


def _toy_counts(cfg: Mapping[str, Any], n: int, part: str, rng: np.random.Generator) -> Pair:
    """Counts y ~ Poisson(exp(log_rate + sin 2x)) on [-3, 3]; test inputs lie on a grid."""
    x = rng.uniform(-3.0, 3.0, size=n) if part == "train" else np.linspace(-3.0, 3.0, n)
    counts = rng.poisson(np.exp(float(cfg["log_rate"]) + np.sin(2.0 * x)))
    return x[:, None], counts.astype(np.float64)


def _toy_sinc(cfg: Mapping[str, Any], n: int, part: str, rng: np.random.Generator) -> Pair:
    """Labels 1[sin(12 x) / x + noise > 0], x uniform on [-1, 1]; test inputs lie on a grid."""
    x = rng.uniform(-1.0, 1.0, size=n) if part == "train" else np.linspace(-1.0, 1.0, n)
    clean = 12.0 * np.sinc(12.0 * x / np.pi)  # NumPy's sinc has a pi
    labels = clean + float(cfg["noise_std"]) * rng.standard_normal(n) > 0.0
    return x[:, None], labels.astype(np.int64)


# centre x, centre y, standard deviations along x and y of each blob (the authors' toy data)
_BLOBS = np.array(
    [
        [0.0, 0.2, 0.08, 0.22], [0.6, 0.9, 0.24, 0.08], [1.3, 0.4, 0.04, 0.2],
        [1.6, -0.1, 0.16, 0.05], [2.0, 0.3, 0.05, 0.16], [0.45, 0.0, 0.08, 0.16],
        [0.7, 0.45, 0.16, 0.08], [1.0, 0.1, 0.06, 0.16], [1.7, -0.4, 0.24, 0.05],
        [2.3, 0.1, 0.05, 0.22],
    ]
)  # fmt: skip


def _toy_blobs(cfg: Mapping[str, Any], n: int, part: str, rng: np.random.Generator) -> Pair:
    """Ten axis-aligned Gaussian blobs in the plane (Pan et al., 2020, figure 1), equally many."""
    labels = rng.permutation(np.arange(n) % len(_BLOBS))
    centre, std = _BLOBS[labels, :2], _BLOBS[labels, 2:]
    return centre + std * rng.standard_normal((n, 2)), labels


def _random_images(cfg: Mapping[str, Any], n: int, part: str, rng: np.random.Generator) -> Pair:
    """Pixels and labels uniform and independent."""
    images = rng.integers(256, size=(n, *input_shape(cfg)), dtype=np.uint8)
    return images, rng.integers(int(cfg["n_outputs"]), size=n)


_GENERATORS: dict[str, Callable[[Mapping[str, Any], int, str, np.random.Generator], Pair]] = {
    "toy_regression": _toy_regression,
    "toy_counts": _toy_counts,
    "toy_sinc": _toy_sinc,
    "two_moons": _two_moons,
    "toy_blobs": _toy_blobs,
    "random_images": _random_images,
}
