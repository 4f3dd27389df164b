"""`bayesrule tune`: killed and repeated, several workers, pruned runs continued, refusals."""

import json
import signal
import sqlite3
import time

import pytest
from command_line import CommandLine

WORDS = (
    "tune",
    *("posterior=ivon", "data=digits", "data.val_fraction=0.2", "trainer.progress=false"),
    *("trainer.epochs=4", "trainer.eval_every=1", "metrics.mc_samples=2", "metrics.prefixes=[1]"),
    *("metrics.ece_null_draws=0", "posterior.lr=tag(log,interval(0.003,3))"),
    *("model.dropout=interval(0,0.5)", "--startup", "3", "--name", "s"),
)


def trials(cli):
    """Return number, state, values at evaluations and result of every trial."""
    with sqlite3.connect(cli.runs / ".tune/s/study.db") as db:
        rows = db.execute("SELECT trial_id, number, state FROM trials ORDER BY number").fetchall()
        found = []
        for trial, number, state in rows:
            seen = [
                db.execute(f"SELECT * FROM {table} WHERE trial_id = ?", (trial,)).fetchall()
                for table in ("trial_params", "trial_values", "trial_intermediate_values")
            ]
            found.append((number, state, [sorted(row[2:] for row in part) for part in seen]))
    return found


def ended(cli):
    try:
        return sum(state in ("COMPLETE", "PRUNED", "FAIL") for _, state, _ in trials(cli))
    except sqlite3.OperationalError:  # not there yet
        return 0


@pytest.fixture
def here(monkeypatch, capsys):
    """`bayesrule` in this process, which has imported everything already."""
    from bayesrule.cli.main import main

    def run(cli, *words):
        monkeypatch.setenv("BAYESRULE_RUNS", str(cli.runs))
        code = main(list(words))
        told = capsys.readouterr()
        assert code == 0, told.err
        return told.out

    return run


@pytest.mark.fault("kill -9 in a search of settings")
def test_killed_and_repeated_it_tries_what_an_uninterrupted_search_does(cli, other_cli, here):
    whole = here(other_cli, *WORDS, "--trials", "7")
    assert "the best again: bayesrule train posterior=ivon" in whole
    process = cli.start(*WORDS, "--trials", "7")
    deadline = time.monotonic() + 200
    while ended(cli) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # somewhere in the third trial
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= ended(cli) < 7
    assert here(cli, *WORDS, "--trials", "7") == whole
    assert trials(cli) == trials(other_cli)
    summary = json.loads((cli.runs / ".tune/s/study.json").read_text())
    assert summary["counts"]["pruned"] >= 1
    assert summary["best"][0]["value"] < 2.0
    here(cli, "runs", "verify")

    # a pruned trial is a run that can be continued
    records = [json.loads(path.read_text()) for path in cli.runs.glob("*/record.json")]
    record = next(r for r in records if r["status"] == "stopped")
    assert record["error"]["kind"] == "Pruned"
    lr, dropout = record["config"]["posterior"]["lr"], record["config"]["model"]["dropout"]
    words = (*WORDS[1:10], f"posterior.lr={lr}", f"model.dropout={dropout}")
    assert record["id"] in here(cli, "train", *words)
    uninterrupted = CommandLine(cli.runs.parent / "third")
    here(uninterrupted, "train", *words)
    histories = [c.runs / record["id"] / "metrics.jsonl" for c in (cli, uninterrupted)]
    assert histories[0].read_bytes() == histories[1].read_bytes()


@pytest.mark.slow
def test_two_workers_share_one_count(cli):
    result = cli(*WORDS, "--trials", "6", "--jobs", "2", "--sampler", "sobol", "--pruner", "none")
    assert result.returncode == 0, result.stderr
    assert [state for _, state, _ in trials(cli)] == ["COMPLETE"] * 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["posterior.lr=0.1"], "nothing to search"),
        (["posterior.lr=interval(0.1,1)"], "needs a validation split"),
        (["posterior.lr=interval(0.1,1)", "--metric", "test/nll@mean"], "never on test data"),
        (["posterior.lr=interval(-1,1)", "data.val_fraction=0.2"], "posterior.lr=-1"),
        (["posterior.lrr=interval(0.1,1)"], "did you mean 'posterior.lr'"),
        (["posterior.lr=interval(0.1,1)", "--sampler", "grid", "data.val_fraction=0.2"], "counted"),
        (["posterior.lr=0.1,1", "hydra/launcher=joblib"], "--jobs"),
        (["posterior.lr=0.1,1", "data.val_fraction=0.2", "--pruner", "asha"], "trainer.eval_every"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(
    words, message, tmp_path, monkeypatch, capsys
):
    from bayesrule.cli.main import main

    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path / "runs"))
    assert main(["tune", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("study.db"))
