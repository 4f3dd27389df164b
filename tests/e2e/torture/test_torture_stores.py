"""Faults of whole stores, sweeps and papers: kills, limits, clocks, other machines, many runs."""

import json
import os
import shutil
import signal
import subprocess

import damage
import pytest
from command_line import ROOT
from forked import ForkedCommandLine
from test_torture_files import said
from test_torture_moments import RUN

SWEEP = ("train", "-m", *RUN[1:], "seed=0,1", "trainer.epochs=1")
PAPER = ("reproduce", "vogn", "--scale", "smoke", "--study", "momentum", "--jobs", "1")


def everything(cli):
    """Return what must be equal between two stores: every run's outcome, by its id."""
    found = {}
    for folder in sorted(cli.runs.glob("?" * 16)):
        record = json.loads((folder / "record.json").read_text())
        names = ("metrics.jsonl", "posterior.safetensors")
        files = [(folder / n).read_bytes() for n in names if (folder / n).exists()]
        found[folder.name] = (record["status"], record["metrics"], files)
    return found


@pytest.fixture(scope="module")
def swept(warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    said(ForkedCommandLine(warm, folder / "first")(*SWEEP), 0)
    cli = ForkedCommandLine(warm, folder / "runs")
    hook = {"kind": "at", "action": None, "count": str(folder / "count")}
    said(cli(*SWEEP, hook=hook), 0)
    return everything(cli), int((folder / "count").read_text())


@pytest.mark.fault("kill -9, SIGTERM or Ctrl-C at any moment of a sweep")
@pytest.mark.parametrize("action", ["SIGKILL", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=() if m == 5 else pytest.mark.slow) for m in range(8)]
)
def test_a_sweep(fork, swept, action, moment):
    hook = {"kind": "at", "action": action, "number": 1 + moment * swept[1] // 8}
    result = fork(*SWEEP, hook=hook)
    signum = getattr(signal, action)
    assert result.returncode in (0, -signum, 128 + signum), result.stderr
    assert "Traceback" not in result.stderr
    if result.returncode == 0:
        assert everything(fork) == swept[0]
    said(fork(*SWEEP), 0)
    assert everything(fork) == swept[0]


@pytest.fixture(scope="module")
def paper(warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    said(ForkedCommandLine(warm, folder / "first")(*PAPER, "--out", str(folder / "other")), 0)
    cli = ForkedCommandLine(warm, folder / "runs")
    hook = {"kind": "at", "action": None, "count": str(folder / "count")}
    said(cli(*PAPER, "--out", str(folder / "out"), hook=hook), 0)
    return everything(cli), results(folder / "out"), int((folder / "count").read_text())


def results(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "provenance.json" and path.suffix != ".png"
    }


@pytest.mark.fault("kill -9 or full disk at any moment of a paper")
@pytest.mark.parametrize("action", ["SIGKILL", "ENOSPC"])
@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=() if m == 7 else pytest.mark.slow) for m in range(8)]
)
def test_a_paper(fork, paper, tmp_path, action, moment):
    hook = {"kind": "at", "action": action, "number": paper[2] - (7 - moment) * paper[2] // 8}
    out = tmp_path / "out"
    result = fork(*PAPER, "--out", str(out), hook=hook)
    if action == "SIGKILL":
        assert result.returncode == -signal.SIGKILL
    else:
        said(result, 0, 1, about="no space is left")
    said(fork(*PAPER, "--out", str(out)), 0)
    assert everything(fork) == paper[0]
    assert results(out) == paper[1]
    assert not list(out.rglob("*.tmp"))


@pytest.mark.fault("no file may grow beyond a limit (`ulimit -f`)")
@pytest.mark.parametrize("size", [600, 3000])
def test_file_size(fork, size):
    said(fork(*RUN, hook={"kind": "limit", "size": size}), 1)
    said(fork(*RUN), 0)
    said(fork("runs", "verify"), 0)


@pytest.mark.fault("the clock goes backwards, stands still or is far off")
@pytest.mark.parametrize(
    ("start", "rate"),
    [
        (2e9, -1e4),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in [(1e9, 0), (0, 1), (2**33, 1e6)]),
    ],
)
def test_clock(fork, start, rate):
    hook = {"kind": "clock", "start": start, "rate": rate}
    said(fork(*RUN, hook=hook), 0)
    for words in (("runs", "ls"), ("runs", "verify"), ("runs", "show", fork.folder().name)):
        said(fork(*words, hook=hook), 0)


