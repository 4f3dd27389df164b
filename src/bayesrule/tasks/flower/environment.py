"""Flower and Ray as this project runs them: silent, at home in the run folder, on the loopback."""

from __future__ import annotations

import logging
import os
from importlib import util
from pathlib import Path

from bayesrule.errors import ConfigError

__all__ = ["prepare", "settings"]

_NEEDED = {"flower": ("flwr", "ray"), "deployment": ("flwr",)}


def settings(home: Path) -> dict[str, str]:
    """Return environment variables of every process that imports Flower or Ray.

    Args:
        home: Where Flower keeps its files, instead of the home folder.
    """
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without a GPU nothing is hidden: no warning
        "FLWR_HOME": str(home),
    }


def prepare(engine: str, home: Path) -> None:
    """Set the environment of this process, before Flower is imported.

    Args:
        engine: ``flower`` or ``deployment``.
        home: See `settings`.

    Raises:
        ConfigError: If the extra is not installed.
    """
    for package in _NEEDED[engine]:
        if util.find_spec(package) is None:
            raise ConfigError(
                f"engine={engine} needs the package {package}, which is not installed: "
                "pip install -c constraints.txt -e '.[federated]'"
            )
    os.environ.update(settings(home))
    import flwr.supercore  # noqa: F401  sets the level of its own logger

    logging.getLogger("flwr").setLevel(logging.ERROR)
