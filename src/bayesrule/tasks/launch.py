"""Several processes for one run: torchrun starts workers on the stored configuration.

Under a plain command line the parent starts ``torch.distributed.run`` on this module; under
torchrun (``RANK`` is set) every process already is a rank. Ranks that the parent started
end with it, however it ends: the lock on the run is freed then, and whoever takes it must find
nobody else at work.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from bayesrule.config import Config
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import CheckpointFolder, RunFolder, read_json, write_json
from bayesrule.tasks.history import History
from bayesrule.tasks.loggers import make_sinks
from bayesrule.tasks.signals import Stopped, StopRequest, stop_request
from bayesrule.tasks.task import Context, Outcome, make_task

__all__ = ["in_processes", "is_rank", "run_rank"]

_OUTCOME = "outcome.json"


def is_rank() -> bool:
    """Return whether this process was started as a rank by torchrun or a scheduler."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def in_processes(config: Config, folder: RunFolder, stop: StopRequest) -> Outcome:
    """Run the configuration's task in ``trainer.devices`` processes and return rank 0's outcome.

    Raises:
        BayesruleError: If the processes failed; the message says why, and where their log is.
        ConfigError: If several nodes are asked for outside of torchrun.
        Stopped: If a signal stopped them.
    """
    if is_rank():
        return run_rank(config, folder, stop)
    if config["trainer"]["nodes"] > 1:
        raise ConfigError(
            f"trainer.nodes={config['trainer']['nodes']}: one command starts the processes of one "
            "node; start it on every node with torchrun"
        )
    for phase in sorted((folder.path / "checkpoints").glob("*/")):
        CheckpointFolder(phase).latest()  # sets damaged ones aside before ranks look
    outcome_path = folder.path / _OUTCOME
    outcome_path.unlink(missing_ok=True)
    log_path = folder.path / "processes.log"
    devices = config["trainer"]["devices"]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(devices), "--max-restarts", "0"),
        *("-m", "bayesrule.tasks.launch", str(folder.path)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(config["trainer"]["threads"])}
    with log_path.open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        )
        while True:
            try:
                code = process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if stop.signum is not None:
                    process.send_signal(signal.SIGTERM)
                    code = process.wait()
                    break
    stop.check()
    if code != 0 or not outcome_path.exists():
        raise BayesruleError(f"the processes failed: {_reason(log_path, start)} (log: {log_path})")
    found = read_json(outcome_path)
    return Outcome(found["metrics"], found["details"])


def _reason(log_path: Path, start: int) -> str:
    """Return what a rank said last of all since byte `start`: our own sentence, or an exception."""
    text = log_path.read_bytes()[start:].decode(errors="replace")
    ours = re.findall(r"^bayesrule: (.+)$", text, re.MULTILINE)
    others = re.findall(r"^(\[rank\d+\]: \w[\w.]*(?:Error|Exception)\b.*)$", text, re.MULTILINE)
    return (ours or others or ["they ended without a word"])[-1]


def _end_with_parent() -> None:
    """End this process when the parent does: its end of our standard input is closed then."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)  # at any instant, as a kill would: what is on disk is whole

    threading.Thread(target=wait, daemon=True).start()


def run_rank(config: Config, folder: RunFolder, stop: StopRequest) -> Outcome:
    """Run the task as one rank; only rank 0 writes."""
    writer = int(os.environ["RANK"]) == 0
    history = History(
        folder if writer else None,
        make_sinks(config, folder) if writer else [],
        enabled=config["logger"]["name"] != "none",
    )
    try:
        outcome = make_task(config).run(Context(config, folder, history, stop, writer))
        history.summary(outcome.metrics, outcome.details)
        return outcome
    finally:
        history.close()


def _main() -> int:
    import torch

    path = Path(sys.argv[1])
    folder = RunFolder(path.parent, path.name)
    config = folder.config()
    torch.set_num_threads(config["trainer"]["threads"])
    _end_with_parent()
    with stop_request() as stop:
        try:
            outcome = run_rank(config, folder, stop)
        except Stopped as ending:
            return ending.exit_code
        except BayesruleError as error:
            print(f"bayesrule: {error}", file=sys.stderr)
            return 1
    if int(os.environ["RANK"]) == 0:
        content: dict[str, Any] = {"metrics": outcome.metrics, "details": outcome.details}
        write_json(folder.path / _OUTCOME, content)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