@pytest.fixture
def read_only(tmp_path):
    """Return a folder in which nothing can be written, by whoever runs the tests."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root cannot mount a file system here, and ignores permissions")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault("read-only folder of runs, results or prepared data")
def test_read_only(fork, warm, read_only, tmp_path):
    reason = "read-only" if os.geteuid() == 0 else "permission denied"
    said(ForkedCommandLine(warm, read_only / "runs")(*RUN), 1, about=reason)
    said(ForkedCommandLine(warm, read_only)(*RUN), 1, about=reason)
    said(fork(*PAPER, "--out", str(read_only / "out")), 1, about=reason)
    said(fork(*PAPER, "--out", str(tmp_path / "out")), 0)  # every run was kept
    fork.environment["BAYESRULE_CACHE"] = str(read_only / "cache")
    result = said(fork(*RUN), 0, 1)
    assert result.returncode == 0 or reason in result.stderr


@pytest.mark.fault("store copied from another machine")
def test_another_machine(fork, warm, tmp_path):
    other = ForkedCommandLine(warm, tmp_path / "far" / "away" / "runs")
    said(other(*RUN), 0)
    outcome, identifier = other.outcome(), other.folder().name
    # as a plain copy gives it: left-over locks of processes that exist here too, other times
    (other.runs / ".locks").mkdir(exist_ok=True)
    (other.runs / ".locks" / f"{identifier}.lock").write_text("")
    holder = {"pid": 1, "host": "elsewhere", "since": "2020-01-01T00:00:00+00:00"}
    (other.runs / ".locks" / f"{identifier}.holder").write_text(json.dumps(holder))
    shutil.copytree(other.runs, fork.runs)
    shutil.rmtree(tmp_path / "far")
    for path in fork.runs.rglob("*"):
        os.utime(path, (0, 0))
    assert "is done already" in said(fork(*RUN), 0).stdout
    said(fork("runs", "verify"), 0)
    said(fork("evaluate", identifier), 0)
    assert fork.outcome() == outcome
    said(fork("runs", "rm", identifier, "--yes"), 0)


@pytest.mark.fault("files with the line ends of Windows")
def test_line_ends(fork, tmp_path):
    root = tmp_path / "checkout"
    for part in ("conf", "experiments/vogn", "results/vogn"):
        shutil.copytree(ROOT / part, root / part)
    shutil.copy(ROOT / "README.md", root)
    for path in root.rglob("*"):
        if path.suffix in (".yaml", ".csv", ".json", ".md"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    fork.environment["BAYESRULE_ROOT"] = str(root)
    said(fork(*RUN), 0)
    said(fork("train", "posterior=ivno"), 2, about="did you mean 'ivon'")
    said(fork("papers", "--json"), 0)
    said(fork("claims", "vogn"), 0)
    said(fork("train", "task=rl", "--cfg"), 0)


@pytest.mark.fault("a loss that is not finite: in the data, the model or by the step size")
@pytest.mark.parametrize("where", ["data", "model", "step"])
def test_not_finite(fork, where):
    code = {
        "data": "import numpy as np, sklearn.datasets as d\n"
        "load = d.load_iris\n"
        "def broken(*a, **k):\n"
        "    found = load(*a, **k); found.data[:] = np.nan; return found\n"
        "d.load_iris = broken",
        "model": "import torch\n"
        "forward = torch.nn.Linear.forward\n"
        "torch.nn.Linear.forward = lambda self, x: forward(self, x) / 0",
        "step": "",
    }[where]
    fork.environment["BAYESRULE_CACHE"] = str(fork.runs.parent / "cache")
    words = {"step": ("posterior=sgd", "posterior.lr=1e30"), "data": ("data=iris",)}.get(where, ())
    hook = {"kind": "python", "code": code}
    result = said(fork(*RUN, *words, hook=hook), 1, 2)
    assert "finite" in result.stderr or "nan" in result.stderr, result.stderr
    assert list(fork.runs.glob("*/record.json")) or result.returncode == 2


@pytest.mark.fault("10,000 records, some of them damaged")
@pytest.mark.slow
def test_ten_thousand_records(fork, warm, tmp_path):
    from bayesrule.runs import RunStore

    said(fork(*RUN), 0)
    record = RunStore(fork.runs).get(fork.folder().name).record()
    store = RunStore(tmp_path / "many")
    for seed in range(10_000):
        folder = store.folder({**record.config, "seed": seed})
        folder.path.mkdir(parents=True)
        content = {**record.to_json(), "id": folder.id, "config": {**record.config, "seed": seed}}
        content["files"] = {}
        if seed % 1000:
            _write_quickly(folder.record_path, content)
        else:
            folder.record_path.write_text("{")
    many = ForkedCommandLine(warm, tmp_path / "many")
    listed = said(many("runs", "ls", "--limit", "3"), 0).stdout
    assert "9997 more" in listed
    assert said(many("runs", "ls", "seed=77??", "--limit", "0"), 0).stdout.count("done") == 100
    assert "problems" in said(many("runs", "verify"), 1).stdout
    said(many(*RUN, "seed=12"), 0)


def _write_quickly(path, content):
    from bayesrule.runs.files import content_sha256, jsonable

    content = jsonable(content)
    path.write_text(json.dumps({**content, "sha256": content_sha256(content)}))


@pytest.mark.fault("damaged, missing or hostile index of the list of runs")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, id=k.__name__, marks=() if k is damage.truncated else pytest.mark.slow)
        for k in damage.EVERY
    ],
)
def test_index(fork, tmp_path, kind):
    fork.environment["BAYESRULE_CACHE"] = str(tmp_path / "cache")
    folder = fork.runs / ("0" * 16)
    folder.mkdir(parents=True)
    listed = said(fork("runs", "ls"), 0).stdout
    assert "unfinished" in listed
    found = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert found
    for path in found:
        kind(path)
    assert said(fork("runs", "ls"), 0).stdout == listed
    assert not list(tmp_path.rglob("owned"))


# ------------------------------------------------------- prepared data, model folders


@pytest.mark.fault("damaged, missing or hostile file of prepared data")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(n, k, id=f"{n}-{k.__name__}",
                     marks=() if k in (damage.flipped, damage.pickled) else pytest.mark.slow)
        for n in ("meta.json", "inputs.npy") for k in damage.EVERY
    ],
)  # fmt: skip
def test_prepared_data(fork, warm, tmp_path, name, kind):
    whole = ForkedCommandLine(warm, tmp_path / "whole")
    said(whole(*RUN), 0)
    cache = tmp_path / "cache"
    shutil.copytree(warm.scratch / "cache", cache)
    fork.environment["BAYESRULE_CACHE"] = str(cache)
    (path,) = cache.glob(f"data/digits-*/{name}")
    kind(path)
    result = said(fork(*RUN), 0)
    assert "is made again" in result.stderr
    assert fork.outcome() == whole.outcome()
    assert not list(cache.rglob("owned"))
    assert not list(cache.glob("data/.*"))


@pytest.mark.fault("kill -9 while data is prepared")
@pytest.mark.parametrize(
    "moment", [2, *(pytest.param(m, marks=pytest.mark.slow) for m in (1, 3, 4, 5))]
)
def test_prepared_data_killed(fork, warm, tmp_path, moment):
    whole = ForkedCommandLine(warm, tmp_path / "whole")
    said(whole(*RUN), 0)
    fork.environment["BAYESRULE_CACHE"] = str(tmp_path / "cache")
    hook = {"kind": "at", "action": "SIGKILL", "number": moment, "only": str(tmp_path / "cache")}
    fork(*RUN, hook=hook)
    said(fork(*RUN), 0)
    assert fork.outcome() == whole.outcome()


MODEL_FILES = ("model.safetensors", "curvature.safetensors", "config.json")


@pytest.mark.fault("damaged, missing or hostile file of a model to merge")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(n, k, id=f"{n}-{k.__name__}",
                     marks=() if k in (damage.truncated, damage.pickled) else pytest.mark.slow)
        for n in MODEL_FILES for k in damage.EVERY
    ],
)  # fmt: skip
def test_model_folders(fork, tmp_path, name, kind):
    import torch
    from safetensors.torch import save_file

    from bayesrule.merging import save_curvature

    folders = [tmp_path / letter for letter in "OAB"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        generator = torch.Generator().manual_seed(number)
        tensors = {k: torch.randn(8, 8, generator=generator) for k in ("a", "b")}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text('{"dtype": "float32"}')
        held = {k: t.abs() + 0.1 for k, t in tensors.items()}
        save_curvature(held, folder, kind="ggn", n_used=4, n_data=4, data={"name": "x"})
    kind(folders[1] / name)
    words = ("merge", "--method", "gradient_matching", "--base", str(folders[0]), "--dtype",
             "float16", "--out", str(tmp_path / "out"), *map(str, folders[1:]))  # fmt: skip
    result = said(fork(*words), 0, 1, 2)
    if result.returncode:
        assert folders[1].name in result.stderr
        assert not (tmp_path / "out" / "model.safetensors").exists()
    elif name != "config.json":  # a file of plain weights has no checksum: a letter may change
        assert (name, kind) == ("model.safetensors", damage.flipped)
    assert not list(tmp_path.rglob("owned"))
