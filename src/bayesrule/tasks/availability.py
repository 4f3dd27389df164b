"""What a run needs from outside, and whether this machine has it.

Nothing is loaded, hashed or downloaded. A configuration names a data set (with companions), an
environment, or neither.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from bayesrule.config import Config
from bayesrule.data import complete
from bayesrule.data.packages import PACKAGE_SETS
from bayesrule.data.sources import MIRROR_VARIABLE, locate
from bayesrule.errors import DataUnavailable

__all__ = ["Availability", "availability", "resources", "unavailable"]

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


def resources(
    config: Config, known: Mapping[str, Availability] | None = None
) -> dict[str, Availability]:
    """Return, by name, where each data set or environment is or could come from.

    Args:
        config: A run's configuration.
        known: Names that are not looked up again.
    """
    found = {
        name: availability(options)
        for name, options in _data_sets(config).items()
        if name not in (known or {})
    }
    if "env" in config:
        from bayesrule.tasks.rl.environments import environment_source

        found[config["env"]["name"]] = Availability(*environment_source(config["env"]))
    return found


def unavailable(config: Config, known: dict[str, str | None]) -> str | None:
    """Return why a run could not start on this machine, or None.

    Args:
        config: A run's configuration.
        known: Answers by name, filled here: runs of a study share their data.
    """
    checks: dict[str, Callable[[], object]] = {
        name: functools.partial(locate, options)
        for name, options in _data_sets(config).items()
        if options["generator"] is None
    }
    if "env" in config:
        from bayesrule.tasks.rl.environments import check_environment

        checks[config["env"]["name"]] = functools.partial(check_environment, config["env"])
    for name, check in checks.items():
        if name not in known:
            try:
                check()
                known[name] = None
            except DataUnavailable as error:
                known[name] = str(error)
        if known[name] is not None:
            return known[name]
    return None


def _data_sets(config: Config) -> dict[str, dict[str, Any]]:
    """Return the options of the data set, its companions and the task's further sets, by name."""
    if "data" not in config:
        return {}
    own = config["data"]
    others = [*own.get("parts", []), *own.get("ood", []), *config["task"].get("sets", [])]
    found = {} if own.get("parts") else {own["name"]: complete(own)}
    return found | {name: complete({"name": name}) for name in others}


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
