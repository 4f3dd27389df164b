"""Signals to a process of its own, at moments of the clock: its start-up and its end are included.

(Signals at exact moments of the run itself are in test_torture_moments.py.)
"""

import signal
import time

import pytest
from command_line import CommandLine
from forked import ForkedCommandLine
from test_torture_files import said
from test_torture_moments import RUN

DELAYS = (0.02, 0.2, 0.7, 1.5, 2.5, 4.0, 6.0, 8.0)


@pytest.fixture(scope="module")
def outcome(warm, tmp_path_factory):
    cli = ForkedCommandLine(warm, tmp_path_factory.mktemp("outcome") / "runs")
    said(cli(*RUN), 0)
    return cli.outcome()


@pytest.mark.fault("SIGTERM or Ctrl-C at any second of a process, from its start")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "delay", [pytest.param(d, marks=() if d == 2.5 else pytest.mark.slow) for d in DELAYS]
)
def test_a_signal_after_a_while(fork, outcome, delay, signum):
    cli = CommandLine(fork.runs)
    process = cli.start(*RUN)
    time.sleep(delay)
    process.send_signal(signum)
    _, err = process.communicate(timeout=200)
    # before Python or bayesrule listens, the system itself ends the process
    if "Could not import runpy" not in err:  # Python itself was not up yet, and leaves with 1
        assert process.returncode in (0, 128 + signum, -signum), err
    if process.returncode == 0:
        assert fork.outcome() == outcome
    said(fork(*RUN), 0)
    assert fork.outcome() == outcome


@pytest.mark.fault("kill -9 at any second of a process, from its start")
@pytest.mark.slow
@pytest.mark.parametrize("delay", DELAYS[2:])
def test_kill_nine_after_a_while(fork, outcome, delay):
    process = CommandLine(fork.runs).start(*RUN)
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=200)
    said(fork(*RUN), 0)
    assert fork.outcome() == outcome
