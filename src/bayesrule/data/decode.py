"""From stored tables to arrays: images to uint8 once, tables to float64, multi-hot to uint8."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesrule.cache import prepared
from bayesrule.data.bundle import Source
from bayesrule.data.sources import Found, mirror_splits
from bayesrule.errors import ConfigError, CorruptFile

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

__all__ = ["RawSet", "class_names_of", "decode", "input_shape", "to_pixels"]

_DECODE_KEYS = (
    "format",
    "train_split",
    "test_split",
    "input_column",
    "target_column",
    "shape",
    "kind",
    "invert",
    "max_value",
)


@dataclass(frozen=True)
class RawSet:
    """A data set as arrays, before splitting, noise and scaling.

    Attributes:
        source: Where it came from.
        train: Inputs and targets of the official training split, or of the whole pool.
        test: Inputs and targets of the official test split; None when there is none.
        class_names: Names of the classes.
        published_tests: Published test rows, one list a split; None when there are none.
    """

    source: Source
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray] | None
    class_names: list[str] | None
    published_tests: list[list[int]] | None = None


def input_shape(cfg: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of one input: the declared one, with `image_size` applied."""
    if "max_length" in cfg:
        return (int(cfg["max_length"]),)
    shape = tuple(int(size) for size in cfg["shape"])
    if cfg.get("image_size") is not None:
        return (shape[0], int(cfg["image_size"]), int(cfg["image_size"]))
    return shape


def decode(found: Found, cfg: Mapping[str, Any], cache_dir: Path) -> RawSet:
    """Return a located data set as arrays.

    Tables from a mirror or the hub are decoded once into the cache (keyed by the content's hash)
    and memory-mapped from there; later calls need not even import `datasets`.

    Args:
        found: The located data set.
        cfg: Its complete config.
        cache_dir: Folder of prepared files.

    Raises:
        ConfigError: A declared split or column does not exist, or the inputs have another shape.
        CorruptFile: An image cannot be decoded.
    """
    shape = input_shape(cfg)
    if found.package is not None:
        package = found.package
        inputs = package.inputs
        if cfg["format"] == "image" and inputs.shape[1:] != shape:
            inputs = np.stack([_resize(image, shape) for image in inputs])
        if cfg.get("invert"):
            inputs = (float(cfg["max_value"]) - inputs).astype(inputs.dtype)
        raw = RawSet(found.source, (inputs, package.targets), None, package.class_names)
    else:
        content = {key: cfg.get(key) for key in _DECODE_KEYS} | {"input_shape": list(shape)}
        content["sha256"] = found.source.sha256
        folder, meta = prepared(
            cache_dir, cfg["name"], content, lambda path: _write(path, found, cfg, cache_dir)
        )
        parts = {
            part: (_mmap(folder / f"{part}.inputs.npy"), _mmap(folder / f"{part}.targets.npy"))
            for part in meta["parts"]
        }
        raw = RawSet(
            found.source,
            parts["train"],
            parts.get("test"),
            meta["class_names"],
            meta["published_tests"],
        )
    if raw.train[0].shape[1:] != shape:
        raise ConfigError(
            f"data={cfg['name']}: shape is declared as {list(shape)}, "
            f"but the inputs have shape {list(raw.train[0].shape[1:])}."
        )
    return raw


def class_names_of(table: datasets.Dataset, column: str) -> list[str] | None:
    """Return the class names of a label column, where the table has them."""
    class_names = getattr(table.features[column], "names", None)
    return None if class_names is None else [str(name) for name in class_names]


def to_pixels(image: Image, shape: tuple[int, ...]) -> np.ndarray:
    """Return an image as uint8 pixels (C, H, W), grey or RGB by C, resized to H x W if needed."""
    from PIL import Image as Pillow

    channels, height, width = shape
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Pillow.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _write(folder: Path, found: Found, cfg: Mapping[str, Any], cache_dir: Path) -> dict[str, Any]:
    assert found.tables is not None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tables = found.tables(cfg.get("hub_config"), Path(scratch))
        wanted = {"train": cfg["train_split"], "test": cfg["test_split"]}
        parts = {part: split for part, split in wanted.items() if split is not None}
        for part, split in parts.items():
            if split not in tables:
                raise ConfigError(
                    f"data.{part}_split={split}: {cfg['name']} has no such split; "
                    f"it has {', '.join(tables)}."
                )
            _write_part(folder, part, tables[split], cfg)
        target = cfg["target_column"]
        class_names = class_names_of(tables[cfg["train_split"]], target)
        published = mirror_splits(found, Path(scratch)) if cfg["kind"] == "regression" else None
    return {"parts": list(parts), "class_names": class_names, "published_tests": published}


def _write_part(folder: Path, part: str, table: datasets.Dataset, cfg: Mapping[str, Any]) -> None:
    target, column = cfg["target_column"], cfg["input_column"]
    for name in (target, *([column] if column else [])):
        if name not in table.column_names:
            raise ConfigError(
                f"data={cfg['name']}: no column {name}; it has {', '.join(table.column_names)}."
            )
    targets = table.data.column(target).to_numpy()
    whole = cfg["kind"] == "classification"
    np.save(folder / f"{part}.targets.npy", targets.astype(np.int64 if whole else np.float64))
    path = folder / f"{part}.inputs.npy"
    if cfg["format"] == "image":
        shape = (len(table), *input_shape(cfg))
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for row, image in enumerate(_images(table, column, cfg["name"])):
            pixels = to_pixels(image, shape[1:])
            out[row] = float(cfg["max_value"]) - pixels if cfg["invert"] else pixels
        out.flush()
    elif cfg["format"] == "multi_hot":
        np.save(path, _multi_hot(table, column, int(cfg["shape"][0])))
    else:
        columns = [name for name in table.column_names if name != target]
        values = [table.data.column(name).to_numpy().astype(np.float64) for name in columns]
        np.save(path, np.stack(values, axis=1))


def _images(table: datasets.Dataset, column: str, name: str) -> Iterator[Image]:
    from PIL import Image as Pillow

    row = 0
    for chunk in table.data.column(column).chunks:
        for stored, path in zip(chunk.field("bytes"), chunk.field("path")):
            data = stored.as_py() if stored.is_valid else None
            try:
                yield Pillow.open(io.BytesIO(data) if data is not None else path.as_py())
            except OSError as error:
                raise CorruptFile(f"data={name}: image {row} cannot be decoded: {error}") from error
            row += 1


def _multi_hot(table: datasets.Dataset, column: str, width: int) -> np.ndarray:
    """Return zeros of shape (N, width) with ones at each row's listed positions."""
    lists = table.data.column(column).combine_chunks()
    lengths = np.asarray([len(row) for row in lists])
    positions = lists.flatten().to_numpy()
    out = np.zeros((len(table), width), dtype=np.uint8)
    out[np.repeat(np.arange(len(table)), lengths), positions] = 1
    return out


def _resize(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image as Pillow

    array = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    return to_pixels(Pillow.fromarray(array), shape)


def _mmap(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
