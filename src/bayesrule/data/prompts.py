"""From a row of a text set to what is asked: a text, choices, and the right one.

A set's `template` says what its columns mean. In the form ``plain`` an item is the text (with its
choices, where it has some); in the form ``prompt`` it is a question for a language model::

    Select the right answer to the question. / What is the sentiment ...      head
    Question: <text>                                                           body, cut if too long
    A. <choice> B. <choice> ...   (or the words: negative or positive?)        tail
    Answer:

The wording is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bayesrule.errors import ConfigError

__all__ = ["LETTERS", "Item", "Pieces", "pieces", "read_item"]

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Item:
    """One row of a text set.

    Attributes:
        text: What is read.
        choices: The item's own choices; empty where the classes are the same for all items.
        label: Position of the right class or choice; negative where it is hidden.
    """

    text: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Pieces:
    """An item as text: only `body` may be cut."""

    head: str
    body: str
    tail: str


def _sentence(row: Mapping[str, Any], cfg: Mapping[str, Any]) -> Item:
    return Item(row[cfg["input_column"]], (), int(row[cfg["target_column"]]))


def _choices(row: Mapping[str, Any], cfg: Mapping[str, Any]) -> Item | None:
    texts, names = row["choices"]["text"], row["choices"]["label"]
    if len(texts) != int(cfg["n_outputs"]) or row[cfg["target_column"]] not in names:
        return None
    label = names.index(row[cfg["target_column"]])  # names are A, B, ... or 1, 2, ...
    return Item(row[cfg["input_column"]], tuple(texts), label)


def _winogrande(row: Mapping[str, Any], cfg: Mapping[str, Any]) -> Item | None:
    answer = row[cfg["target_column"]]
    if answer not in ("1", "2"):
        return None
    return Item(row[cfg["input_column"]], (row["option1"], row["option2"]), int(answer) - 1)


def _piqa(row: Mapping[str, Any], cfg: Mapping[str, Any]) -> Item:
    choices = (row["sol1"], row["sol2"])
    return Item(row[cfg["input_column"]], choices, int(row[cfg["target_column"]]))


def _boolq(row: Mapping[str, Any], cfg: Mapping[str, Any]) -> Item:
    passage = row.get("passage") if cfg["name"] == "boolq" else None
    text = row[cfg["input_column"]] + (f"\nPassage: {passage}" if passage else "")
    return Item(text, (), int(bool(row[cfg["target_column"]])))


_TEMPLATES: dict[str, tuple[tuple[str, ...], Callable[..., Item | None], str]] = {
    "sentence": ((), _sentence, "Which of these describes the text?"),
    "choices": (("choices",), _choices, "Select the right answer to the question."),
    "winogrande": (("option1", "option2"), _winogrande, "Which one fills the gap (_)?"),
    "piqa": (("sol1", "sol2"), _piqa, "Which way reaches the goal?"),
    "boolq": ((), _boolq, "Answer the question with True or False."),
}
"""Further columns that a template needs, how it reads a row, and what a prompt asks."""


def read_item(row: Mapping[str, Any], cfg: Mapping[str, Any]) -> Item | None:
    """Return a row as an item, or None for a row that does not count (another number of choices).

    Args:
        row: One row of a table.
        cfg: The data config: `template`, `input_column`, `target_column`.

    Raises:
        ConfigError: A column is missing.
    """
    further, read, _ = _TEMPLATES[cfg["template"]]
    for column in (cfg["input_column"], cfg["target_column"], *further):
        if column not in row:
            raise ConfigError(
                f"data={cfg['name']}: no column {column}; it has {', '.join(sorted(row))}."
            )
    return read(row, cfg)


def pieces(item: Item, cfg: Mapping[str, Any], labels: Sequence[str], form: str) -> Pieces:
    """Return an item as text.

    Args:
        item: The item.
        cfg: The data config.
        labels: Words for the classes, for items without choices of their own.
        form: ``plain`` or ``prompt``.
    """
    options = item.choices or tuple(labels)
    lettered = " ".join(f"{LETTERS[k]}. {_stop(text)}" for k, text in enumerate(options))
    if form == "plain":
        return Pieces("", item.text, f"\n{lettered}" if item.choices else "")
    ask = _TEMPLATES[cfg["template"]][2]
    name = "Text" if cfg["template"] == "sentence" else "Question"
    offered = f"{' or '.join(labels)}?" if cfg["answers"] == "words" else lettered
    tail = f"\n{offered}\nAnswer:"
    return Pieces(f"{ask}\n{name}: ", item.text.strip(), tail)


def _stop(text: str) -> str:
    """Return a choice with a capital letter and a full stop."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
