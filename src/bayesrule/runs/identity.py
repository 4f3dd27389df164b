"""The identity of a run: a hash of what decides its numbers, and of nothing else.

    id(config) = first 16 hex digits of SHA-256(canonical JSON of config without volatile keys,
                                                and without newer options at their neutral value)

Two commands that would compute the same numbers share one id, hence one folder, so that a finished
run is found again instead of repeated. An option that a group gains later is recorded in `NEUTRAL`
with the value at which it changes nothing: runs made before it keep their id. Canonical JSON has
sorted keys, no blanks and one spelling per number: `1`, `1.0` and `1e0` are equal, `-0.0` is `0`,
other floats are written with the fewest digits that read back to the same double.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from bayesrule.errors import ConfigError

__all__ = [
    "ID_LENGTH",
    "NEUTRAL",
    "VOLATILE",
    "canonical_json",
    "is_run_id",
    "run_id",
    "without_neutral",
    "without_volatile",
]

ID_LENGTH = 16

VOLATILE: tuple[str, ...] = (
    "paths",  # where files lie
    "logger",  # who else is told
    "hydra",  # Hydra's own settings, launcher and sweeper included
    "engine",  # where clients work and how they are reached; which engine it is: task.engine
    "launcher",  # on which machine or in which process the run is started
    "verbose",  # how much is printed
    "scale",  # a label: what a scale changes stands in other keys
    "study",  # the first study that asked for the run; others may share it
    "tags",  # labels for people
    "note",
    "study",  # which study of which paper asked for the run: two studies may share one
    "_schema_",  # rules that checked the configuration, on every level
    "trainer.progress",  # how progress is shown
    "trainer.checkpoint_seconds",  # how often a checkpoint is written
)
"""Dotted prefixes of configuration keys that do not change a run's numbers.

A key named `_schema_` is left out on every level, the others where they are spelled in full.
"""

NEUTRAL: dict[str, Any] = {
    "trainer.drop_last": False,
    "task.base_from": None,
    "task.models_from": [],
    "posterior.batch_split": 1,
    "metrics.own_norms": False,
    "model.input_dropout": 0.0,
    "model.bias": True,
    "model.norm": "none",
    "model.norm_affine": True,
    "model.norm_momentum": 0.1,
    "model.norm_eps": 1e-5,
    "model.norm_outputs": False,
    "model.hidden_dropout": None,
}
"""Options that are newer than recorded runs: dotted key, and the value that those runs had.

At this value an option is left out of the identity, at any other it counts. A key also stands for
the same option of a part (``posterior.lr`` for ``posterior.member.lr``). Entries are only added,
together with the option: a changed or removed one would change the ids of the runs since.
"""

_PART = re.compile(r"\.(?:member|base)(?=\.)")


def is_run_id(name: str) -> bool:
    """Return whether `name` has the form of a run id: 16 lower-case hexadecimal digits."""
    return len(name) == ID_LENGTH and all(letter in "0123456789abcdef" for letter in name)


def _is_volatile(key: str) -> bool:
    if key.rpartition(".")[2] == "_schema_":
        return True
    return any(key == prefix or key.startswith(prefix + ".") for prefix in VOLATILE)


def _canonical(value: Any, key: str) -> Any:
    """Return `value` with one spelling per number; `key` is its dotted name, for errors."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(
                f"{key or 'the configuration'} is {value}: a number in a configuration or record "
                "must be finite (leave the key out or use null instead)"
            )
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, Mapping):
        result = {}
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ConfigError(
                    f"{key or 'the configuration'} has the key {name!r} of type "
                    f"{type(name).__name__}: keys must be strings (put it in quotes)"
                )
            result[name] = _canonical(inner, f"{key}.{name}" if key else name)
        return result
    if isinstance(value, (list, tuple)):
        return [_canonical(inner, f"{key}[{index}]") for index, inner in enumerate(value)]
    raise ConfigError(
        f"{key or 'the configuration'} is of type {type(value).__name__}: only null, booleans, "
        "numbers, strings, lists and mappings can be stored"
    )


def canonical_json(value: Any) -> str:
    """Return the one canonical JSON text of plain data.

    Args:
        value: Nested mappings with string keys, lists, tuples, strings, numbers, booleans, None.

    Returns:
        JSON with sorted keys and without blanks; numbers spelled as the module's docstring says.

    Raises:
        ConfigError: For NaN, infinities, other types and non-string keys; names the key.
    """
    return json.dumps(
        _canonical(value, ""),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )


def without_volatile(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a resolved configuration without the keys below a `VOLATILE` prefix."""

    def strip(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in node.items():
            key = f"{prefix}{name}"
            if not _is_volatile(key):
                kept[name] = strip(value, f"{key}.") if isinstance(value, Mapping) else value
        return kept

    return strip(config, "")


def without_neutral(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration without the `NEUTRAL` options that have that value."""

    def neutral(key: str, value: Any) -> bool:
        plain = _PART.sub("", key)
        return plain in NEUTRAL and canonical_json(value) == canonical_json(NEUTRAL[plain])

    def strip(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: strip(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
            for name, value in node.items()
            if isinstance(value, Mapping) or not neutral(f"{prefix}{name}", value)
        }

    return strip(config, "")


def run_id(config: Mapping[str, Any]) -> str:
    """Return the id of the run that a resolved configuration describes.

    Args:
        config: Resolved configuration as plain containers (no interpolations left).

    Returns:
        16 lower-case hexadecimal digits.

    Raises:
        ConfigError: If a value that is not volatile is NaN, infinite or not plain data.
    """
    text = canonical_json(without_neutral(without_volatile(config)))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]
