"""papers, claims, runs, doctor through `main([...])`, on a checkout made up for the test."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import bayesrule
from bayesrule.cli import doctor, runs
from bayesrule.cli.main import main
from bayesrule.runs import ArmRun, JsonlWriter, RunStore, load_paper, write_results

PAPER = """
paper: {title: Noisy digits, authors: A. Author, year: 2024, venue: ICML 2024, task: toy,
        posteriors: [diagonal Gaussian]}
studies:
  p2:
    experiment: ivon/p2
    arms: {adamw: [], ivon: []}
    scales: {cpu: {seeds: 10-13}}
claims:
  - {id: nll, statement: IVON has lower NLL., study: p2, kind: ordering, margin: 0.1,
     metric: test/nll@mean, arms: [ivon, adamw], direction: lower}
"""
SEEDS = (10, 11, 12, 13)
REPOSITORY = Path(bayesrule.__file__).resolve().parents[2]


def fill(store):
    """Write eight finished runs and a failed one; return the finished ones by arm and seed."""
    made = []
    for arm in ("adamw", "ivon"):
        for seed in SEEDS:
            rng = np.random.default_rng([seed, arm == "ivon"])
            metrics = {
                "test/nll@mean": (0.5 if arm == "ivon" else 1.0) + 0.02 * rng.random(),
                "test/acc@mean": 0.9,
            }
            config = {"posterior": {"name": arm, "lr": 0.1}, "data": {"name": "digits"}}
            with store.folder(config | {"seed": seed}).lock() as folder:
                with JsonlWriter(folder.metrics_path) as history:
                    for epoch in range(8):
                        history.append({"phase": "train", "epoch": epoch, "train/loss": 0.5})
                source = {"commit": "c" * 40, "date": f"2026-01-{seed}T00:00:00+00:00"}
                record = folder.write_record("done", metrics, provenance=source)
            made.append(ArmRun.of("p2", arm, seed, record.id, record))
    with store.folder({"posterior": {"name": "sgd"}, "seed": 0}).lock() as folder:
        folder.write_record("failed", error=ValueError("loss is nan\nat step 3"))
    return made


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one paper, its results, and a store of nine runs."""
    monkeypatch.setenv("BAYESRULE_ROOT", str(tmp_path))
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "experiments" / "ivon").mkdir(parents=True)
    (tmp_path / "experiments" / "ivon" / "paper.yaml").write_text(PAPER)
    paper = load_paper(tmp_path / "experiments" / "ivon")
    finished = fill(RunStore(tmp_path / "runs"))
    write_results(tmp_path / "results" / "ivon" / "cpu", paper, "cpu", finished)
    begin, end = "<!-- scoreboard:begin -->", "<!-- scoreboard:end -->"
    (tmp_path / "README.md").write_text(f"# head\n\n{begin}\n{end}\n\ntail\n")
    return tmp_path


