"""Pages of papers in a real browser: plots are drawn and saved, filters work, nothing runs."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "report" / "dashboard"))
from paper_site import EVIL, make_paper

from bayesrule.errors import BayesruleError
from bayesrule.report.dashboard import screenshots
from bayesrule.report.dashboard.site import Site

EVIL_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40" onload="alert(1)">'
    '<script>document.title = "evil"; alert(1)</script><rect width="40" height="40"/></svg>'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("site")
    make_paper(root, "plain")
    folder = make_paper(root, "evil", statement=EVIL, title=EVIL)
    (folder / "figures" / "evil.svg").write_text(EVIL_SVG)
    (root / "runs").mkdir()
    return Site(root / "runs", root / "results", root / "experiments", root / "cache")


def test_filters_change_the_address_and_going_back_undoes_them(page):
    page.goto(page.base + "/?view=claims")
    assert page.locator("table.claims tbody tr").count() == 6
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"  # keyboards skip the head
    page.select_option("select[name=verdict]", "contradicted")
    page.fill("input[name=q]", "plain")
    page.get_by_role("button", name="Filter").click()
    assert "verdict=contradicted" in page.url
    assert page.locator("table.claims tbody tr").count() == 1
    assert page.locator("select[name=verdict]").input_value() == "contradicted"
    page.go_back()
    assert page.locator("table.claims tbody tr").count() == 6


def test_the_plot_of_a_paper_is_drawn_and_saved(page):
    page.goto(page.base + "/papers/plain")
    page.wait_for_selector(".draw[data-drawn=yes]")
    assert page.locator(".draw svg").first.is_visible()
    assert page.locator(".draw .mark-symbol path").count() >= 2
    for label, start in (("Save as SVG", b"<svg"), ("Save as PNG", b"\x89PNG")):
        page.locator(".vega-embed summary").first.click()
        with page.expect_download() as saved:
            page.get_by_text(label).first.click()
        assert Path(saved.value.path()).read_bytes().startswith(start)
        page.locator(".vega-embed summary").first.click()
    width = page.locator("figure.drawn img").first.evaluate("image => image.naturalWidth")
    assert width > 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_hostile_runs(page):
    for url in ("/", "/?view=claims", "/papers/evil", "/papers/plain"):
        page.goto(page.base + url)
        screenshots.wait_for_plots(page)
        assert page.evaluate("typeof window.evil") == "undefined", url
        assert page.locator("main img:not(figure img)").count() == 0
    assert "<script>" in page.text_content(".readme")  # shown as text


def test_a_hostile_figure_does_not_run_even_as_a_page_of_its_own(browser, address):
    page = browser.new_page()
    dialogs = []
    page.on("dialog", lambda one: (dialogs.append(one.message), one.dismiss()))
    page.goto(f"{address}/papers/evil?scale=cpu")
    assert page.locator("figure.drawn img[src$='evil.svg']").count() == 1
    page.goto(f"{address}/papers/evil/cpu/figures/evil.svg")
    assert page.evaluate("document.documentElement.tagName") == "svg"
    assert page.title() != "evil"
    page.close()
    assert dialogs == []


def test_screenshots_show_every_page(browser, site, tmp_path):
    shots = screenshots.photograph(browser, site, tmp_path, schemes=("dark",))
    assert shots.complaints == []
    names = {re.sub(r"-dark\.png$", "", path.name) for path in shots.files}
    assert {"scoreboard", "claims", "paper", "runs"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in shots.files)


def test_screenshots_say_what_they_need(site, tmp_path, monkeypatch):
    pytest.importorskip("playwright.sync_api")
    monkeypatch.setattr(screenshots, "find_chromium", lambda: None)
    with pytest.raises(BayesruleError, match="need a Chromium on this machine"):
        screenshots.take_screenshots(site, tmp_path)
