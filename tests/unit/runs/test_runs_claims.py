import json
import math

import numpy as np
import pytest
import scipy.stats

from bayesrule.runs.claims import VERDICTS, judge
from bayesrule.runs.paper import Claim, Paper, Point, ScaleSpec, Side, Study
from bayesrule.runs.record import ArmRun, RunRecord

SEEDS = (10, 11, 12, 13, 14)
FIELDS = [
    "id",
    "statement",
    "kind",
    "metric",
    "ours",
    "paper",
    "test",
    "p_value",
    "effect",
    "ci95",
    "n_seeds",
    "verdict",
    "note",
]


def paper_of(*claims, seeds=SEEDS, arms=("a", "b", "c"), **scales):
    spec = {"smoke": ScaleSpec((0,)), "cpu": ScaleSpec(seeds), "paper": ScaleSpec(seeds)}
    study = Study("s", "S", "k/s", dict.fromkeys(arms, ()), spec | scales)
    return Paper("k", "T", "A", 2024, None, None, None, None, (), {"s": study}, claims)


A_AND_B = (Side("a", "m"), Side("b", "m"))


def claim_of(kind="ordering", sides=A_AND_B, **options):
    options.setdefault("studies", {"smoke": "s", "cpu": "s", "paper": "s"})
    tests = {"ordering": "paired-t", "value": "t", "identity": "max-abs", "trend": "spearman"}
    options.setdefault("test", tests[kind])
    return Claim("id", "Statement.", kind, sides=tuple(sides), **options)


def runs_of(seeds=SEEDS, **arms):
    """Runs by arm: a list of values of metric m by seed, or of dicts of metrics."""
    runs = []
    for arm, values in arms.items():
        for seed, value in zip(seeds, values, strict=True):
            if isinstance(value, ArmRun):
                runs.append(value)
            elif value is not None:
                metrics = value if isinstance(value, dict) else {"m": value}
                runs.append(ArmRun("s", arm, seed, f"{arm}{seed}", "done", metrics))
    return runs


def judge_one(claim, runs, scale="cpu", seeds=None, **options):
    (result,) = judge(paper_of(claim, **options), scale, runs, seeds=seeds)
    assert list(result) == FIELDS
    assert result["verdict"] in VERDICTS
    json.dumps(result, allow_nan=False)
    return result


LOWER = claim_of(direction="lower")


