import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from bayesrule.runs import provenance
from bayesrule.runs.provenance import collect, combine, git_state


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        return subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            env=clean | {"GIT_CONFIG_GLOBAL": "/dev/null"},
        ).stdout

    for name in ("src/a.py", "conf/c.yaml", "experiments/k/README.md", "results/k/cpu/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    return tmp_path, git


def test_commit_and_dirty_flag(checkout):
    root, git = checkout
    commit = git("rev-parse", "HEAD").strip()
    assert git_state(root) == (commit, False)
    # none of these decides a number
    (root / "results/k/cpu/x.json").write_text("2\n")
    (root / "experiments/k/README.md").write_text("2\n")
    (root / "scratch.py").write_text("2\n")
    (root / "src/__pycache__").mkdir()
    (root / "src/__pycache__/a.pyc").write_text("2\n")
    assert git_state(root) == (commit, False)


@pytest.mark.parametrize("name", ["src/a.py", "conf/c.yaml", "src/new.py", "experiments/n/p.yaml"])
def test_what_decides_numbers_makes_a_tree_dirty(checkout, name):
    root, _ = checkout
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("2\n")
    assert git_state(root)[1] is True


def test_a_removed_and_a_staged_file_make_a_tree_dirty(checkout):
    root, git = checkout
    (root / "src/a.py").unlink()
    assert git_state(root)[1] is True
    git("rm", "-q", "--cached", "src/a.py")
    assert git_state(root)[1] is True


def test_the_environment_of_a_git_hook_does_not_mislead(checkout, monkeypatch):
    root, git = checkout
    commit = git("rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent/index")
    assert git_state(root) == (commit, False)


def test_outside_a_checkout(tmp_path, monkeypatch):
    assert git_state(None) == (None, None)
    assert git_state(tmp_path / "missing") == (None, None)
    monkeypatch.setattr(provenance.bayesrule, "__file__", str(tmp_path / "lib/bayesrule/x.py"))
    assert provenance.source_tree() is None


def test_collect():
    found = collect(data={"name": "digits", "fingerprint": "ab"}, wall_seconds=1.23456)
    assert set(found) == {
        "commit",
        "dirty",
        "versions",
        "machine",
        "threads",
        "data",
        "wall_seconds",
        "date",
    }
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["cpu"]
    assert found["wall_seconds"] == 1.235
    assert found["date"].endswith("+00:00")
    assert json.loads(json.dumps(found)) == found


def test_threads_without_torch_come_from_the_environment():
    code = "from bayesrule.runs import collect; print(collect()['threads'])"
    for stated, expected in (("3", "3"), ("", "None"), ("x", "None")):
        out = subprocess.run(
            [sys.executable, "-c", code],
            env={"OMP_NUM_THREADS": stated, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == expected


def test_combine():
    one = collect(data={"fingerprint": "a"}, wall_seconds=1.5) | {
        "date": "2026-01-01T00:00:00+00:00",
        "commit": "c1",
        "dirty": False,
    }
    two = one | {"commit": "c2", "dirty": True, "wall_seconds": 2.0, "data": {"fingerprint": "b"}}
    both = combine([one, two, one])
    assert both["runs"] == 3
    assert both["commit"] == ["c1", "c2"]
    assert both["dirty"] is True
    assert both["wall_seconds"] == 5.0
    assert both["data"] == [{"fingerprint": "a"}, {"fingerprint": "b"}]
    assert both["versions"] == one["versions"]
    assert combine([one])["commit"] == "c1"
    empty = combine([])
    assert empty["runs"] == 0
    assert empty["dirty"] is None


def test_importing_the_room_is_light():
    heavy = ["torch", "numpy", "scipy", "pandas", "lightning", "datasets", "transformers", "hydra"]
    code = f"import sys, bayesrule.runs; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
