"""Strange, long or hostile names and values: kept as they are, or refused in a sentence."""

import os
import shutil

import pytest
from forked import ForkedCommandLine
from test_torture_files import said
from test_torture_moments import RUN

QUICK = (*RUN, "trainer.epochs=1")
LONG = "a" * 5000

HARMLESS = {
    "unicode": "note='ünï 😀 \u202e'",
    "line break": "note='one\ntwo'",
    "terminal": "note='\x1b[31mred\x1b]0;title\x07'",
    "shell": "note='$(touch owned) `touch owned`; touch owned'",
    "markup": "note='<script>alert(1)</script>'",
    "python": "note='__import__(chr(111)).system'",
    "path": "study='../../../x'",
    "yaml": "note='!!python/object/apply:os.system [touch owned]'",
    "long": f"note='{'x' * 100_000}'",
    "null byte": "note='\x00'",
    "empty": "note=",
}


@pytest.mark.fault("strange free text in a run")
@pytest.mark.parametrize("kind", [
    pytest.param(k, marks=() if k in ("terminal", "shell") else pytest.mark.slow)
    for k in HARMLESS
])  # fmt: skip
def test_free_text(fork, tmp_path, kind):
    said(fork(*QUICK, HARMLESS[kind], cwd=tmp_path), 0)
    folder = fork.folder()
    for words in (("ls", "--columns", "id,note,study"), ("show", folder.name, "--config"),
                  ("verify",)):  # fmt: skip
        shown = said(fork("runs", *words), 0)
        assert "\x1b" not in shown.stdout
    again = said(fork(*QUICK, HARMLESS[kind]), 0)
    assert "is done already" in again.stdout
    assert not list(tmp_path.rglob("owned"))


REFUSED = [
    "note=$(touch owned)",
    "note=ünï",
    "seed=__import__('os').system('touch owned')",
    "posterior=../../../../etc/passwd",
    "posterior=/etc/passwd",
    "experiment=../../x",
    "data=''",
    "posterior=",
    "posterior=null",
    "model=1",
    "=1",
    "",
    " ",
    f"{LONG}=1",
    f"posterior={LONG}",
    f"seed={LONG}",
    "model._target_=os.system",
    "model._target_=bayesrule.cli.main.importlib",
    "+model._target_=os.system",
    "note='\udcff\udc80'",
    "data.package=os",
    "trainer.threads=100000",
    "trainer.accelerator=gpu",
    "seed=1e400",
]


@pytest.mark.fault("hostile or endless word in a command")
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, id=ascii(word)[:40], marks=pytest.mark.slow if n % 3 else ())
        for n, word in enumerate(REFUSED)
    ],
)
def test_refused(fork, tmp_path, number):
    if REFUSED[number] == "trainer.accelerator=gpu" and _has_gpu():
        pytest.skip("this machine has a GPU")
    result = said(fork(*QUICK, REFUSED[number], cwd=tmp_path), 2)
    assert len(result.stderr) < 8000
    assert not list(fork.runs.glob("*/record.json"))
    assert not list(tmp_path.rglob("owned"))


def _has_gpu():
    import torch

    return torch.cuda.is_available()


COMMANDS = [
    ("runs", "show", "../../../etc"),
    ("runs", "rm", "..", "--yes"),
    ("runs", "rm", "", "--yes"),
    ("runs", "show", LONG),
    ("runs", "verify", "*"),
    ("evaluate", "../x"),
    ("evaluate", ""),
    ("reproduce", "../../etc"),
    ("reproduce", ""),
    ("reproduce", LONG),
    ("reproduce", "ivon", "--seeds", "0:99999999999", "--out", "o"),
    ("reproduce", "ivon", "--seeds", "a", "--out", "o"),
    ("reproduce", "ivon", "--jobs", "-1"),
    ("claims", "../../etc"),
    ("claims", LONG),
    ("plan", "../ivon"),
    ("merge", "--method", "average", "--out", "o", "../nosuch", LONG),
    ("merge", "--method", LONG, "--out", "o", "a"),
    (LONG,),
]


