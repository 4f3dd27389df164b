import pytest
from command_line import CommandLine

from bayesrule.report.dashboard import screenshots

_HOW = "apt-get install chromium, pip install playwright"


@pytest.fixture
def cli(tmp_path):
    return CommandLine(tmp_path / "runs")


@pytest.fixture
def other_cli(tmp_path):
    return CommandLine(tmp_path / "other")


@pytest.fixture(scope="module")
def address(site):
    """Where the module's own `site` is served."""
    with screenshots.serve(site) as base:
        yield base


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason=f"no playwright: {_HOW}")
    chromium = screenshots.find_chromium()
    if chromium is None:
        pytest.skip(f"no Chromium on this machine: {_HOW}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(screenshots.FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A page on which console errors, dialogs and requests that leave the dashboard are faults."""
    page = browser.new_page()
    noted = screenshots.Shots()
    screenshots.listen(page, address, noted)
    page.base, page.noted = address, noted
    yield page
    page.close()
    assert noted.complaints == []