@pytest.mark.parametrize("direction", ["lower", "higher"])
@pytest.mark.parametrize("margin", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("shift", [-1.0, -0.25, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("n", [3, 5])
def test_ordering_against_scipy(direction, margin, shift, n):
    rng = np.random.default_rng([n, int(100 * (shift + 2))])
    common = rng.normal(size=n)
    a, b = common + shift + 0.1 * rng.normal(size=n), common + 0.1 * rng.normal(size=n)
    claim = claim_of(direction=direction, margin=margin)
    result = judge_one(claim, runs_of(SEEDS[:n], a=a, b=b), seeds=SEEDS[:n])
    bound = -margin if direction == "lower" else margin
    oracle = scipy.stats.ttest_1samp(
        a - b, bound, alternative="less" if direction == "lower" else "greater"
    )
    ends = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert result["p_value"] == pytest.approx(oracle.pvalue, rel=1e-7)
    assert result["ci95"] == pytest.approx([ends.low, ends.high], rel=1e-7)
    assert result["effect"] == pytest.approx((a - b).mean(), rel=1e-9)
    # the interval lies on the claimed side exactly if the one-sided test rejects at 2.5 %
    expected = "not_shown"
    if oracle.pvalue < 0.025:
        expected = "shown"
    elif oracle.pvalue > 0.975:
        expected = "contradicted"
    assert result["verdict"] == expected
    assert result["n_seeds"] == n
    ours = result["ours"]
    assert ours["left"]["values"] == {str(s): x for s, x in zip(SEEDS, a, strict=False)}
    assert ours["left"]["mean"] == pytest.approx(a.mean())
    assert ours["right"]["mean"] == pytest.approx(b.mean())
    assert ours["cohens_d"] == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    assert ours["relation"] == "left - right"
    assert (ours["mean"], ours["ci95"], ours["n"]) == (result["effect"], result["ci95"], n)


def test_pairing_is_by_seed_not_by_order():
    a = [1.0, 2.0, 3.0, 4.0, 5.0]
    b = [x + 0.1 + 0.001 * i for i, x in enumerate(a)]
    runs = runs_of(a=a, b=b)
    expected = judge_one(LOWER, runs)
    assert expected["verdict"] == "shown"
    assert judge_one(LOWER, runs[::-1]) == expected
    assert judge_one(LOWER, runs[3:] + runs[:3]) == expected


def test_constant_differences_are_exact():
    def verdict(gap, margin=0.0):
        runs = runs_of(a=[1.0, 2.0, 3.0, 4.0, 5.0], b=[x + gap for x in (1, 2, 3, 4, 5)])
        result = judge_one(claim_of(direction="lower", margin=margin), runs)
        assert result["ci95"] == [-gap, -gap]
        assert result["ours"]["cohens_d"] is None
        return result["verdict"], result["p_value"]

    assert verdict(0.5) == ("shown", 0.0)
    assert verdict(-0.5) == ("contradicted", 1.0)
    assert verdict(0.0) == ("not_shown", 1.0)
    assert verdict(0.5, margin=0.5) == ("not_shown", 1.0)
    assert verdict(0.0, margin=-0.5) == ("shown", 0.0)  # not worse


def test_sides_of_different_metrics():
    values = [{"x": 1.0 + i, "y": 2.0 + 1.1 * i} for i in range(5)]
    claim = claim_of(sides=(Side("a", "x"), Side("a", "y")), direction="lower")
    result = judge_one(claim, runs_of(a=values))
    assert result["verdict"] == "shown"
    assert result["metric"] == "x vs y"
    assert result["effect"] == pytest.approx(-1.2)


@pytest.mark.parametrize(
    ("band", "verdict"),
    [
        ((0.6, 0.8), "shown"),
        ((None, 0.8), "shown"),
        ((0.6, None), "shown"),
        ((0.7, 0.8), "not_shown"),
        ((0.8, None), "contradicted"),
        ((None, 0.6), "contradicted"),
        ((0.8, 0.9), "contradicted"),
    ],
)
def test_value_in_a_band(band, verdict):
    values = [0.69, 0.70, 0.71, 0.70, 0.70]
    claim = claim_of("value", (Side("a", "m"),), band=band)
    result = judge_one(claim, runs_of(a=values))
    assert result["verdict"] == verdict
    pvalues = []
    if band[0] is not None:
        pvalues.append(scipy.stats.ttest_1samp(values, band[0], alternative="greater").pvalue)
    if band[1] is not None:
        pvalues.append(scipy.stats.ttest_1samp(values, band[1], alternative="less").pvalue)
    assert result["p_value"] == pytest.approx(max(pvalues), rel=1e-7, abs=1e-12)
    assert (verdict == "shown") == (max(pvalues) <= 0.025)
    assert "right" not in result["ours"]


def test_value_of_a_difference_and_of_a_ratio():
    runs = runs_of(a=[1.1, 2.3, 3.2, 4.5, 5.4], b=[1.0, 2.0, 3.0, 4.0, 5.0])
    ratio = claim_of("value", band=(None, 1.5), relation="ratio")
    result = judge_one(ratio, runs)
    assert result["verdict"] == "shown"
    assert result["effect"] == pytest.approx(np.mean([1.1, 1.15, 3.2 / 3, 1.125, 1.08]))
    assert result["ours"]["relation"] == "left / right"
    assert "left / right" in result["test"]
    difference = judge_one(claim_of("value", band=(-0.1, 0.1)), runs)
    assert difference["verdict"] == "contradicted"
    zero = judge_one(ratio, runs_of(a=[1.0] * 5, b=[1.0, 1.0, 0.0, 1.0, 1.0]))
    assert zero["verdict"] == "not_shown"
    assert "left / right is not finite at seed 12" in zero["note"]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.0] * 5, "shown"),
        ([1e-9, -1e-9, 0.0, 1e-9, 0.0], "shown"),
        ([0.0, 0.0, 0.0, 0.0, -2e-9], "contradicted"),
    ],
)
def test_identity(values, verdict):
    claim = claim_of("identity", (Side("a", "m"),), tolerance=1e-9)
    result = judge_one(claim, runs_of(a=values))
    assert result["verdict"] == verdict
    assert result["ours"]["max_abs"] == max(map(abs, values))
    assert result["p_value"] is None


