"""Types, choices and bounds of configuration values, declared beside the values themselves.

Every group file in ``conf/`` ends with a ``_schema_`` block that has one line per option::

    lr: 0.2
    ess: null
    hess_approx: price
    _schema_:
      lr: float > 0
      ess: float? > 0             # the question mark: may be null
      hess_approx: price | gradsq

The grammar of a line:

    rule    := choices | type ["?"] bound*
    type    := "bool" | "int" | "float" | "str" | "list[" scalar "]"
    bound   := (">" | ">=" | "<" | "<=") number | "in" ("[" | "(") number "," number ("]" | ")")
    choices := literal ("|" literal)*

Values are coerced to their type (``lr=1`` becomes ``1.0``), so equal settings have equal run ids. A
key that the block does not name is unknown. Nested mappings carry a block of their own.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bayesrule.config.kinds import KIND_KEY
from bayesrule.errors import ConfigError

__all__ = ["Rule", "flatten_keys", "nearest", "parse_rule", "validate"]

SCHEMA_KEY = "_schema_"
TARGET_KEY = "_target_"
_TYPE = re.compile(r"^(bool|int|float|str|list\[(int|float|str)\])(\?)?(.*)$")
_BOUND = re.compile(r"^\s*,?\s*(>=|<=|>|<)\s*([-+.\deE]+|inf)")
_INTERVAL = re.compile(r"^\s*,?\s*in\s*([\[(])\s*([-+.\deE]+)\s*,\s*([-+.\deE]+|inf)\s*([\])])")


@dataclass(frozen=True)
class Rule:
    """One parsed schema line.

    Attributes:
        type: ``bool``, ``int``, ``float``, ``str``, ``list[...]`` or ``choice``.
        nullable: Whether null is allowed.
        bounds: Pairs of comparison and number.
        choices: The literals of a choice.
        text: The line as written.
    """

    type: str
    nullable: bool = False
    bounds: tuple[tuple[str, float], ...] = ()
    choices: tuple[str, ...] = ()
    text: str = ""

    def coerce(self, value: Any, key: str) -> Any:
        """Return `value` as this rule's type.

        Raises:
            ConfigError: If it does not fit; the message names the key.
        """
        if value is None:
            if self.nullable:
                return None
            raise ConfigError(f"{key}=null: expected {self.text}")
        if self.type == "choice":
            # YAML reads on/off/yes/no as booleans and 1 as a number: compare as written
            text = str(value)
            if text in self.choices:
                return text
            raise ConfigError(
                f"{key}={value}: choose one of {', '.join(self.choices)}"
                + nearest(text, self.choices)
            )
        if self.type.startswith("list["):
            if not isinstance(value, (list, tuple)):
                raise ConfigError(f"{key}={value}: expected a list such as [1,2]")
            scalar = Rule(self.type[5:-1], bounds=self.bounds, text=self.text)
            return [scalar.coerce(item, f"{key}[{i}]") for i, item in enumerate(value)]
        converted = self._scalar(value, key)
        for symbol, limit in self.bounds:
            if not _holds(converted, symbol, limit):
                raise ConfigError(f"{key}={value} is out of range: expected {self.text}")
        return converted

    def _scalar(self, value: Any, key: str) -> Any:
        wrong = ConfigError(f"{key}={value}: not a value of type {self.text}")
        if self.type == "str":
            if isinstance(value, (dict, list)):
                raise wrong
            return str(value)
        if self.type == "bool":
            if isinstance(value, bool):
                return value
            raise wrong
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise wrong
        if self.type == "int" and isinstance(value, int):
            return value  # a float would round large ones
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise wrong from None
        if math.isnan(number):
            raise wrong
        if self.type == "float":
            return number
        if not number.is_integer():
            raise wrong
        return int(number)


def _holds(value: float, symbol: str, limit: float) -> bool:
    return {
        ">": value > limit,
        ">=": value >= limit,
        "<": value < limit,
        "<=": value <= limit,
    }[symbol]


def parse_rule(text: str) -> Rule:
    """Parse one schema line.

    Raises:
        ConfigError: If the line is not in the grammar.
    """
    text = str(text).strip()
    match = _TYPE.match(text)
    if match is None or (match[4].strip().startswith("|")):
        choices = tuple(part.strip() for part in text.split("|"))
        nullable = choices[-1].endswith("?")
        choices = (*choices[:-1], choices[-1].removesuffix("?"))
        if not all(choices):
            raise ConfigError(f"schema line {text!r} is not a type and not a list of choices")
        return Rule("choice", nullable, choices=choices, text=text)
    kind, _, question, rest = match.groups()
    bounds: list[tuple[str, float]] = []
    while rest.strip():
        if found := _BOUND.match(rest):
            bounds.append((found[1], float(found[2])))
        elif found := _INTERVAL.match(rest):
            bounds.append((">=" if found[1] == "[" else ">", float(found[2])))
            bounds.append(("<=" if found[4] == "]" else "<", float(found[3])))
        else:
            raise ConfigError(f"schema line {text!r}: cannot read {rest.strip()!r}")
        rest = rest[found.end() :]
    return Rule(kind, question == "?", tuple(bounds), text=text)


def validate(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Check a composed configuration against its ``_schema_`` blocks and drop them.

    Args:
        node: The composed configuration as plain containers.
        prefix: Dotted path of `node`, for messages.

    Returns:
        The configuration with coerced values and without ``_schema_``.

    Raises:
        ConfigError: For the first key that is unknown or whose value does not fit.
    """
    rules = dict(node.get(SCHEMA_KEY) or {})
    out: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if name in (SCHEMA_KEY, KIND_KEY):
            continue
        if isinstance(value, Mapping) and name not in rules:
            out[name] = validate(value, f"{key}.")
        elif name == TARGET_KEY:
            out[name] = value
        elif name not in rules:
            known = [f"{prefix}{k}" for k in rules if k in node]
            raise ConfigError(f"unknown key '{key}'" + nearest(key, known))
        else:
            out[name] = parse_rule(rules[name]).coerce(value, key)
    return out


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found:  # a right last part in a wrong place: optimizer.lr for posterior.lr
        tail = word.rpartition(".")[2]
        found = [k for k in known if k.rpartition(".")[2] == tail][:1]
    return f"; did you mean '{found[0]}'?" if found else ""


def flatten_keys(node: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys of all leaves of a configuration, schema blocks left out."""
    keys: list[str] = []
    for name, value in node.items():
        if name in (SCHEMA_KEY, KIND_KEY):
            continue
        if isinstance(value, Mapping):
            keys += flatten_keys(value, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys
