"""Pages of runs: what they show, what they refuse, and that nothing of a run is ever markup."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from run_site import EVIL, FORMULA, make_runs, site_of, write_run
from starlette.testclient import TestClient

import bayesrule.report.dashboard as package
from bayesrule.report.dashboard.app import POLICY, create_app
from bayesrule.runs import RunStore, write_json

TEMPLATES = Path(package.__file__).parent / "templates"


class Page(HTMLParser):
    """What matters of a page: elements, handlers, links, texts and JSON."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.handlers, self.links, self.json, self.cells = [], [], [], [], []
        self._script = self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.elements.append((tag, found))
        self.handlers += [name for name in found if name.startswith("on")]
        if tag == "a":
            self.links.append(found["href"])
        if tag == "script":
            assert (
                found.get("src", "").startswith("/static/") or found["type"] == "application/json"
            )
        self._script = tag == "script"
        if tag in ("td", "th"):
            self.cells.append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._script = False
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        if self._script and data.strip():
            self.json.append(json.loads(data))
        if self._cell:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    site = site_of(root)
    ids = make_runs(site.runs)
    client = TestClient(create_app(site), base_url="http://127.0.0.1", raise_server_exceptions=True)
    client.ids, client.site = ids, site
    return client


def table_ids(answer):
    return re.findall(r'<a href="/runs/([0-9a-f]{16})">', answer.text)


def test_the_table_lists_every_run_whatever_became_of_it(world):
    answer = world.get("/runs")
    assert answer.status_code == 200
    assert sorted(table_ids(answer)) == sorted(world.ids.values())
    for status in ("done", "failed", "corrupt", "unfinished"):
        assert f'class="badge {status}"' in answer.text


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("q=posterior%3Divon+seed%3D11", ["ivon11"]),
        ("arm=sgd&status=done&sort=seed&dir=asc", ["sgd10", "sgd11", "sgd12"]),
        ("q=test/nll@mean%3C0.425&sort=test/nll@mean&dir=desc", ["ivon12", "ivon11", "ivon10"]),
        ("q=status!%3Ddone&sort=seed&dir=asc", ["failed", "unfinished", "broken"]),
        ("q=posterior.lr%3E0.15+data%3Ddigits*&sort=seed&dir=asc", ["ivon10", "ivon11", "ivon12"]),
        ("q=100%25+seed%3D11&sort=arm&dir=asc", ["ivon11", "sgd11"]),  # the word "100%"
        ("q=100_", []),  # an underscore is no wildcard
        ("q=demo/m%25n", []),
        ("q=loss+is", ["failed"]),
    ],
)
def test_filters_words_and_order(world, query, names):
    answer = world.get(f"/runs?{query}")
    assert answer.status_code == 200
    assert table_ids(answer) == [world.ids[name] for name in names]
    if not names:
        assert "No run fits." in answer.text


@pytest.mark.parametrize(
    "query", ["q=posterio%3Divon", "sort=run.id;--", "sort=1", "q=seed%3Cx", "group=nothing"]
)
def test_an_unknown_key_is_said_and_never_becomes_sql(world, query):
    answer = world.get(f"/runs?{query}")
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text
    if "posterio" in query:
        assert "did you mean posterior" in answer.text


def test_groups_have_the_mean_over_seeds_and_its_interval(world):
    answer = world.get("/runs?group=posterior&status=done&q=data%3Ddigits*")
    cells = Page(answer.text).cells
    row = cells[cells.index("SGD") :]
    assert row[:4] == ["SGD", "3", "3", "3"]
    # values 0.60, 0.61, 0.62: mean 0.61, half-width t(2) 0.01 / sqrt 3 = 0.0248
    assert row[5] == "0.610 ± 0.025"
    table = list(csv.reader(io.StringIO(world.get("/runs.csv?group=posterior").text)))
    assert table[0][:4] == ["posterior", "runs", "done", "seeds"]