def trend(direction="decreasing", test="spearman", xs=(1, 4, 16, 64), **options):
    sides = [Point("a", f"k{x}", float(x)) for x in xs]
    return claim_of("trend", sides, direction=direction, test=test, **options)


def curves(rows, xs=(1, 4, 16, 64)):
    return runs_of(a=[dict(zip((f"k{x}" for x in xs), row, strict=True)) for row in rows])


def test_trend_of_slopes_against_scipy():
    rng = np.random.default_rng(3)
    rows = 2.0 - 0.3 * np.log([1, 4, 16, 64]) + 0.02 * rng.normal(size=(5, 4))
    for log_x in (False, True):
        x = np.log([1, 4, 16, 64]) if log_x else np.array([1, 4, 16, 64])
        slopes = [scipy.stats.linregress(x, row).slope for row in rows]
        result = judge_one(trend(test="slope", log_x=log_x), curves(rows))
        ends = scipy.stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
        assert result["ci95"] == pytest.approx([ends.low, ends.high], rel=1e-9)
        assert result["verdict"] == "shown"
        steps = result["ours"]["steps"]
        assert [step["from"] for step in steps] == ["k1", "k4", "k16"]
        assert steps[0]["mean"] == pytest.approx((rows[:, 1] - rows[:, 0]).mean())
    assert [point["x"] for point in result["ours"]["points"]] == [1, 4, 16, 64]
    up = judge_one(trend(direction="increasing", test="slope"), curves(rows))
    assert up["verdict"] == "contradicted"


def test_trend_by_ranks():
    down = [[4 + i, 3 + i, 2.5 + i, 2.4 + i] for i in range(5)]
    result = judge_one(trend(), curves(down))
    assert result["verdict"] == "shown"
    assert result["effect"] == pytest.approx(-1)
    flat = [[1.0, 1.0, 1.0, 1.0]] * 5
    assert judge_one(trend(), curves(flat))["verdict"] == "not_shown"
    mixed = [[4, 3, 2, 1], [1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4], [4, 3, 2, 1]]
    assert judge_one(trend(), curves(mixed))["verdict"] == "not_shown"
    margin = judge_one(trend(margin=0.9), curves([[4, 3, 2, 1]] * 3 + [[4, 3, 1, 2]] * 2))
    assert margin["verdict"] == "not_shown"


def test_a_trend_with_a_sure_step_back_is_not_monotone():
    rows = [[4 + i, 3 + i, 2 + i, 2.5 + i] for i in range(5)]
    result = judge_one(trend(), curves(rows))
    assert result["ci95"][1] < 0
    assert result["verdict"] == "not_shown"
    assert "k16 to k64" in result["note"]
    noisy = [[4, 3, 2, 1.9], [4, 3, 2, 2.1], [4, 3, 2, 2.1], [4, 3, 2, 1.9], [4, 3, 2, 1.9]]
    assert judge_one(trend(), curves(noisy))["verdict"] == "shown"  # within noise