def snapshot(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def table(text):
    """Return the rows of the first table in a text as lists of words."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("─"))
    return [line.split() for line in lines[start + 1 :] if line]


# ---------------------------------------------------------------------------- papers


def test_papers_shows_the_verdict_of_each_claim(checkout, capsys):
    assert main(["papers"]) == 0
    text = capsys.readouterr().out
    assert "Noisy digits (ICML 2024)" in text
    assert "toy; diagonal Gaussian" in text
    assert "cpu    1 shown (nll)" in text
    assert main(["papers", "--json"]) == 0
    (paper,) = json.loads(capsys.readouterr().out)
    assert paper["claims"][0]["verdicts"] == {"cpu": "shown"}


def test_papers_writes_and_checks_the_readme(checkout, capsys):
    assert main(["papers", "--check"]) == 1
    assert "--write-readme" in capsys.readouterr().out
    assert main(["papers", "--write-readme"]) == 0
    text = (checkout / "README.md").read_text()
    assert text.startswith("# head\n")
    assert text.endswith("\ntail\n")
    assert "| 1: `nll` |" in text
    assert main(["papers", "--check"]) == 0
    before = snapshot(checkout)
    assert main(["papers", "--write-readme"]) == 0
    assert snapshot(checkout) == before
    claims = checkout / "results" / "ivon" / "cpu" / "claims.json"
    claims.write_text(claims.read_text().replace('"shown"', '"not_shown"'))
    assert main(["papers", "--check"]) == 1


def test_papers_without_marks_or_with_a_wrong_paper_fails(checkout, capsys):
    (checkout / "README.md").write_text("# head\n")
    assert main(["papers", "--write-readme"]) == 1
    assert "scoreboard:begin" in capsys.readouterr().err
    assert (checkout / "README.md").read_text() == "# head\n"
    (checkout / "experiments" / "wrong").mkdir()
    (checkout / "experiments" / "wrong" / "paper.yaml").write_text("claims: []\n")
    assert main(["papers"]) == 1
    captured = capsys.readouterr()
    assert "Noisy digits" in captured.out
    assert "wrong" in captured.err


# ---------------------------------------------------------------------------- claims


def test_claims_writes_only_what_changed(checkout, capsys):
    before = snapshot(checkout)
    stamps = {path: path.stat().st_mtime_ns for path in before}
    assert main(["claims"]) == 0
    text = capsys.readouterr().out
    assert "results/ivon/cpu\n" in text.replace(os.sep, "/")
    assert "1 shown" in text
    assert snapshot(checkout) == before
    assert {path: path.stat().st_mtime_ns for path in before} == stamps
    yaml = checkout / "experiments" / "ivon" / "paper.yaml"
    yaml.write_text(PAPER.replace("margin: 0.1", "margin: 2.0"))
    assert main(["claims", "ivon", "--scale", "cpu"]) == 0  # a claim that fails is a result
    text = capsys.readouterr().out
    assert "written anew" in text
    assert "nll: shown -> contradicted" in text
    stored = json.loads((checkout / "results" / "ivon" / "cpu" / "claims.json").read_text())
    assert stored["claims"][0]["verdict"] == "contradicted"


def test_claims_of_a_folder_elsewhere(checkout, tmp_path, capsys):
    shutil.copytree(checkout / "results" / "ivon" / "cpu", tmp_path / "other")
    (tmp_path / "other" / "claims.json").unlink()
    assert main(["claims", "ivon", "--out", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "claims.json").is_file()
    assert main(["claims", "--out", str(tmp_path / "other")]) == 2
    assert "say which" in capsys.readouterr().err


def test_claims_of_unknown_missing_and_damaged_results(checkout, capsys):
    assert main(["claims", "ivno"]) == 2
    assert "ivon" in capsys.readouterr().err
    assert main(["claims", "ivon", "--scale", "paper"]) == 1
    assert "reproduce ivon --scale paper" in capsys.readouterr().err
    (checkout / "results" / "ivon" / "cpu" / "runs.csv").write_text("x\n")
    assert main(["claims"]) == 1
    assert "runs.csv" in capsys.readouterr().err
    shutil.rmtree(checkout / "results")
    assert main(["claims"]) == 0
    assert "no stored results" in capsys.readouterr().out


# ---------------------------------------------------------------------------- runs


def test_runs_ls_filters_limits_and_sorts(checkout, capsys):
    assert main(["runs", "ls", "posterior.name=ivon"]) == 0
    rows = table(capsys.readouterr().out)
    assert [row[2] for row in rows] == [f"2026-01-{seed}" for seed in reversed(SEEDS)]
    assert {row[4] for row in rows} == {"ivon"}
    assert {row[1] for row in rows} == {"done"}
    assert main(["runs", "ls", "--limit", "2"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "7 more (--limit 0 shows all)"
    columns = "id,seed,test/nll@mean,error"
    assert main(["runs", "ls", "seed=1[01]", "--limit", "0", "--columns", columns]) == 0
    assert sorted(row[1] for row in table(capsys.readouterr().out)) == ["10", "10", "11", "11"]
    assert main(["runs", "ls", "status=failed", "--columns", columns]) == 0
    assert "ValueError: loss is nan at step 3" in capsys.readouterr().out
    assert main(["runs", "ls", "status=gone"]) == 0
    assert "no run fits (9 in" in capsys.readouterr().out
    assert main(["runs", "ls", "status"]) == 2
    assert main(["runs", "ls", "--limit", "-1"]) == 2


def test_runs_show_has_metrics_history_and_files(checkout, capsys):
    store = RunStore(checkout / "runs")
    run = store.ls({"posterior.name": "ivon", "seed": "10"})[0]
    assert main(["runs", "show", run.id[:6], "--history", "2"]) == 0
    text = capsys.readouterr().out
    assert f"run {run.id}: done" in text
    nll = run.record.metrics["test/nll@mean"]
    assert f"test/nll  {nll:.4f}" in text
    assert "the last of 8 rows" in text
    assert "phase train epoch 6: train/loss 0.5" in text
    assert "epoch 5" not in text
    assert "record.json" in text
    assert main(["runs", "show", "ffffffffffffffff"]) == 2
    (failed,) = store.ls({"status": "failed"})
    assert main(["runs", "show", failed.id]) == 0
    assert "ValueError: loss is nan" in capsys.readouterr().out


def test_runs_show_config_says_what_differs_from_the_defaults(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("BAYESRULE_ROOT", str(REPOSITORY))
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path))
    from bayesrule.config import compose

    config = compose(["posterior=adamw", "model=cnn", "data=mnist5k", "trainer.epochs=3"])
    with RunStore(tmp_path).folder(config).lock() as folder:
        folder.write_record("done", {})
    assert main(["runs", "show", folder.id, "--config"]) == 0
    text = capsys.readouterr().out
    base = next(line for line in text.splitlines() if line.startswith("as: bayesrule train"))
    assert {"posterior=adamw", "model=cnn", "data=mnist5k"} <= set(base.split())
    changed = [line for line in text.splitlines() if "(default:" in line]
    assert changed == [f"  trainer.epochs=3  (default: {compose()['trainer']['epochs']})"]


def test_runs_rm_asks_first(checkout, capsys, monkeypatch):
    store = RunStore(checkout / "runs")
    assert main(["runs", "rm", "status=failed"]) == 2  # nobody to ask
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr(runs.sys, "stdin", type("Tty", (), {"isatty": lambda self: True})())
    for answer, code, left in (("", 1, 9), ("n", 1, 9), ("y", 0, 8)):
        monkeypatch.setattr("builtins.input", lambda text, answer=answer: answer)
        assert main(["runs", "rm", "status=failed"]) == code
        assert len(store.ids()) == left
    assert main(["runs", "rm", "--yes", store.ids()[0], store.ids()[1]]) == 0
    assert len(store.ids()) == 6
    assert main(["runs", "rm", "--yes", "status=gone"]) == 0
    assert main(["runs", "rm", "--yes", store.ids()[0], "seed=1"]) == 2
    assert len(store.ids()) == 6


def test_runs_rm_leaves_a_run_that_is_worked_on(checkout, capsys):
    store = RunStore(checkout / "runs")
    first, second = store.ids()[:2]
    with store.get(first).lock():
        assert main(["runs", "rm", "--yes", first, second]) == 1
    assert "worked on" in capsys.readouterr().err
    assert first in store.ids()
    assert second not in store.ids()


def test_runs_verify_notices_one_changed_byte(checkout, capsys):
    assert main(["runs", "verify"]) == 0
    assert "9 runs" in capsys.readouterr().out
    store = RunStore(checkout / "runs")
    path = store.get(store.ids()[3]).metrics_path
    if not path.exists():
        path = store.get(store.ids()[4]).metrics_path
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    assert main(["runs", "verify"]) == 1
    text = capsys.readouterr().out
    assert path.parent.name in text
    assert "1 problem" in text
    good = next(name for name in store.ids() if name != path.parent.name)
    assert main(["runs", "verify", good]) == 0


def test_usage_errors_leave_with_2(checkout, capsys):
    for words in (["runs"], ["runs", "list"], ["papers", "--jsn"], ["claims", "--scale", "huge"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
    for words in (["runs", "--help"], ["runs", "ls", "--help"], ["papers", "-h"], ["claims", "-h"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert "examples:" in capsys.readouterr().out


# ---------------------------------------------------------------------------- doctor


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """The real checkout with a store of its own; the hub is not asked."""
    monkeypatch.setenv("BAYESRULE_ROOT", str(REPOSITORY))
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("BAYESRULE_DATA", raising=False)


def found(check):
    return {finding.topic: finding for finding in check()}


def test_doctor_reports_on_every_topic(quiet, capsys):
    import torch

    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert sys.version.split()[0] in text
    assert torch.__version__ in text
    assert "HF_HUB_OFFLINE is set" in text
    assert "digits" in text
    for topic in ("python", "devices", "compiler", "wandb", "run store", "disk"):
        assert any(line[4:].startswith(topic) for line in text.splitlines())


def test_doctor_goes_on_past_a_broken_part(quiet, monkeypatch, capsys):
    def broken():
        raise RuntimeError("no driver")
        yield

    monkeypatch.setattr(doctor, "_torch", broken)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "XX  torch         RuntimeError('no driver')" in text
    assert "disk" in text


def test_doctor_counts_the_sets_of_a_mirror(quiet, monkeypatch, tmp_path):
    for name in ("digits", "fashion_mnist", "something_else"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "train.parquet").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path))
    mirror = found(doctor._data)["data mirror"]
    assert mirror.mark == "ok"
    assert ": 2 of " in mirror.text
    assert "1 more folder" in mirror.text
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path / "nowhere"))
    assert found(doctor._data)["data mirror"].mark == "XX"


def test_doctor_compares_versions_with_the_pins(checkout):
    import numpy

    lines = f"# pins\nnumpy=={numpy.__version__}\nscipy==0.0.1  # old\nnot-there==1.0\n"
    (checkout / "constraints.txt").write_text(lines)
    finding = found(doctor._versions)["constraints"]
    assert finding.mark == "!!"
    assert "1 of 3 pins" in finding.text
    assert "pinned 0.0.1" in finding.text
    (checkout / "constraints.txt").write_text(f"numpy=={numpy.__version__}+cpu\n")
    assert found(doctor._versions)["constraints"].mark == "ok"


def test_doctor_asks_the_hub_only_online(monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "_reachable", lambda url, seconds: asked.append((url, seconds)))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    assert found(doctor._hub)["hub"].mark == "--"
    assert asked == []
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    assert found(doctor._hub)["hub"].mark == "ok"
    assert asked == [("https://huggingface.co", 2.0)]
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    assert found(doctor._hub)["hub"].mark == "!!"


def test_doctor_does_not_wait_for_a_silent_hub(monkeypatch):
    import threading
    import urllib.request

    released = threading.Event()

    def silent(*_, **__):
        released.wait(30)
        raise OSError("closed")

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    try:
        assert doctor._reachable("https://hub.invalid", 0.05) == "no answer within 0.05 s"
    finally:
        released.set()


def test_doctor_counts_runs_and_names_damage(checkout):
    assert "9 runs (8 done, 1 failed)" in found(doctor._store)["run store"].text
    store = RunStore(checkout / "runs")
    store.get(store.ids()[0]).record_path.write_text("{")
    finding = found(doctor._store)["run store"]
    assert finding.mark == "!!"
    assert "1 corrupt" in finding.text
