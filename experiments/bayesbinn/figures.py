"""The figures of the BayesBiNN paper that the studies allow, drawn from records."""

from __future__ import annotations

from pathlib import Path

from bayesrule.report import Records, comparison, training
from bayesrule.report.drawing import (
    Style,
    band,
    canvas,
    legend_above,
    note_below,
    plain_axes,
    save,
    seeds_note,
)

__all__ = ["figures"]

LABELS = {
    "bayesbinn": "BayesBiNN",
    "ste": "STE Adam",
    "bop": "Bop",
    "pmf": "PMF",
    "adam": "full precision",
    "prior": "yesterday's posterior as prior",
    "no-prior": "uniform prior",
}


def figures(records: Records, out: Path) -> None:
    """Draw comparisons, training curves, the limit of low temperature, spreads, continual learning.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    for study in ("digits", "digits-noise", "mnist", "cifar10", "cifar100"):
        if study in studies:
            comparison(
                records, study, out, metrics=["test/acc", "test/nll"], rules=["mode", "mean"],
                labels=LABELS,
            )  # fmt: skip
    for study in ("mnist", "cifar10", "cifar100"):
        if study in studies:
            training(records, study, out, metrics=["train/epoch_loss"], labels=LABELS)
    if "temperature" in studies:
        temperature(records, out)
    if "regression" in studies:
        prediction(records, out)
    for study in ("continual", "continual-mnist"):
        if study in studies:
            forgetting(records, study, out)


def temperature(records: Records, out: Path) -> None:
    """Draw how BayesBiNN's step becomes a straight-through one as the temperature falls."""
    study, arm = "temperature", "bayesbinn"
    measures = {
        "sign": "same sign as STE's gradient",
        "cosine": "cosine of the gradients",
        "distance": "distance to the binary draw",
    }
    rows = []
    with canvas(9.0, 2.9) as figure:
        panels = figure.subplots(1, len(measures), squeeze=False)[0]
        for axes, (name, label) in zip(panels, measures.items(), strict=True):
            stem = f"ste/{name}_"
            by_tau = {
                float(metric.removeprefix(stem)): list(records.values(study, arm, metric).values())
                for metric in records.metrics(study, arm)
                if metric.startswith(stem) and not metric.endswith("start")
            }
            line = band(by_tau)
            x, mean, low, high = zip(*line, strict=True)
            axes.fill_between(x, low, high, alpha=0.18, linewidth=0, color="#0072B2")
            axes.plot(x, mean, "o-", ms=4, color="#0072B2")
            axes.set_xscale("log")
            plain_axes(axes, "temperature", label)
            rows += [(name, *values) for values in line]
        note_below(figure, seeds_note([len(records.seeds(study, arm))]))
        save(figure, out, "temperature", ["measure", "tau", "mean", "low", "high"], rows)


def prediction(records: Records, out: Path) -> None:
    """Draw one seed's regression: data, draws' mean with two standard deviations, plug-in."""
    study, name = "regression", "spread/prediction"
    arms = [arm for arm in records.arms(study) if records.curves(study, arm, name)]
    style, rows = Style(records, study, LABELS), []
    with canvas(4.2 * len(arms), 3.0) as figure:
        panels = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
        for axes, arm in zip(panels, arms, strict=True):
            seed, curve = next(iter(records.curves(study, arm, name).items()))
            x, mean, std = curve["x"], curve["mean"], curve["std"]
            axes.axvspan(*curve["gap"], color="#f0f0f0", linewidth=0)
            axes.plot(curve["train_x"], curve["train_y"], ".", ms=3, color="#555555")
            low = [m - 2 * s for m, s in zip(mean, std, strict=True)]
            high = [m + 2 * s for m, s in zip(mean, std, strict=True)]
            color = style.color(arm)
            axes.fill_between(x, low, high, alpha=0.25, linewidth=0, color=color)
            axes.plot(x, mean, color=color)
            axes.plot(x, curve["plug_in"], color=color, linestyle="--", linewidth=1.0)
            axes.set_title(style.label(arm))
            plain_axes(axes, "input", "target" if axes is panels[0] else None)
            columns = zip(x, mean, std, curve["plug_in"], strict=True)
            rows += [(arm, seed, *values) for values in columns]
        note_below(
            figure,
            "one seed; band: two standard deviations of 20 draws; dashed: plug-in; grey: gap",
        )
        header = ["arm", "seed", "x", "mean", "std", "plug_in"]
        save(figure, out, "regression-prediction", header, rows)


def forgetting(records: Records, study: str, out: Path) -> None:
    """Draw the accuracy on each task after each task, with and without the carried prior."""
    style, rows = Style(records, study, LABELS), []
    arms = records.arms(study)
    tasks = 1 + max(
        (int(metric.partition("_")[0].removeprefix("task")) - 1)
        for metric in records.metrics(study, arms[0])
        if metric.startswith("task")
    )
    with canvas(2.6 * tasks, 3.1) as figure:
        panels = figure.subplots(1, tasks, sharey=True, squeeze=False)[0]
        handles = {}
        for j, axes in enumerate(panels, start=1):
            for arm in arms:
                line = band(
                    {
                        float(t): list(
                            records.values(study, arm, f"task{j}_after{t}/acc@mode").values()
                        )
                        for t in range(j, tasks + 1)
                    }
                )
                x, mean, low, high = zip(*line, strict=True)
                color = style.color(arm)
                axes.fill_between(x, low, high, alpha=0.18, linewidth=0, color=color)
                (handles[arm],) = axes.plot(x, mean, style.marker(arm) + "-", ms=4, color=color)
                rows += [(arm, j, *values) for values in line]
            axes.set_title(f"task {j}")
            axes.set_xlim(0.8, tasks + 0.2)
            axes.set_xticks(range(1, tasks + 1))
            plain_axes(axes, "tasks learnt", "test accuracy" if j == 1 else None)
        legend_above(figure, list(handles.values()), [style.label(arm) for arm in handles])
        note_below(figure, seeds_note([len(records.seeds(study, arm)) for arm in arms]))
        save(figure, out, study, ["arm", "task", "after", "mean", "low", "high"], rows)
