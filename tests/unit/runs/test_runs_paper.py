import copy
import os
import subprocess
import sys

import pytest
import yaml

from bayesrule.errors import ConfigError
from bayesrule.runs.paper import Point, Side
from bayesrule.runs.paper_yaml import find_papers, load_paper, parse_paper
from bayesrule.runs.yaml_node import load_yaml

TEXT = """
paper:
  title: Variational Learning is Effective for
    Large Deep Networks
  authors: [A. Author, B. Author]
  year: 2024
  venue: ICML 2024
  arxiv: "2402.17641"
  official_code: team/ivon
  task: classification
  posteriors: [diagonal Gaussian]
studies:
  p2:
    title: Noisy digits
    experiment: ivon/p2
    arms:
      ivon: []
      adamw: [posterior=adamw, posterior.lr=2e-3]
      sgd:
    scales:
      smoke: {seeds: [0], overrides: [trainer.max_epochs=1]}
      cpu: {seeds: 10-14, arm_overrides: {sgd: [posterior.lr=0.1]}}
    metrics: [test/acc@mean, test/nll@mc64]
    reported:
      source: Table 1
      values: {ivon: {test/nll@mc64: 0.9}}
  cifar:
    experiment: ivon/cifar
    arms: {ivon: [], adamw: [posterior=adamw]}
    scales:
      cpu: {seeds: "100:103", arms: [ivon]}
      paper: {seeds: [0, 1, 2], experiment: ivon/cifar100}
claims:
  - id: nll-adamw
    headline: C2
    statement: IVON has lower NLL than AdamW.
    study: {cpu: p2, paper: cifar}
    kind: ordering
    metric: test/nll@mc64
    arms: [ivon, adamw]
    direction: lower
    margin: 1e-2
    paper: {source: Table 1, left: 0.912, right: 3.357, text: "mean of 5"}
  - id: averaging
    statement: Averaging beats the mean.
    study: p2
    kind: ordering
    left: {arm: ivon, metric: test/nll@mc64}
    right: {arm: ivon, metric: test/nll@mean}
    direction: lower
  - id: averaging-short
    statement: The same in short.
    study: p2
    kind: ordering
    arm: ivon
    metrics: [test/nll@mc64, test/nll@mean]
    direction: lower
  - id: accuracy
    statement: Accuracy lies in the band.
    study: p2
    kind: value
    arm: ivon
    metric: test/acc@mean
    band: [0.7, null]
  - id: samples
    statement: More samples help.
    study: p2
    kind: trend
    arm: ivon
    metrics: [test/nll@mc1, test/nll@mc4, test/nll@mc64]
    x: [1, 4, 64]
    log_x: true
    test: slope
    direction: decreasing
  - id: same
    statement: Both are the same.
    study: p2
    kind: identity
    metric: test/nll@mean
    arms: [sgd, adamw]
    tolerance: 1e-12
"""


def content():
    return yaml.safe_load(TEXT)


def parse(changed):
    return parse_paper(changed, "ivon", "paper.yaml")


def test_everything_is_read():
    paper = parse(content())
    assert paper.key == "ivon"
    assert paper.title == "Variational Learning is Effective for Large Deep Networks"
    assert paper.authors == "A. Author, B. Author"
    assert (paper.year, paper.task) == (2024, "classification")
    assert paper.scales == ("smoke", "cpu", "paper")
    study = paper.studies["p2"]
    assert list(study.arms) == ["ivon", "adamw", "sgd"]
    assert study.arms["sgd"] == ()
    assert study.scales["cpu"].seeds == (10, 11, 12, 13, 14)
    assert paper.studies["cifar"].scales["cpu"].seeds == (100, 101, 102)
    assert study.reported == {"ivon": {"test/nll@mc64": 0.9}}
    claims = {claim.id: claim for claim in paper.claims}
    assert claims["nll-adamw"].sides == (
        Side("ivon", "test/nll@mc64"),
        Side("adamw", "test/nll@mc64"),
    )
    assert claims["nll-adamw"].margin == 0.01
    assert claims["nll-adamw"].studies == {"cpu": "p2", "paper": "cifar"}
    assert claims["nll-adamw"].reported["left"] == 0.912
    assert claims["nll-adamw"].metric == "test/nll@mc64"
    assert claims["averaging"].sides == claims["averaging-short"].sides
    assert claims["averaging"].metric == "test/nll@mc64 vs test/nll@mean"
    assert claims["averaging"].studies == {"smoke": "p2", "cpu": "p2"}
    assert claims["accuracy"].band == (0.7, None)
    assert claims["samples"].sides[2] == Point("ivon", "test/nll@mc64", 64.0)
    assert claims["same"].tolerance == 1e-12
    assert {claim.test for claim in paper.claims} == {"paired-t", "t", "slope", "max-abs"}


