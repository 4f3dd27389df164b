"""Data sets: sources, splits, label noise, scaling, augmentation, and loaders that resume exactly.

`load_data` turns a ``conf/data`` mapping into a `DataBundle`; `ResumableLoader` gives its batches.
"""

from bayesrule.data.arrays import ArraySplit
from bayesrule.data.bundle import DataBundle, Source, Split
from bayesrule.data.catalogue import complete, entry, names, planned_sizes
from bayesrule.data.generated import random_like
from bayesrule.data.load import load_data
from bayesrule.data.loader import EpochOrder, ResumableLoader
from bayesrule.data.splits import noisy_labels
from bayesrule.data.states import StateSplit
from bayesrule.data.streams import Experience, Stream
from bayesrule.data.text import TokenSplit
from bayesrule.data.texts import TextSplit
from bayesrule.data.views import Union, View

__all__ = [
    "ArraySplit",
    "DataBundle",
    "EpochOrder",
    "Experience",
    "ResumableLoader",
    "Source",
    "Split",
    "StateSplit",
    "Stream",
    "TextSplit",
    "TokenSplit",
    "Union",
    "View",
    "complete",
    "entry",
    "load_data",
    "names",
    "noisy_labels",
    "planned_sizes",
    "random_like",
]
