"""What loggers beside the run store are told: groups, tables, names of rows."""

import pytest

from bayesrule.tasks.loggers import SWEEP_VARIABLE, _scalars, run_group, sweep_name
from bayesrule.tasks.run_tables import run_tables


def test_runs_are_grouped_by_study_or_sweep(monkeypatch):
    monkeypatch.delenv(SWEEP_VARIABLE, raising=False)
    assert run_group({"study": "ivon/p2/adamw"}) == ("ivon/p2", "adamw")
    assert run_group({"study": None}) == (None, None)
    monkeypatch.setenv(SWEEP_VARIABLE, sweep_name(["seed=0,1", "posterior=ivon"]))
    name = sweep_name(["posterior=ivon", "seed=0,1"])
    assert run_group({"study": None}) == (name, None)
    assert name != sweep_name(["posterior=ivon", "seed=0,2"])
    assert run_group({"study": "ivon/p2/adamw"}) == ("ivon/p2", "adamw")


def test_rows_keep_texts_and_the_names_of_later_phases():
    row = {"phase": "rounds", "step": 3, "epoch": 0, "client": 2, "refused": "late"}
    assert _scalars(row) == {"rounds/client": 2.0, "rounds/refused": "late"}
    assert _scalars({"phase": "train", "step": 1, "epoch": 0, "lr": 0.1}) == {"lr": 0.1}


def test_curves_become_tables():
    reliability = {"counts": [0, 4], "sum_conf": [0.0, 3.0], "sum_acc": [0.0, 2.0]}
    details = {
        "curves": {
            "test/reliability@mean": reliability,
            "test/confusion@mean": {"counts": [[3, 1], [0, 4]]},
            "q/max": {"step": [1, 2], "value": [0.5, 0.7]},
            "server/loss": [[1.0, 0.9], [2.0, 0.8]],
            "grid/entropy": {"axis": [0, 1], "values": [[1, 2], [3, 4]]},
            "uneven": {"a": [1], "b": [1, 2]},
            "empty": {},
        },
        "continual": {"matrices": {"acc@mean": [[0.9, None], [0.8, 0.7]]}},
    }
    tables = run_tables({"test/nll@mean": 0.5}, details)
    assert tables["metrics"] == (
        ["split", "metric", "rule", "value"],
        [["test", "nll", "mean", 0.5]],
    )
    assert tables["test/reliability@mean"][1] == [
        [0.0, 0.5, 0, None, None],
        [0.5, 1.0, 4, 0.75, pytest.approx(0.5)],
    ]
    assert tables["test/confusion@mean"] == (
        ["true class", "chosen 0", "chosen 1"],
        [[0, 3, 1], [1, 0, 4]],
    )
    assert tables["q/max"] == (["step", "value"], [[1, 0.5], [2, 0.7]])
    assert tables["server/loss"] == (["x", "value"], [[1.0, 0.9], [2.0, 0.8]])
    assert tables["matrix/acc@mean"] == (
        ["after task", "task 1", "task 2"],
        [[1, 0.9, None], [2, 0.8, 0.7]],
    )
    assert not {"grid/entropy", "uneven", "empty"} & set(tables)