def test_planned_runs():
    paper = parse(content())
    smoke = paper.planned("smoke")
    assert [(run.study, run.arm, run.seed) for run in smoke] == [
        ("p2", "ivon", 0),
        ("p2", "adamw", 0),
        ("p2", "sgd", 0),
    ]
    assert smoke[1].overrides == (
        "experiment=ivon/p2",
        "scale=smoke",
        "posterior=adamw",
        "posterior.lr=2e-3",
        "trainer.max_epochs=1",
        "seed=0",
    )
    cpu = paper.planned("cpu")
    assert len(cpu) == 3 * 5 + 1 * 3
    sgd = next(run for run in cpu if run.arm == "sgd")
    assert sgd.overrides == ("experiment=ivon/p2", "scale=cpu", "posterior.lr=0.1", "seed=10")
    full = paper.planned("paper", seeds=(7,))
    assert [run.overrides[0] for run in full] == ["experiment=ivon/cifar100"] * 2
    assert {run.seed for run in full} == {7}
    del paper.studies["cifar"]
    with pytest.raises(ConfigError, match="no runs at scale 'paper'"):
        paper.planned("paper")


def changed(*path, to=None, remove=False):
    data = content()
    node = data
    for key in path[:-1]:
        node = node[key]
    if remove:
        del node[path[-1]]
    else:
        node[path[-1]] = copy.deepcopy(to)
    return data


