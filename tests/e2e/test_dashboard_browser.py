"""Pages of runs in a real browser: filters, a run that trains, hostile names, nothing off-host."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "report" / "dashboard"))
from run_site import make_runs, site_of

from bayesrule.report.dashboard import screenshots
from bayesrule.runs import JsonlWriter, RunStore


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = site_of(tmp_path_factory.mktemp("site"))
    site.ids = make_runs(site.runs)
    return site


def expect(page, selector):
    """Wait without text that the page would have to evaluate: its policy forbids that."""
    from playwright.sync_api import expect

    return expect(page.locator(selector))


def test_filter_sort_group_and_back(page):
    page.goto(page.base + "/runs?paper=demo")
    expect(page, "#runs tbody tr").to_have_count(9)
    page.fill("input[name=q]", "posterior=ivon seed<13")
    page.get_by_role("button", name="Show").click()
    expect(page, "#runs tbody tr").to_have_count(3)
    page.wait_for_url("**/runs?q=posterior*")
    assert page.evaluate("document.querySelectorAll('h1').length") == 1  # the table alone came
    page.get_by_role("link", name="test/nll@mean").click()
    expect(page, "th[aria-sort=descending]").to_contain_text("test/nll@mean")
    page.wait_for_url("**sort=test*")
    page.go_back()
    expect(page, "th[aria-sort=descending]").to_contain_text("ended")
    page.go_back()
    expect(page, "#runs tbody tr").to_have_count(9)
    page.fill("input[name=group]", "posterior")
    page.keyboard.press("Enter")
    page.wait_for_selector("#runs >> text=groups by posterior")
    assert "±" in page.locator("#runs tbody").inner_text()


def test_ticked_runs_are_compared(page, site):
    page.goto(page.base + "/runs?q=seed%3D10")
    for box in page.locator("input[name=ids]").all():
        box.check()
    page.get_by_role("button", name="Compare the ticked ones").click()
    page.wait_for_url("**/compare**")
    assert page.get_by_role("heading", level=1).inner_text() == "2 runs side by side"
    screenshots.wait_for_plots(page)
    assert page.locator(".draw svg.marks").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_run_is_drawn_in_both_schemes(page, site, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{page.base}/runs/{site.ids['ivon10']}")
    screenshots.wait_for_plots(page)
    plots = page.locator(".draw")
    assert plots.count() == page.locator(".draw svg.marks").count() == 9
    assert page.locator(".draw.failed").count() == 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("figure summary").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save as SVG").first.click()
    assert "<svg" in Path(download.value.path()).read_text()
    with page.expect_download() as download:
        page.locator("figure a[download]").last.click()
    assert download.value.suggested_filename.endswith(".csv")


def test_hostile_names_do_not_run(page, site):
    for url in (f"/runs/{site.ids['evil']}", "/runs?cols=note", "/runs?group=data,note",
                f"/compare?ids={site.ids['evil']},{site.ids['ivon10']}", "/parallel?axes=data,seed",
                f"/runs/{site.ids['failed']}"):  # fmt: skip
        page.goto(page.base + url)
        screenshots.wait_for_plots(page)
        assert page.evaluate("window.evil === undefined")
        assert page.locator("main img").count() == 0


def test_a_run_that_trains_is_followed_to_its_end(page, site):
    with RunStore(site.runs).folder({"posterior": {"name": "live"}, "seed": 99}).lock() as folder:
        with JsonlWriter(folder.metrics_path) as history:
            history.append({"phase": "train", "step": 1, "train/loss": 3.0})
            history.append({"phase": "train", "step": 2, "train/loss": 2.0})
            time.sleep(1.1)  # the server looks at the store once a second
            page.goto(f"{page.base}/runs/{folder.id}")
            page.wait_for_selector(".badge.running")
            screenshots.wait_for_plots(page)
            points = page.locator(".draw .mark-symbol path")
            assert points.count() == 2
            history.append({"phase": "train", "step": 3, "train/loss": 1.0})
            expect(page, ".draw .mark-symbol path").to_have_count(3)
            assert "at step 3" in page.locator("#live-note").inner_text()
        folder.write_record("done", {"test/nll@mean": 0.5})
    page.wait_for_selector(".badge.done", timeout=15_000)
    assert page.locator("[data-live]").count() == 0  # at its end nothing is asked any more
