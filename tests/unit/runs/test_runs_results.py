import csv
import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from bayesrule.errors import BayesruleError, CorruptFile
from bayesrule.runs.paper import Claim, Paper, ScaleSpec, Side, Study
from bayesrule.runs.record import ArmRun, RunRecord
from bayesrule.runs.results import (
    list_results,
    read_claims,
    read_runs,
    rejudge,
    write_results,
)
from bayesrule.runs.statistics import Interval, mean_interval
from bayesrule.runs.tables import format_interval, make_cells, render_csv, render_markdown

SEEDS = (10, 11, 12, 13)


def make_paper(margin=0.0, seeds=SEEDS, metrics=("test/nll@mean", "test/acc@mean")):
    study = Study(
        name="s",
        title="A | study",
        experiment="k/s",
        arms={"ours": (), "base": ()},
        scales={"smoke": ScaleSpec((0,)), "cpu": ScaleSpec(seeds)},
        metrics=metrics,
        reported={"ours": {"test/nll@mean": 0.25}},
        source="Table 3",
    )
    claim = Claim(
        "c1",
        "Ours is lower.",
        "ordering",
        {"smoke": "s", "cpu": "s"},
        (Side("ours", "test/nll@mean"), Side("base", "test/nll@mean")),
        test="paired-t",
        direction="lower",
        margin=margin,
    )
    return Paper("k", "Title", "A", 2024, None, None, None, None, (), {"s": study}, (claim,))


