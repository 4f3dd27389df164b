"""What several runs of one process may share: opened by the first, closed with the scope.

::

    with sharing():              # a command that does several runs
        ...                      # each run: with sharing(): shared(key, open)

Only the outermost scope closes. One resource is kept at a time: another key closes the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

__all__ = ["shared", "sharing"]


class Closable(Protocol):
    """What can be shared."""

    def close(self) -> None:
        """Free it."""


T = TypeVar("T", bound=Closable)
_held: dict[Hashable, Any] = {}
_depth = 0


@contextmanager
def sharing() -> Iterator[None]:
    """Keep what is shared until the outermost of these scopes ends."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _close()


def shared(key: Hashable, make: Callable[[], T]) -> T:
    """Return what is held under `key`, made if there is nothing; inside `sharing` only.

    Args:
        key: All that distinguishes it from another one.
        make: Opens it.
    """
    if _depth == 0:
        raise RuntimeError("nothing is shared outside of sharing()")
    if key not in _held:
        _close()
        _held[key] = make()
    found: T = _held[key]
    return found


def _close() -> None:
    while _held:
        _, one = _held.popitem()
        one.close()
