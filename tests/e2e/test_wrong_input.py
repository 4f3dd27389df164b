"""Whatever is wrong is said in one sentence, before anything heavy is loaded; nothing is lost."""

import json
import os
import subprocess
import sys

import pytest
from command_line import ROOT

WRONG = [
    ("posterior=ivno", "did you mean 'ivon'"),
    ("data=nosuch", "no such data"),
    ("model=resnet19", "did you mean 'resnet18'"),
    ("postrior=ivon", "did you mean 'posterior'"),
    ("optimizer.lr=abc", "did you mean 'posterior.lr'"),
    ("posterior.lrr=1", "did you mean 'posterior.lr'"),
    ("posterior.lr=abc", "posterior.lr=abc: not a value of type float"),
    ("posterior.lr=-0.1", "out of range: expected float > 0"),
    ("posterior.lr", "write key=value"),
    ("posterior.hess_approx=prise", "did you mean 'price'"),
    ("+posterior.foo=1", "neither added (+) nor deleted (~)"),
    ("++posterior.lr=1", "neither added (+) nor deleted (~)"),
    ("~posterior.lr", "neither added (+) nor deleted (~)"),
    ("posterior.lr=0.1,0.2", "add -m for a sweep"),
    ("posterior._target_=os.system", "a _target_ must lie in"),
    ("task._target_=subprocess.run", "a _target_ must lie in"),
    ("posterior._target_=bayesrule.__loader__.x", "a _target_ must lie in"),
    ("posterior._schema_={}", "it is no option"),
    ("posterior.member=ivon", "no part 'member'"),
    ("seeed=3", "did you mean 'seed'"),
    ("seed=-1", "out of range"),
    ("seed=null", "expected int"),
    ("trainer.epochs=1.5", "trainer.epochs=1.5"),
    ("trainer.epochs=0", "out of range"),
    ("trainer.schedule=cosin", "did you mean 'cosine'"),
    ("trainer.precision=16-mixed", "choose one of"),
    ("data.label_noise=2", "out of range"),
    ("model.hidden=[1,a]", "model.hidden[1]=a"),
    ("experiment=ivon/p3", "did you mean 'ivon/p2'"),
    ("--frobnicate", "--frobnicate"),
]


@pytest.fixture(scope="module")
def answers():
    """Run all of them in one process, which must never import torch."""
    script = (
        "import contextlib, io, json, sys\n"
        "from bayesrule.cli.main import main\n"
        "out = []\n"
        "for word in json.load(sys.stdin):\n"
        "    err = io.StringIO()\n"
        "    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):\n"
        "        try:\n"
        "            code = main(['train', word])\n"
        "        except SystemExit as stop:\n"
        "            code = stop.code\n"
        "    out.append([code, err.getvalue(), 'torch' in sys.modules])\n"
        "print(json.dumps(out))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([word for word, _ in WRONG]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "BAYESRULE_ROOT": str(ROOT)},
    )
    return json.loads(result.stdout)


@pytest.mark.fault("wrong configuration")
@pytest.mark.parametrize("index", range(len(WRONG)), ids=[word for word, _ in WRONG])
def test_wrong_words(answers, index):
    _, expected = WRONG[index]
    code, text, heavy = answers[index]
    assert code == 2, text
    assert expected in text
    assert "Traceback" not in text
    assert "append to your config" not in text
    assert not heavy


@pytest.mark.fault("a run that diverges, in a sweep")
def test_a_diverging_run_stops_with_step_and_term_and_the_sweep_goes_on(cli):
    result = cli("train", "-m", "posterior=sgd", "posterior.lr=1e9,0.1", "trainer.epochs=1",
                 "metrics.mc_samples=2")  # fmt: skip
    assert result.returncode == 1
    assert "the likelihood's loss is" in result.stderr
    assert "at step" in result.stderr
    listing = cli("runs", "ls").stdout
    assert "failed" in listing
    assert "done" in listing


def test_a_sweep_of_nothing_is_an_error(cli):
    result = cli("train", "-m", "posterior=glob(nosuch*)")
    assert result.returncode == 2
    assert "no jobs" in result.stderr


@pytest.mark.fault("disk full (a small file system)")
def test_a_full_disk_is_named_and_loses_nothing(cli, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        cli.environment["BAYESRULE_RUNS"] = str(small)
        result = cli("train", "trainer.epochs=3", "trainer.checkpoint_seconds=0",
                     "metrics.mc_samples=2")  # fmt: skip
        assert result.returncode == 1
        assert "no space is left on the device" in result.stderr
        assert list(small.glob("*/checkpoints/train/step-*.ckpt"))  # the earlier one is whole
        assert not list(small.glob("*/checkpoints/train/.*tmp"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("trainer=fsdp", "posterior=sam", "trainer.batch_size=48"), "SAM is not held exact"),
        (("trainer=ddp_cpu", "trainer.batch_size=51"), "a multiple of the 2 processes"),
        (("trainer.devices=2",), "needs a strategy"),
        (("data=fashion_mnist",), "none of the three sources"),
    ],
)
def test_what_cannot_work_is_refused_before_training(cli, words, expected):
    result = cli("train", *words)
    assert result.returncode in (1, 2)
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert not cli.checkpoints()


def test_a_wrong_claim_file_says_where(cli, tmp_path):
    result = cli("reproduce", "ivno")
    assert result.returncode == 2
    assert "ivon" in result.stderr


def test_light_commands_import_nothing_heavy():
    heavy = "{'torch', 'lightning', 'hydra', 'wandb', 'transformers', 'datasets', 'matplotlib'}"
    script = (
        "import sys, contextlib, io\n"
        "from bayesrule.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['--help']); main(['papers'])\n"
        f"print(sorted({heavy} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "BAYESRULE_ROOT": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


def test_the_optimisers_import_torch_only():
    script = (
        "import sys, bayesrule.optim\n"
        "names = {'lightning', 'hydra', 'omegaconf', 'wandb', 'transformers', 'datasets'}\n"
        "print(sorted(names & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
