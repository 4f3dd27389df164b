"""Figures of streams: the data drawn against the records."""

import base64
import csv

import pytest

from bayesrule.report import (
    Records,
    boundaries,
    chosen_memory,
    memory_curve,
    metrics_table,
    stream_curves,
    stream_matrix,
)
from bayesrule.report.names import headline_metrics
from bayesrule.runs import ArmRun, RunStore

ARMS, SEEDS = {"none": 0.0, "replay": 0.2}, (10, 11, 12)


def matrix(better, seed):
    s = seed / 1000.0
    return [[0.9 + s, 0.3, None], [0.5 + better, 0.8 + s, 0.2], [0.4 + better, 0.6 + s, 0.995]]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    store = RunStore(tmp_path_factory.mktemp("store"))
    runs = []
    for arm, better in ARMS.items():
        for seed in SEEDS:
            a = matrix(better, seed)
            metrics = {"test/acc@mean": sum(a[2]) / 3, "test/forgetting@mean": 0.3 - better}
            for t in range(3):
                metrics[f"after{t + 1}/acc@mean"] = sum(a[t][: t + 1]) / (t + 1)
                metrics[f"task{t + 1}/acc@mean"] = a[2][t]
            axis = [0.0, 0.5, 1.0]
            p = [[[0.1, 0.4, 0.9]] * 3] * 3
            points = [[[0.1, 0.2, 0], [0.8, 0.9, 1]]] * 3
            pixels = bytes(range(8)) * 2
            details = {
                "continual": {
                    "matrices": {"acc@mean": a},
                    "grid": {"x": axis, "y": axis, "p": {"mean": p}, "points": points},
                    "pictures": [{"pixels": base64.b64encode(pixels).decode(), "shape": [1, 2, 4],
                                  "targets": [3, 1], "columns": [0, 1, 2, 3]}],
                }
            }  # fmt: skip
            folder = store.folder({"arm": arm, "seed": seed})
            with folder.lock():
                folder.write_record("done", metrics, details=details)
            runs.append(ArmRun("s", arm, seed, folder.id, "done", metrics))
    return Records(runs, store)


def rows(paths):
    assert [path.suffix for path in paths] == [".svg", ".png", ".csv"]
    with paths[-1].open() as file:
        return list(csv.DictReader(file))


def test_matrix_is_the_mean_over_seeds(records, tmp_path):
    data = rows(stream_matrix(records, "s", tmp_path))
    assert len(data) == 2 * 8  # what was not measured is left out
    found = {(r["arm"], r["after"], r["task"]): float(r["acc@mean"]) for r in data}
    assert found["replay", "3", "1"] == pytest.approx(0.6)
    assert found["none", "1", "1"] == pytest.approx(0.911)
    svg = (tmp_path / "s-matrix.svg").read_text()
    assert "<?xml" in svg


def test_curves_are_of_the_tasks_seen(records, tmp_path):
    data = rows(stream_curves(records, "s", tmp_path, arms=["replay"]))
    assert [row["tasks"] for row in data] == ["1", "2", "3"]
    assert float(data[1]["mean"]) == pytest.approx((0.7 + 0.811) / 2)
    assert float(data[1]["low"]) < float(data[1]["mean"]) < float(data[1]["high"])


def test_memory_against_accuracy(records, tmp_path):
    series = {"ER": {10.0: "none", 20.0: "replay", 40.0: "missing"}}
    data = rows(memory_curve(records, "s", tmp_path, series=series, lines={"no memory": "none"}))
    assert [(row["method"], row["size"]) for row in data] == [
        ("ER", "10.0"), ("ER", "20.0"), ("no memory", ""),
    ]  # fmt: skip
    assert data[0]["mean"] == data[2]["mean"]


def test_boundaries_and_pictures(records, tmp_path):
    data = rows(boundaries(records, "s", tmp_path, labels={"none": "fine-tuning"}))
    assert len(data) == 2 * 3 * 9
    assert {(row["x"], row["p1"]) for row in data} == {
        ("0.0", "0.1"),
        ("0.5", "0.4"),
        ("1.0", "0.9"),
    }
    data = rows(chosen_memory(records, "s", tmp_path))
    assert [(row["arm"], row["target"]) for row in data] == [
        ("none", "3"), ("none", "1"), ("replay", "3"), ("replay", "1"),
    ]  # fmt: skip


def test_other_runs_give_no_figure(tmp_path):
    store = RunStore(tmp_path / "store")
    folder = store.folder({"x": 1})
    with folder.lock():
        folder.write_record("done", {"test/acc@mean": 0.5})
    other = Records([ArmRun("s", "a", 0, folder.id, "done", {"test/acc@mean": 0.5})], store)
    for draw in (stream_matrix, stream_curves, boundaries, chosen_memory):
        assert draw(other, "s", tmp_path / "out") == []
    assert memory_curve(other, "s", tmp_path, series={"ER": {1.0: "b"}}) == []


def test_tables_stay_readable(records):
    """One task of a stream is in the record, not in the table."""
    metrics = dict(records.run("s", "replay", 10).metrics)
    text = metrics_table(metrics)
    assert "test/forgetting" in text
    assert "task1" not in text
    assert "after2" not in text
    assert "6 more in the run's record" in text
    assert headline_metrics(metrics) == ("test", ["acc", "forgetting"])
