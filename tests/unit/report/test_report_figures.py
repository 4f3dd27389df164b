"""Figures: files, the same bytes twice, and the data drawn against numpy and the raw records."""

import csv
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from report_cases import ARMS, BINS, EPOCHS, KS, SEEDS, make_records
from scipy import stats

from bayesrule.errors import BayesruleError
from bayesrule.report import comparison, draw_figures, ood_entropy, reliability, samples, training
from bayesrule.report.calibration import pooled_bins
from bayesrule.report.drawing import metric_label, rule_label

REPORTED = {"ivon": {"test/acc@mc64": 0.7514}}
DRAWN = {
    "training": lambda r, out: training(
        r, "p2", out, metrics=("train/epoch_loss", "test/nll@mc"), log=("train/epoch_loss",)
    ),
    "samples": lambda r, out: samples(r, "p2", out),
    "comparison": lambda r, out: comparison(r, "p2", out, reported=REPORTED),
    "reliability": lambda r, out: reliability(r, "p2", out, rules=("mean", "mc")),
    "ood_entropy": lambda r, out: ood_entropy(r, "p2", out, labels={"ivon": "IVON"}),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    for draw in DRAWN.values():
        draw(records, out)
    return out


def rows(folder, name):
    with (folder / f"p2-{name}.csv").open() as file:
        return list(csv.DictReader(file))


def interval(values):
    values = np.asarray(values)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


@pytest.mark.parametrize("name", DRAWN)
def test_files_are_written_and_the_same_twice(name, records, folder, tmp_path):
    paths = DRAWN[name](records, tmp_path)
    assert [path.name for path in paths] == [f"p2-{name}.{end}" for end in ("svg", "png", "csv")]
    for path in paths:
        assert path.read_bytes() == (folder / path.name).read_bytes()
    svg = paths[0].read_text()
    assert svg.startswith("<?xml")
    assert "<dc:date>" not in svg
    pixels = np.asarray(Image.open(paths[1]).convert("L"))
    assert pixels.shape[1] > 400
    assert (pixels < 128).any()


def test_training_data_are_means_over_seeds_of_the_first_phase(records, folder):
    data = rows(folder, "training")
    assert {row["metric"] for row in data} == {"train/epoch_loss", "test/nll@mc"}
    mine = {int(r["epoch"]): r for r in data if (r["metric"], r["arm"]) == ("test/nll@mc", "ivon")}
    assert sorted(mine) == list(range(1, EPOCHS + 1))
    values = []
    for seed in SEEDS:
        history = records.history("p2", "ivon", seed)
        values += [r["test/nll@mc64"] for r in history if "test/nll@mc64" in r and r["epoch"] == 4]
    got = [float(mine[5][key]) for key in ("mean", "low", "high")]
    assert got == pytest.approx(interval(values), rel=1e-12)
    losses = [float(r["mean"]) for r in data if r["metric"] == "train/epoch_loss"]
    assert max(losses) < 3  # the other phase has 99


def test_samples_data_have_every_k_and_the_mean_of_spread_posteriors_only(records, folder):
    data = rows(folder, "samples")
    assert {row["arm"] for row in data} == {"ivon"}  # the other arms are point masses
    for metric in ("test/nll", "test/acc"):
        by_k = {row["K"]: row for row in data if row["metric"] == metric}
        assert list(by_k) == [*map(str, KS), "mean"]
        for k, rule in (("8", "mc8"), ("mean", "mean")):
            values = [records.run("p2", "ivon", s).metrics[f"{metric}@{rule}"] for s in SEEDS]
            got = [float(by_k[k][key]) for key in ("mean", "low", "high")]
            assert got == pytest.approx(interval(values), rel=1e-12)


def test_comparison_data_have_seeds_mean_and_the_papers_number(records, folder):
    data = rows(folder, "comparison")
    ivon = {r["seed"]: r for r in data if (r["arm"], r["metric"]) == ("ivon", "test/acc@mc64")}
    assert list(ivon) == [*map(str, SEEDS), "mean", "paper"]
    assert float(ivon["paper"]["value"]) == 0.7514
    values = [float(ivon[str(seed)]["value"]) for seed in SEEDS]
    assert values == [records.run("p2", "ivon", s).metrics["test/acc@mc64"] for s in SEEDS]
    got = [float(ivon["mean"][key]) for key in ("value", "low", "high")]
    assert got == pytest.approx(interval(values), rel=1e-12)
    rules = {arm: {r["metric"] for r in data if r["arm"] == arm} for arm in ARMS}
    assert "test/nll@mc64" not in rules["sgd"]  # equal to the mean: drawn once
    assert {"test/nll@mean", "test/nll@mc64"} <= rules["ivon"]


def test_reliability_data_pool_the_seeds(records, folder):
    data = [r for r in rows(folder, "reliability") if (r["arm"], r["rule"]) == ("ivon", "mc64")]
    assert len(data) == BINS - 1  # the empty bin is left out
    curves = [records.curve("p2", "ivon", seed, "test/reliability@mc64") for seed in SEEDS]
    for row in data:
        b = round(float(row["bin_low"]) * BINS)
        count = sum(curve["counts"][b] for curve in curves)
        assert float(row["count"]) == count
        assert float(row["accuracy"]) == pytest.approx(
            sum(curve["sum_acc"][b] for curve in curves) / count
        )
        assert float(row["confidence"]) == pytest.approx((b + 0.5) / BINS)
    arms = {(r["arm"], r["rule"]) for r in rows(folder, "reliability")}
    assert arms == {("adamw", "mean"), ("sgd", "mean"), ("ivon", "mean"), ("ivon", "mc64")}


def test_entropy_histograms_sum_to_one(folder):
    data = rows(folder, "ood_entropy")
    for arm in ARMS:
        for which in ("id", "mnist"):
            fractions = [float(r["fraction"]) for r in data if (r["arm"], r["set"]) == (arm, which)]
            assert len(fractions) == 30
            assert sum(fractions) == pytest.approx(1.0)
    assert float(data[-1]["high"]) == pytest.approx(math.log(10))


def test_pooled_ece_equals_the_one_of_the_metrics():
    import torch

    from bayesrule.metrics.reliability import ReliabilityBins, reliability_bins

    conf = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    correct = (torch.rand(500, generator=torch.Generator().manual_seed(1)) < 0.6).double()
    bins = reliability_bins(conf, correct, 20)
    curve = {name: getattr(bins, name).tolist() for name in ReliabilityBins._fields}
    assert pooled_bins([curve]).ece() == pytest.approx(float(bins.ece()), abs=1e-12)
    assert pooled_bins([curve, curve]).ece() == pytest.approx(float(bins.ece()), abs=1e-12)


def test_runs_with_different_bins_are_not_pooled():
    one = {"counts": [1.0], "sum_conf": [0.5], "sum_acc": [1.0]}
    two = {"counts": [1.0, 2.0], "sum_conf": [0.5, 1.0], "sum_acc": [1.0, 1.0]}
    with pytest.raises(BayesruleError, match="different numbers of bins"):
        pooled_bins([one, two])


def test_nothing_is_written_where_there_is_nothing_to_draw(records, tmp_path):
    assert training(records, "p2", tmp_path, metrics=("val/nll@mean",)) == []
    assert samples(records, "p2", tmp_path, arms=["sgd"]) == []
    assert comparison(records, "none", tmp_path) == []
    assert reliability(records, "p2", tmp_path, split="val") == []
    assert ood_entropy(records, "p2", tmp_path, arms=["unknown"]) == []
    assert list(tmp_path.iterdir()) == []


def test_one_seed_is_drawn_without_interval(tmp_path):
    records = make_records(tmp_path, seeds=(10,), arms=("sgd",))
    comparison(records, "p2", tmp_path / "out", metrics=("test/nll",), name="one")
    with (tmp_path / "out" / "one.csv").open() as file:
        data = {row["seed"]: row for row in csv.DictReader(file)}
    value = data["10"]["value"]
    assert (data["mean"]["value"], data["mean"]["low"], data["mean"]["high"]) == (value,) * 3


def test_labels_for_people():
    assert metric_label("test/nll@mean") == "test NLL (nats)"
    assert metric_label("test/ece20@mc64") == "test ECE (20 bins)"
    assert metric_label("train/epoch_loss") == "training loss (nats)"
    assert metric_label("ood_mnist/auroc@lin") == "OOD mnist AUROC"
    assert [rule_label(rule) for rule in ("mean", "mc1", "mc64", "lin")] == [
        "mean",
        "1 sample",
        "64 samples",
        "linearised",
    ]


FIGURES = """
from pathlib import Path
def figures(records, out):
    (out / "a.csv").write_text(" ".join(records.arms("p2")))
"""


def test_a_papers_figures_replace_the_old_ones_and_survive_failure(records, tmp_path):
    experiment, out = tmp_path / "ivon", tmp_path / "results" / "figures"
    experiment.mkdir()
    assert draw_figures(experiment, records, out) == []
    out.mkdir(parents=True)
    (out / "stale.svg").write_text("")
    (experiment / "figures.py").write_text(FIGURES)
    assert draw_figures(experiment, records, out) == [out / "a.csv"]
    assert (out / "a.csv").read_text() == "adamw sgd ivon"
    assert [path.name for path in out.parent.iterdir()] == ["figures"]
    (experiment / "figures.py").write_text(FIGURES + "    raise KeyError('x')\n")
    with pytest.raises(BayesruleError, match=r"figures\.py, line 5: .*KeyError"):
        draw_figures(experiment, records, out)
    (experiment / "figures.py").write_text("x = 1\n")
    with pytest.raises(BayesruleError, match="no function figures"):
        draw_figures(experiment, records, out)
    assert [path.name for path in out.parent.iterdir()] == ["figures"]
    assert [path.name for path in out.iterdir()] == ["a.csv"]


def test_importing_report_loads_nothing_heavy():
    code = (
        "import sys, bayesrule.report, bayesrule.report.scoreboard\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'numpy', 'scipy', 'datasets', 'rich'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