def test_pages_of_fifty(tmp_path):
    site = site_of(tmp_path)
    for seed in range(1, 53):
        cfg = {"posterior": {"name": "a"}, "seed": seed % 28 + 1, "number": seed}
        write_run(site.runs, cfg, {"test/nll@mean": float(seed)}, steps=1)
    client = TestClient(create_app(site), base_url="http://127.0.0.1")
    first = client.get("/runs?sort=test/nll@mean")
    assert len(table_ids(first)) == 50
    assert "page 1 of 2" in first.text
    assert len(table_ids(client.get("/runs?sort=test/nll@mean&page=2"))) == 2
    assert "There is no page 9" in client.get("/runs?page=9").text
    for strange in ("-1", "x", "9" * 30, "%00"):
        assert len(table_ids(client.get(f"/runs?page={strange}"))) == 50


def test_htmx_gets_the_table_alone(world):
    answer = world.get("/runs", headers={"HX-Request": "true"})
    assert answer.headers["vary"] == "HX-Request"
    assert "<html" not in answer.text
    assert len(table_ids(answer)) == len(world.ids)
    answer = world.get("/runs?q=&paper=demo&page=1&sort=seed", headers={"HX-Request": "true"})
    assert answer.headers["hx-push-url"] == "/runs?paper=demo&sort=seed"  # without what is empty


def test_no_text_of_a_run_is_markup(world):
    evil, text = world.ids["evil"], quote(EVIL, safe="")
    pages = [
        *("/runs", "/runs?cols=note,evil.f", "/runs?group=data,note", f"/runs/{evil}", "/parallel"),
        *(f"/runs/{world.ids['failed']}", f"/compare?ids={evil},{world.ids['ivon10']}"),
        *(f"/runs?q={text}", f"/runs?paper={text}&sort={text}&group={text}", f"/{text}"),
        *(f"/parallel?axes={text},seed&curve={text}", f"/runs/{evil}?curves={text}"),
        f"/compare?ids={text}",
    ]
    for url in pages:
        answer = world.get(url)
        page = Page(answer.text)  # also: every script is ours or whole JSON
        assert page.handlers == [], url
        assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "style", "object")]
        assert all(link.startswith(("/", "#")) for link in page.links), url
        assert "49" not in re.findall(r"\{\{.*?\}\}|>49<", answer.text)
        assert answer.headers["content-security-policy"] == POLICY


def test_the_page_of_a_run_draws_what_its_record_holds(world):
    run = world.ids["ivon10"]
    page = Page(world.get(f"/runs/{run}").text)
    names = [attrs["data-name"] for _, attrs in page.elements if "data-name" in attrs]
    assert [name.rpartition("-")[0] for name in names] == [
        "curve-train-epoch-loss", "test-reliability-mean", "test-confusion-mean",
        "test-risk-coverage-mean", "train-return", "matrix-acc-mean", "acc-round", "acc-MB", "",
    ]  # fmt: skip
    assert len(page.json) == len(names)
    for name in names:
        table = list(csv.reader(io.StringIO(world.get(f"/runs/{run}/plots/{name}.csv").text)))
        assert len(table) > 1
        assert len({len(row) for row in table}) == 1
    assert "posterior.lr" in page.cells  # differs in its study
    assert "model" not in page.cells[: page.cells.index("posterior.lr")]


def test_broken_and_unfinished_runs_say_what_they_are(world):
    broken = world.get(f"/runs/{world.ids['broken']}")
    assert broken.status_code == 200
    assert "is truncated or damaged" in broken.text
    assert "was killed" in world.get(f"/runs/{world.ids['unfinished']}").text
    assert "loss is nan" in world.get(f"/runs/{world.ids['failed']}").text
    assert world.get(f"/runs/{world.ids['broken']}/metrics.csv").status_code == 404


def test_new_points_of_a_run_and_its_end(tmp_path):
    site = site_of(tmp_path)
    cfg = {"posterior": {"name": "a"}, "seed": 1}
    client = TestClient(create_app(site), base_url="http://127.0.0.1")
    with RunStore(site.runs).folder(cfg).lock() as folder:
        history = folder.metrics_path
        history.write_text('{"phase":"train","step":1,"train/loss":2.0}\n{"phase":"tr')
        site.index.refresh()
        page = Page(client.get(f"/runs/{folder.id}").text)
        (live,) = [attrs for _, attrs in page.elements if "data-live" in attrs]
        after = live["data-after"]
        assert int(after) == history.read_bytes().index(b"\n") + 1
        news = client.get(f"{live['data-live']}?after={after}").json()
        assert (news["final"], news["points"]) == (False, [])
        with history.open("a") as file:
            file.write('ain","step":2,"train/loss":1.5,"val/nll@mean":"nan"}\nno json\n')
        news = client.get(f"{live['data-live']}?after={after}").json()
        assert news["points"] == [{"k": "train/loss", "s": "run", "x": 2.0, "y": 1.5}]
        assert client.get(f"{live['data-live']}?after={after}&keys=other").json()["points"] == []
        history.write_text("")
        assert client.get(f"{live['data-live']}?after={after}").json()["reset"]
        folder.write_record("done", {})
    site.index.refresh()
    assert client.get(f"{live['data-live']}?after=0").json()["final"]


