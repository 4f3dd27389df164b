"""Where the checkout, its configuration, its experiments and the run store are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bayesrule.errors import ConfigError

__all__ = [
    "cache_dir",
    "conf_dir",
    "damaged_conf",
    "experiments_dir",
    "read_conf",
    "results_dir",
    "root_dir",
    "runs_dir",
]


def root_dir() -> Path:
    """Return the checkout: the folder with ``conf/`` and ``experiments/``.

    It is ``$BAYESRULE_ROOT``, the checkout that the package is installed from, or the current
    folder, whichever exists first.

    Raises:
        ConfigError: If none of them holds a ``conf`` folder.
    """
    given = os.environ.get("BAYESRULE_ROOT")
    candidates = [Path(given)] if given else [Path(__file__).resolve().parents[3], Path.cwd()]
    for candidate in candidates:
        if (candidate / "conf" / "config.yaml").is_file():
            return candidate.resolve()
    raise ConfigError(
        f"no conf/config.yaml in {' or '.join(map(str, candidates))}: run from a checkout of "
        "bayesrule, or name one by BAYESRULE_ROOT"
    )


def conf_dir() -> Path:
    """Return the folder of the Hydra groups."""
    return root_dir() / "conf"


def read_conf(path: Path) -> dict[str, Any]:
    """Read one file of ``conf/``.

    Raises:
        ConfigError: If it can't be read or holds no mapping; names it.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes().decode())
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(cause).split())}") from None
    except OSError as cause:
        raise ConfigError(f"{path} cannot be read: {cause.strerror}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it holds no keys")
    return {str(key): value for key, value in content.items()}


def damaged_conf() -> str | None:
    """Return what is wrong with the first file of ``conf/`` that can't be read; None: all can."""
    for path in sorted(conf_dir().rglob("*.yaml")):
        try:
            json.dumps(read_conf(path), default=str)
        except ConfigError as problem:
            return str(problem)
        except ValueError:
            return f"{path} is damaged: an alias in it stands for what contains it"
    return None


def experiments_dir() -> Path:
    """Return the folder with one folder per paper."""
    return root_dir() / "experiments"


def results_dir() -> Path:
    """Return the folder of committed results."""
    return root_dir() / "results"


def runs_dir() -> Path:
    """Return the run store: ``$BAYESRULE_RUNS`` or ``runs/`` of the checkout."""
    return Path(os.environ.get("BAYESRULE_RUNS") or root_dir() / "runs").resolve()


def cache_dir() -> Path:
    """Return the folder for decoded data: ``$BAYESRULE_CACHE`` or ``.cache/`` of the checkout."""
    return Path(os.environ.get("BAYESRULE_CACHE") or root_dir() / ".cache").resolve()