def test_trend_over_arms_names_the_arms():
    sides = [Point(arm, "m", float(i)) for i, arm in enumerate("abc")]
    claim = claim_of("trend", sides, direction="increasing")
    result = judge_one(claim, runs_of(a=[1.0] * 5, b=[2.0] * 5, c=[3.0] * 5))
    assert result["verdict"] == "shown"
    assert [step["to"] for step in result["ours"]["steps"]] == ["b", "c"]


BETTER = [1.0, 1.1, 1.2, 1.1, 1.0]
WORSE = [2.0, 2.2, 2.1, 2.3, 2.0]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_seeds_decide_nothing(n):
    runs = runs_of(SEEDS[:n], a=BETTER[:n], b=WORSE[:n])
    for claim in (
        LOWER,
        claim_of("value", (Side("a", "m"),), band=(0, 9)),
        claim_of("identity", (Side("a", "m"),), tolerance=9.0),
        claim_of("trend", [Point(a, "m", i) for i, a in enumerate("abc")], direction="increasing"),
    ):
        result = judge_one(claim, runs)
        assert result["verdict"] == "not_enough_seeds"
        assert result["p_value"] is None
        assert "at least 3" in result["note"]
        assert "not run" in result["note"]


def test_missing_seeds_are_named_and_the_rest_is_judged():
    runs = runs_of(a=BETTER, b=[None, 2.2, 2.1, 2.3, None])
    result = judge_one(LOWER, runs)
    assert result["verdict"] == "shown"
    assert result["n_seeds"] == 3
    assert "left out: b seeds 10, 14: not run" in result["note"]
    assert result["ours"]["right"]["values"]["10"] is None
    assert result["ours"]["left"]["n"] == 5
    oracle = scipy.stats.ttest_rel(BETTER[1:4], [2.2, 2.1, 2.3], alternative="less")
    assert result["p_value"] == pytest.approx(oracle.pvalue)


def failed(arm, seed):
    record = RunRecord("0" * 16, "failed", {"m": 0.5}, ("NonFiniteLoss", "step 7:\nnll is nan"))
    return ArmRun.of("s", arm, seed, record.id, record)


