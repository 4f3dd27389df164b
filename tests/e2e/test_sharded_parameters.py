"""`trainer=fsdp` in two processes on the CPU: the numbers of one, and kills leave no trace."""

import signal
import subprocess
import sys

import pytest
from command_line import CommandLine
from safetensors.torch import load_file

from bayesrule.cli.main import main
from bayesrule.config import compose
from bayesrule.errors import ConfigError
from bayesrule.optim import IVON
from bayesrule.tasks.shardable import check_sharding

TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
       "trainer.num_workers=0")  # fmt: skip
SHARDED = ("trainer=fsdp", *TWO)
RUN = (
    "posterior=ivon",
    "data.label_noise=0.2",
    "trainer.epochs=3",
    "trainer.eval_every=1",
    "trainer.log_every=7",
    "metrics.mc_samples=4",
    "metrics.ece_null_draws=0",
)
OFTEN = "trainer.checkpoint_seconds=0.02"  # not part of the run's identity


def assert_same_posterior(found, expected):
    """The gradient of a batch is a sum in another order, over `epochs` of float32 steps."""
    q = load_file(found / "posterior.safetensors")
    same = load_file(expected / "posterior.safetensors")
    assert q.keys() == same.keys()
    for name, value in same.items():
        assert q[name].shape == value.shape
        assert (q[name] - value).abs().max() <= 1e-5 * (1 + value.abs().max()), name


def test_shards_learn_what_one_process_does_and_survive_a_kill(
    cli, other_cli, tmp_path, monkeypatch
):
    alone = CommandLine(tmp_path / "alone")
    for store, words in ((other_cli, SHARDED), (alone, ())):
        monkeypatch.setenv("BAYESRULE_RUNS", str(store.runs))
        assert main(["train", *words, *RUN]) == 0
    _, metrics, _, _ = expected = other_cli.outcome()
    assert metrics == pytest.approx(alone.outcome()[1], rel=1e-4, abs=1e-5)
    assert_same_posterior(other_cli.folder(), alone.folder())

    killed = cli.stop_after_checkpoints(3, signal.SIGKILL, "train", *SHARDED, *RUN, OFTEN)
    assert killed.returncode == -signal.SIGKILL
    assert cli.checkpoints()
    assert not list(cli.runs.glob("*/checkpoints/*/finished.pt"))
    monkeypatch.setenv("BAYESRULE_RUNS", str(cli.runs))
    assert main(["train", *SHARDED, *RUN]) == 0
    assert cli.outcome() == expected


@pytest.mark.slow
def test_one_torchrun_is_the_same_run_and_what_ddp_learns(cli, other_cli, tmp_path):
    words = (*RUN, "model.dropout=0.1")
    assert other_cli("train", *SHARDED, *words).returncode == 0
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "2", "-m", "bayesrule.cli.main", "train", *SHARDED, *words),
    ]
    under = subprocess.run(
        command, env=cli.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert under.returncode == 0, under.stderr
    assert cli.outcome() == other_cli.outcome()

    ddp = CommandLine(tmp_path / "ddp")
    assert ddp("train", "trainer=ddp_cpu", "trainer.strategy=ddp", *words).returncode == 0
    assert cli.outcome()[1] == pytest.approx(ddp.outcome()[1], rel=1e-4, abs=1e-5)
    assert_same_posterior(cli.folder(), ddp.folder())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("posterior=swag",), "SWAG is more than one training"),
        (("posterior=deep_ensemble",), "DeepEnsemble is more than one training"),
        (("posterior=sam",), "SAM is not held exact"),
        (("posterior=vogn",), "VOGN is not held exact"),
        (("posterior=ivon", "task=continual"), "the task Continual"),
        (("posterior=ivon", "trainer.compile=true"), "trainer.compile=true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_needs_whole_parameters_is_refused_with_the_reason(words, reason):
    with pytest.raises(ConfigError, match=reason):
        check_sharding(compose([*SHARDED, *words]))


def test_what_is_exact_on_shards_is_accepted():
    assert IVON.shards
    check_sharding(compose([*SHARDED, "posterior=ivon"]))
