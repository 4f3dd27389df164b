"""The data sets that ``conf/data`` declares, read without Hydra.

Composition goes through Hydra; this reader serves what lies beside it: companions (`ood:`), plain
Python use (`load_data({"name": "digits"}, ...)`) and helpful errors. It knows one rule of Hydra,
the `defaults` list of files in the same folder, and merges nested mappings as Hydra does.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

import bayesrule
from bayesrule.errors import ConfigError

__all__ = ["complete", "conf_folder", "entry", "names", "nearest", "planned_sizes"]

_NOT_OPTIONS = ("defaults", "_schema_")
_BASES = {
    ("classification", "image"): "_image",
    ("classification", "text"): "_text",
    ("classification", None): "_classification",
    ("regression", None): "_regression",
    ("lm", "answers"): "_generation",
    ("lm", None): "_lm",
}


def conf_folder() -> Path:
    """Return the folder ``conf/data`` of ``$BAYESRULE_ROOT``, the checkout, or the current folder.

    Raises:
        ConfigError: No such folder exists.
    """
    given = os.environ.get("BAYESRULE_ROOT")
    checkout = Path(bayesrule.__file__).resolve().parents[2]
    candidates = [Path(given)] if given else [checkout, Path.cwd()]
    for root in candidates:
        if (root / "conf" / "data").is_dir():
            return root / "conf" / "data"
    raise ConfigError(
        f"no conf/data in {' or '.join(map(str, candidates))}: run from a checkout of bayesrule, "
        "or name one by BAYESRULE_ROOT."
    )


def names() -> list[str]:
    """Return the names of all declared data sets, sorted."""
    return sorted(p.stem for p in conf_folder().glob("*.yaml") if not p.stem.startswith("_"))


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a clause that suggests the choices nearest to `word`, or lists them all."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(choices) + "."


def entry(name: str) -> dict[str, Any]:
    """Return the resolved mapping of one declared data set, with every option's default.

    Args:
        name: File name in ``conf/data`` without the ending.

    Raises:
        ConfigError: No such data set is declared; the message names the nearest ones.
    """
    if name not in names():
        raise ConfigError(f"data={name}: no such data set; {nearest(name, names())}")
    return _read(name)


def complete(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return `cfg` with the declared defaults of its data set filled in, and its keys checked.

    A set that ``conf/data`` does not declare is allowed when `cfg` says its `kind`, `shape`,
    `n_outputs` and `n_train` itself; it then takes the defaults of its kind.

    Args:
        cfg: A data config; at least `name`.

    Returns:
        A plain dictionary with every option.

    Raises:
        ConfigError: The name or a key is unknown; the message names the nearest ones.
    """
    given = {key: value for key, value in cfg.items() if key not in _NOT_OPTIONS}
    name = given.get("name")
    if not isinstance(name, str):
        raise ConfigError("A data config needs a name, e.g. name: digits.")
    if name in names():
        base = _read(name)
    elif {"kind", "shape", "n_train"} <= given.keys():
        base = {"name": name, "shape": [], "n_train": 1, "n_outputs": 1, "n_splits": 0}
        base |= _read(_base_name(given))
        if given.get("generator") is not None:
            return base | given
    else:
        raise ConfigError(f"data={name}: no such data set; {nearest(name, names())}")
    unknown = sorted(given.keys() - base.keys())
    if unknown:
        raise ConfigError(
            f"data.{unknown[0]}: {name} has no such option; {nearest(unknown[0], sorted(base))}"
        )
    return base | given


def planned_sizes(cfg: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers of items that `load_data` would give, from declared numbers alone.

    Args:
        cfg: A data config.

    Returns:
        Numbers of items of `train`, `val` and `test`. For language models, items are windows of
        `block_size` tokens and the numbers are approximate; `imbalance` is not accounted for.
    """
    cfg = complete(cfg)
    n_train, n_test = int(cfg["n_train"]), int(cfg["n_test"])
    if n_test == 0:
        pool, fraction = n_train, float(cfg["test_fraction"])
        n_train = int(cfg["train_size"] or pool - round(fraction * pool))
        n_test = pool - n_train
    n_train = min(n_train, int(cfg["train_size"] or n_train))
    n_test = min(n_test, int(cfg["test_size"] or n_test))
    n_val = round(float(cfg["val_fraction"]) * n_train)
    if cfg["kind"] == "lm" and cfg["format"] != "answers":
        n_val = 0 if cfg["validation_split"] else n_val
        block = int(cfg["block_size"])
        return {
            "train": (n_train - n_val) // block,
            "val": n_test // block if cfg["validation_split"] else n_val // block,
            "test": n_test // block,
        }
    return {"train": n_train - n_val, "val": n_val, "test": n_test}


def _base_name(given: Mapping[str, Any]) -> str:
    kind, form = str(given["kind"]), given.get("format")
    for key in ((kind, form), (kind, None)):
        if key in _BASES:
            return _BASES[key]
    kinds = sorted({kind for kind, _ in _BASES})
    raise ConfigError(f"data.kind={kind}: no such kind; {nearest(kind, kinds)}")


def _read(stem: str) -> dict[str, Any]:
    path = conf_folder() / f"{stem}.yaml"
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(own, dict):
        raise ConfigError(f"{path} is not a mapping.")
    merged: dict[str, Any] = {}
    for base in own.get("defaults", ["_self_"]):
        merged |= own if base == "_self_" else _read(base)
    return {key: value for key, value in merged.items() if key not in _NOT_OPTIONS}
