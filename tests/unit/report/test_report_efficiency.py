"""Sample-efficiency curves: what is drawn is the bootstrap of the records' curves."""

import csv

import pytest

from bayesrule.report import Records, sample_efficiency
from bayesrule.runs import ArmRun, RunStore
from bayesrule.runs.bootstrap import stratified_bootstrap

RETURNS = {
    ("hills", "slow"): [[0.0, 10.0, 20.0], [2.0, 12.0, 24.0], [1.0, 11.0, 21.0]],
    ("hills", "fast"): [[5.0, 60.0, 90.0], [4.0, 55.0, 95.0], [6.0, 65.0, 100.0]],
    ("caves", "slow"): [[-100.0, -90.0, -80.0], [-100.0, -95.0, -85.0], [-100.0, -92.0, -81.0]],
    ("caves", "fast"): [[-100.0, -50.0, -10.0], [-90.0, -40.0, -5.0], [-95.0, -45.0, 0.0]],
}
SCORES = {"hills": (0.0, 100.0), "caves": (-100.0, 0.0)}
STEPS = [1000, 2000, 3000]


@pytest.fixture
def records(tmp_path):
    store, runs = RunStore(tmp_path / "runs"), []
    for (study, arm), curves in RETURNS.items():
        for seed, values in enumerate(curves):
            low, high = SCORES[study]
            config = {
                "env": {"name": study, "score_low": low, "score_high": high},
                "task": {"arm": arm},
                "seed": seed,
            }
            # in the last run of an arm no game ended in the second window
            steps = STEPS if seed < 2 else [STEPS[0], STEPS[2]]
            kept = values if seed < 2 else [values[0], values[2]]
            with store.folder(config).lock() as folder:
                record = folder.write_record(
                    "done",
                    {"train/auc": sum(values)},
                    details={"curves": {"train/return": {"step": steps, "value": kept}}},
                )
            runs.append(ArmRun.of(study, arm, seed, record.id, record))
    return Records(runs, store)


def rows_of(path):
    with path.open() as file:
        return {(r["panel"], r["arm"], int(r["step"])): r for r in csv.DictReader(file)}


def test_panels_and_scores(records, tmp_path):
    paths = sample_efficiency(records, ["hills", "caves"], tmp_path)
    assert {path.suffix for path in paths} == {".svg", ".png", ".csv"}
    rows = rows_of(tmp_path / "hills-efficiency.csv")
    assert len(rows) == 3 * 2 * 3
    assert float(rows["hills", "slow", 3000]["estimate"]) == pytest.approx(65.0 / 3)
    # the window without a game keeps the value before it
    assert float(rows["hills", "slow", 2000]["estimate"]) == pytest.approx((10 + 12 + 1) / 3)
    fast = [
        [[x / 100 for x in [r[0], r[0], r[2]]] if n == 2 else [x / 100 for x in r]
         for n, r in enumerate(RETURNS["hills", "fast"])],
        [[(x + 100) / 100 for x in [r[0], r[0], r[2]]] if n == 2 else [(x + 100) / 100 for x in r]
         for n, r in enumerate(RETURNS["caves", "fast"])],
    ]  # fmt: skip
    expected = stratified_bootstrap(fast, statistic="iqm")
    for place, step in enumerate(STEPS):
        row = rows["score", "fast", step]
        found = [float(row[name]) for name in ("estimate", "low", "high")]
        assert found == pytest.approx(
            [expected.estimate[place], expected.low[place], expected.high[place]]
        )


def test_one_study_has_no_score(records, tmp_path):
    sample_efficiency(records, ["hills", "nowhere"], tmp_path, arms=["fast"], name="one")
    assert {(panel, arm) for panel, arm, _ in rows_of(tmp_path / "one.csv")} == {("hills", "fast")}


def test_nothing_to_draw(records, tmp_path):
    assert sample_efficiency(records, ["nowhere"], tmp_path) == []
    assert sample_efficiency(records, ["hills"], tmp_path, curve="no/such") == []
