"""What a configuration changes: the groups that it starts from, and the options set otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayesrule.config import compose, conf_dir
from bayesrule.config.compose import group_options
from bayesrule.config.locations import read_conf
from bayesrule.errors import ConfigError
from bayesrule.report.text import one_line

__all__ = ["flatten", "from_defaults"]

_PARTS = ("_target_", "name")  # what tells one option of a group from another


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def from_defaults(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the group choices that are nearest to a configuration, and what it sets otherwise.

    Args:
        config: A resolved configuration.

    Returns:
        Words such as `posterior=ivon`, and lines `key=value  (default: other)`. Where the groups
        can't be composed any more, no words, and every option of the configuration.
    """
    base = [
        f"{group}={option}"
        for group, own in config.items()
        if isinstance(own, Mapping) and (option := _nearest_option(group, own)) is not None
    ]
    flat = flatten(config)
    try:
        default = flatten(compose(base))
    except ConfigError:
        return [], [f"{key}={_text(value)}" for key, value in flat.items()]
    lines = [
        f"{key}={_text(value)}"
        + (f"  (default: {_text(default[key])})" if key in default else "  (no such option now)")
        for key, value in flat.items()
        if key not in default or default[key] != value
    ]
    return base, lines


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return one_line(str(value))


def _nearest_option(group: str, own: Mapping[str, Any]) -> str | None:
    """Return the option of a group that is of the same kind and shares most values."""
    flat = flatten(own)
    best, most = None, -1
    for option in group_options(group) if (conf_dir() / group).is_dir() else []:
        content = read_conf(conf_dir() / group / f"{option}.yaml")
        content.pop("_schema_", None)
        content.pop("defaults", None)
        raw = flatten(content)
        if any(raw.get(part) != flat.get(part) for part in _PARTS if part in raw):
            continue
        same = sum(key in flat and flat[key] == value for key, value in raw.items())
        if same > most:
            best, most = option, same
    return best