WRONG = [
    (changed("paper", "tittle", to="x"), "paper.tittle", "title"),
    (changed("paper", "title", remove=True), "paper.title", "missing"),
    (changed("paper", "year", to="2024"), "paper.year", "year"),
    (changed("claim", to=[]), "claim: unknown key", "claims"),
    (changed("claims", to={}), "claims", "list"),
    (changed("studies", to={}), "studies", "no study"),
    (changed("studies", "p2", "arm", to={}), "studies.p2.arm", "arms"),
    (changed("studies", "p2", "arms", to={}), "studies.p2.arms", "at least one"),
    (changed("studies", "p2", "arms", "sgd", to=["lr"]), "studies.p2.arms.sgd", "key=value"),
    (changed("studies", "p2", "arms", "sgd", to=["+a=1"]), "studies.p2.arms.sgd", "add or remove"),
    (changed("studies", "p2", "arms", "sgd", to=["seed=3"]), "studies.p2.arms.sgd", "itself"),
    (changed("studies", "p2", "arms", "a b", to=[]), "studies.p2.arms", "no name"),
    (
        changed("studies", "p2", "scales", "gpu", to={}),
        "studies.p2.scales.gpu",
        "'cpu'",
    ),
    (changed("studies", "p2", "scales", to={}), "studies.p2.scales", "at least one"),
    (changed("studies", "p2", "scales", "cpu", "seeds", to=615), "cpu.seeds", "quote"),
    (changed("studies", "p2", "scales", "cpu", "seeds", to="4-14"), "cpu.seeds", "tuning"),
    (changed("studies", "p2", "scales", "cpu", "arms", to=["ivom"]), "cpu.arms", "'ivon'"),
    (changed("studies", "p2", "scales", "cpu", "arms", to=[]), "cpu.arms", "at least one"),
    (changed("studies", "p2", "scales", "cpu", "arm_overrides", to={"sdg": []}), "sdg", "'sgd'"),
    (changed("studies", "p2", "scales", "cpu", "seed", to=[10]), "cpu.seed", "'seeds'"),
    (changed("studies", "p2", "metrics", to=["test nll"]), "studies.p2.metrics", "no metric name"),
    (changed("studies", "p2", "reported", "source", remove=True), "reported.source", "missing"),
    (changed("studies", "p2", "reported", "values", "ivan", to={}), "values.ivan", "'ivon'"),
    (changed("claims", 1, "id", to="nll-adamw"), "claims[1].id", "twice"),
    (changed("claims", 0, "kind", to="order"), "kind", "'ordering'"),
    (changed("claims", 0, "study", to="p3"), "study", "'p2'"),
    (changed("claims", 0, "study", to={"cpu": "p3"}), "study.cpu", "'p2'"),
    (changed("claims", 0, "study", to={"paper": "p2"}), "study.paper", "not run at scale 'paper'"),
    (changed("claims", 0, "study", to={"gpu": "p2"}), "study.gpu", "cpu"),
    (changed("claims", 0, "scale", to="smoke"), "scale", "judges nothing"),
    (changed("claims", 1, "scale", to="paper"), "scale", "lowest scale"),
    (changed("claims", 0, "study", to="cifar"), "adamw", "not run by study 'cifar' at scale 'cpu'"),
    (changed("claims", 0, "arms", to=["ivon", "adam"]), "arms", "'adamw'"),
    (changed("claims", 0, "arms", to=["ivon"]), "nll-adamw", "got 1"),
    (changed("claims", 0, "arms", to=["ivon", "ivon"]), "arms", "different"),
    (changed("claims", 0, "arms", remove=True), "arm", "one of them"),
    (changed("claims", 0, "metric", remove=True), "metric", "one of them"),
    (changed("claims", 0, "metrics", to=["a", "b"]), "metric", "one of them"),
    (changed("claims", 0, "left", to={"arm": "ivon", "metric": "a"}), "left", "not both"),
    (changed("claims", 1, "left", remove=True), "left", "not both"),
    (changed("claims", 1, "left", to={"arm": "ivon", "metrik": "a"}), "left.metric", "'metrik'"),
    (
        changed("claims", 1, "right", to={"arm": "ivon", "metric": "test/nll@mc64"}),
        "",
        "same metric",
    ),
    (changed("claims", 0, "direction", to="less"), "direction", "lower"),
    (changed("claims", 0, "direction", remove=True), "direction", "missing"),
    (changed("claims", 0, "margin", to="big"), "margin", "number"),
    (changed("claims", 0, "marginn", to=0.1), "marginn", "'margin'"),
    (changed("claims", 0, "band", to=[0, 1]), "band", "unknown key"),
    (changed("claims", 0, "test", to="wilcoxon"), "test", "paired-t"),
    (changed("claims", 0, "paper", "source", remove=True), "paper", "source"),
    (changed("claims", 0, "paper", "left", to=[1]), "paper", "number"),
    (changed("claims", 0, "headline", to="first"), "headline", "C1"),
    (changed("claims", 0, "statement", remove=True), "statement", "missing"),
    (changed("claims", 3, "band", to=[0.8, 0.7]), "band", "above"),
    (changed("claims", 3, "band", to=[None, None]), "band", "low, high"),
    (changed("claims", 3, "band", remove=True), "band", "missing"),
    (changed("claims", 4, "x", to=[1, 4]), "x", "2 values for 3 points"),
    (changed("claims", 4, "x", to=[1, 64, 4]), "x", "increase"),
    (changed("claims", 4, "x", to=[0, 4, 64]), "log_x", "above 0"),
    (changed("claims", 4, "metrics", to=["a", "b"]), "x", "3 values for 2 points"),
    (changed("claims", 4, "points", to=[]), "points", "alone"),
    (changed("claims", 4, "arms", to=["sgd", "ivon"]), "arm", "one of them"),
    (changed("claims", 5, "tolerance", to=-1), "tolerance", "negative"),
    (changed("claims", 5, "tolerance", to=float("nan")), "tolerance", "finite"),
    ([], "mapping", ""),
    (None, "mapping", ""),
]


