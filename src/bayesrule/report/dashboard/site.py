"""What the dashboard shows: the folders, the index over the runs, and the renderer."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from bayesrule.report.dashboard.links import LiveLinks
from bayesrule.report.dashboard.rendering import Renderer
from bayesrule.runs import RunStore
from bayesrule.runs.index import RunIndex

__all__ = ["Site"]


@dataclass
class Site:
    """One dashboard.

    Attributes:
        runs: The run store's folder.
        results: The folder of committed results.
        experiments: The folder with one folder per paper.
        cache: Folder for the index (may be removed at any time).
    """

    runs: Path
    results: Path
    experiments: Path
    cache: Path
    renderer: Renderer = field(default_factory=lambda: Renderer(LiveLinks()))

    def __post_init__(self) -> None:
        self.store = RunStore(self.runs)
        self.index = RunIndex(self.runs, self.cache)
        self._looked = -math.inf

    def refresh(self) -> None:
        """Bring the index up to date, if nobody looked within the last second."""
        if time.monotonic() - self._looked > 1.0:
            self._looked = time.monotonic()
            self.index.refresh()
