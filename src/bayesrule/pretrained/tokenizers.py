"""Tokenizers as functions: a checkpoint's own, or hashed words that need no file.

Text is encoded in pieces without special tokens, so that a prompt can be cut in its middle; the
special tokens of the model are put around the whole.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bayesrule.errors import ConfigError, DataUnavailable
from bayesrule.pretrained.architectures import TINY_VOCABULARY
from bayesrule.pretrained.checkpoints import checkpoint_folder, quiet, unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HASHED", "HashedWords", "TextTokenizer", "load_tokenizer"]

HASHED = "hashed"


class TextTokenizer(ABC):
    """What reading a text set needs of a tokenizer.

    Attributes:
        vocabulary: Number of tokens.
        pad: Token that fills short texts.
        before: Special tokens before a text.
        after: Special tokens after a text.
        end: Token that ends a generated text; None if there is none.
    """

    vocabulary: int
    pad: int
    before: list[int]
    after: list[int]
    end: int | None

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without special tokens."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash of everything that the tokens depend on."""

    def answer_tokens(self, answers: Sequence[str]) -> list[int]:
        """Return the last token of each answer after "Answer:", the only one of a short word.

        Raises:
            ConfigError: If two answers end with the same token.
        """
        tokens = [ids[-1] for ids in self.encode([f" {answer}" for answer in answers])]
        if len(set(tokens)) != len(tokens):
            raise ConfigError(
                f"model.answers={list(answers)}: two answers end with the same token of this "
                "tokenizer; choose other words"
            )
        return tokens


class HashedWords(TextTokenizer):
    """Lower-case words and marks, each hashed to one of a few tokens; made by code alone."""

    vocabulary, pad, before, after, end = TINY_VOCABULARY, 0, [1], [2], 2
    _special = 8

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return crc32 of every word, modulo the vocabulary."""
        words = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]
        room = self.vocabulary - self._special
        return [[self._special + zlib.crc32(w.encode()) % room for w in line] for line in words]

    def digest(self) -> str:
        """Return the rule's name."""
        return f"crc32-words-{self.vocabulary}"


class _Pretrained(TextTokenizer):
    """The tokenizer of a checkpoint."""

    def __init__(self, inner: PreTrainedTokenizerBase) -> None:
        self._inner = inner
        self.vocabulary = len(inner)
        self.end = inner.eos_token_id
        filler = (inner.pad_token_id, inner.eos_token_id, inner.bos_token_id, 0)
        self.pad = next(token for token in filler if token is not None)
        bare = self.encode(["a"])[0]
        whole = inner("a")["input_ids"]
        at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        self.before, self.after = whole[:at], whole[at + len(bare) :]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without special tokens."""
        if not texts:
            return []
        encoded: list[list[int]] = self._inner(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return encoded

    def digest(self) -> str:
        """Return a hash of vocabulary and rules, or of the tokens of a sample text."""
        backend = getattr(self._inner, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else repr(self._inner)
        return hashlib.sha256(text.encode()).hexdigest()


def load_tokenizer(name: str, revision: str | None = None) -> TextTokenizer:
    """Return the tokenizer of a checkpoint, or hashed words.

    Args:
        name: ``hashed``, a package's name, a folder, or a hub id.
        revision: Commit of the hub repository.

    Raises:
        DataUnavailable: Nothing serves it; the message lists the ways.
    """
    if name == HASHED:
        return HashedWords()
    from transformers import AutoTokenizer

    folder = checkpoint_folder(name)
    try:
        with quiet():
            inner = AutoTokenizer.from_pretrained(
                folder, revision=revision if folder == name else None
            )
    except OSError as error:
        raise DataUnavailable(unreachable(name, error)) from error
    return _Pretrained(inner)
