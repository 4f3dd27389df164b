"""Generated from experiments/: the smoke scale of every paper runs, and running again does nothing.

Without a mirror, a hub or a GPU, as on a machine where only the package is installed.
"""

import csv
import json

import pytest

from bayesrule.cli.main import main
from bayesrule.config import experiments_dir
from bayesrule.runs import RunStore, find_papers, load_paper


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.delenv("BAYESRULE_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path / "runs"))
    return tmp_path


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("key", find_papers(experiments_dir()))
def test_smoke_scale_runs_once(key, offline, capsys):
    paper = load_paper(experiments_dir() / key)
    out = offline / "out"
    words = ["reproduce", key, "--scale", "smoke", "--jobs", "1", "--out", str(out)]
    assert main(words) == 0, capsys.readouterr().err

    claims = json.loads((out / "claims.json").read_text())
    assert [claim["id"] for claim in claims["claims"]] == [claim.id for claim in paper.claims]
    assert {claim["verdict"] for claim in claims["claims"]} == {"not_at_this_scale"}
    for name in ("table.csv", "table.md", "runs.csv", "provenance.json"):
        assert (out / name).stat().st_size > 0
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"done"}
    planned = {(run.study, run.arm) for run in paper.planned("smoke")}
    left_out = "left out:" in capsys.readouterr().err
    assert {(row["study"], row["arm"]) for row in rows} == planned or left_out

    store = RunStore(offline / "runs")
    records = [store.get(run).record() for run in store.ids()]
    assert len(records) == len({row["run"] for row in rows})
    assert all(record.metrics for record in records)
    assert not store.verify()

    before = stamps(store.root)
    results = {path: path.read_bytes() for path in out.glob("*.csv")}
    assert main(words) == 0
    assert stamps(store.root) == before, "the second call worked on a run"
    assert {path: path.read_bytes() for path in out.glob("*.csv")} == results
