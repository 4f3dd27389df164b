"""Tables of metrics and sweeps, read back cell by cell and compared with numpy's numbers."""

import math
import re

import numpy as np
import pytest

from bayesrule.report import metrics_table, sweep_table
from bayesrule.report.names import headline_metrics, largest_mc, sort_names
from bayesrule.report.text import columns_text, format_number, format_spread
from bayesrule.runs import RunRecord


def cells(text):
    """Return a table's rows as {first cell: {title: cell}}, cut at the columns of its rule."""
    lines = text.splitlines()
    rule = next(line for line in lines if set(line) <= {"─", " "} and line)
    spans = [match.span() for match in re.finditer("─+", rule)]
    cut = [[line[a:b].strip() for a, b in spans] for line in lines if line]
    header, body = cut[0], cut[2:]
    return {row[0]: dict(zip(header, row, strict=True)) for row in body}


def record(metrics, status="done"):
    error = ("NonFiniteLoss", "loss is nan at step 3") if status == "failed" else None
    return RunRecord("0" * 16, status, metrics, error)


def test_metrics_table_shows_the_known_metrics_by_rule():
    metrics = {
        "test/nll@mean": 0.51234567,
        "test/nll@mc64": 0.49876543,
        "test/nll@mc8": 0.505,
        "test/acc@mean": 0.9,
        "test/acc@mc64": 1.0,
        "test/odd_metric@mean": 3.25,
        "ood/auroc@mc64": math.nan,
        "curvature/spearman": 0.25,
    }
    text = metrics_table(metrics)
    table = cells(text)
    assert table["test/nll"] == {
        "metric": "test/nll",
        "value": "",
        "@mean": "0.5123",
        "@mc64": "0.4988",
    }
    assert table["test/acc"]["@mc64"] == "1"
    assert table["ood/auroc"]["@mc64"] == "nan"
    assert table["curvature/spearman"]["value"] == "0.2500"
    assert "test/odd_metric" not in table
    assert text.index("test/acc") < text.index("test/nll") < text.index("ood/auroc")
    assert text.splitlines()[-1] == "2 more in the run's record"  # nll@mc8 and odd_metric


def test_metrics_table_of_unknown_metrics_shows_all_of_them():
    table = cells(metrics_table({"merge/gap": 2.0, "merge/drift": 1e-9}))
    assert table["merge/gap"]["value"] == "2"
    assert table["merge/drift"]["value"] == "1.00e-09"
    assert metrics_table({}) == "no metrics"


def test_sweep_table_averages_over_seeds_and_keeps_failures():
    generator = np.random.default_rng(0)
    values = {arm: generator.normal(0.5, 0.1, size=3) for arm in ("ivon", "adamw")}
    rows = [
        (
            {"posterior": arm, "seed": str(seed)},
            record({"test/nll@mean": nll + 1, "test/nll@mc64": nll, "test/nll@mc8": 9.0}),
        )
        for arm, nlls in values.items()
        for seed, nll in enumerate(nlls)
    ]
    rows[4] = (rows[4][0], record({}, "failed"))
    rows += [({"posterior": "sgd", "seed": str(seed)}, "failed") for seed in range(2)]
    text = sweep_table(rows)
    table = cells(text)
    for arm, kept in (("ivon", [0, 1, 2]), ("adamw", [0, 2])):
        for title, shift in (("test/nll@mean", 1), ("test/nll@mc64", 0)):
            mean, sd = table[arm][title].split(" ± ")
            nll = values[arm][kept] + shift
            assert float(mean) == pytest.approx(nll.mean(), abs=0.6 * 10.0 ** -len(mean[2:]))
            assert float(sd) == pytest.approx(nll.std(ddof=1), rel=0.05)
    assert table["ivon"]["runs"] == "3"
    assert table["adamw"]["runs"] == "2, 1 failed"
    assert table["sgd"]["runs"] == "2 failed"
    assert table["sgd"]["test/nll@mc64"] == "failed"
    assert "seed" not in table["ivon"]


def test_sweep_table_without_seeds_has_one_line_per_run():
    rows = [
        ({"posterior.lr": lr}, record({"test/rmse@mean": value, "test/nll@mean": 1.5}))
        for lr, value in (("0.1", 0.25), ("0.2", math.inf))
    ]
    table = cells(sweep_table(rows))
    assert table["0.1"] == {
        "posterior.lr": "0.1",
        "runs": "1",
        "test/rmse@mean": "0.2500",
        "test/nll@mean": "1.5000",
    }
    assert table["0.2"]["test/rmse@mean"] == "(1 not finite)"
    assert "standard deviation" not in sweep_table(rows)


def test_sweep_table_of_failures_only_says_so():
    assert cells(sweep_table([({"a": "1"}, "failed")]))["1"]["status"] == "failed"
    assert sweep_table([]) == "no runs"
    with pytest.raises(ValueError, match="same keys"):
        sweep_table([({"a": "1"}, "failed"), ({"b": "1"}, "failed")])


def test_each_record_counts_with_its_own_largest_sample_number():
    rows = [
        ({"metrics.mc_samples": str(k)}, record({f"test/nll@mc{k}": 1.0 / k, "test/nll@mc1": 5.0}))
        for k in (2, 4)
    ]
    table = cells(sweep_table(rows))
    assert table["2"]["test/nll@mc*"] == "0.5000"
    assert table["4"]["test/nll@mc*"] == "0.2500"


def test_names_are_ordered_for_people():
    names = ["val/nll@mean", "test/ece@mc8", "test/ece@mc16", "test/ece@mean", "test/acc@mean"]
    assert sort_names(names) == [
        "test/acc@mean",
        "test/ece@mean",
        "test/ece@mc8",
        "test/ece@mc16",
        "val/nll@mean",
    ]
    assert largest_mc(["mean", "mc8", "mc64", "lin"]) == "mc64"
    assert largest_mc(["mean"]) is None
    assert headline_metrics(["val/acc@mean", "test/rmse@mean", "test/nll@mean"]) == (
        "test",
        ["rmse", "nll"],
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.12345, "0.1235"), (1234.56, "1234.6"), (3e-7, "3.00e-07"), (math.nan, "nan")],
)
def test_numbers_have_about_four_digits(value, text):
    assert format_number(value) == text


def test_spread_of_equal_and_tiny_values():
    assert format_spread([0.5, 0.5]) == "0.5000 ± 0"
    assert format_spread([]) == ""
    mean, sd = format_spread([1e-9, 3e-9]).split(" ± ")
    assert float(mean) == pytest.approx(2e-9)
    assert float(sd) == pytest.approx(math.sqrt(2) * 1e-9, rel=0.05)


def test_columns_refuse_ragged_rows():
    with pytest.raises(ValueError, match="2 cells"):
        columns_text(["a", "b"], [["1"]])


def test_sweep_table_shows_the_median_time_of_an_epoch():
    rows = []
    for seed, seconds in enumerate([0.5, 9.0, 0.7]):
        made = record({"test/nll@mean": 1.0})
        made.details["seconds_per_epoch"] = seconds
        rows.append(({"posterior": "ivon", "seed": str(seed)}, made))
    rows.append(({"posterior": "sgd", "seed": "0"}, record({"test/nll@mean": 2.0})))
    table = cells(sweep_table(rows))
    assert table["ivon"]["s/epoch"] == "0.7"
    assert "s/epoch" not in cells(sweep_table(rows[3:]))["sgd"]
