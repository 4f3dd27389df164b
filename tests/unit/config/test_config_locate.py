"""What a `_target_` may name, and what is said where it cannot be had."""

import sys

import pytest

from bayesrule.config import locate
from bayesrule.errors import ConfigError


@pytest.mark.parametrize("key", ["some-paper", "some_paper"])
def test_an_experiments_folder_may_have_hyphens(tmp_path, key):
    folder = tmp_path / "experiments" / "some-paper"
    folder.mkdir(parents=True)
    (folder / "extra.py").write_text("class Thing:\n    pass\n")
    try:
        found = locate(f"experiments.{key}.extra.Thing", root=tmp_path)
        assert found.__name__ == "Thing"
        assert locate(f"experiments.{key}.extra.Thing", root=tmp_path) is found
    finally:
        sys.modules.pop(f"experiments.{key}.extra", None)


def test_without_a_root_it_is_the_checkouts(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("")
    folder = tmp_path / "experiments" / "of-a-root"
    folder.mkdir(parents=True)
    (folder / "extra.py").write_text("def thing():\n    return 3\n")
    monkeypatch.setenv("BAYESRULE_ROOT", str(tmp_path))
    try:
        assert locate("experiments.of-a-root.extra.thing")() == 3
    finally:
        sys.modules.pop("experiments.of-a-root.extra", None)


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BAYESRULE_TARGETS", "mine")
    with pytest.raises(ConfigError, match="needs the package surely_not_installed, which is not"):
        locate("mine.Thing", "posterior._target_")
    with pytest.raises(ConfigError, match=r"posterior\._target_=bayesrule\.no\.Thing: No module"):
        locate("bayesrule.no.Thing", "posterior._target_")