def test_two_runs_side_by_side(world):
    ids = f"{world.ids['ivon10']},{world.ids['sgd10']}"
    page = Page(world.get(f"/compare?ids={ids}").text)
    assert "posterior.lr" in page.cells
    assert "model" not in page.cells
    assert "0.2000" in page.cells  # difference of NLL
    table = list(csv.reader(io.StringIO(world.get(f"/compare.csv?ids={ids}").text)))
    assert ["metric", "test/acc@mean", "0.7", "0.5", repr(0.5 - 0.7)] in table
    assert world.get("/compare?ids=0000000000000000").status_code == 404


def test_a_sweep_is_drawn_and_says_how_many(world):
    answer = world.get("/parallel?paper=demo&axes=posterior.lr,posterior,test/nll@mean")
    coordinates = Page(answer.text).json[0]
    drawn = {row["r"] for row in coordinates["layer"][0]["data"]["values"]}
    assert len(drawn) == 7
    assert "lack one of the keys" in answer.text
    assert all(0 <= row["p"] <= 1 for row in coordinates["layer"][0]["data"]["values"])


def test_a_search_shows_what_matters_and_its_best_settings(tmp_path):
    site = site_of(tmp_path)
    summary = {
        "schema": 1, "name": "s", "metric": "val/nll@mean", "direction": "minimize",
        "sampler": "tpe", "fixed": ["posterior=ivon", EVIL], "seeds": [0, 1],
        "dimensions": [{"key": "posterior.lr"}, {"key": EVIL}],
        "counts": {"complete": 2, "pruned": 1, "fail": 0, "running": 0},
        "best": [{"number": 7, "value": 0.5, "values": [0.4, 0.6], "overrides": ["a=b c", EVIL],
                  "params": {"posterior.lr": 0.1, EVIL: FORMULA},
                  "runs": ["0123456789abcdef", EVIL]}],
        "importances": {"posterior.lr": 0.75, EVIL: 0.25},
    }  # fmt: skip
    for name in ("good", "bad", EVIL.replace("/", "|")):
        (site.runs / ".tune" / name).mkdir(parents=True)
        write_json(site.runs / ".tune" / name / "study.json", summary)
    (site.runs / ".tune" / "bad" / "study.json").write_text('{"schema": 1}')
    (site.runs / ".tune" / "empty").mkdir()
    (site.runs / ".tune" / "link").symlink_to(tmp_path)
    client = TestClient(create_app(site), base_url="http://127.0.0.1")
    listed = Page(client.get("/searches").text)
    assert listed.handlers == []
    assert {"good", "bad", "empty"} <= set(listed.cells)
    assert "link" not in listed.cells
    page = Page(client.get("/searches/good").text)
    assert page.handlers == []
    assert "0.50 ± 0.14" in page.cells
    assert page.json[0]["data"]["values"][0] == {"y": "posterior.lr", "x": 0.75}
    assert [link for link in page.links if "/runs/" in link] == ["/runs/0123456789abcdef"]
    table = client.get("/searches/good/best.csv").text
    assert f"'{FORMULA}" in table
    assert "no checksum" in client.get("/searches/bad").text
    for path in ("/searches/link", "/searches/..%2f..", "/searches/none"):
        assert client.get(path).status_code == 404


