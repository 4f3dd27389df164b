"""The scoreboard and the pages of papers: numbers, filters, hostile content, damaged files."""

import csv
import io
import math
import re
from pathlib import Path

import pytest
from paper_site import EVIL, make_paper
from starlette.testclient import TestClient

from bayesrule.report.dashboard.app import create_app
from bayesrule.report.dashboard.intervals import claimed_region
from bayesrule.report.dashboard.paper_views import Shelf
from bayesrule.report.dashboard.site import Site
from bayesrule.runs import find_papers, judge, load_paper, read_json, write_json

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def root(tmp_path):
    make_paper(tmp_path, "plain", task="testing, more testing")
    make_paper(tmp_path, "evil", statement=EVIL, title=EVIL)
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.fixture
def client(root):
    site = Site(root / "runs", root / "results", root / "experiments", root / "cache")
    return TestClient(create_app(site), base_url="http://127.0.0.1")


def _get(client, url, status=200):
    answer = client.get(url)
    assert answer.status_code == status, answer.text[:500]
    return answer.text


def _no_script_of_theirs(page):
    assert "<script>window" not in page
    assert "<img src=x" not in page
    assert not re.search(r"<[^>]*\bonerror\b", page.replace("&#34;", "").replace("&lt;", ""))
    assert " 49 " not in page  # {{ 7 * 7 }} was not rendered


def test_the_scoreboard_counts_verdicts_by_paper(client):
    page = _get(client, "/")
    row = re.search(r'href="/papers/plain\?scale=cpu".*?</tr>', page, re.DOTALL)[0]
    counts = re.findall(r'class="num count (\w+)">(\d+)<', row)
    assert counts == [
        ("shown", "2"), ("zero", "0"), ("contradicted", "1"), ("zero", "0"),
    ]  # fmt: skip
    assert "smoke" not in row


def test_claims_show_ours_beside_the_papers_number_with_verdict_and_interval(client):
    page = _get(client, "/?view=claims&q=plain")
    row = re.search(r'<tr id="plain.cpu.C1">.*?</tr>', page, re.DOTALL)[0]
    assert 'class="badge shown"' in row
    assert "✓" in row  # a symbol beside colour and word
    assert row.index("0.5000") < row.index("0.9000")
    assert "Table 1" in row
    assert re.search(r"difference <strong>-0\.5000</strong>", row)
    (plot,) = re.findall(r"<title>(C1.*?)</title>", row)
    assert plot == "C1: -0.5 [-0.5, -0.5]; claimed: &lt; 0; paper: -0.5000; shown"
    assert '<td class="num">3</td>' in row


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"plain", "evil"}),
        ("task=more+testing", {"plain"}),
        ("q=PLAIN", {"plain"}),
        ("verdict=contradicted", {"plain", "evil"}),
        ("verdict=not_shown", set()),
        ("scale=paper", set()),
        ("posterior=diagonal+Gaussian", {"plain", "evil"}),
        ("posterior=nothing", set()),
        ("scale=nonsense&verdict=nonsense&page=-3&view=nonsense", {"plain", "evil"}),
    ],
)
def test_filters(client, query, expected):
    page = _get(client, f"/?{query}")
    assert set(re.findall(r'<a href="/papers/(\w+)', page)) == expected
    if not expected:
        assert "No paper fits the filter" in page
    rows = csv.DictReader(io.StringIO(_get(client, f"/scoreboard.csv?{query}")))
    assert {row["key"] for row in rows} == expected


def test_claims_come_in_pages_that_keep_the_filter(tmp_path):
    for number in range(40):
        make_paper(tmp_path, f"p{number:02}")
    site = Site(tmp_path, tmp_path / "results", tmp_path / "experiments", tmp_path / "cache")
    client = TestClient(create_app(site), base_url="http://127.0.0.1")
    first = _get(client, "/?view=claims&task=testing")
    assert "Claims 1 to 80 of 120" in first
    assert first.count("<tr id=") == 80
    assert 'href="/?task=testing&amp;view=claims&amp;page=2"' in first
    last = _get(client, "/?view=claims&task=testing&page=999")
    assert "Claims 81 to 120 of 120" in last


def test_the_page_of_a_paper_has_table_figures_commands_and_readme(client):
    page = _get(client, "/papers/plain")
    assert "Claims at the cpu scale" in page
    assert '<img src="/papers/plain/cpu/figures/main-curve.svg"' in page
    for kind in ("svg", "png", "csv"):
        assert f'href="/papers/plain/cpu/figures/main-curve.{kind}"' in page
    assert "make reproduce-plain" in page
    assert 'href="/runs?paper=plain"' in page
    assert "paper 0.4000" in page  # reported beside ours in the table
    assert '<a href="/papers/plain?scale=cpu">the table</a>' in page
    assert '<a href="https://arxiv.org/" rel="noreferrer noopener">' in page
    assert "judges no claim" in _get(client, "/papers/plain?scale=smoke")
    answer = client.get("/papers/plain/cpu/figures/main-curve.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    rows = list(csv.DictReader(io.StringIO(_get(client, "/papers/plain/cpu/claims.csv"))))
    assert [row["claim"] for row in rows] == ["C1", "C2", "C3"]
    assert rows[0]["verdict"] == "shown"
    assert float(rows[0]["effect"]) == pytest.approx(-0.5)
    rows = list(csv.DictReader(io.StringIO(_get(client, "/papers/plain/cpu/intervals-1.csv"))))
    assert [row["claim"] for row in rows] == ["C1", "C2"]  # the two that share a unit
    assert "0.9" in _get(client, "/papers/plain/cpu/table.csv")


def test_hostile_texts_stay_texts(client):
    for url in ("/", "/?view=claims", "/papers/evil", "/papers/evil?scale=smoke"):
        page = _get(client, url)
        _no_script_of_theirs(page)
        assert "window.evil" in page  # it is shown, escaped
    page = _get(client, "/papers/plain")
    assert "javascript:" not in re.sub(r"\(javascript:evil\(\)\)", "", page)
    assert "example.org" not in "".join(re.findall(r'src="[^"]*"', page))
    assert "<table>" in page[page.index('id="readme"') :]
    assert "&lt;script&gt;window.evil = 1&lt;/script&gt;" in page
    page = _get(
        client, "/?q=%3Cscript%3Ewindow.evil%3D1%3C%2Fscript%3E&task=%22%3E%3Cimg+src%3Dx%3E"
    )
    _no_script_of_theirs(page)


@pytest.mark.parametrize(
    "url",
    [
        "/papers/nope",
        "/papers/..%2f..%2fetc",
        "/papers/plain?scale=..%2f..%2fplain",
        "/papers/plain/..%2fsmoke/claims.csv",
        "/papers/plain/cpu/..%2fclaims.json",
        "/papers/plain/cpu/claims.json",
        "/papers/plain/cpu/intervals-0.csv",
        "/papers/plain/cpu/figures/..%2f..%2fclaims.json",
        "/papers/plain/cpu/figures/%2e%2e%2fruns.csv",
        "/papers/plain/cpu/figures/secret.svg",
        "/papers/plain/cpu/figures/main-curve.txt",
        "/papers/plain/cpu/figures/.hidden.svg",
        "/papers/plain/cpu/figures/outside.csv",
        "/papers/plain/cpu/figures/a%00b.svg",
    ],
)
def test_only_what_the_folders_hold_is_served(client, root, url):
    figures = root / "results" / "plain" / "cpu" / "figures"
    (root / "secret.svg").write_text("secret")
    (figures / "main-curve.txt").write_text("secret")
    (figures / ".hidden.svg").write_text("secret")
    (figures / "outside.csv").symlink_to(root / "secret.svg")
    assert "secret" not in _get(client, url, 404).replace("secret.svg", "")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"schema": 1, "claims": [',
        b'{"schema": 99, "claims": []}',
        b'{"schema": 1, "claims": [{"id": "C1"}]}',
        b'{"schema": 1, "claims": [7, null, "x"]}',
        b"\xff\xfe\x00",
    ],
)
def test_damaged_claims_are_named_where_they_would_be(client, root, damage):
    assert client.get("/").status_code == 200  # read once while they were whole
    (root / "results" / "plain" / "cpu" / "claims.json").write_bytes(damage)
    for url in ("/", "/papers/plain?scale=cpu"):
        page = _get(client, url)
        assert re.search(r'class="problem"[^>]*>[^<]*claims\.json', page), page[-3000:]
    assert 'href="/papers/evil?scale=cpu"' in _get(client, "/")


