"""Generated from experiments/: every paper is whole, and everything in it can be planned."""

import csv
import functools
import re
from fnmatch import fnmatchcase

import pytest
from experiment_rules import rules

from bayesrule.config import compose, conf_dir, experiments_dir, locate, root_dir
from bayesrule.runs import SCALES, find_papers, load_paper, run_id
from bayesrule.tasks.plan import plan_paper
from bayesrule.tasks.study import configurations

KEYS = find_papers(experiments_dir())
PAPERS = {key: load_paper(experiments_dir() / key) for key in KEYS}
STUDIES = [
    (key, scale, study.name)
    for key, paper in PAPERS.items()
    for study in paper.studies.values()
    for scale in study.scales
]
CLAIMS = [(key, claim.id) for key, paper in PAPERS.items() for claim in paper.claims]


def test_there_are_papers():
    assert KEYS


@pytest.mark.parametrize("key", KEYS)
def test_a_paper_has_its_files_and_is_run_at_smoke_scale(key):
    folder, paper = experiments_dir() / key, PAPERS[key]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {paper.title}")
    assert f"make reproduce-{key}" in readme
    assert paper.arxiv is None or paper.arxiv in readme
    named = re.findall(r"`([^`\n]+)`", readme)
    unnamed = [s for s in paper.studies if not any(fnmatchcase(s, word) for word in named)]
    assert not unnamed, "studies that the README does not name"
    assert callable(locate(f"experiments.{key}.figures.figures", root=root_dir()))
    assert "smoke" in paper.scales
    assert paper.claims


@functools.cache
def stored_ids(key, scale):
    """Return the ids of the committed runs by study, arm and seed."""
    path = root_dir() / "results" / key / scale / "runs.csv"
    if not path.is_file():
        return {}
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {(r["study"], r["arm"], int(r["seed"])): r["run"] for r in rows if r["run"]}


@pytest.mark.parametrize(("key", "scale", "study"), STUDIES)
def test_every_arm_composes_and_its_model_fits_its_data(key, scale, study):
    arms = plan_paper(PAPERS[key], scale, [study])
    assert [plan.arm for plan in arms] == list(PAPERS[key].studies[study].arms_at(scale))
    ids = {run_id(plan.config) for plan in arms}
    assert len(ids) == len(arms), "two arms are the same run"
    stored = stored_ids(key, scale)
    stale = [
        plan.arm
        for plan in arms
        if stored.get((study, plan.arm, plan.config["seed"]), run_id(plan.config))
        != run_id(plan.config)
    ]
    assert not stale, "results were committed of other configurations (see runs.identity.NEUTRAL)"
    for plan in arms:
        assert plan.config["scale"] == scale
        assert plan.parameters > 0 or "model" not in plan.config
        assert plan.steps > 0


@pytest.mark.parametrize("key", [path.name for path in (conf_dir() / "experiment").glob("*/")])
def test_every_experiment_file_belongs_to_a_study(key):
    used = {
        name
        for study in PAPERS[key].studies.values()
        for name in (study.experiment, *(spec.experiment for spec in study.scales.values()))
    }
    files = {f"{key}/{path.stem}" for path in (conf_dir() / "experiment" / key).glob("*.yaml")}
    assert files == used - {None}


@pytest.mark.parametrize(("key", "name"), CLAIMS)
def test_every_claim_can_be_judged_at_some_scale(key, name):
    """Its study is run there, with the claim's arms, and those runs measure its metrics."""
    paper = PAPERS[key]
    claim = next(claim for claim in paper.claims if claim.id == name)
    allowed = SCALES[SCALES.index(claim.scale) :]
    reachable = []
    for scale, study_name in claim.studies.items():
        study = paper.studies[study_name]
        if scale not in allowed or scale not in study.scales:
            continue
        reachable.append(scale)
        assert len(study.scales[scale].seeds) >= 3
        for side in claim.sides:
            assert side.arm in study.arms_at(scale)
            assert measured(paper, scale, study_name, side.arm, side.metric)
    assert reachable


@functools.cache
def arm_config(key, scale, study, arm):
    run = next(run for run in PAPERS[key].studies[study].planned(scale) if run.arm == arm)
    (config,) = configurations(PAPERS[key], [run])
    return config


def measured(paper, scale, study, arm, metric):
    """Return whether a run of this arm leaves a metric of this name, as far as the name tells."""
    config = arm_config(paper.key, scale, study, arm)
    cfg, (head, _, rule) = config["metrics"], metric.partition("@")
    if not rule:
        return True  # of another task, or of the posterior itself
    bins = re.fullmatch(r".*/ece(\d+)", head)
    if head.startswith("ood/") and not config["data"]["ood"]:
        return False
    return rule in rules(config) and (bins is None or int(bins[1]) in cfg["ece_bins"])


def test_the_check_of_metric_names_can_fail():
    paper = PAPERS["ivon"]
    assert measured(paper, "cpu", "p2", "ivon", "test/nll@mc64")
    assert not measured(paper, "cpu", "p2", "ivon", "test/nll@mc63")
    assert not measured(paper, "cpu", "p2", "ivon", "test/ece21@mc64")
    assert not measured(paper, "cpu", "p2", "ivon", "ood/auroc@mc64")
    assert not measured(paper, "cpu", "p2-baselines", "ensemble", "test/nll@mean")


def test_a_run_does_not_depend_on_which_study_asked_for_it():
    config = compose(["experiment=ivon/p2", "posterior=sgd"])
    assert run_id({**config, "study": "ivon/p2/sgd"}) == run_id({**config, "study": None})