def test_spreadsheets_run_nothing(world):
    ids = f"{world.ids['evil']},{world.ids['ivon10']}"
    for url in ("/runs.csv?cols=evil.f,part", f"/compare.csv?ids={ids}"):
        cells = [cell for row in csv.reader(io.StringIO(world.get(url).text)) for cell in row]
        assert f"'{FORMULA}" in cells
        assert FORMULA not in cells


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_page_only_shows(world, method):
    answer = world.request(method, "/runs")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_another_host_name_is_refused(world):
    assert world.get("/runs", headers={"host": "evil.example"}).status_code == 400
    assert world.get("/runs", headers={"host": "localhost:8420"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/runs/..%2f..%2fetc%2fpasswd", "/runs/../../etc/passwd", "/static/../app.py",
        "/static/%2e%2e/app.py", "/static/..%2f..%2fapp.py", "/runs/%00", "/runs/0123456789ABCDEF",
        "/runs/0000000000000000", "/runs/0000000000000000/metrics.json", "/templates/base.html",
        "/runs/....//", "/static/vendor/", "/runs/{}/plots/..%2f..%2frecord.csv", "/runs/.locks",
    ],
)  # fmt: skip
def test_nothing_outside_is_served(world, path):
    answer = world.get(path.replace("{}", world.ids["ivon10"]))
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "sha256" not in answer.text


def test_links_in_the_store_are_not_followed(tmp_path):
    site = site_of(tmp_path)
    secret = tmp_path / "secret.json"
    secret.write_text('{"phase": "train", "step": 1, "secret/key": 5}\n' * 2)
    run = write_run(site.runs, {"seed": 1}, {}, steps=1)
    (site.runs / run / "metrics.jsonl").unlink()
    (site.runs / run / "metrics.jsonl").symlink_to(secret)
    (site.runs / "00000000000000aa").symlink_to(tmp_path)
    (site.runs / "00000000000000bb").mkdir()
    (site.runs / "00000000000000bb" / "record.json").symlink_to(secret)
    client = TestClient(create_app(site), base_url="http://127.0.0.1")
    for name in (run, "00000000000000aa", "00000000000000bb"):
        for path in ("", "/history.csv", "/metrics.json"):
            assert "secret/key" not in client.get(f"/runs/{name}{path}").text
    assert 'class="badge corrupt"' in client.get("/runs").text


def test_a_folder_that_is_a_link_gives_no_history(tmp_path):
    site = site_of(tmp_path)
    run = write_run(site.runs, {"seed": 1}, {}, key="secret/key")
    (site.runs / run).rename(tmp_path / run)
    (site.runs / run).symlink_to(tmp_path / run)
    client = TestClient(create_app(site), base_url="http://127.0.0.1")
    for path in (f"/runs/{run}", f"/runs/{run}/history.csv", f"/runs/{run}/metrics.json"):
        assert "secret/key" not in client.get(path).text
    assert "secret/key" not in client.get(f"/compare?ids={run}").text


@pytest.mark.parametrize(("key", "value"), [("train/\\ud800", "1.0"), ("train/loss", "9" * 400)])
def test_strange_names_and_numbers_of_a_history_are_no_error(tmp_path, key, value):
    site = site_of(tmp_path)
    run = write_run(site.runs, {"seed": 1}, {})
    rows = [f'{{"phase": "train", "step": {n}, "{key}": {value}}}\n' for n in (1, 2)]
    (site.runs / run / "metrics.jsonl").write_text("".join(rows))
    client = TestClient(create_app(site), base_url="http://127.0.0.1")
    for path in (f"/runs/{run}", f"/runs/{run}/metrics.json", f"/compare?ids={run}", "/parallel"):
        assert client.get(path).status_code == 200


def test_an_empty_store_says_how_to_fill_it(tmp_path):
    client = TestClient(create_app(site_of(tmp_path)), base_url="http://127.0.0.1")
    assert "There are no runs in" in client.get("/runs").text
    for path in (
        "/parallel",
        "/compare",
        "/searches",
        "/runs?q=seed%3D1",
        "/runs.csv",
        "/runs?group=seed",
    ):
        assert client.get(path).status_code in (200, 400)


def test_templates_switch_no_escaping_off():
    for path in TEMPLATES.iterdir():
        text = path.read_text()
        assert not re.search(
            r"\|\s*safe\b|autoescape|Markup|<script(?![^>]*(src=|application/json))", text
        )
        assert not re.search(r"\son[a-z]+=", text), path.name
        assert not re.search(r"(src|href)=[\"']https?:", text), path.name