def test_other_damaged_files_are_named_too(client, root):
    folder = root / "results" / "plain" / "cpu"
    (folder / "table.csv").write_text("study,arm\nx")
    (folder / "provenance.json").write_text("{")
    page = _get(client, "/papers/plain")
    assert "table.csv is damaged" in page
    assert "provenance.json" in page
    assert client.get("/papers/plain/cpu/table.csv").status_code == 404
    (root / "experiments" / "plain" / "paper.yaml").write_text("paper: [")
    page = _get(client, "/")
    assert "paper.yaml" in page
    assert _get(client, "/papers/plain")
    (root / "experiments" / "plain" / "README.md").unlink()
    assert "This paper has no README" in _get(client, "/papers/plain")


def test_a_paper_without_results_and_a_place_without_papers(client, root, tmp_path):
    import shutil

    shutil.rmtree(root / "results" / "plain")
    assert "not run yet" in _get(client, "/")
    assert "no results yet" in _get(client, "/papers/plain")
    nothing = Site(tmp_path, tmp_path / "a", tmp_path / "b", tmp_path / "c")
    empty = TestClient(create_app(nothing), base_url="http://127.0.0.1")
    assert "No papers here yet" in _get(empty, "/")
    assert "No claim fits" in _get(empty, "/?view=claims")


def test_a_changed_file_is_read_again_and_others_are_kept(root):
    shelf = Shelf(root / "experiments", root / "results")
    before = {paper.key: paper for paper in shelf.papers()}
    path = root / "results" / "plain" / "cpu" / "claims.json"
    content = read_json(path, checksum=False)
    content["claims"][0]["verdict"] = "not_shown"
    write_json(path, content, checksum=False)
    after = {paper.key: paper for paper in shelf.papers()}
    assert after["evil"] is before["evil"]
    assert after["plain"].scales["cpu"].claims[0].verdict == "not_shown"


def test_the_region_of_a_claim_is_read_from_its_test_in_words():
    claims = [
        claim
        for path in sorted((ROOT / "results").glob("*/*/claims.json"))
        for claim in read_json(path, checksum=False)["claims"]
    ]
    papers = [load_paper(ROOT / "experiments" / key) for key in find_papers(ROOT / "experiments")]
    assert len(claims) > 100
    assert all(claimed_region(claim["test"]) is not None for claim in claims)
    for paper in papers:
        for claim, judged in zip(paper.claims, judge(paper, "cpu", []), strict=True):
            low, high = claimed_region(judged["test"])
            if claim.kind == "identity":
                wanted = (0.0, claim.tolerance)
            elif claim.kind == "value":
                wanted = tuple(s * math.inf if e is None else e
                               for s, e in zip((-1, 1), claim.band, strict=True))  # fmt: skip
            elif claim.direction in ("lower", "decreasing"):
                wanted = (-math.inf, -claim.margin)
            else:
                wanted = (claim.margin, math.inf)
            assert (low, high) == pytest.approx(wanted, rel=1e-4), claim.id
    assert claimed_region("something else") is None
