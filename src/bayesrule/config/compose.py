"""From override words to one checked, plain configuration.

`compose` lets Hydra merge the groups, then checks every value against the ``_schema_`` blocks and
returns plain containers. Whatever is wrong becomes a `ConfigError` of one sentence that names the
key and suggests the nearest; nothing of torch is imported on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayesrule.config.kinds import check_kinds
from bayesrule.config.locate import check_target
from bayesrule.config.locations import conf_dir, damaged_conf, read_conf
from bayesrule.config.schema import SCHEMA_KEY, TARGET_KEY, flatten_keys, nearest, validate
from bayesrule.errors import ConfigError

__all__ = [
    "Config",
    "check_overrides",
    "compose",
    "finish",
    "from_hydra_word",
    "group_options",
    "in_hydra_words",
    "people_errors",
]

Config = dict[str, Any]

# A composite posterior has a posterior inside: `posterior.member=ivon` chooses its file.
_PARTS = ("member", "base")


def group_options(group: str) -> list[str]:
    """Return the names that ``group=`` accepts (nested ones with their folder)."""
    folder = conf_dir() / group
    return sorted(
        str(path.relative_to(folder).with_suffix(""))
        for path in folder.rglob("*.yaml")
        if not path.name.startswith("_")
    )


def in_hydra_words(overrides: Sequence[str]) -> list[str]:
    """Translate ``posterior.member=ivon`` to Hydra's ``posterior@posterior.member=ivon``."""
    pattern = re.compile(rf"^posterior((?:\.(?:{'|'.join(_PARTS)}))+)=")
    return [
        pattern.sub(lambda m: f"posterior@posterior{m[1]}=", override) for override in overrides
    ]


def from_hydra_word(word: str) -> str:
    """Translate a word (or key) of `in_hydra_words` back to how people write it."""
    return word.partition("@")[2] if word.startswith("posterior@") else word


def check_overrides(overrides: Sequence[str], *, sweep: bool = False) -> None:
    """Refuse overrides that are not plain ``key=value`` words.

    Args:
        overrides: The words as given by the user.
        sweep: Whether values such as ``a,b`` or ``range(3)`` are allowed.

    Raises:
        ConfigError: Naming the first word that does not fit.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for word in overrides:
        if word.startswith("-"):
            raise ConfigError(f"unknown option {word}; options are named in `bayesrule --help`")
        if word.startswith(("+", "~")):
            raise ConfigError(
                f"'{word}': keys are neither added (+) nor deleted (~); set existing ones: "
                "key=value"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise ConfigError(f"cannot read {shorten(ascii(word))}: its bytes are no UTF-8 text")
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise ConfigError(
                f"cannot read '{shorten(word)}': write key=value, and text of other than plain "
                "letters in quotes within quotes: \"note='é, 100 %'\""
            ) from error
        _check_length(parsed, word)
        if parsed.is_sweep_override() and not sweep:
            raise ConfigError(f"'{word}' has several values: add -m for a sweep")
        key = parsed.key_or_group
        if not parsed.is_sweep_override() and key in _groups():
            _check_choice(key, parsed.value())
        if key.rpartition(".")[2] == TARGET_KEY:
            check_target(parsed.value(), key)
        if SCHEMA_KEY in key:
            raise ConfigError(f"'{word}': {SCHEMA_KEY} describes a configuration, it is no option")


_LONGEST = 200


def shorten(word: str) -> str:
    """Return the beginning of a word that is too long to be quoted."""
    return word if len(word) <= _LONGEST else f"{word[:60]}..."


def _check_length(parsed: Any, word: str) -> None:
    """Refuse what no key or file could be called."""
    key = parsed.key_or_group
    if not key:
        raise ConfigError(f"cannot read '{shorten(word)}': write key=value")
    if len(key) > _LONGEST:
        raise ConfigError(f"unknown key '{shorten(key)}': no key is that long")


def _check_choice(group: str, value: Any) -> None:
    """Refuse a value that cannot be the name of a group's file."""
    if isinstance(value, (dict, list)) or (group == "experiment" and value is None):
        return
    if not isinstance(value, str) or not value or len(value) > _LONGEST:
        shown = {None: "null", "": "nothing"}.get(value, shorten(str(value)))
        raise ConfigError(
            f"{group}={shown}: choose one by its name (one of: {', '.join(group_options(group))})"
        )


