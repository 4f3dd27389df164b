"""`bayesrule train -m`: killed and repeated, failures retried, samplers, launchers."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

SMALL = ("trainer.max_steps=3", "metrics.mc_samples=2", "metrics.prefixes=[1]",
         "metrics.ece_null_draws=0", "trainer.progress=false")  # fmt: skip
DIVERGES = ("posterior.lr=0.1,1e30", "posterior.weight_decay=0.1")


def records(cli):
    return {p: json.loads(p.read_text()) for p in cli.runs.glob("*/record.json")}


@pytest.mark.fault("kill -9 in a sweep")
def test_a_killed_sweep_goes_on_with_the_rest(cli, monkeypatch, capsys):
    from bayesrule.cli.main import main

    words = ("train", "-m", "seed=range(5)", "trainer.epochs=6", *SMALL[1:])
    process = cli.start(*words)
    deadline = time.monotonic() + 200
    while len(records(cli)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    stamps = {p: p.stat().st_mtime_ns for p in records(cli)}
    assert 2 <= len(stamps) < 5
    monkeypatch.setenv("BAYESRULE_RUNS", str(cli.runs))
    assert main(list(words)) == 0
    assert "5 runs, varying seed" in capsys.readouterr().err
    assert len(records(cli)) == 5
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps  # those were not run again


def test_failures_are_listed_last_and_retried_alone(cli, monkeypatch, capsys):
    from bayesrule.cli.main import main

    monkeypatch.setenv("BAYESRULE_RUNS", str(cli.runs))
    words = ["train", "-m", *DIVERGES, *SMALL]
    assert main(words) == 1
    last = capsys.readouterr().err.splitlines()[-2:]
    assert last[0].startswith("failed: ")
    assert "training diverged" in last[0]
    assert "--only failed" in last[1]
    stamps = {p: p.stat().st_mtime_ns for p in records(cli)}
    assert main([*words, "--only", "failed"]) == 1
    told = capsys.readouterr()
    assert "1 run, varying" in told.err
    assert "1e+30" in told.out
    changed = [p for p in stamps if p.stat().st_mtime_ns != stamps[p]]
    assert [records(cli)[p]["status"] for p in changed] == ["failed"]
    fine = ["train", "-m", "posterior.lr=0.1,0.2", "posterior.weight_decay=0.1", *SMALL]
    assert main([*fine, "--only", "failed"]) == 0  # one done, one that was never begun
    assert "no run of the 2 has failed" in capsys.readouterr().out


def test_a_sampled_sweep_draws_points_with_every_seed(cli, monkeypatch, capsys):
    from bayesrule.cli.main import main

    monkeypatch.setenv("BAYESRULE_RUNS", str(cli.runs))
    words = ["train", "-m", "posterior.lr=tag(log,interval(0.01,1))", "seed=0,1", *SMALL]
    assert main([*words, "--sampler", "sobol", "--samples", "2"]) == 0
    configs = [record["config"] for record in records(cli).values()]
    lrs = sorted({config["posterior"]["lr"] for config in configs})
    assert len(configs) == 4
    assert 0.01 <= lrs[0] < 0.1 <= lrs[1] <= 1  # one in each half, on a log scale
    assert len(re.findall(r"^0\.\d+ +2 ", capsys.readouterr().out, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "model=glob(zzz*)"], "the sweep has no jobs"),
        (["-m", "posterior.lr=interval(0.01,1)"], "--sampler"),
        (
            ["-m", "posterior.lr=interval(0.01,1)", "--sampler", "sobol", "--samples", "0"],
            "no jobs",
        ),
        (["-m", "seed=0,1", "--sampler", "random"], "no key has several"),
        (["-m", "seed=0,1", "hydra/sweeper=basic"], "hydra/sweeper"),
        (["-m", "seed=0,1", "hydra/launcher=nowhere"], "nowhere"),
        (["seed=1", "--only", "failed"], "add -m"),
    ],
)
def test_what_is_no_sweep_is_refused(words, message, tmp_path, monkeypatch, capsys):
    from bayesrule.cli.main import main

    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path))
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*/config.yaml"))


def test_the_submitit_launcher_names_the_log_of_what_failed(cli):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    result = cli("train", "-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5",
                 *DIVERGES, *SMALL)  # fmt: skip
    assert result.returncode == 1
    assert sorted(r["status"] for r in records(cli).values()) == ["done", "failed"]
    (log,) = re.findall(r"\(log: (\S+)\)", result.stderr)
    assert "training diverged" in Path(log).read_text()


@pytest.mark.slow
@pytest.mark.fault("kill -9 of jobs of a launcher")
def test_the_submitit_launcher_loses_a_process_but_not_the_others(cli, tmp_path):
    """A job whose process is killed leaves no result; the store has the others' all the same."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    process = cli.start("train", "-m", "hydra/launcher=submitit_local", "seed=0,1",
                        "trainer.epochs=2000", "trainer.checkpoint_seconds=0.05",
                        *SMALL[1:])  # fmt: skip
    deadline = time.monotonic() + 200
    while len(holders := list(cli.runs.glob(".locks/*.holder"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for holder in holders:
        os.kill(json.loads(holder.read_text())["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, out + err
    assert "the launcher gave up" in err
    assert ".submitit" in err
    assert err.count("failed: ") == 2


@pytest.mark.slow
def test_the_ray_launcher(cli):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    ray = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2",
           "+hydra.launcher.ray.init.include_dashboard=false")  # fmt: skip
    result = cli("train", "-m", *ray, *DIVERGES, *SMALL)
    assert result.returncode == 1, result.stderr
    assert sorted(r["status"] for r in records(cli).values()) == ["done", "failed"]
    assert "training diverged" in result.stderr
    again = cli("train", "-m", *ray, "seed=0,1", *SMALL)
    assert again.returncode == 0, again.stderr
    assert len(records(cli)) == 4
