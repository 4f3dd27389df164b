"""What all figures share: style, colours, labels, and files that two calls write identically.

matplotlib is imported when the first figure is made; no window system is needed and its global
state is left alone.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.report.names import mc_samples, parse_name
from bayesrule.report.records import Records
from bayesrule.runs import mean_interval, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Band",
    "Style",
    "band",
    "canvas",
    "draw_band",
    "metric_label",
    "plain_axes",
    "rule_label",
    "save",
]

Band = list[tuple[float, float, float, float]]
"""Rows (x, mean, low, high), in the order of x."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito's colours (Nature Methods 2011), told apart in all common forms of colour
blindness; yellow is left out, since thin yellow lines vanish on white."""

MARKERS = "os^DvPh*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))

_RC: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "bayesrule",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}

_LABELS = {
    "acc": "accuracy",
    "err": "error rate",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "brier": "Brier score",
    "elbo": "ELBO (nats)",
    "rmse": "RMSE (units of the target)",
    "mae": "mean absolute error (units of the target)",
    "crps": "CRPS (units of the target)",
    "perplexity": "perplexity",
    "bits": "bits per token",
    "auroc": "AUROC",
    "aupr_out": "AUPR (out)",
    "fpr95": "FPR at 95 % TPR",
    "entropy": "predictive entropy (nats)",
    "mi": "mutual information (nats)",
    "aurc": "AURC",
    "epoch_loss": "loss (nats)",
    "loss": "minibatch loss (nats)",
    "forgetting": "forgetting",
    "bwt": "backward transfer",
    "fwt": "forward transfer",
    "learning_acc": "accuracy when just learnt",
    "incremental_acc": "accuracy, mean over the stream",
    "task_il_acc": "accuracy within the task",
    "class_il_acc": "accuracy over all classes",
    "auc": "return, mean over time",
    "last20": "return, last fifth",
    "log_mse": "log MSE to Q*",
    "max": "mean of max Q",
    "rewarded": "rewarded transitions",
}
_SPLITS = {"ood": "OOD", "val": "validation", "train": "training", "q": "values:"}


def metric_label(name: str) -> str:
    """Return an axis label for a metric's name, e.g. `test NLL (nats)`; the rule is left out."""
    split, metric, _ = parse_name(name)
    label = _LABELS.get(metric)
    if label is None:
        bins = metric.removeprefix("ece")
        label = f"ECE ({bins} bins)" if bins.isdigit() else metric.replace("_", " ")
    head = _SPLITS.get(split, split.replace("ood_", "OOD ").replace("_", " "))
    return f"{head} {label}".strip()


def rule_label(rule: str) -> str:
    """Return a prediction rule for people: `mean`, `64 samples`, `linearised`."""
    samples = mc_samples(rule)
    if samples is not None:
        return f"{samples} sample{'s' if samples > 1 else ''}"
    return {"lin": "linearised", "quad": "integrated", "": ""}.get(rule, rule)


class Style:
    """The same colour, marker, dashes and name for an arm in all figures of its study.

    Args:
        records: The runs.
        study: The study; colours follow the order of its arms.
        labels: Names of arms for people.
    """

    def __init__(
        self, records: Records, study: str, labels: Mapping[str, str] | None = None
    ) -> None:
        self._places = {arm: place for place, arm in enumerate(records.arms(study))}
        self._labels = dict(labels or {})

    def label(self, arm: str) -> str:
        """Return the arm's name."""
        return self._labels.get(arm, arm)

    def color(self, arm: str) -> str:
        """Return the arm's colour."""
        return PALETTE[self._places[arm] % len(PALETTE)]

    def marker(self, arm: str) -> str:
        """Return the arm's marker."""
        return MARKERS[self._places[arm] % len(MARKERS)]

    def dashes(self, arm: str) -> Any:
        """Return the arm's line style."""
        return DASHES[self._places[arm] % len(DASHES)]


@contextlib.contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """Make a figure in our style; draw and save it inside the block.

    Args:
        width: Inches.
        height: Inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(_RC)
        yield Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: Axes, x: str | None = None, y: str | None = None) -> None:
    """Label axes and keep the grid on the axis that is read off."""
    if x is not None:
        axes.set_xlabel(x)
    if y is not None:
        axes.set_ylabel(y)
    axes.tick_params(length=2.5, color="#555555")


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend above all axes, where it covers nothing, in as few rows as fit."""
    width = float(figure.get_size_inches()[0])
    longest = max((len(label) for label in labels), default=1)
    fit = max(1, int(width / (0.068 * longest + 0.55)))
    rows = math.ceil(len(labels) / fit)
    columns = math.ceil(len(labels) / max(rows, 1))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, columnspacing=1.4)


def note_below(figure: Figure, text: str) -> None:
    """Put a small note under the axes."""
    figure.supxlabel(text, fontsize=7.5, color="#555555")


def band(values_by_x: Mapping[float, Sequence[float]]) -> Band:
    """Return (x, mean, low, high) by x: the mean over seeds and its 95 % t interval.

    One value is its own interval.
    """
    rows = []
    for x, values in sorted(values_by_x.items()):
        if values:
            interval = mean_interval(values)
            low, high = interval.ci95 or (interval.mean, interval.mean)
            rows.append((float(x), interval.mean, low, high))
    return rows


def draw_band(axes: Axes, rows: Band, color: str, **line: Any) -> Any:
    """Draw mean and interval against x; return the line for a legend."""
    x, mean, low, high = zip(*rows, strict=True)
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    return axes.plot(x, mean, color=color, **line)[0]


def seeds_note(numbers: Sequence[int], what: str = "band") -> str:
    """Say what a line and a band are, for figures over `numbers` of seeds per arm."""
    if not numbers or max(numbers) < 2:
        return "one seed"
    low, high = min(numbers), max(numbers)
    count = str(low) if low == high else f"{low} to {high}"
    return f"mean over {count} seeds; {what}: 95 % t interval"


def save(
    figure: Figure,
    out: Path,
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> list[Path]:
    """Write `<name>.svg`, `<name>.png` and `<name>.csv` (the data drawn), each atomically.

    The same data give the same bytes: fixed ids in SVG, no dates or versions in metadata.

    Args:
        figure: The figure.
        out: Folder.
        name: File name without ending.
        header: Columns of the data.
        rows: The data; floats are written in full.

    Returns:
        The three paths.
    """
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": "bayesrule"},
        "png": {"Software": None},
    }
    paths = []
    for ending, facts in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, metadata=facts, dpi=150)
        data = buffer.getvalue()
        if ending == "svg":  # matplotlib leaves blanks at ends of lines, which git complains of
            data = b"\n".join(line.rstrip() for line in data.split(b"\n"))
        paths.append(out / f"{name}.{ending}")
        write_atomic(paths[-1], data)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([repr(x) if isinstance(x, float) else x for x in row] for row in rows)
    paths.append(out / f"{name}.csv")
    write_atomic(paths[-1], text.getvalue())
    return paths
