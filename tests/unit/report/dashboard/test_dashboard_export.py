"""The static export: every link leads to a file, nothing runs, nothing comes from outside."""

import json
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from paper_site import EVIL, make_paper

from bayesrule.cli.main import main
from bayesrule.errors import ConfigError
from bayesrule.report.dashboard.export import MARK, export
from bayesrule.report.dashboard.paper_views import Shelf

RESOURCES = {("img", "src"), ("link", "href"), ("source", "src"), ("use", "href"),
             ("iframe", "src"), ("object", "data"), ("embed", "src"), ("image", "href"),
             ("form", "action")}  # fmt: skip


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.resources, self.ids = set(), [], [], set()
        self.handlers = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.handlers.append((tag, name, value))
            if (tag, name) in RESOURCES:
                self.resources.append(value)
            if (tag, name) == ("a", "href"):
                self.links.append(value)
            if name == "id":
                self.ids.add(value)


@pytest.fixture
def shelf(tmp_path):
    make_paper(tmp_path, "plain")
    make_paper(tmp_path, "evil", statement=EVIL, title=EVIL)
    make_paper(tmp_path, "new")
    shutil.rmtree(tmp_path / "results" / "new")
    return Shelf(tmp_path / "experiments", tmp_path / "results")


def check_export(out):
    """Walk every page from index.html; return the files that were reached."""
    todo, seen = [out / "index.html"], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix != ".html":
            continue
        page = Page(path)
        assert not page.tags & {"script", "iframe", "object", "embed", "base", "form"}, path
        assert not page.handlers, path
        for target in page.resources:
            assert "://" not in target, (path, target)
            assert not target.startswith(("/", "data:")), (path, target)
        for target in [*page.links, *page.resources]:
            if target.startswith("https://"):
                continue  # a link that leads away, which nothing follows by itself
            file, _, anchor = target.partition("#")
            assert not file.startswith("/"), (path, target)
            assert ":" not in file, (path, target)
            reached = (path.parent / unquote(file)).resolve() if file else path
            assert reached.is_relative_to(out.resolve()), (path, target)
            assert reached.is_file(), (path, target)
            if anchor:
                assert anchor in Page(reached).ids, (path, target)
            todo.append(reached)
    css = (out / "static" / "app.css").read_text()
    assert "url(" not in css
    assert "@import" not in css
    return {path.resolve() for path in seen}


def test_every_link_leads_to_a_file_and_every_file_is_linked(shelf, tmp_path):
    out = tmp_path / "public"
    problems = []
    assert export(shelf, out, problems.append) == 7  # two views, two scales of two, one without
    assert not problems
    reached = check_export(out)
    there = {path.resolve() for path in out.rglob("*") if path.is_file()}
    assert there - reached == {(out / MARK).resolve()}
    page = (out / "papers" / "plain" / "cpu.html").read_text()
    assert "<svg" in page
    assert "Vega" not in page
    assert "/runs" not in page


def test_the_command_exports_the_projects_own_results(tmp_path, capsys):
    out = tmp_path / "public"
    assert main(["report", "--html", str(out)]) == 0
    assert f"open {out / 'index.html'}" in capsys.readouterr().out
    check_export(out)
    (out / MARK).unlink()
    assert main(["report", "--html", str(out)]) == 2
    assert "left as it is" in capsys.readouterr().err


def test_only_an_earlier_export_is_replaced(shelf, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="left as it is"):
        export(shelf, mine)
    (mine / MARK).write_text(json.dumps({"kind": "something else"}))
    with pytest.raises(ConfigError, match="left as it is"):
        export(shelf, mine)
    with pytest.raises(ConfigError, match="no folder"):
        export(shelf, mine / "thesis.txt")
    assert (mine / "thesis.txt").read_text() == "years of work"
    out = tmp_path / "public"
    out.mkdir()  # an empty folder may be filled
    export(shelf, out)
    (out / "papers" / "gone.html").write_text("of an earlier version")
    export(shelf, out)
    assert not (out / "papers" / "gone.html").exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"experiments", "results", "mine", "public"}  # nothing half-made stays


def test_damaged_results_are_told_and_shown(shelf, tmp_path):
    (tmp_path / "results" / "plain" / "cpu" / "claims.json").write_text("{")
    (tmp_path / "results" / "evil" / "cpu" / "table.csv").unlink()
    problems = []
    export(shelf, tmp_path / "public", problems.append)
    assert len(problems) == 2
    assert "claims.json" in (tmp_path / "public" / "papers" / "plain" / "cpu.html").read_text()
    check_export(tmp_path / "public")


def test_screenshots_of_what_is_not_there_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path / "runs"))
    out = str(tmp_path / "shots")
    for option, name in (("--paper", "nope"), ("--run", "0123")):
        assert main(["report", "--screenshots", out, option, name]) == 2
        assert name in capsys.readouterr().err
