"""Merging: several models of one architecture become one, by rules on tensors or posterior algebra.

Names are loaded when they are first used, so that a command can check folders without torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "METHODS": "methods",
    "Method": "methods",
    "find_method": "methods",
    "ModelFolder": "folders",
    "MergeOptions": "engine",
    "merge": "engine",
    "merge_posteriors": "algebra",
    "laplace_posterior": "algebra",
    "linear_grams": "gram",
    "load_curvature": "curvature_file",
    "save_curvature": "curvature_file",
    "CurvatureFile": "curvature_file",
    "merge_folders": "merge_folders",
    "MergePlan": "merge_folders",
}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
