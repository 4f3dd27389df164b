"""What is merged: the data of the base model, of each fine-tuned model, and of their tests.

class_groups   the base model sees a few rows of all classes; each task is a group of classes
data_sets      the base model learns one data set, each task another one with the same classes
mislabelled    the base model learns rows of which some carry a wrong label; the task is those rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bayesrule.data import DataBundle, Split, View
from bayesrule.errors import ConfigError

__all__ = ["Part", "Parts", "make_parts"]


@dataclass(frozen=True)
class Part:
    """The data of one model.

    Attributes:
        name: Its name in metrics.
        train: Training items.
    """

    name: str
    train: Split


@dataclass(frozen=True)
class Parts:
    """All data of a merge.

    Attributes:
        base: What the base model learns.
        tasks: What each fine-tuned model learns.
        tests: Test items by name; metrics are means over them.
        vals: Validation items by name, to choose alpha on.
        without: Removal: what the base model would have learnt without the task; else None.
    """

    base: Part
    tasks: tuple[Part, ...]
    tests: dict[str, Split]
    vals: dict[str, Split]
    without: Part | None = None

    @property
    def removal(self) -> bool:
        """Whether the tasks are taken out of the base model."""
        return self.without is not None

    def describe(self) -> dict[str, Any]:
        """Return sizes and digests, for the record."""
        parts = [self.base, *self.tasks, *([self.without] if self.without else [])]
        return {
            "trained": {p.name: {"n": len(p.train), "sha256": p.train.digest()} for p in parts},
            "tests": {name: len(split) for name, split in self.tests.items()},
            "vals": {name: len(split) for name, split in self.vals.items()},
        }


Load = Callable[[str], DataBundle]


def make_parts(options: Mapping[str, Any], data: DataBundle, load: Load) -> Parts:
    """Return the data of a merge.

    Args:
        options: The ``task`` group.
        data: The set that ``data=`` names.
        load: Loads another set, with the options of ``data=`` where they fit.

    Raises:
        ConfigError: If rows or classes do not suffice, or sets have different classes.
    """
    if data.kind != "classification":
        raise ConfigError(f"task=merging is for classes; data={data.name} is for {data.kind}")
    if options["parts"] == "data_sets":
        return _data_sets(options, data, load)
    n, base_size = len(data.train), options["base_size"]
    if base_size >= n:
        raise ConfigError(f"task.base_size={base_size}: data={data.name} has {n} training rows")
    make = _mislabelled if options["parts"] == "mislabelled" else _class_groups
    return make(options, data, base_size)


def _class_groups(options: Mapping[str, Any], data: DataBundle, base_size: int) -> Parts:
    n, size = len(data.train), options["group_size"]
    groups = [list(range(k, min(k + size, data.n_outputs))) for k in range(0, data.n_outputs, size)]
    labels, rest = data.train.targets, torch.arange(base_size, n)
    tasks = []
    for classes in groups:
        rows = rest[torch.isin(labels[rest], torch.tensor(classes))]
        if len(rows) == 0:
            raise ConfigError(f"no training row of the classes {classes} is left for a task")
        name = "classes" + "_".join(map(str, classes))
        tasks.append(Part(name, data.train.subset(rows)))
    base = Part("base", data.train.subset(torch.arange(base_size)))
    vals = {} if data.val is None else {"val": data.val}
    return Parts(base, tuple(tasks), {"test": data.test}, vals)


def _data_sets(options: Mapping[str, Any], data: DataBundle, load: Load) -> Parts:
    if not options["sets"]:
        raise ConfigError("task.sets: name the data sets of the tasks, such as [sst2,imdb]")
    bundles = {data.name: data} | {name: load(name) for name in options["sets"]}
    for name, each in bundles.items():
        if each.n_outputs != data.n_outputs or each.input_shape != data.input_shape:
            raise ConfigError(
                f"task.sets: {name} has {each.n_outputs} classes and inputs {each.input_shape}, "
                f"{data.name} has {data.n_outputs} and {data.input_shape}: merged models share both"
            )
    return Parts(
        Part(data.name, data.train),
        tuple(Part(name, bundles[name].train) for name in options["sets"]),
        {name: each.test for name, each in bundles.items()},
        {name: each.val for name, each in bundles.items() if each.val is not None},
    )


def _mislabelled(options: Mapping[str, Any], data: DataBundle, base_size: int) -> Parts:
    wrong, label, size = options["bad_class"], options["bad_label"], options["bad_size"]
    if not (wrong < data.n_outputs and label < data.n_outputs and wrong != label):
        raise ConfigError(
            f"task.bad_class={wrong}, task.bad_label={label}: two of the {data.n_outputs} classes"
        )
    labels, rest = data.train.targets, torch.arange(base_size, len(data.train))
    rows = rest[labels[rest] == wrong][:size]
    if len(rows) < size:
        raise ConfigError(
            f"task.bad_size={size}: only {len(rows)} training rows of class {wrong} are left "
            "beside task.base_size; raise data.train_size"
        )
    clean = torch.arange(base_size)
    everything = torch.cat([clean, rows])
    targets = labels[everything].clone()
    targets[base_size:] = label
    both = View(data.train.subset(everything), targets)
    bad = both.subset(torch.arange(base_size, len(both)))
    return Parts(
        Part("base", both),
        (Part("bad", bad),),
        _by_class(data.test, wrong, "test"),
        {} if data.val is None else _by_class(data.val, wrong, "val"),
        Part("without", data.train.subset(clean)),
    )


def _by_class(split: Split, wrong: int, name: str) -> dict[str, Split]:
    """Return the items of the class in question and the others."""
    of_class = split.targets == wrong
    return {
        f"{name}_bad": split.subset(of_class.nonzero().flatten()),
        f"{name}_other": split.subset((~of_class).nonzero().flatten()),
    }
