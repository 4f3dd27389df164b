"""Checked reading of YAML that people wrote: errors name the file, the key and the nearest name.

The `read_*` functions, `one_of` and `some_of` return a value of the right type or raise ValueError
with the end of a sentence; `Node.take` puts file and key before it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bayesrule.errors import ConfigError
from bayesrule.runs.files import read_file

__all__ = [
    "NAME",
    "Node",
    "load_yaml",
    "nearest",
    "one_of",
    "read_bool",
    "read_list",
    "read_mapping",
    "read_number",
    "read_text",
    "read_texts",
    "some_of",
]

T = TypeVar("T")
_MISSING: Any = object()
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-]*")
"""Form of the name of a study or arm."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that suggests the known name nearest to `name`, or lists all."""
    known = [str(one) for one in known]
    close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is: {', '.join(known)}" if known else "; there is none"


class Node:
    """A mapping of the file which knows where it stands and which of its keys were read."""

    def __init__(self, value: Any, file: str, key: str) -> None:
        self.file, self.key = file, key
        if not isinstance(value, Mapping):
            raise ConfigError(f"{file}: {key or 'the file'} must be a mapping, got {value!r}")
        for name in value:
            if not isinstance(name, str):
                raise ConfigError(
                    f"{file}: {key}: the key {name!r} must be text (put it in quotes)"
                )
        self.value = dict(value)
        self.known: list[str] = []

    def error(self, name: str, message: str) -> ConfigError:
        """Return (not raise) the error that says `message` of the key `name` below this node."""
        where = ".".join(part for part in (self.key, name) if part)
        return ConfigError(f"{self.file}: {where}: {message}")

    def take(self, name: str, read: Callable[[Any], T], default: Any = _MISSING) -> T:
        """Read one key.

        Args:
            name: The key.
            read: Turns the value into what is wanted; ValueError if it does not fit.
            default: What a missing (or null) key means; without it the key is required.

        Raises:
            ConfigError: If the key is missing, or its value does not fit.
        """
        self.known.append(name)
        value = self.value.get(name)
        if value is None:
            if default is _MISSING:
                others = [other for other in self.value if other not in self.known]
                close = difflib.get_close_matches(name, others, 1, cutoff=0.6)
                hint = f" ({close[0]!r} is there: a misspelling?)" if close else ""
                raise self.error(name, f"is missing{hint}")
            return default
        try:
            return read(value)
        except ValueError as cause:
            raise self.error(name, str(cause)) from None

    def children(self, name: str) -> dict[str, Node]:
        """Return the nodes below a key that maps names to mappings."""
        mapping = self.take(name, read_mapping)
        path = f"{self.key}.{name}" if self.key else name
        for child in mapping:
            if not NAME.fullmatch(str(child)):
                raise self.error(name, f"{child!r} is no name (letters, digits, _ . + -)")
        return {
            str(child): Node(inner, self.file, f"{path}.{child}")
            for child, inner in mapping.items()
        }

    def done(self) -> None:
        """Refuse keys that nothing read."""
        for name in self.value:
            if name not in self.known:
                raise self.error(name, f"unknown key{nearest(name, self.known)}")


def read_mapping(value: Any) -> Mapping[str, Any]:
    """Accept a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping, got {value!r}")
    return value


def read_list(value: Any) -> list[Any]:
    """Accept a list."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list, got {value!r}")
    return value


def read_text(value: Any) -> str:
    """Accept text that is not blank; line breaks become blanks."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be text, got {value!r} (put it in quotes)")
    return " ".join(value.split())


def read_texts(value: Any) -> tuple[str, ...]:
    """Accept a list of texts."""
    return tuple(read_text(one) for one in read_list(value))


def read_number(value: Any) -> float:
    """Accept a finite number."""
    # YAML 1.1 reads 1e-3 (no dot) as text
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError(f"must be a finite number, got {value!r}")


def read_bool(value: Any) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {value!r}")
    return value


def one_of(known: Iterable[str]) -> Callable[[Any], str]:
    """Return a reader of one of the `known` names."""
    choices = list(known)

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is not known{nearest(str(value), choices)}")
        return str(value)

    return read


def some_of(known: Iterable[str]) -> Callable[[Any], tuple[str, ...]]:
    """Return a reader of a list of different `known` names, at least one."""
    read = one_of(known)

    def read_all(value: Any) -> tuple[str, ...]:
        names = tuple(read(one) for one in read_list(value))
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"must be different names, at least one, got {value!r}")
        return names

    return read_all


_LARGEST = 1_000_000
_DEEPEST = 100


def _check_depth(text: str, loader: Any) -> None:
    """Refuse deep nesting: building its nodes would overflow the C library's stack."""
    import yaml

    depth = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _check_size(value: Any, sizes: dict[int, int]) -> int:
    """Return the number of values with aliases written out; ValueError if there are too many."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = _LARGEST + 1  # what contains itself has no end
        inner = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_check_size(one, sizes) for one in inner)
    if sizes[id(value)] > _LARGEST:
        raise ValueError(f"written out, its aliases are more than {_LARGEST:,} values")
    return sizes[id(value)]


def load_yaml(path: Path) -> Any:
    """Load YAML, refusing a key that is given twice; a key may replace one merged in by ``<<``.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If it is no YAML, or of no reasonable size or depth.
        BayesruleError: If it can't be read.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    def construct(loader: Any, node: Any) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        loader.flatten_mapping(node)  # merged pairs come first
        mapping: dict[Any, Any] = {}
        written: set[Any] = set()
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            try:
                twice = key in written
            except TypeError:
                raise ConfigError(f"{path}, line {line}: {key!r} can be no key") from None
            if twice:
                raise ConfigError(f"{path}, line {line}: the key {key!r} is given twice")
            if any(key_node is one for one in own):
                written.add(key)
            mapping[key] = loader.construct_object(value_node, deep=True)
        return mapping

    Loader.add_constructor("tag:yaml.org,2002:map", construct)
    try:
        text = read_file(path).decode()
        _check_depth(text, Loader)
        value = yaml.load(text, Loader)  # a SafeLoader
        _check_size(value, {})
    except (yaml.YAMLError, ValueError) as cause:
        reason = " ".join(str(cause).split())
        raise ConfigError(f"{path} is no valid YAML: {reason}") from None
    return value
