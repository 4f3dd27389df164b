r"""Questions with texts as answers: a language model learns the answer's tokens.

An item is ``Question: <question>\nAnswer: <answer><end>`` in `max_length` tokens, filled on the
right; the target of a position is the next token if that belongs to the answer, else -100, which
losses and metrics leave out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesrule.cache import prepared
from bayesrule.data.bundle import DataBundle, Split, fingerprint
from bayesrule.data.sources import Found
from bayesrule.data.splits import partition
from bayesrule.data.texts import TextSplit
from bayesrule.errors import ConfigError
from bayesrule.pretrained import TextTokenizer, load_tokenizer

__all__ = ["answer_targets", "load_answers"]

IGNORED = -100
_KEYS = ("input_column", "target_column", "max_length", "train_split", "test_split", "hub_config")


def answer_targets(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the targets of every position, int64 (N, T): the next token, where it is an answer's.

    Args:
        tokens: Tokens (N, T).
        starts: First position of each answer, (N,).
        lengths: Tokens that count in each row, (N,).
    """
    following = np.roll(tokens.astype(np.int64), -1, axis=1)
    place = np.arange(1, tokens.shape[1] + 1)[None]  # position of the next token
    kept = (place >= starts[:, None]) & (place < lengths[:, None])
    return np.where(kept, following, IGNORED)


def load_answers(
    found: Found,
    cfg: Mapping[str, Any],
    *,
    split_seed: int,
    options: Mapping[str, Any],
    cache_dir: Path,
) -> DataBundle:
    """Tokenise a set of questions and answers once and return its splits.

    Args:
        found: The located data set.
        cfg: Its complete config, with `tokenizer` chosen.
        split_seed: Draws the rows.
        options: Options that enter the fingerprint.
        cache_dir: Folder of prepared files.

    Raises:
        ConfigError: A split or column does not exist, or the tokenizer was left to a model and
            there is none, or does not fit the declared vocabulary.
    """
    if cfg["tokenizer"] == "auto":
        raise ConfigError(
            f"data.tokenizer=auto is that of a pretrained model, and this model has none: choose "
            f"model=smollm2_135m model.head=lm or another one for {cfg['name']}"
        )
    tokenizer = load_tokenizer(cfg["tokenizer"])
    if tokenizer.vocabulary > int(cfg["n_outputs"]):
        raise ConfigError(
            f"data.n_outputs={cfg['n_outputs']}: {cfg['tokenizer']} has {tokenizer.vocabulary} "
            "tokens"
        )
    content = {key: cfg[key] for key in _KEYS}
    content |= {"sha256": found.source.sha256, "tokens": tokenizer.digest()}
    folder, meta = prepared(
        cache_dir, cfg["name"], content, lambda path: _write(path, found, cfg, tokenizer)
    )
    arrays = {
        part: tuple(
            np.load(folder / f"{part}.{kind}.npy", mmap_mode="r", allow_pickle=False)
            for kind in ("tokens", "lengths", "starts")
        )
        for part in meta["parts"]
    }
    sizes = {part: len(each[0]) for part, each in arrays.items()}
    parts = partition(
        sizes["train"],
        sizes.get("test"),
        seed=split_seed,
        train_size=cfg["train_size"],
        test_size=cfg["test_size"],
        test_fraction=cfg["test_fraction"],
        val_fraction=cfg["val_fraction"],
    )
    splits: dict[str, Split] = {}
    for part, rows in (("train", parts.train), ("val", parts.val), ("test", parts.test)):
        tokens, lengths, starts = arrays["test" if part == "test" and "test" in arrays else "train"]
        if len(rows):
            targets = answer_targets(tokens[rows], starts[rows], lengths[rows])
            splits[part] = TextSplit(tokens, lengths, torch.from_numpy(targets), rows)
    return DataBundle(
        name=cfg["name"],
        kind="lm",
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        ood={},
        n_outputs=int(cfg["n_outputs"]),
        input_shape=(int(cfg["max_length"]),),
        class_names=None,
        target_mean=0.0,
        target_std=1.0,
        source=found.source,
        fingerprint=fingerprint({cfg["name"]: found.source.sha256}, options, splits),
        scaling={"kind": "none"},
        options=dict(options),
        notes={"tokenizer_sha256": tokenizer.digest(), "texts_cut": meta["cut"]},
    )


def _write(
    folder: Path, found: Found, cfg: Mapping[str, Any], tokenizer: TextTokenizer
) -> dict[str, Any]:
    if found.tables is None:
        raise ConfigError(f"data={cfg['name']}: {found.source.where} holds no text.")
    wanted = {"train": cfg["train_split"], "test": cfg["test_split"]}
    parts = {part: split for part, split in wanted.items() if split is not None}
    cut = 0
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tables = found.tables(cfg["hub_config"], Path(scratch))
        for part, split in parts.items():
            if split not in tables:
                raise ConfigError(
                    f"data.{part}_split={split}: {cfg['name']} has no such split; "
                    f"it has {', '.join(tables)}."
                )
            table = tables[split]
            for column in (cfg["input_column"], cfg["target_column"]):
                if column not in table.column_names:
                    raise ConfigError(
                        f"data={cfg['name']}: no column {column}; it has "
                        f"{', '.join(table.column_names)}."
                    )
            questions = [f"Question: {text}\nAnswer:" for text in table[cfg["input_column"]]]
            answers = [f" {text}" for text in table[cfg["target_column"]]]
            *arrays, longer = _rows(questions, answers, int(cfg["max_length"]), tokenizer)
            cut += longer
            for kind, array in zip(("tokens", "lengths", "starts"), arrays, strict=True):
                np.save(folder / f"{part}.{kind}.npy", array)
    return {"parts": list(parts), "cut": cut}


def _rows(
    questions: list[str], answers: list[str], T: int, tokenizer: TextTokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return tokens (N, T), lengths (N,), first positions of the answers (N,), and how many cut."""
    end = [] if tokenizer.end is None else [tokenizer.end]
    tokens = np.full((len(questions), T), tokenizer.pad, dtype=np.int32)
    lengths, starts = (np.zeros(len(questions), dtype=np.int64) for _ in range(2))
    cut = 0
    pairs = zip(tokenizer.encode(questions), tokenizer.encode(answers), strict=True)
    for n, (question, answer) in enumerate(pairs):
        row = [*tokenizer.before, *question, *answer, *end]
        cut += len(row) > T
        row = row[:T]
        tokens[n, : len(row)] = row
        lengths[n], starts[n] = len(row), len(tokenizer.before) + len(question)
    return tokens, lengths, starts, cut
