"""Language modelling: windows of a token stream, by characters or by a pretrained tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.cache import prepared
from bayesrule.data.bundle import DataBundle, Split, fingerprint
from bayesrule.data.sources import Found
from bayesrule.errors import ConfigError, Unsupported
from bayesrule.seeding import child_seed, numpy_generator

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenSplit", "load_text"]

_DOCUMENTS = 1000  # documents tokenised at a time


class TokenSplit(Split):
    """Windows of `block` tokens; the target of each token is the next one.

    In training, with n tokens and an epoch e, item i starts at
    ``(i * block + offset(seed, e)) mod (n - block - 1)``, so windows are cut at other places in
    each epoch; there are ``n // block``. At evaluation windows do not overlap: item i starts at
    ``i * block``, and there are ``(n - 1) // block``.

    Args:
        tokens: The token stream, integers, shape (n,); may be memory-mapped.
        block: Tokens of one item.
        seed: Seed of the offsets.
        train: Whether the split counts windows as training does.

    Raises:
        ConfigError: The stream is shorter than one window needs.
    """

    def __init__(self, tokens: np.ndarray, block: int, *, seed: int, train: bool) -> None:
        if len(tokens) < block + 2:
            raise ConfigError(
                f"data.block_size={block}: a split has {len(tokens)} tokens only; "
                f"at most {max(1, len(tokens) - 2)} fits."
            )
        self._tokens = tokens
        self._block = block
        self._seed = seed
        self._train = train

    def __len__(self) -> int:
        n = len(self._tokens)
        return n // self._block if self._train else (n - 1) // self._block

    @property
    def tokens(self) -> np.ndarray:
        """The token stream."""
        return self._tokens

    @property
    def targets(self) -> Tensor:
        """Next tokens of all windows, int64 (N, block); materialises them."""
        targets: Tensor = self.batch(torch.arange(len(self)))["target"]
        return targets

    def starts(self, indices: np.ndarray, epoch: int | None) -> np.ndarray:
        """Return the first token of each window, int64, shape (B,)."""
        places = len(self._tokens) - self._block - 1
        if not self._train:
            return indices * self._block
        offset = 0
        if epoch is not None:
            offset = int(numpy_generator(self._seed, "offset", epoch).integers(places))
        return (indices * self._block + offset) % places

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return windows: `input` and `target` int64 (B, block), `index` (B,)."""
        starts = self.starts(indices.numpy(), epoch)
        window = np.asarray(self._tokens[starts[:, None] + np.arange(self._block + 1)])
        tokens = torch.from_numpy(window.astype(np.int64))
        return {"input": tokens[:, :-1], "target": tokens[:, 1:], "index": indices}

    def subset(self, indices: Tensor) -> Split:
        """Refuse: windows move with the epoch, so a fixed choice of them has no meaning."""
        raise Unsupported(
            "A token stream has no fixed items to choose from; cut the stream with data.train_size."
        )

    def digest(self) -> str:
        """Return a SHA-256 over length, first and last tokens, and window rules."""
        digest = hashlib.sha256(f"{len(self._tokens)} {self._block} {self._train}".encode())
        for part in (self._tokens[: self._block], self._tokens[-self._block :]):
            digest.update(np.asarray(part, dtype=np.int64).tobytes())
        return digest.hexdigest()


def load_text(
    found: Found, cfg: Mapping[str, Any], *, seed: int, options: Mapping[str, Any], cache_dir: Path
) -> DataBundle:
    """Tokenise a text set once and return its splits.

    Args:
        found: The located data set.
        cfg: Its complete config.
        seed: The run's seed; draws the window offsets.
        options: Options that enter the fingerprint.
        cache_dir: Folder of prepared files.

    Raises:
        ConfigError: A split does not exist, or the tokenizer does not fit the declared vocabulary.
    """
    keys = ("tokenizer", "train_split", "validation_split", "test_split", "input_column")
    content = {key: cfg[key] for key in keys} | {"sha256": found.source.sha256}
    if cfg["test_split"] is None:
        content["test_fraction"] = cfg["test_fraction"]
    folder, meta = prepared(
        cache_dir, cfg["name"], content, lambda path: _tokenise(path, found, cfg, cache_dir)
    )
    streams = {
        part: np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False)
        for part in meta["parts"]
    }
    if cfg["tokenizer"] != "char" and meta["vocabulary"] != cfg["n_outputs"]:
        raise ConfigError(
            f"data.n_outputs={cfg['n_outputs']}: "
            f"{cfg['tokenizer']} has {meta['vocabulary']} tokens."
        )
    train = streams["train"][: cfg["train_size"]]
    test = streams["test"][: cfg["test_size"]]
    val = streams.get("validation")
    if val is None and cfg["val_fraction"] > 0.0:
        cut = len(train) - round(float(cfg["val_fraction"]) * len(train))
        train, val = train[:cut], train[cut:]
    block = int(cfg["block_size"])
    window_seed = child_seed(seed, "windows")
    splits = {
        "train": TokenSplit(train, block, seed=window_seed, train=True),
        "test": TokenSplit(test, block, seed=window_seed, train=False),
    }
    if val is not None:
        splits["val"] = TokenSplit(val, block, seed=window_seed, train=False)
    return DataBundle(
        name=cfg["name"],
        kind="lm",
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        ood={},
        n_outputs=int(meta["vocabulary"]),
        input_shape=(block,),
        class_names=meta["characters"],
        target_mean=0.0,
        target_std=1.0,
        source=found.source,
        fingerprint=fingerprint({cfg["name"]: found.source.sha256}, options, splits),
        scaling={"kind": "none"},
        options=dict(options),
        notes={"n_tokens": {name: len(split.tokens) for name, split in splits.items()}},
    )


