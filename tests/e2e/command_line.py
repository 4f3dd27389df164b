"""Runs of the real command line in processes of their own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class CommandLine:
    """`bayesrule` with a run store of its own."""

    def __init__(self, runs):
        self.runs = Path(runs)
        self.environment = {
            **os.environ,
            "BAYESRULE_RUNS": str(self.runs),
            "BAYESRULE_ROOT": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.environment.pop("BAYESRULE_DATA", None)

    def start(self, *words, **options):
        command = [sys.executable, "-m", "bayesrule.cli.main", *words]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __call__(self, *words, **options):
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def folder(self):
        (found,) = [p for p in self.runs.iterdir() if len(p.name) == 16]
        return found

    def checkpoints(self, below="*"):
        return sorted(self.runs.glob(f"*/checkpoints/{below}/step-*.ckpt"))

    def outcome(self):
        """Return what must be equal between two ways to the end of a run."""
        folder = self.folder()
        record = json.loads((folder / "record.json").read_text())
        return (
            record["status"],
            record["metrics"],
            (folder / "metrics.jsonl").read_bytes(),
            (folder / "posterior.safetensors").read_bytes(),
        )

    def stop_after_checkpoints(self, count, signum, *words, below="*"):
        """Start a run, wait until `count` checkpoints were seen, one of them new, send the signal.

        Those of an earlier attempt count, but the process must have come to its own first one.
        """
        before = {p.name for p in self.checkpoints(below)}
        process = self.start(*words)
        seen = set()
        deadline = time.monotonic() + 200
        while len(seen) < count or seen <= before:
            seen |= {p.name for p in self.checkpoints(below)}
            if process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        process.send_signal(signum)
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(words, process.returncode, out, err)
