"""Figures of federated runs: the data drawn against the records."""

import csv

import pytest

from bayesrule.report import Records, label_mix, round_curves
from bayesrule.runs import ArmRun, RunStore

MIX = [[3, 0, 1], [0, 2, 2]]


def make_run(store, arm, seed):
    with store.folder({"arm": arm, "seed": seed}).lock() as folder:
        rounds = {
            "test/acc@mean": [[1.0, 0.5 + 0.01 * seed], [2.0, 0.7]],
            "comm/up": [[1.0, 1e6], [2.0, 1e6]],
            "comm/down": [[1.0, 3e6], [2.0, 2e6]],
        }
        details = {"rounds": rounds, "clients": {"label_mix": MIX}}
        record = folder.write_record("done", {"test/acc@mean": 0.7}, details=details)
    return ArmRun.of("s", arm, seed, record.id, record)


@pytest.fixture
def records(tmp_path):
    store = RunStore(tmp_path / "store")
    return Records([make_run(store, arm, seed) for arm in ("a", "b") for seed in (10, 12)], store)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_metrics_are_drawn_against_rounds_and_the_bytes_sent_so_far(records, tmp_path):
    paths = round_curves(records, "s", tmp_path, metrics=("test/acc@mean",))
    assert {path.suffix for path in paths} == {".svg", ".png", ".csv"}
    drawn = [row for row in rows(tmp_path / "s-rounds.csv") if row["arm"] == "b"]
    assert [float(row["megabytes"]) for row in drawn] == [4.0, 7.0]
    assert float(drawn[0]["mean"]) == pytest.approx(0.61)
    assert float(drawn[1]["low"]) == pytest.approx(0.7)


def test_label_mixes_are_the_clients_counts(records, tmp_path):
    label_mix(records, "s", tmp_path)
    drawn = rows(tmp_path / "s-clients.csv")
    assert [int(row["items"]) for row in drawn] == [n for client in MIX for n in client]