@pytest.mark.fault("hostile or endless name of a run, a paper or a folder")
@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=pytest.mark.slow if n % 3 else ()) for n in range(len(COMMANDS))],
)
def test_names_in_commands(fork, tmp_path, number):
    victim = tmp_path / "victim"
    victim.mkdir()
    fork.runs.mkdir()
    result = said(fork(*COMMANDS[number], cwd=tmp_path, timeout=60), 1, 2)
    assert len(result.stderr) < 16_000
    assert victim.is_dir()
    assert fork.runs.is_dir()


FOLDERS = [
    "with blanks",
    "line\nbreak",
    "$(touch owned)",
    "ünï 😀",
    "-m",
    "a=b,c",
    "n" * 200,
    "%s{0}",
    "it's ${seed}",
    "\udcff",
]


@pytest.mark.fault("strange name of the folder of runs or results")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "a=b,c" else pytest.mark.slow) for n in FOLDERS]
)
def test_folders(fork, warm, tmp_path, name):
    cli = ForkedCommandLine(warm, tmp_path / name / "runs")
    said(cli(*QUICK, cwd=tmp_path), 0)
    said(cli("runs", "verify"), 0)
    said(cli("train", "-m", *QUICK[1:], "seed=0,1", cwd=tmp_path), 0)
    out = tmp_path / f"{name}-out"
    words = ("reproduce", "vogn", "--scale", "smoke", "--study", "momentum", "--jobs", "1")
    said(cli(*words, "--out", str(out), cwd=tmp_path), 0)
    assert (out / "claims.json").is_file()
    said(cli("claims", "vogn", "--out", str(out)), 0)
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.fault("endless name of the folder of runs or results")
def test_endless_folders(fork, warm, tmp_path):
    for name in ("n" * 300, "/".join(["n" * 100] * 60)):
        said(
            ForkedCommandLine(warm, tmp_path / name)(*QUICK), 1, about="longer than the file system"
        )
    result = fork("evaluate", "0", "--json", "n" * 300)
    assert result.returncode in (1, 2)
    words = ("reproduce", "vogn", "--scale", "smoke", "--study", "momentum", "--jobs", "1")
    said(fork(*words, "--out", str(tmp_path / ("n" * 300))), 1, about="longer than the file system")


@pytest.mark.fault("a terminal that knows ASCII only")
def test_ascii_terminal(fork):
    fork.environment["PYTHONIOENCODING"] = "ascii"
    code = "import sys\nfor s in (sys.stdout, sys.stderr): s.reconfigure(encoding='ascii')"
    hook = {"kind": "python", "code": code}
    said(fork(*QUICK, hook=hook), 0)
    for words in (("papers",), ("runs", "ls"), ("claims", "ivon", "--scale", "cpu")):
        said(fork(*words, hook=hook), 0)


@pytest.mark.fault("a reader that goes away (`| head`)")
def test_closed_pipe(fork):
    hook = {"kind": "python", "code": "import os\n"
            "r, w = os.pipe(); os.close(r); os.dup2(w, 1)"}  # fmt: skip
    for words in (("papers",), ("papers", "--json"), ("train", "--help"), ("runs", "--help")):
        result = fork(*words, hook=hook)
        assert "Traceback" not in result.stderr
        assert result.returncode in (0, 1, 120)


@pytest.mark.fault("a folder of runs that is a link or a file")
def test_runs_is_a_link_or_a_file(fork, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    fork.runs.symlink_to(real)
    said(fork(*QUICK), 0)
    said(fork("runs", "verify"), 0)
    identifier = next(real.glob("?" * 16)).name
    # a run that is a link itself is removed as one, and what it points to stays
    shutil.move(real / identifier, tmp_path / "elsewhere")
    (real / identifier).symlink_to(tmp_path / "elsewhere")
    said(fork("runs", "verify"), 0)
    said(fork("runs", "rm", identifier, "--yes"), 0)
    assert not os.path.lexists(real / identifier)
    assert (tmp_path / "elsewhere" / "record.json").is_file()
    assert not list(real.glob(".removed-*"))
    fork.runs.unlink()
    fork.runs.write_text("a file")
    said(fork("runs", "ls"), 0, 1)
    said(fork(*QUICK), 1, about="a file")
    assert fork.runs.read_text() == "a file"
