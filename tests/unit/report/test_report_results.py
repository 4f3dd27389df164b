"""Records of a paper, results tables and the scoreboard, from files written by the runs room."""

import json

import numpy as np
import pytest
from report_cases import ARMS, SEEDS, make_records
from scipy import stats

from bayesrule.errors import BayesruleError, CorruptFile
from bayesrule.report import (
    Records,
    read_table,
    results_table,
    verdict_counts,
    verdict_table,
)
from bayesrule.report.scoreboard import BEGIN, END, replace_scoreboard, scoreboard, standings
from bayesrule.runs import ArmRun, RunStore, load_paper, write_results

PAPER = """
paper: {title: "Noisy | digits", authors: A. Author, year: 2024, venue: ICML 2024, task: toy,
        posteriors: [diagonal Gaussian]}
studies:
  p2:
    experiment: ivon/p2
    arms: {adamw: [], sgd: [], ivon: []}
    scales: {smoke: {seeds: "10"}, cpu: {seeds: 10-14}, paper: {seeds: 0-4}}
    metrics: [test/nll@mc64, test/acc@mean, test/missing@mean]
    reported: {source: Table 1, values: {ivon: {test/nll@mc64: 0.912}}}
claims:
  - {id: nll, statement: IVON has lower NLL than AdamW after training., study: p2, kind: ordering,
     metric: test/nll@mc64, arms: [ivon, adamw], direction: lower,
     paper: {source: Table 1, left: 0.912, right: 3.357}}
  - {id: reversed, statement: SGD has lower NLL than IVON., study: p2, kind: ordering,
     metric: test/nll@mc64, arms: [sgd, ivon], direction: lower}
  - {id: big, statement: Only at paper scale., study: p2, kind: ordering, scale: paper,
     metric: test/nll@mc64, arms: [ivon, sgd], direction: lower}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    for key in ("ivon", "later"):
        (root / "experiments" / key).mkdir(parents=True)
        (root / "experiments" / key / "paper.yaml").write_text(PAPER)
    records = make_records(root)
    runs = [records.run("p2", arm, seed) for arm in ARMS for seed in SEEDS]
    source = {"commit": "0123456789abcdef", "dirty": True, "date": "2026-01-02T03:04:05+00:00"}
    runs = [ArmRun(**(vars(run) | {"provenance": source})) for run in runs]
    paper = load_paper(root / "experiments" / "ivon")
    write_results(root / "results" / "ivon" / "cpu", paper, "cpu", runs)
    write_results(root / "results" / "ivon" / "smoke", paper, "smoke", runs[::5])
    return root


@pytest.fixture(scope="module")
def folder(checkout):
    return checkout / "results" / "ivon" / "cpu"


def claims_of(folder):
    return json.loads((folder / "claims.json").read_text())["claims"]


def test_records_of_a_results_folder(checkout, folder):
    records = Records.read(folder, RunStore(checkout / "runs"))
    assert records.studies() == ["p2"]
    assert records.arms("p2") == list(ARMS)
    assert records.arms("p2", ["ivon", "unknown", "sgd"]) == ["ivon", "sgd"]
    assert records.seeds("p2", "ivon") == list(SEEDS)
    record = records.record("p2", "ivon", 10)
    assert record.config["posterior"]["name"] == "ivon"
    assert records.values("p2", "ivon", "test/nll@mc8")[10] == record.metrics["test/nll@mc8"]
    assert records.rule("p2", "ivon", "test/nll") == "mc64"
    assert records.rule("p2", "ivon", "test/unknown") == "mean"
    assert records.rule("p2", "ivon", "test/nll", "lin") == "lin"
    assert records.history("p2", "ivon", 10)[0]["epoch"] == 0
    assert records.curve("p2", "ivon", 10, "unknown") is None


def test_records_that_are_not_there_are_named(checkout, folder):
    records = Records.read(folder, RunStore(checkout / "elsewhere"))
    with pytest.raises(BayesruleError, match=r"unknown arm 'ivom' \(there is: ivon\)"):
        records.run("p2", "ivom", 10)
    with pytest.raises(BayesruleError, match="unknown seed '99'"):
        records.run("p2", "ivon", 99)
    with pytest.raises(BayesruleError):
        records.history("p2", "ivon", 10)
    gone = Records([ArmRun("p2", "ivon", 1, None, "done", {})], RunStore(checkout / "runs"))
    with pytest.raises(BayesruleError, match="reproduce"):
        gone.record("p2", "ivon", 1)


def test_results_table_has_mean_interval_and_the_papers_number(checkout, folder):
    text = results_table(read_table(folder), width=200)
    header, _, *body = text.splitlines()
    assert header.split() == ["p2", "test/nll@mc64", "paper", "test/acc@mean"]
    lines = {line.split()[0]: line.split() for line in body if "±" in line and "mean ±" not in line}
    records = Records.read(folder, RunStore(checkout / "runs"))
    for arm in ARMS:
        nll = np.array(list(records.values("p2", arm, "test/nll@mc64").values()))
        half = stats.t.ppf(0.975, 4) * nll.std(ddof=1) / np.sqrt(5)
        assert float(lines[arm][1]) == pytest.approx(nll.mean(), abs=1e-3)
        assert float(lines[arm][3]) == pytest.approx(half, rel=0.05)
    assert lines["ivon"][4] == "0.9120"
    assert "test/missing@mean" in text.splitlines()[-1]
    assert "5 seeds" in text.splitlines()[-1]


def test_a_wide_results_table_is_cut_into_blocks(folder):
    text = results_table(read_table(folder), width=40)
    assert max(map(len, text.splitlines()[:-1])) <= 40
    assert text.count("ivon") == 2
    assert text.splitlines()[0].split() == ["p2", "test/nll@mc64", "paper"]


def test_verdict_table_has_effect_interval_and_statement(folder):
    claims = claims_of(folder)
    text = verdict_table(claims, width=120)
    line = next(line for line in text.splitlines() if line.startswith("nll"))
    low, high = claims[0]["ci95"]
    assert f"{claims[0]['effect']:.3g} [{low:.3g}, {high:.3g}]" in line
    assert "  shown " in line
    assert "contradicted" in next(x for x in text.splitlines() if x.startswith("reversed"))
    assert "paper: Table 1: left 0.912, right 3.357" in text
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[-1] == "1 shown, 1 contradicted, 1 not at this scale"
    assert verdict_table([]) == "no claims"
    assert verdict_counts([]) == "no claims"


def test_damaged_results_are_said(tmp_path):
    with pytest.raises(BayesruleError, match="no results"):
        read_table(tmp_path)
    (tmp_path / "table.csv").write_text("study,arm\np2,ivon\n")
    with pytest.raises(CorruptFile, match="damaged"):
        read_table(tmp_path)


def test_scoreboard_has_a_row_per_paper_and_judged_scale(checkout):
    found, problems = standings(checkout / "experiments", checkout / "results")
    assert problems == []
    assert [standing.paper.key for standing in found] == ["ivon", "later"]
    lines = scoreboard(found).splitlines()
    assert lines[0].startswith("| paper | venue | scale | shown | not shown | contradicted |")
    assert len(lines) == 4  # smoke judges nothing
    assert all(line.replace("\\|", "").count("|") == 9 for line in lines)
    assert "| [cpu](results/ivon/cpu/table.md) | 1: `nll` | 0 | 1: `reversed` |" in lines[2]
    assert lines[2].endswith("| 2026-01-02 | `01234567+` |")
    assert "not run yet" in lines[3]
    assert "[Noisy \\| digits](experiments/ivon/README.md)" in lines[2]


def test_standings_as_data(checkout):
    found, _ = standings(checkout / "experiments", checkout / "results", full=True)
    data = json.loads(json.dumps(found[0].to_json()))
    assert data["key"] == "ivon"
    assert data["posteriors"] == ["diagonal Gaussian"]
    verdicts = {claim["id"]: claim["verdicts"]["cpu"] for claim in data["claims"]}
    assert verdicts == {"nll": "shown", "reversed": "contradicted", "big": "not_at_this_scale"}
    assert data["results"]["cpu"]["commit"] == "01234567+"


@pytest.mark.parametrize("text", [PAPER, "# a note\n" + PAPER.replace("paper: {", "paper:  {")])
def test_the_short_way_of_reading_a_paper_gives_the_same_facts(text, tmp_path):
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "paper.yaml").write_text(text)
    short, long = (standings(tmp_path, tmp_path, full=full)[0][0].paper for full in (False, True))
    assert short.claims == ()
    assert len(long.claims) == 3
    for name in ("key", "title", "authors", "year", "venue", "arxiv", "task", "posteriors"):
        assert getattr(short, name) == getattr(long, name)


def test_a_wrong_paper_does_not_hide_the_others(checkout, tmp_path):
    for key, text in (("good", PAPER), ("wrong", "paper: 3\n")):
        (tmp_path / key).mkdir()
        (tmp_path / key / "paper.yaml").write_text(text)
    found, problems = standings(tmp_path, checkout / "results")
    assert [standing.paper.key for standing in found] == ["good"]
    assert len(problems) == 1
    assert "wrong" in problems[0]
    assert scoreboard([]) == "No papers yet."


def test_only_the_text_between_the_marks_is_replaced():
    readme = f"# head\n{BEGIN}\nold\n{END}\ntail\n"
    new = replace_scoreboard(readme, "| new |")
    assert new == f"# head\n{BEGIN}\n| new |\n{END}\ntail\n"
    assert replace_scoreboard(new, "| new |") == new
    for wrong in ("# head\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"):
        with pytest.raises(BayesruleError, match="scoreboard:begin"):
            replace_scoreboard(wrong, "")
