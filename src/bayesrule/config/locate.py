"""From a ``_target_`` in a configuration to the object it names, within an allow-list.

A configuration is data, and no code runs from data: only names below the prefixes here are ever
imported. Users add their own package by ``BAYESRULE_TARGETS=mypackage`` in the environment.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bayesrule.config.locations import root_dir
from bayesrule.errors import ConfigError

__all__ = ["accepted", "check_target", "locate"]

_PREFIXES = ("bayesrule.", "experiments.")


def _prefixes() -> tuple[str, ...]:
    own = os.environ.get("BAYESRULE_TARGETS", "").replace(",", " ").split()
    return (*_PREFIXES, *(f"{name.rstrip('.')}." for name in own))


def check_target(target: Any, key: str) -> str:
    """Return `target` if it may be imported.

    Raises:
        ConfigError: If it is not below an allowed prefix.
    """
    parts = str(target).split(".")
    names = [p.replace("-", "_") if p == parts[1] else p for p in parts] if parts[1:] else []
    fine = bool(names) and all(p.isidentifier() and not p.startswith("_") for p in names)
    if not fine or not str(target).startswith(_prefixes()):
        raise ConfigError(
            f"{key}={target} is refused: a _target_ must lie in {', '.join(_prefixes())} "
            "(your own package: BAYESRULE_TARGETS=<package>)"
        )
    return str(target)


def locate(target: str, key: str = "_target_", root: Path | None = None) -> Callable[..., Any]:
    """Import the class or function that `target` names.

    Args:
        target: Dotted name; ``experiments.<key>.<module>.<name>`` is read from the experiments
            folder, where the key may have hyphens.
        key: Where the name stands, for messages.
        root: The folder that holds ``experiments/``; None: the checkout.

    Raises:
        ConfigError: If it may not be imported, or there is nothing of that name.
    """
    module_name, _, name = check_target(target, key).rpartition(".")
    try:
        if module_name.startswith("experiments."):
            module = _experiment_module(module_name, root)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, name)
    except (ModuleNotFoundError, AttributeError) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and not f"{absent}.".startswith(_prefixes()):
            raise ConfigError(
                f"{key}={target} needs the package {absent}, which is not installed: pip install "
                f"{absent} (or the extra of bayesrule that has it, see pyproject.toml)"
            ) from error
        raise ConfigError(f"{key}={target}: {error}") from error


def _experiment_module(module_name: str, root: Path | None) -> Any:
    """Load ``experiments/<key>/<module>.py`` by path; nothing in the package imports it."""
    if module_name in sys.modules:
        return sys.modules[module_name]
    _, key, *rest = module_name.split(".")
    root = root or root_dir()
    if len(rest) != 1:
        raise ModuleNotFoundError(f"no experiments folder for {module_name}")
    for folder in (key, key.replace("_", "-")):
        path = root / "experiments" / folder / f"{rest[0]}.py"
        if path.is_file():
            spec = importlib.util.spec_from_file_location(module_name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            spec.loader.exec_module(module)
            return module
    raise ModuleNotFoundError(f"no file {rest[0]}.py in experiments/{key}")


def accepted(target: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that `target`'s signature has."""
    names = set(inspect.signature(target).parameters)
    return {name: value for name, value in options.items() if name in names}
