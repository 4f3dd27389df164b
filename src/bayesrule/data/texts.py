"""Labelled texts: tokenised once, and given as batches of tokens with a mask.

An item is a row of `max_length` tokens, filled on the right; its input is the mapping

    input_ids (B, T) int64,    attention_mask (B, T) int64: 1 for tokens, 0 for filling

Tokens are kept in the cache under the hash of content, tokenizer and options.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.cache import prepared
from bayesrule.data.bundle import Source, Split
from bayesrule.data.decode import class_names_of
from bayesrule.data.prompts import LETTERS, Item, pieces, read_item
from bayesrule.data.sources import Found
from bayesrule.errors import ConfigError
from bayesrule.pretrained import TextTokenizer, load_tokenizer

if TYPE_CHECKING:
    import datasets

__all__ = ["TextSet", "TextSplit", "load_texts"]

_OPTIONS = (
    *("template", "input_column", "target_column", "labels", "form", "answers", "max_length"),
    *("train_split", "test_split", "hub_config", "n_outputs"),
)


@dataclass(frozen=True)
class TextSet:
    """A text set as tokens, before splitting.

    Attributes:
        source: Where it came from.
        train: Tokens (N, T), lengths (N,) and labels (N,) of the training part, or of the pool.
        test: The same of the official test part; None when there is none.
        class_names: Words for the classes; None where choices differ between items.
        facts: For the record: tokenizer, its hash, items cut.
    """

    source: Source
    train: tuple[np.ndarray, np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    class_names: list[str] | None
    facts: dict[str, Any]


class TextSplit(Split):
    """Rows of a table of tokens with their targets.

    Args:
        tokens: Tokens of all items of the source, (M, T); may be memory-mapped.
        lengths: Tokens that count in each row, (M,).
        targets: Targets of this split's items, (n,), or (n, T) for text that is generated.
        rows: Row of `tokens` for each item, (n,).
    """

    def __init__(
        self, tokens: np.ndarray, lengths: np.ndarray, targets: Tensor, rows: np.ndarray
    ) -> None:
        self._tokens, self._lengths, self._targets = tokens, lengths, targets
        self.rows = np.asarray(rows, dtype=np.int64)
        if len(self.rows) != len(targets):
            raise ValueError(f"{len(self.rows)} rows but {len(targets)} targets.")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> Tensor:
        """Targets of all items, int64."""
        return self._targets

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return the items at `indices`; `input` is a mapping of tensors (see the module)."""
        rows = self.rows[indices.numpy()]
        tokens = torch.from_numpy(np.asarray(self._tokens[rows], dtype=np.int64))
        lengths = torch.from_numpy(np.asarray(self._lengths[rows], dtype=np.int64))
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        return {
            "input": {"input_ids": tokens, "attention_mask": mask},
            "target": self._targets[indices],
            "index": indices,
        }

    def subset(self, indices: Tensor) -> TextSplit:
        """Return the split of the items at `indices`."""
        rows = self.rows[indices.numpy()]
        return TextSplit(self._tokens, self._lengths, self._targets[indices], rows)

    def digest(self) -> str:
        """Return a SHA-256 over rows and targets."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rows).tobytes())
        digest.update(self._targets.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_texts(
    found: Found | None, cfg: Mapping[str, Any], items: Mapping[str, list[Item]], cache_dir: Path
) -> TextSet:
    """Return a text set as tokens.

    Args:
        found: The located set; None for one made by code.
        cfg: Its complete config, with `tokenizer` and `form` chosen.
        items: The items by part, of a set made by code.
        cache_dir: Folder of prepared files.

    Raises:
        ConfigError: A split or column does not exist, or the tokenizer was left to a model and
            there is none.
    """
    if cfg["tokenizer"] == "auto":
        raise ConfigError(
            f"data.tokenizer=auto is that of a pretrained model, and this model has none: choose "
            f"model=minilm or another one for {cfg['name']}, or data.tokenizer=hashed"
        )
    form = "plain" if cfg["form"] == "auto" else cfg["form"]
    tokenizer = load_tokenizer(cfg["tokenizer"])
    if found is None:
        parts = {
            part: _tokens(rows, cfg, form, cfg["labels"] or [], tokenizer)
            for part, rows in items.items()
        }
        names, cut = cfg["labels"], sum(part[3] for part in parts.values())
        sha = hashlib.sha256(b"".join(array.tobytes() for p in parts.values() for array in p[:3]))
        source = Source("generated", str(cfg["generator"]), None, sha.hexdigest())
        arrays = {part: made[:3] for part, made in parts.items()}
    else:
        source = found.source
        content = {key: cfg[key] for key in _OPTIONS} | {"form": form, "sha256": source.sha256}
        content["tokens"] = tokenizer.digest()
        sample = pieces(Item("text", ("one", "two"), 0), cfg, cfg["labels"] or [], form)
        content["wording"] = [sample.head, sample.body, sample.tail]
        folder, meta = prepared(
            cache_dir,
            cfg["name"],
            content,
            lambda path: _write(path, found, cfg, form, tokenizer),
        )
        names, cut = meta["class_names"], meta["cut"]
        arrays = {
            part: tuple(  # type: ignore[misc]
                np.load(folder / f"{part}.{kind}.npy", mmap_mode="r", allow_pickle=False)
                for kind in ("tokens", "lengths", "labels")
            )
            for part in meta["parts"]
        }
    facts = {
        "tokenizer": cfg["tokenizer"],
        "tokenizer_sha256": tokenizer.digest(),
        "form": form,
        "texts_cut": cut,
    }
    return TextSet(source, arrays["train"], arrays.get("test"), names, facts)


def _write(
    folder: Path, found: Found, cfg: Mapping[str, Any], form: str, tokenizer: TextTokenizer
) -> dict[str, Any]:
    if found.tables is None:
        raise ConfigError(f"data={cfg['name']}: {found.source.where} holds no text.")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tables = found.tables(cfg["hub_config"], Path(scratch))
        wanted = {"train": cfg["train_split"], "test": cfg["test_split"]}
        parts = {part: split for part, split in wanted.items() if split is not None}
        for part, split in parts.items():
            if split not in tables:
                raise ConfigError(
                    f"data.{part}_split={split}: {cfg['name']} has no such split at "
                    f"{found.source.where}; it has {', '.join(tables)}."
                )
        names = cfg["labels"] or _class_names(tables[cfg["train_split"]], cfg)
        cut = 0
        for part, split in parts.items():
            rows = [read_item(row, cfg) for row in tables[split]]
            items = [item for item in rows if item is not None]
            *arrays, longer = _tokens(items, cfg, form, names or [], tokenizer)
            cut += longer
            for kind, array in zip(("tokens", "lengths", "labels"), arrays, strict=True):
                np.save(folder / f"{part}.{kind}.npy", array)
    return {"parts": list(parts), "class_names": names, "cut": cut}


def _class_names(table: datasets.Dataset, cfg: Mapping[str, Any]) -> list[str] | None:
    names = class_names_of(table, cfg["target_column"])
    if names is None and cfg["template"] == "sentence":
        return [f"class {LETTERS[k]}" for k in range(int(cfg["n_outputs"]))]
    return names


def _tokens(
    items: list[Item],
    cfg: Mapping[str, Any],
    form: str,
    labels: list[str],
    tokenizer: TextTokenizer,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return tokens (N, T) int32, lengths (N,), labels (N,), and how many bodies were cut."""
    parts = [pieces(item, cfg, labels, form) for item in items]
    encoded = [
        tokenizer.encode([getattr(part, name) for part in parts])
        for name in ("head", "body", "tail")
    ]
    T, cut = int(cfg["max_length"]), 0
    tokens = np.full((len(items), T), tokenizer.pad, dtype=np.int32)
    lengths = np.zeros(len(items), dtype=np.int64)
    for n, (head, body, tail) in enumerate(zip(*encoded, strict=True)):
        room = T - len(tokenizer.before) - len(tokenizer.after)
        left = room - len(head) - len(tail)
        cut += len(body) > left
        inner = [*head, *body[: max(0, left)], *tail][-room:]  # long choices lose their beginning
        row = [*tokenizer.before, *inner, *tokenizer.after]
        tokens[n, : len(row)] = row
        lengths[n] = len(row)
    return tokens, lengths, np.array([item.label for item in items], dtype=np.int64), cut