def _tokenise(
    folder: Path, found: Found, cfg: Mapping[str, Any], cache_dir: Path
) -> dict[str, Any]:
    """Write one token stream a part into `folder`."""
    if found.tables is None:
        raise ConfigError(f"data={cfg['name']}: {found.source.where} holds no text.")
    tables = found.tables(cfg["hub_config"], Path(cache_dir) / "datasets")
    wanted = {
        "train": cfg["train_split"],
        "validation": cfg["validation_split"],
        "test": cfg["test_split"],
    }
    parts = {part: split for part, split in wanted.items() if split is not None}
    for part, split in parts.items():
        if split not in tables:
            raise ConfigError(
                f"data.{part}_split={split}: {cfg['name']} has no such split; "
                f"it has {', '.join(tables)}."
            )
    texts = {
        part: tables[split].select_columns([cfg["input_column"]]) for part, split in parts.items()
    }
    if cfg["test_split"] is None:
        texts |= _last_documents(texts["train"], float(cfg["test_fraction"]), cfg)
    if cfg["tokenizer"] == "char":
        return _by_characters(folder, texts, cfg)
    return _by_tokenizer(folder, texts, cfg)


def _last_documents(
    table: datasets.Dataset, fraction: float, cfg: Mapping[str, Any]
) -> dict[str, datasets.Dataset]:
    n_test = max(1, round(fraction * len(table)))
    if n_test >= len(table):
        raise ConfigError(
            f"data.test_fraction={fraction}: {cfg['name']} has {len(table)} document(s), "
            "too few to hold some out; declare a test_split."
        )
    cut = len(table) - n_test
    return {"train": table.select(range(cut)), "test": table.select(range(cut, len(table)))}


def _by_characters(
    folder: Path, texts: Mapping[str, datasets.Dataset], cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Encode by the sorted characters of the training text."""
    joined = {part: "\n".join(table[cfg["input_column"]][:]) for part, table in texts.items()}
    characters = sorted(set(joined["train"]))
    code = {character: number for number, character in enumerate(characters)}
    for part, text in joined.items():
        unknown = sorted(set(text) - code.keys())
        if unknown:
            raise ConfigError(
                f"data.tokenizer=char: the {part} text of {cfg['name']} has characters that the "
                f"training text lacks ({''.join(unknown[:10])!r}); use a pretrained tokenizer."
            )
        tokens = np.fromiter((code[c] for c in text), dtype=_dtype(len(code)), count=len(text))
        np.save(folder / f"{part}.npy", tokens)
    return {"parts": list(joined), "vocabulary": len(characters), "characters": characters}


def _by_tokenizer(
    folder: Path, texts: Mapping[str, datasets.Dataset], cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Encode by a pretrained tokenizer; the end-of-text token closes each document."""
    tokenizer = _tokenizer(cfg["tokenizer"])
    end, column = tokenizer.eos_token_id, cfg["input_column"]
    closing = [] if end is None else [int(end)]

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"tokens": [[*ids, *closing] for ids in tokenizer(rows[column])["input_ids"]]}

    dtype = _dtype(len(tokenizer))
    for part, table in texts.items():
        workers = int(cfg["tokenize_workers"])
        encoded = table.map(
            encode,
            batched=True,
            batch_size=_DOCUMENTS,
            remove_columns=[column],
            num_proc=workers if workers > 1 else None,
            desc=f"tokenising {cfg['name']} ({part})",
        )
        _write_stream(folder / f"{part}.npy", _chunks(encoded), dtype)
    return {"parts": list(texts), "vocabulary": len(tokenizer), "characters": None}


def _chunks(encoded: datasets.Dataset) -> Iterator[np.ndarray]:
    for rows in encoded.with_format("arrow").iter(batch_size=_DOCUMENTS):
        yield rows.column("tokens").combine_chunks().flatten().to_numpy()


def _write_stream(
    path: Path, chunks: Iterable[np.ndarray], dtype: type[np.unsignedinteger]
) -> None:
    """Write chunks one after the other as a one-dimensional .npy file, without holding them all."""
    raw = path.with_suffix(".raw")
    length = 0
    with raw.open("wb") as handle:
        for chunk in chunks:
            handle.write(np.ascontiguousarray(chunk, dtype=dtype).tobytes())
            length += len(chunk)
    with path.open("wb") as out, raw.open("rb") as handle:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(out, header)
        while block := handle.read(2**24):
            out.write(block)
    raw.unlink()


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ConfigError(
            f"data.tokenizer={name}: neither a local folder nor reachable on the hub "
            f"({str(error).splitlines()[0]})."
        ) from error


def _dtype(vocabulary: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocabulary <= 2**16 else np.uint32