def make_runs(seeds=SEEDS):
    rng = np.random.default_rng(0)
    runs = []
    for arm, shift in (("ours", 0.0), ("base", 0.5)):
        for seed in seeds:
            metrics = {
                "test/nll@mean": shift + float(rng.normal(0.3, 0.01)),
                "test/acc@mean": 0.75,
                "train/loss": float(rng.normal()),
            }
            provenance = {"commit": "abc", "dirty": False, "wall_seconds": 1.0, "date": "2026"}
            record = RunRecord("0" * 16, "done", metrics, provenance=provenance)
            runs.append(ArmRun.of("s", arm, seed, f"{arm}-{seed}", record))
    return runs


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written(tmp_path):
    folder = tmp_path / "k" / "cpu"
    claims = write_results(folder, make_paper(), "cpu", make_runs())
    assert sorted(contents(folder)) == [
        "claims.json",
        "provenance.json",
        "runs.csv",
        "table.csv",
        "table.md",
    ]
    stored = json.loads((folder / "claims.json").read_text())
    assert list(stored) == ["schema", "key", "scale", "claims"]
    assert (stored["schema"], stored["key"], stored["scale"]) == (1, "k", "cpu")
    assert stored["claims"] == claims == read_claims(folder)
    assert claims[0]["verdict"] == "shown"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["commit"] == "abc"
    assert provenance["wall_seconds"] == 8.0
    assert provenance["seeds"] is None
    with (folder / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 3
    assert {row["metric"] for row in rows} == {"test/nll@mean", "test/acc@mean", "train/loss"}


def test_running_again_changes_nothing_but_provenance(tmp_path):
    folder = tmp_path / "cpu"
    runs = make_runs()
    write_results(folder, make_paper(), "cpu", runs)
    before = contents(folder)
    random.Random(0).shuffle(runs)
    later = [ArmRun(**(vars(run) | {"provenance": {"date": "2027"}})) for run in runs]
    write_results(folder, make_paper(), "cpu", later)
    after = contents(folder)
    assert before.pop("provenance.json") != after.pop("provenance.json")
    assert before == after


def test_runs_round_trip_exactly(tmp_path):
    runs = make_runs()
    strange = {"a": math.nan, "b": -math.inf, "c": 5e-324, "d": 0.1 + 0.2, 'e,"f"': 1e300}
    runs[1] = ArmRun("s", "ours", 11, "x", "done", strange)
    runs[2] = ArmRun("s", "ours", 12, "y", "failed", {}, 'NonFiniteLoss: "nan", at step 7')
    runs[3] = ArmRun("s", "ours", 13)
    runs[4] = ArmRun("s", "base", 10, "z", "done", {})
    write_results(tmp_path, make_paper(), "cpu", runs)
    back = read_runs(tmp_path)
    assert [repr((r.study, r.arm, r.seed, r.run, r.status, r.error)) for r in back] == [
        repr((r.study, r.arm, r.seed, r.run, r.status, r.error)) for r in runs
    ]
    for ours, theirs in zip(back, runs, strict=True):
        assert list(map(repr, sorted(ours.metrics.items()))) == list(
            map(repr, sorted(theirs.metrics.items()))
        )


def test_planned_runs_without_a_record_are_written_as_missing(tmp_path):
    claims = write_results(tmp_path, make_paper(), "cpu", make_runs()[1:])
    missing = [run for run in read_runs(tmp_path) if run.status == "missing"]
    assert [(run.arm, run.seed) for run in missing] == [("ours", 10)]
    assert "ours seed 10: not run" in claims[0]["note"]
    assert claims[0]["n_seeds"] == 3


def test_runs_of_something_else_are_refused(tmp_path):
    for wrong in (ArmRun("s", "ours", 99), ArmRun("s", "x", 10), ArmRun("t", "ours", 10)):
        with pytest.raises(BayesruleError, match="not among the runs"):
            write_results(tmp_path, make_paper(), "cpu", [wrong])
    assert not list(tmp_path.iterdir())


def test_verdicts_come_from_the_committed_files_alone(tmp_path):
    claims = write_results(tmp_path, make_paper(), "cpu", make_runs())
    (tmp_path / "claims.json").unlink()
    assert rejudge(tmp_path, make_paper()) == claims
    assert not (tmp_path / "claims.json").exists()
    before = {k: v for k, v in contents(tmp_path).items() if k.startswith("table")}
    assert rejudge(tmp_path, make_paper(), write=True) == claims
    assert read_claims(tmp_path) == claims
    assert {k: v for k, v in contents(tmp_path).items() if k.startswith("table")} == before


def test_a_changed_claim_or_number_changes_the_verdict(tmp_path):
    write_results(tmp_path, make_paper(), "cpu", make_runs())
    assert rejudge(tmp_path, make_paper(margin=0.9))[0]["verdict"] == "contradicted"
    more = rejudge(tmp_path, make_paper(seeds=(*SEEDS, 14)))[0]
    assert more["n_seeds"] == 4
    assert "ours, base" not in more["note"]
    assert "ours seed 14: not run" in more["note"]
    assert rejudge(tmp_path, make_paper(seeds=SEEDS[:3]))[0]["n_seeds"] == 3
    text = (tmp_path / "runs.csv").read_text()
    lines = [
        line.replace(",0.", ",9.") if ",ours," in line and "nll" in line else line
        for line in text.splitlines()
    ]
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    assert rejudge(tmp_path, make_paper())[0]["verdict"] == "contradicted"


def test_other_seeds_are_kept_and_judged_again_as_they_were(tmp_path):
    seeds = (100, 101, 102, 103)
    claims = write_results(
        tmp_path, make_paper(), "cpu", make_runs(seeds), seeds=seeds, overrides=["posterior.lr=1"]
    )
    assert claims[0]["verdict"] == "shown"
    assert set(claims[0]["ours"]["left"]["values"]) == {"100", "101", "102", "103"}
    assert rejudge(tmp_path, make_paper()) == claims
    assert json.loads((tmp_path / "provenance.json").read_text())["overrides"] == ["posterior.lr=1"]


def test_damage_and_absence_are_said(tmp_path):
    with pytest.raises(BayesruleError, match="no results"):
        read_runs(tmp_path)
    with pytest.raises(BayesruleError, match="no results"):
        read_claims(tmp_path)
    write_results(tmp_path, make_paper(), "cpu", make_runs())
    whole = (tmp_path / "runs.csv").read_text()
    lines = whole.splitlines()
    for change in (
        "\n".join(lines[1:]),
        "\n".join([*lines, lines[-1]]),
        "\n".join([*lines, lines[-1].rpartition(",")[0]]),
        whole.replace(",done,", ",perhaps,", 1),
        whole.replace(",10,", ",ten,", 1),
        whole.replace(",0.75,", ",high,", 1),
        whole.replace("ours-11", "ours-xx", 1),
    ):
        (tmp_path / "runs.csv").write_text(change)
        with pytest.raises(CorruptFile, match=r"runs\.csv, line \d+"):
            read_runs(tmp_path)
    (tmp_path / "runs.csv").write_text(whole)
    other = make_paper()
    object.__setattr__(other, "key", "other")
    with pytest.raises(BayesruleError, match="no results of other"):
        rejudge(tmp_path, other)
    (tmp_path / "provenance.json").unlink()
    with pytest.raises(BayesruleError, match="no results"):
        rejudge(tmp_path, make_paper())
    for text in ('{"schema": 2, "claims": []}', '{"schema": 1}', "{"):
        (tmp_path / "claims.json").write_text(text)
        with pytest.raises(CorruptFile):
            read_claims(tmp_path)


def test_list_results(tmp_path):
    assert list_results(tmp_path) == {}
    write_results(tmp_path / "k" / "cpu", make_paper(), "cpu", make_runs())
    write_results(tmp_path / "k" / "smoke", make_paper(), "smoke", make_runs((0,)))
    (tmp_path / "k" / "notes").mkdir()
    found = list_results(tmp_path)
    assert list(found) == ["k"]
    assert list(found["k"]) == ["smoke", "cpu"]
    assert found["k"]["cpu"][0]["verdict"] == "shown"
    assert found["k"]["smoke"][0]["verdict"] == "not_at_this_scale"


def test_reading_verdicts_needs_no_numerics(tmp_path):
    write_results(tmp_path / "k" / "cpu", make_paper(), "cpu", make_runs())
    code = (
        "import sys; from bayesrule.runs import list_results; list_results(sys.argv[1]);"
        "print([m for m in ('numpy', 'scipy', 'yaml', 'torch') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert out.stdout.strip() == "[]"


def test_table_numbers():
    runs = make_runs()
    runs[0] = ArmRun("s", "ours", 10, "x", "failed", {})
    runs[1] = ArmRun("s", "ours", 11, "x", "done", {"test/nll@mean": math.nan, "test/acc@mean": 1})
    cells = make_cells(make_paper(), "cpu", runs)
    assert [(cell.arm, cell.metric) for cell in cells] == [
        ("ours", "test/nll@mean"),
        ("ours", "test/acc@mean"),
        ("base", "test/nll@mean"),
        ("base", "test/acc@mean"),
    ]
    nll, acc, base, _ = cells
    assert (nll.n, nll.planned, nll.lost, nll.reported) == (2, 4, 2, 0.25)
    assert (acc.n, acc.lost) == (3, 1)
    assert base.interval == mean_interval([run.metrics["test/nll@mean"] for run in runs[4:]])
    assert nll.text().endswith("(2 of 4 seeds, 2 failed) [0.25]")
    rows = list(csv.reader(render_csv(cells).splitlines()))
    assert rows[0][-1] == "paper"
    assert float(rows[3][3]) == base.interval.mean
    assert rows[3][5:] == ["4", "4", "0", ""]
    text = render_markdown(make_paper(), "cpu", cells, [])
    assert "(2 of 4 seeds, 2 failed)" in text
    assert "Paper: Table 3." in text


def test_a_metric_that_an_arm_does_not_measure_is_a_dash_and_a_missing_run_is_not():
    runs = make_runs()
    for run in runs[4:]:
        run.metrics.pop("test/acc@mean")
    acc = make_cells(make_paper(), "cpu", runs)[3]
    assert (acc.arm, acc.metric, acc.absent, acc.text()) == ("base", "test/acc@mean", True, "–")
    unfinished = make_cells(make_paper(), "cpu", runs[:-1])[3]
    assert unfinished.text() == "(0 of 4 seeds)"


def test_columns_without_a_list_are_those_of_the_claims_or_all():
    paper = make_paper(metrics=())
    assert {cell.metric for cell in make_cells(paper, "cpu", make_runs())} == {"test/nll@mean"}
    object.__setattr__(paper, "claims", ())
    assert [cell.metric for cell in make_cells(paper, "cpu", make_runs())][:3] == [
        "test/acc@mean",
        "test/nll@mean",
        "train/loss",
    ]
    assert make_cells(paper, "paper", make_runs()) == []


def test_markdown_has_one_form_for_all_rows(tmp_path):
    write_results(tmp_path, make_paper(), "cpu", make_runs())
    text = (tmp_path / "table.md").read_text()
    assert "## Claims" in text
    assert "shown" in text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        counts = {line.replace("\\|", "").count("|") for line in block}
        assert len(counts) == 1


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.73456, 0.01234, "0.735 ± 0.012"),
        (123.456, 7.6, "123.5 ± 7.6"),
        (123.456, 76.0, "123 ± 76"),
        (12345.6, 123.0, "12346 ± 123"),
        (0.5, 3e-9, "0.5 ± 3e-09"),
        (2.34567e7, 1.2e5, "2.346e+07 ± 1.2e+05"),
        (0.25, 0.0, "0.25 ± 0"),
        (-1.0, 0.5, "-1.00 ± 0.50"),
    ],
)
def test_numbers_for_people(mean, half, text):
    ends = (mean - half, mean + half)
    interval = Interval(mean, half, 5, ends)
    if half and half < 1e-6:
        assert format_interval(interval).startswith("0.5")
    else:
        assert format_interval(interval) == text
    assert format_interval(Interval(mean, 0.0, 1, None)) == f"{mean:.4g}"
