"""Every file that is read, wrong in every way: a sentence, no code run, and the way back."""

import shutil

import damage
import pytest
from command_line import ROOT
from forked import ForkedCommandLine
from test_torture_moments import RUN

KEY = "vogn"


def cases(files, in_test):
    """Return (file, damage) pairs; those not in `in_test` are left to `make torture`."""
    return [
        pytest.param(
            name,
            kind,
            id=f"{name}-{kind.__name__}",
            marks=() if (name, kind.__name__) in in_test else pytest.mark.slow,
        )
        for name, kinds in files.items()
        for kind in kinds
    ]


def said(result, *codes, about=""):
    """Check that a command ended with one of `codes`, and, where not 0, with a sentence."""
    text = result.stderr + result.stdout
    assert result.returncode in codes, text
    assert "Traceback" not in text
    if result.returncode:
        assert text.strip()
        assert about in text
    return result


# ------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def finished(warm, tmp_path_factory):
    cli = ForkedCommandLine(warm, tmp_path_factory.mktemp("finished") / "runs")
    said(cli(*RUN), 0)
    return cli


@pytest.fixture
def copy(fork, finished):
    shutil.copytree(finished.runs, fork.runs)
    return fork


RUN_FILES = {
    "record.json": damage.JSON,
    "config.yaml": damage.YAML,
    "metrics.jsonl": damage.JSON,
    "posterior.json": damage.JSON,
    "posterior.safetensors": damage.EVERY,
}


@pytest.mark.fault("damaged, missing or hostile file of a finished run")
@pytest.mark.parametrize(
    ("name", "kind"),
    cases(
        RUN_FILES,
        {
            ("record.json", "flipped"),
            ("record.json", "long_number"),
            ("config.yaml", "bomb"),
            ("metrics.jsonl", "truncated"),
            ("posterior.safetensors", "pickled"),
        },
    ),
)
def test_a_file_of_a_run(copy, finished, name, kind):
    folder = copy.folder()
    kind(folder / name)
    said(copy("runs", "ls"), 0)
    said(copy("runs", "show", folder.name, "--config"), 0, 1)
    # without a record a run is one that was killed, which is no damage
    gone = name == "record.json" and kind in (damage.missing, damage.dangling)
    said(copy("runs", "verify"), 0 if gone else 1, about=name)
    codes = (0, 1) if name == "metrics.jsonl" else (1,)
    said(copy("evaluate", folder.name), *codes, about="" if gone else name)
    if name != "record.json":  # which says that all is done: the run must be asked for anew
        said(copy("runs", "rm", folder.name, "--yes"), 0)
    said(copy(*RUN), 0)
    assert copy.outcome() == finished.outcome()
    said(copy("runs", "verify"), 0)
    assert not list(copy.runs.rglob("owned"))


@pytest.mark.fault("file of another run in its place")
@pytest.mark.parametrize("name", ["record.json", "config.yaml", "posterior.json"])
def test_a_file_of_another_run(copy, finished, name):
    folder = copy.folder()
    said(copy(*RUN, "seed=1"), 0)
    (other,) = [p for p in copy.runs.iterdir() if len(p.name) == 16 and p != folder]
    shutil.copy(other / name, folder / name)
    shutil.rmtree(other)
    said(copy("runs", "verify"), 1, about=name)
    said(copy("evaluate", folder.name), 1, about=name)
    if name != "record.json":
        said(copy("runs", "rm", folder.name, "--yes"), 0)
    said(copy(*RUN), 0)
    assert copy.outcome() == finished.outcome()


# -------------------------------------------------------- papers and results


@pytest.fixture
def checkout(fork, tmp_path):
    """Return a command line on a checkout of its own, with one paper and its results."""
    root = tmp_path / "checkout"
    for part in ("conf", f"experiments/{KEY}", f"results/{KEY}"):
        shutil.copytree(ROOT / part, root / part)
    shutil.copy(ROOT / "README.md", root)
    fork.root = root
    fork.environment["BAYESRULE_ROOT"] = str(root)
    return fork


RESULT_FILES = {
    "claims.json": damage.JSON,
    "runs.csv": damage.EVERY,
    "provenance.json": damage.JSON,
}


@pytest.mark.fault("damaged, missing or hostile file of results")
@pytest.mark.parametrize(
    ("name", "kind"),
    cases(RESULT_FILES, {("claims.json", "truncated"), ("runs.csv", "flipped")}),
)
def test_a_file_of_results(checkout, name, kind):
    path = checkout.root / "results" / KEY / "cpu" / name
    whole = path.read_bytes()
    kind(path)
    said(checkout("papers"), 0, 1)
    said(checkout("papers", "--json"), 0, 1)
    judged = said(checkout("claims", KEY), 0, 1, about=KEY)
    if name == "claims.json" and kind is not damage.folder:  # a function of the other files
        assert judged.returncode == 0
        assert path.read_bytes() == whole
    assert not list(checkout.root.rglob("owned"))


@pytest.mark.fault("damaged, missing or hostile paper.yaml")
@pytest.mark.parametrize(
    ("name", "kind"),
    cases({"paper.yaml": damage.YAML}, {("paper.yaml", "bomb"), ("paper.yaml", "noise")}),
)
def test_a_paper(checkout, name, kind):
    kind(checkout.root / "experiments" / KEY / name)
    said(checkout("papers"), 0, 1)
    for words in (("papers", "--json"), ("claims", KEY), ("plan", KEY)):
        said(checkout(*words), 0, 1, 2, about=KEY)
    if kind is not damage.flipped:  # one letter may still make a paper
        said(checkout("reproduce", KEY, "--scale", "smoke"), 1, 2, about=KEY)
    assert not list(checkout.root.rglob("owned"))
    assert not checkout.runs.exists()


CONF_FILES = {"posterior/ivon.yaml": damage.YAML, "config.yaml": damage.YAML}


@pytest.mark.fault("damaged, missing or hostile file of conf/")
@pytest.mark.parametrize(
    ("name", "kind"),
    cases(CONF_FILES, {("posterior/ivon.yaml", "tagged"), ("posterior/ivon.yaml", "folder")}),
)
def test_a_configuration(checkout, name, kind):
    if kind is damage.bomb:
        pytest.skip("Hydra writes aliases out; conf/ is as trusted as the code beside it")
    kind(checkout.root / "conf" / name)
    if kind is not damage.flipped:  # one letter may still make a configuration
        # half a file may still be YAML, of which a key is unknown then
        about = "" if kind is damage.truncated else "ivon" if "ivon" in name else "config"
        said(checkout(*RUN), 1, 2, about=about)
        assert not list(checkout.runs.glob("?" * 16))
    said(checkout("train", "posterior=ivno"), 1, 2)
    assert not list(checkout.root.rglob("owned"))
