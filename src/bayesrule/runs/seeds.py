"""The grammar of seeds, in paper.yaml and on the command line.

[10, 11, 14]    a list (YAML)
10-14           both ends included:  10 11 12 13 14
100:105         end excluded:        100 101 102 103 104
1,4,10-12       parts joined by commas
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bayesrule.errors import ConfigError

__all__ = ["parse_seeds"]

_PART = re.compile(r"(\d{1,18})(?:([-:])(\d{1,18}))?")
_MOST = 10_000
_HELP = "write seeds as 10-14 (both ends), 100:105 (end excluded), 1,4,7 or [1, 4, 7]"


def parse_seeds(text: str | Sequence[int], *, where: str = "seeds") -> tuple[int, ...]:
    """Read seeds written in the grammar of the module's docstring.

    Args:
        text: The text, or a list of integers.
        where: Name of the option or key, for errors.

    Returns:
        Different non-negative seeds in the order written; at least one.

    Raises:
        ConfigError: If it is something else, empty, or has a seed twice.
    """
    seeds: list[int] = []
    if isinstance(text, str):
        for part in text.split(","):
            match = _PART.fullmatch(part.strip())
            if not match:
                raise ConfigError(f"{where}: cannot read {part.strip()!r}; {_HELP}")
            first = int(match[1])
            last = first + 1 if match[2] is None else int(match[3]) + (match[2] == "-")
            if last <= first:
                raise ConfigError(f"{where}: the range {part.strip()!r} is empty; {_HELP}")
            if last - first > _MOST:
                raise ConfigError(f"{where}: {part.strip()!r} is more than {_MOST} seeds")
            seeds.extend(range(first, last))
    elif isinstance(text, Sequence) and not isinstance(text, (bytes, bytearray)):
        for seed in text:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise ConfigError(f"{where}: {seed!r} is no seed (a whole number >= 0); {_HELP}")
            seeds.append(seed)
    else:
        # YAML 1.1 reads an unquoted 10:15 as the number 615
        raise ConfigError(
            f"{where}: {text!r} is neither a list nor text; {_HELP} (in YAML, quote '100:105')"
        )
    if not seeds:
        raise ConfigError(f"{where}: no seeds; {_HELP}")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1}) if len(seeds) < 500 else []
    if twice or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: seeds given twice: {', '.join(map(str, twice)) or 'some'}")
    return tuple(seeds)
