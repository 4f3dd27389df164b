"""Which posteriors and models go with which task: a word in their files, compared in composition.

A file of ``conf/posterior``, ``conf/model`` or ``conf/task`` may say ``_kind_: gp``; without it the
kind is ``network``. A run's task, posterior (parts included) and model are of one kind, else the
configuration is refused before anything of torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayesrule.config.locations import conf_dir, read_conf
from bayesrule.errors import ConfigError

__all__ = ["KIND_KEY", "check_kinds", "of_kind"]

KIND_KEY = "_kind_"
DEFAULT = "network"
_GROUPS = ("posterior", "model")
_WORDS = {"network": "networks", "gp": "Gaussian processes"}


def check_kinds(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose parts are of different kinds.

    Raises:
        ConfigError: Naming the two parts, and what would go together.
    """
    if not isinstance(config.get("task"), Mapping):
        return
    wanted = config["task"].get(KIND_KEY, DEFAULT)
    for group in _GROUPS:
        if not isinstance(config.get(group), Mapping):
            continue
        for where, part in _parts(config[group], group):
            kind = part.get(KIND_KEY, DEFAULT)
            if kind != wanted:
                raise ConfigError(_refusal(config["task"], where, part, kind, wanted))


def _parts(node: Mapping[str, Any], where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return a node and the posteriors inside it, with their dotted names."""
    found = [(where, node)]
    for name, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            found += _parts(value, f"{where}.{name}")
    return found


def _refusal(
    task: Mapping[str, Any], where: str, part: Mapping[str, Any], kind: str, wanted: str
) -> str:
    group = where.partition(".")[0]
    name = part.get("name") or _name(group, part)
    own_task = _name("task", task)
    fits = ", ".join(of_kind(group, wanted))
    tasks = " or ".join(f"task={one}" for one in of_kind("task", kind))
    return (
        f"{where}={name} is for {_WORDS.get(kind, kind)} and task={own_task} for "
        f"{_WORDS.get(wanted, wanted)}: choose {tasks}, or one of {group}={fits}"
    )


def _name(group: str, part: Mapping[str, Any]) -> str:
    """Return the file that a node comes from: of its target, with the most equal values."""
    target = part.get("_target_")
    equal = {
        name: sum(part.get(key) == value for key, value in content.items())
        for name, content in _files(group).items()
        if content.get("_target_") == target
    }
    return max(equal, key=lambda name: equal[name]) if equal else str(target).rpartition(".")[2]


def of_kind(group: str, kind: str) -> list[str]:
    """Return the names of a group's files of one kind, sorted."""
    return [name for name, file in _files(group).items() if file.get(KIND_KEY, DEFAULT) == kind]


def _files(group: str) -> dict[str, Mapping[str, Any]]:
    """Return the group's own part of each of its files, by name."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        if not path.name.startswith("_"):
            content = read_conf(path)
            own = content.get(group)  # a file of package _global_ has its options below the group
            found[path.stem] = own if isinstance(own, Mapping) else content
    return found