@pytest.mark.parametrize(("data", "where", "what"), WRONG)
def test_what_is_wrong_is_named_with_file_and_key(data, where, what):
    with pytest.raises(ConfigError) as caught:
        parse(data)
    message = str(caught.value)
    assert message.startswith("paper.yaml: ")
    assert where in message
    assert what in message
    assert caught.value.exit_code == 2


def test_a_required_key_that_is_misspelt_is_shown():
    data = changed("claims", 0, "statement", remove=True)
    data["claims"][0]["statment"] = "x"
    with pytest.raises(ConfigError, match=r"statement: is missing \('statment' is there"):
        parse(data)


def test_a_trend_of_two_points_is_refused():
    data = changed("claims", 4, "metrics", to=["a", "b"])
    del data["claims"][4]["x"]
    with pytest.raises(ConfigError, match="at least 3 points, got 2"):
        parse(data)


def test_trend_over_arms_and_over_points():
    data = content()
    trend = {"id": "t", "statement": "s", "study": "p2", "kind": "trend", "direction": "increasing"}
    data["claims"] = [{**trend, "metric": "a", "arms": ["sgd", "adamw", "ivon"]}]
    assert parse(data).claims[0].sides == (
        Point("sgd", "a", 0),
        Point("adamw", "a", 1),
        Point("ivon", "a", 2),
    )
    points = [{"x": 1, "arm": "sgd", "metric": "a"}, {"x": 2, "arm": "ivon", "metric": "a"}]
    points.append({"x": 5, "arm": "ivon", "metric": "b"})
    data["claims"] = [{**trend, "points": points}]
    assert parse(data).claims[0].sides[2] == Point("ivon", "b", 5)
    points[2]["y"] = 1
    with pytest.raises(ConfigError, match=r"points\[2\]\.y"):
        parse(data)


def test_load_and_find(tmp_path):
    assert find_papers(tmp_path / "none") == []
    folder = tmp_path / "ivon"
    folder.mkdir()
    (tmp_path / "draft").mkdir()
    (folder / "paper.yaml").write_text(TEXT)
    assert load_paper(folder) == parse(content())
    assert find_papers(tmp_path) == ["ivon"]
    with pytest.raises(ConfigError, match="did you mean 'ivon'"):
        load_paper(tmp_path / "ivom")
    (folder / "paper.yaml").write_text(TEXT + "claims: []\n")
    with pytest.raises(ConfigError, match=r"line \d+: the key 'claims' is given twice"):
        load_paper(folder)
    (folder / "paper.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="valid YAML"):
        load_paper(folder)
    (folder / "paper.yaml").write_text("? [a]\n: 1\n")
    with pytest.raises(ConfigError):
        load_paper(folder)
    (folder / "paper.yaml").write_text("1: 2\n")
    with pytest.raises(ConfigError, match="must be text"):
        load_paper(folder)


def test_no_code_runs_from_a_paper(tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "paper.yaml").write_text("!!python/object/apply:os.mkdir [pwned]\n")
    code = "import sys; from bayesrule.runs import load_paper; load_paper(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=tmp_path, capture_output=True, text=True
    )
    assert "ConfigError" in done.stderr
    assert os.listdir(tmp_path) == ["evil"]  # noqa: PTH208


def test_a_key_replaces_a_merged_one_but_is_not_given_twice(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {x: 1, y: 2}\nother: {<<: *b, x: 3}\n")
    assert load_yaml(path)["other"] == {"x": 3, "y": 2}
    path.write_text("base: &b {x: 1}\nother: {<<: *b, x: 3, x: 4}\n")
    with pytest.raises(ConfigError, match="given twice"):
        load_yaml(path)
