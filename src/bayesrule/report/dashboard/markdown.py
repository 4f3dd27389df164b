"""A paper's README as HTML that can do no harm.

Raw HTML in the Markdown stays text. Links lead to pages of ours or, if they start with `https://`,
out of it; whatever else they name (files of the repository) is left as text. Pictures are replaced
by their descriptions: figures stand on the page itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token
    from markupsafe import Markup

__all__ = ["render_markdown"]

Resolve = Callable[[str], str | None]
"""From the target of a link in the Markdown to a URL of ours, None if there is none."""


def render_markdown(text: str, resolve: Resolve, *, shift: int = 1) -> Markup:
    """Return Markdown (CommonMark with tables) as escaped HTML.

    Args:
        text: The Markdown.
        resolve: See `Resolve`; asked for targets that are not `https://` or `http://`.
        shift: Levels that headings are lowered by, so that the page keeps its one `h1`.
    """
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.disable("image")  # stays a link with a `!` before it
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + shift)}"
        elif token.type == "inline" and token.children:
            token.children = _links(token.children, resolve)
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _links(children: Sequence[Token], resolve: Resolve) -> list[Token]:
    """Return inline tokens; links that lead nowhere lose their tags, not their text."""
    kept: list[Token] = []
    open_links: list[bool] = []
    for token in children:
        if token.type == "link_open":
            target = str(token.attrGet("href") or "")
            outside = re.match(r"https?://", target) is not None
            url = target if outside else resolve(target)
            open_links.append(url is not None)
            if url is None:
                continue
            token.attrs = {"href": url}
            if outside:
                token.attrs["rel"] = "noreferrer noopener"
        elif token.type == "link_close" and not open_links.pop():
            continue
        kept.append(token)
    return kept