def compose(overrides: Sequence[str] = (), conf: Path | None = None) -> Config:
    """Compose and check one configuration.

    Args:
        overrides: Words such as ``posterior=ivon`` or ``trainer.epochs=3``.
        conf: The configuration folder (default: the checkout's).

    Returns:
        The configuration as plain dicts, lists, strings and numbers, without ``_schema_``.

    Raises:
        ConfigError: If an override or a value does not fit; nothing heavy was loaded.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    check_overrides(overrides)
    folder = conf or conf_dir()
    GlobalHydra.instance().clear()
    with people_errors(overrides), initialize_config_dir(str(folder), version_base="1.3"):
        composed = hydra_compose("config", overrides=in_hydra_words(overrides))
    return finish(composed)


def finish(composed: Any) -> Config:
    """Turn a composed `DictConfig` into the checked plain configuration."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    named = {str(key): value for key, value in plain.items()}
    _check_whole(named)
    check_kinds(named)
    checked = validate(named)
    _check_targets(checked)
    return checked


_NEEDED = {"posterior": "_target_", "task": "_target_", "model": "name", "data": "shape"}


def _check_whole(config: Config) -> None:
    """Refuse a group whose file was cut short."""
    for group, key in _NEEDED.items():
        node = config.get(group)
        if isinstance(node, dict) and key not in node:
            raise ConfigError(
                damaged_conf()
                or f"{group} has no {key}: its file in {conf_dir() / group} is damaged"
            )


def _check_targets(node: Config, prefix: str = "") -> None:
    for name, value in node.items():
        if name == TARGET_KEY:
            check_target(value, f"{prefix}{name}")
        elif isinstance(value, dict):
            _check_targets(value, f"{prefix}{name}.")


@contextmanager
def people_errors(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's exceptions into one sentence each.

    Args:
        overrides: The user's words, to quote a wrong key as it was written.
    """
    import yaml
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing(error)) from error
    except OverrideParseException as error:
        raise ConfigError(f"cannot read '{error.override}': write key=value") from error
    except ConfigCompositionException as error:
        raise ConfigError(_composition(error, overrides)) from error
    except (
        *(HydraException, OmegaConfBaseException, yaml.YAMLError),
        *(UnicodeError, RecursionError, AttributeError),
    ) as error:
        problem = damaged_conf()
        if problem is None and isinstance(error, AttributeError):
            raise
        raise ConfigError(problem or _one_line(error)) from error


def _missing(error: Any) -> str:
    path = str(error.missing_cfg_file or "").strip("/")
    if match := re.search(r"Could not find '([^']+)'", str(error)):
        path = match[1]  # a nested name such as experiment/ivon/p2
    group, _, option = path.partition("/")
    options = group_options(group) if option else []
    if not options:
        return _one_line(error)
    hint = nearest(option, options)
    return f"{group}={option}: no such {group}{hint} (one of: {', '.join(options)})"


def _composition(error: Any, overrides: Sequence[str]) -> str:
    cause = error.__cause__
    key = getattr(cause, "full_key", None)
    text = _one_line(error)
    known = [*_groups(), *_known_keys()]
    if key and ("not in struct" in str(cause) or "is not in" in str(cause)):
        written = [w.partition("=")[0] for w in overrides if re.match(rf"{re.escape(key)}[.=]", w)]
        key = written[0] if written else key
        return f"unknown key '{key}'{nearest(key, known)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1]
        if "@" in key:
            part = key.partition("@")[2]
            return f"{part}=...: the chosen posterior has no part '{part.rpartition('.')[2]}'"
        if key in _groups() and (tasks := _tasks_with(key)):
            chosen = " or ".join(f"task={task}" for task in tasks)
            return f"{key}=... is chosen only where there is one: with {chosen}"
        return f"unknown key '{key}'{nearest(key, known)}"
    return text


def _groups() -> list[str]:
    return sorted(p.name for p in conf_dir().iterdir() if p.is_dir())


def _tasks_with(group: str) -> list[str]:
    """Return the tasks that bring a group which other configurations lack."""
    found = []
    for path in sorted((conf_dir() / "task").glob("*.yaml")):
        defaults = read_conf(path).get("defaults", [])
        if any(isinstance(one, dict) and f"/{group}" in one for one in defaults):
            found.append(path.stem)
    return found


def _known_keys() -> list[str]:
    """Return all keys of the default configuration (and of every group's options)."""
    keys: list[str] = []
    for path in sorted(conf_dir().glob("*/*.yaml")):
        content = read_conf(path)
        with path.open(encoding="utf-8") as file:
            everywhere = file.readline().startswith("# @package _global_")
        content.pop("defaults", None)
        prefix = "" if everywhere else f"{path.parent.name}."
        keys += [prefix + key for key in flatten_keys(content)]
    content = read_conf(conf_dir() / "config.yaml")
    content.pop("defaults", None)
    return sorted({*flatten_keys(content), *keys})


def _one_line(error: BaseException) -> str:
    text = str(error).split("\n")[0]
    return text.replace("To append to your config use", "").strip()