def test_a_diverged_baseline_is_stated_as_evidence():
    runs = runs_of(a=BETTER, b=[failed("b", 10), *WORSE[1:]])
    result = judge_one(LOWER, runs)
    assert result["verdict"] == "shown"
    assert result["n_seeds"] == 4
    assert "b seed 10: failed (NonFiniteLoss: step 7: nll is nan)" in result["note"]
    all_diverged = judge_one(LOWER, runs_of(a=BETTER, b=[failed("b", seed) for seed in SEEDS]))
    assert all_diverged["verdict"] == "not_enough_seeds"
    assert "10, 11, 12, 13, 14: failed (NonFiniteLoss" in all_diverged["note"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_failure_of_the_side_claimed_better_is_never_shown_by_the_rest(bad):
    first = failed("a", 10) if bad is None else {"m": bad}
    result = judge_one(LOWER, runs_of(a=[first, *BETTER[1:]], b=WORSE))
    assert result["verdict"] == "not_shown"
    assert "the others cannot show it" in result["note"]
    assert ("failed (" if bad is None else f"m is {bad}") in result["note"]
    assert result["p_value"] < 0.01  # what the rest says stays visible
    worse = judge_one(LOWER, runs_of(a=[first, *WORSE[1:]], b=BETTER))
    assert worse["verdict"] == "contradicted"


def test_a_non_finite_value_counts_against_every_other_kind():
    runs = runs_of(a=[0.5, 0.5, 0.5, 0.5, math.nan])
    for claim in (
        claim_of("value", (Side("a", "m"),), band=(0, 1)),
        claim_of("identity", (Side("a", "m"),), tolerance=1.0),
    ):
        result = judge_one(claim, runs)
        assert result["verdict"] == "not_shown"
        assert "m is nan" in result["note"]


def test_stopped_runs_and_unknown_metrics_are_said():
    stopped = ArmRun("s", "b", 10, "x", "stopped", {"m": 9.0})
    result = judge_one(LOWER, runs_of(a=BETTER, b=[stopped, *WORSE[1:]]))
    assert "b seed 10: stopped" in result["note"]
    typo = claim_of(sides=(Side("a", "test/nll@mc6"), Side("b", "test/nll@mc6")), direction="lower")
    runs = runs_of(a=[{"test/nll@mc64": 1.0}] * 5, b=[{"test/nll@mc64": 2.0}] * 5)
    result = judge_one(typo, runs)
    assert result["verdict"] == "not_enough_seeds"
    assert "nearest: test/nll@mc64" in result["note"]


def test_overflow_of_a_difference_is_said():
    runs = runs_of(a=[1e308] * 5, b=[-1e308] * 5)
    result = judge_one(LOWER, runs)
    assert result["verdict"] == "not_shown"
    assert "not finite" in result["note"]


def test_scales():
    runs = runs_of(a=BETTER, b=WORSE)
    at_paper = claim_of(direction="lower", scale="paper")
    assert judge_one(at_paper, runs, "paper")["verdict"] == "shown"
    low = judge_one(at_paper, runs, "cpu")
    assert low["verdict"] == "not_at_this_scale"
    assert low["p_value"] is None
    assert low["ours"]["left"]["mean"] == pytest.approx(np.mean(BETTER))
    smoke = judge_one(LOWER, runs_of((0,), a=[1.0], b=[2.0]), "smoke")
    assert smoke["verdict"] == "not_at_this_scale"
    nowhere = claim_of(direction="lower", studies={"cpu": "s"})
    assert judge_one(nowhere, runs, "paper")["verdict"] == "not_at_this_scale"
    subset = judge_one(LOWER, runs, "paper", paper=ScaleSpec(SEEDS, arms=("a",)))
    assert subset["verdict"] == "not_at_this_scale"
    assert "arm b is not run" in subset["note"]


def test_only_declared_seeds_are_judged():
    seeds = (*SEEDS, 15, 16)
    runs = runs_of(seeds, a=[*BETTER, 99.0, 99.0], b=[*WORSE, 0.0, 0.0])
    assert judge_one(LOWER, runs)["verdict"] == "shown"
    assert judge_one(LOWER, runs)["n_seeds"] == 5
    assert judge_one(LOWER, runs, seeds=seeds)["verdict"] == "not_shown"


def test_notes_and_reported_numbers_are_passed_on():
    claim = claim_of(
        direction="lower", reported={"source": "Table 1", "left": 0.9}, note="Weak form."
    )
    result = judge_one(claim, runs_of(a=BETTER, b=WORSE))
    assert result["paper"] == {"source": "Table 1", "left": 0.9}
    assert result["note"] == "Weak form"
    assert result["test"] == "paired t by seed: 95% CI of left - right < 0"


def test_two_records_of_one_run_are_refused():
    runs = runs_of(a=BETTER, b=WORSE)
    with pytest.raises(ValueError, match="two records"):
        judge(paper_of(LOWER), "cpu", [*runs, runs[0]])


def test_false_claims_are_rarely_shown():
    """Where nothing is there, `shown` comes up in at most 2.5 % of studies."""
    rng = np.random.default_rng(5)
    paper = paper_of(LOWER)
    verdicts = []
    for _ in range(2000):
        a, b = rng.normal(size=(2, 5))
        verdicts.append(judge(paper, "cpu", runs_of(a=a, b=b))[0]["verdict"])
    for verdict in ("shown", "contradicted"):
        assert verdicts.count(verdict) / 2000 < 0.025 + 4 * math.sqrt(0.025 * 0.975 / 2000)
        assert verdicts.count(verdict) > 0
