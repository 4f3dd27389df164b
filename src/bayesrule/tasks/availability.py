"""Where a data set would come from on this machine; nothing is loaded, hashed or downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from bayesrule.data.packages import PACKAGE_SETS
from bayesrule.data.sources import MIRROR_VARIABLE

__all__ = ["Availability", "availability"]

_MODULES = {"scikit-learn": "sklearn"}


@dataclass(frozen=True)
class Availability:
    """Whether a data set is on this machine.

    Attributes:
        here: Whether a run could start without a network.
        text: Where it is, or where it could come from.
    """

    here: bool
    text: str


def availability(cfg: Mapping[str, Any]) -> Availability:
    """Say which source would serve a data set, in the order of `bayesrule.data.load_data`.

    Args:
        cfg: A complete data configuration.
    """
    name, hub = str(cfg["name"]), cfg["hub"]
    if cfg["generator"] is not None:
        return Availability(True, "made by code")
    root = os.environ.get(MIRROR_VARIABLE)
    if root:
        folder = Path(root).expanduser() / name
        if folder.is_dir() and next(folder.rglob("*.parquet"), None) is not None:
            return Availability(True, f"mirror ${MIRROR_VARIABLE}/{name}")
    if cfg["package"] in PACKAGE_SETS:
        package = PACKAGE_SETS[cfg["package"]][0]
        if util.find_spec(_MODULES.get(package, package)) is not None:
            return Availability(True, f"package {package}")
    if hub is None:
        return Availability(False, f"only ${MIRROR_VARIABLE}/{name} could serve it")
    if _cached(hub):
        return Availability(True, f"hub {hub}, in the cache")
    return Availability(False, f"hub {hub}, or ${MIRROR_VARIABLE}/{name}")


def _cached(hub: str) -> bool:
    """Return whether `datasets` or the hub's client has kept files of a repository."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    snapshots = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folders = (
        prepared / hub.replace("/", "___"),
        snapshots / f"datasets--{hub.replace('/', '--')}" / "snapshots",
    )
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)
