"""The query string of `/runs` and `/parallel` as data, and back to a URL.

q=posterior=ivon test/nll@mean<0.5 digits   filters and words (`bayesrule.runs.query`)
paper= arm= status=                         exact choices
sort= dir=asc|desc page=                    order and page
group=posterior,posterior.lr                grouping
cols=test/acc@mean,posterior.lr             further columns
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from bayesrule.runs.query import Filter, Query

__all__ = ["RunQuery", "names", "quoted"]

_CHOICES = ("paper", "arm", "status")
_LONGEST = 2000  # characters of one parameter
_MOST_NAMES = 12


def names(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list, the first dozen, each once."""
    found = dict.fromkeys(part.strip() for part in text.split(","))
    return tuple(name for name in found if name)[:_MOST_NAMES]


def quoted(key: str, value: str) -> str:
    """Return the filter `key=value` for the field `q`, its pattern letters taken literally."""
    literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in value)
    return shlex.quote(f"{key}={literal}")


@dataclass(frozen=True)
class RunQuery:
    """What a page over many runs was asked for."""

    q: str = ""
    paper: str = ""
    arm: str = ""
    status: str = ""
    sort: str = "date"
    dir: str = "desc"
    page: int = 1
    group: str = ""
    cols: str = ""

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> RunQuery:
        """Read a query string; unknown names are left out, a strange page is the first."""
        texts = {
            name: str(parameters[name])[:_LONGEST].strip()
            for name in ("q", "paper", "arm", "status", "sort", "dir", "group", "cols")
            if parameters.get(name)
        }
        page = str(parameters.get("page", ""))
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 8 else 1
        return cls(**texts, page=max(1, number))  # type: ignore[arg-type]

    @property
    def columns(self) -> tuple[str, ...]:
        """The further columns asked for."""
        return names(self.cols)

    @property
    def groups(self) -> tuple[str, ...]:
        """The keys grouped by."""
        return names(self.group)

    def query(self) -> Query:
        """Return it as a query of the index."""
        asked = Query.parse(self.q, sort=self.sort, descending=self.dir != "asc")
        chosen = []
        for name in _CHOICES:
            value = getattr(self, name)
            if value:
                literal = "".join(f"[{one}]" if one in "*?[" else one for one in value)
                chosen.append(Filter(name, "=", literal))
        return replace(asked, filters=(*asked.filters, *chosen))

    def url(self, path: str = "/runs", **changes: Any) -> str:
        """Return the URL of the same view with some parameters changed; what is usual is left out.

        Args:
            path: Path of the page.
            changes: Parameters; any change but of the page goes back to the first page.
        """
        changed = replace(self, **{"page": 1, **changes})
        usual = RunQuery()
        given = {
            name: value
            for name, value in vars(changed).items()
            if value != getattr(usual, name) and value not in ("", None)
        }
        return f"{path}?{urlencode(given)}" if given else path

    def sorted_by(self, key: str) -> str:
        """Return the URL that sorts by `key`, or turns the order round."""
        turned = self.sort == key and self.dir != "asc"
        return self.url(sort=key, dir="asc" if turned else "desc")

    def aria_sort(self, key: str) -> str:
        """Return the value of `aria-sort` for a column."""
        if self.sort != key:
            return "none"
        return "ascending" if self.dir == "asc" else "descending"

    def within(self, keys: Sequence[str], labels: Sequence[str | None]) -> str | None:
        """Return the URL of the runs of one group; None if a label stands for "has no such key"."""
        if any(label is None for label in labels):
            return None
        words = [quoted(key, str(label)) for key, label in zip(keys, labels, strict=True)]
        return self.url(q=" ".join([self.q, *words]).strip(), group="")
