"""From a learnt posterior to metrics: ``<split>/<metric>@<rule>``, and curves for figures.

Rules: ``mean`` (plug-in), ``mode`` (plug-in, where it is not the mean), ``mc<K>`` (average over K
draws; also for the first k < K of the same draws), ``lin`` (linearised). A point mass has finite
support, so its ``mc<K>`` is exact and equals ``mean``: every posterior has every metric of the
comparison. With ``metrics.own_norms`` every network that predicts has its own running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bayesrule.data import Split
from bayesrule.metrics import (
    ClassificationMetrics,
    RegressionMetrics,
    aupr_in,
    aupr_out,
    auroc,
    fpr95,
    fpr95_id,
    risk_coverage_curve,
)
from bayesrule.posteriors import Mixture, Predictions, predict_dataset, reestimate_batch_norm
from bayesrule.tasks.curvature_check import compare_precision
from bayesrule.tasks.problem import Learnt, Problem

__all__ = [
    "Evaluation",
    "add_classification",
    "add_ood",
    "evaluate",
    "evaluate_split",
    "ood_scores",
    "predict_split",
]

ENTROPY_BINS = 30
CONFUSION_CLASSES = 40
COVERAGES = 50
_OOD = {
    "auroc": auroc,
    "aupr_out": aupr_out,
    "aupr_in": aupr_in,
    "fpr95": fpr95,
    "fpr95_id": fpr95_id,
}


class Evaluation:
    """Metrics of one posterior, and the binned curves that figures are drawn from."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.curves: dict[str, Any] = {}


def evaluate(problem: Problem, learnt: Learnt) -> Evaluation:
    """Evaluate on the test split, the validation split if there is one, and OOD companions.

    With ``metrics.curvature`` the learnt precision is compared with a computed one as well.
    """
    out = Evaluation()
    cfg = problem.config["metrics"]
    splits = {"test": problem.data.test, "val": problem.data.val}
    if cfg["train_split"]:
        splits["train"] = problem.data.train
    for name, split in splits.items():
        if split is not None:
            evaluate_split(problem, learnt, name, split, out)
    if cfg["curvature"]:
        out.metrics.update(compare_precision(problem, learnt))
    return out


def evaluate_split(
    problem: Problem, learnt: Learnt, name: str, split: Split, out: Evaluation
) -> None:
    """Add one split's metrics under every rule of the configuration to `out`."""
    cfg = problem.config["metrics"]
    rules = [f"mc{cfg['mc_samples']}"]
    if not isinstance(learnt.posterior, Mixture):  # the average of two modes' weights is no model
        rules.insert(0, "mean")
    if learnt.posterior.own_mode:
        rules.insert(1, "mode")
    if cfg["linearised"] and problem.data.kind != "lm":
        rules.append("lin")
    for rule in rules:
        predictions = predict_split(problem, learnt, split, rule)
        for each, log_probs in _variants(predictions, rule, cfg["prefixes"]):
            if problem.data.kind == "classification":
                assert log_probs is not None
                full = each == rule
                _classification(problem, predictions, log_probs, name, each, out, full=full)
            elif problem.data.kind == "lm":
                assert log_probs is not None
                _language(log_probs, name, each, out)
            else:
                _regression(problem, predictions, name, each, out)
        if name == "test" and problem.data.kind == "classification":
            _ood(problem, learnt, predictions, rule, out)


def predict_split(
    problem: Problem, learnt: Learnt, split: Split, rule: str, *, outside: bool = False
) -> Predictions:
    """Predict one split under one rule.

    Args:
        problem: The problem.
        learnt: Network and posterior.
        split: Items to predict.
        rule: ``mean``, ``mode``, ``mc<K>`` or ``lin``.
        outside: Whether the items are out-of-distribution companions, which have no classes.
    """
    cfg = problem.config

    def batches() -> Iterator[dict[str, Any]]:
        for batch in problem.batches(split):
            # companions have no class here, and predicting needs none
            yield {**batch, "target": torch.zeros_like(batch["target"])} if outside else batch

    return predict_dataset(
        learnt.model,
        learnt.posterior,
        batches,
        rule,
        problem.likelihood,
        seed=cfg["seed"],
        prefixes=cfg["metrics"]["prefixes"] if rule.startswith("mc") else (),
        keep="target" if problem.data.kind == "lm" else "all",
        prepare=_with_own_statistics(problem, learnt) if cfg["metrics"]["own_norms"] else None,
    )


def _with_own_statistics(
    problem: Problem, learnt: Learnt
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return what gives a network the running statistics of its own weights (training data)."""
    return lambda state: reestimate_batch_norm(learnt.model, state, problem.train_batches)


def _variants(
    predictions: Predictions, rule: str, prefixes: list[int]
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield (rule, log-probabilities): the full rule, then its first k draws."""
    full = predictions.log_probs_NK
    yield rule, full if full is not None else predictions.target_log_probs_N
    if rule.startswith("mc") and predictions.n_samples == int(rule[2:]):
        for k in sorted(set(prefixes)):
            if k < predictions.n_samples:
                yield f"mc{k}", predictions.prefixes.get(k)


def add_classification(
    out: Evaluation,
    split: str,
    rule: str,
    log_probs_NK: Tensor,
    targets: Tensor,
    *,
    n_outputs: int,
    cfg: Mapping[str, Any],
    full: bool = True,
) -> None:
    """Add the scores of class probabilities, and (`full`) the reliability curve, to `out`.

    Args:
        out: Receives them.
        split: The split's name.
        rule: The prediction rule's name.
        log_probs_NK: Log-probabilities of the predictive.
        targets: Classes.
        n_outputs: Number of classes.
        cfg: The ``metrics`` group.
        full: Whether to draw the null distribution of ECE and keep the curves (reliability,
            confusion, risk against coverage).
    """
    metric = ClassificationMetrics(
        n_outputs,
        ece_bins=cfg["ece_bins"],
        n_null=cfg["ece_null_draws"] if full else 0,
        sync_on_compute=False,  # rank 0 evaluates alone and must not wait for the others
    )
    metric.update(log_probs_NK, targets)
    _add(out, split, rule, metric.compute())
    if full:
        bins = metric.reliability(max(cfg["ece_bins"]))
        out.curves[f"{split}/reliability@{rule}"] = {
            name: [float(x) for x in getattr(bins, name)] for name in bins._fields
        }
        out.curves |= _decisions(split, rule, log_probs_NK, targets, n_outputs)


def _decisions(
    split: str, rule: str, log_probs_NK: Tensor, targets: Tensor, n_outputs: int
) -> dict[str, Any]:
    """Return who is taken for whom (few classes), and the risk at some coverages."""
    found: dict[str, Any] = {}
    if not len(targets):
        return found
    confidence_N, chosen_N = log_probs_NK.detach().cpu().max(-1)
    target_N = targets.cpu().long()
    if n_outputs <= CONFUSION_CLASSES:
        counts = torch.bincount(target_N * n_outputs + chosen_N, minlength=n_outputs**2)
        found[f"{split}/confusion@{rule}"] = {"counts": counts.view(n_outputs, -1).tolist()}
    risk_N = risk_coverage_curve(confidence_N.double().exp(), (chosen_N != target_N).double())
    N = len(risk_N)
    kept = sorted({math.ceil(N * i / COVERAGES) for i in range(1, COVERAGES + 1)})
    found[f"{split}/risk_coverage@{rule}"] = {
        "coverage": [n / N for n in kept],
        "risk": [float(risk_N[n - 1]) for n in kept],
    }
    return found


def _classification(
    problem: Problem,
    predictions: Predictions,
    log_probs_NK: Tensor,
    split: str,
    rule: str,
    out: Evaluation,
    *,
    full: bool,
) -> None:
    add_classification(
        out,
        split,
        rule,
        log_probs_NK,
        predictions.targets,
        n_outputs=problem.data.n_outputs,
        cfg=problem.config["metrics"],
        full=full,
    )
    if full and rule.startswith("mc") and predictions.expected_entropy_N is not None:
        aleatoric = predictions.expected_entropy_N.double().mean()
        total = torch.special.entr(log_probs_NK.double().exp()).sum(-1).mean()
        # of one draw it is zero, whatever the rounding of its two parts
        mi = float(total - aleatoric) if predictions.n_samples > 1 else 0.0
        _add(out, split, rule, {"aleatoric": float(aleatoric), "mi": mi})


def _ood(problem: Problem, learnt: Learnt, inside: Predictions, rule: str, out: Evaluation) -> None:
    """Score the OOD companions under one rule."""
    if not problem.data.ood:
        return

    def scores(predictions: Predictions) -> dict[str, Tensor]:
        assert predictions.log_probs_NK is not None
        mi = predictions.mutual_information_N if rule.startswith("mc") else None
        return ood_scores(predictions.log_probs_NK, mi)

    outside = {
        name: scores(predict_split(problem, learnt, split, rule, outside=True))
        for name, split in problem.data.ood.items()
    }
    add_ood(out, rule, scores(inside), outside, n_outputs=problem.data.n_outputs)


def ood_scores(log_probs_NK: Tensor, mi_N: Tensor | None = None) -> dict[str, Tensor]:
    """Return what says that an item is out of distribution: entropy, 1 - max prob, MI if given."""
    probs = log_probs_NK.double().exp()
    found = {"entropy": torch.special.entr(probs).sum(-1), "msp": 1.0 - probs.amax(-1)}
    return found if mi_N is None else {**found, "mi": mi_N}


def add_ood(
    out: Evaluation,
    rule: str,
    inside: Mapping[str, Tensor],
    outside: Mapping[str, Mapping[str, Tensor]],
    *,
    n_outputs: int,
) -> None:
    """Add how well each score tells companions from test items, and entropy histograms, to `out`.

    Args:
        out: Receives ``ood_<name>/...`` and their means over companions, ``ood/...``.
        rule: The prediction rule's name.
        inside: Scores of the test items, see `ood_scores`.
        outside: Scores of each companion's items.
        n_outputs: Number of classes.
    """
    means: dict[str, list[float]] = {}
    edges = torch.linspace(0.0, float(torch.tensor(n_outputs).log()), ENTROPY_BINS + 1)
    histograms = {"id": _histogram(inside["entropy"], edges)}
    for name, scores in outside.items():
        histograms[name] = _histogram(scores["entropy"], edges)
        for score, values_N in scores.items():
            suffix = "" if score == "entropy" else f"_{score}"
            values = {
                f"{key}{suffix}": float(fn(inside[score], values_N)) for key, fn in _OOD.items()
            }
            _add(out, f"ood_{name}", rule, values)
            for key, value in values.items():
                means.setdefault(key, []).append(value)
    _add(out, "ood", rule, {key: sum(v) / len(v) for key, v in means.items()})
    out.curves[f"ood/entropy@{rule}"] = {"edges": edges.tolist(), **histograms}


def _histogram(values: Tensor, edges: Tensor) -> list[float]:
    clamped = values.float().clamp(float(edges[0]), float(edges[-1]))
    counts = torch.histogram(clamped, edges)[0]
    return (counts / len(values)).tolist()


def _language(log_probs_N: Tensor, split: str, rule: str, out: Evaluation) -> None:
    nll = -float(log_probs_N.double().mean())
    _add(out, split, rule, {"nll": nll, "perplexity": math.exp(nll), "bits": nll / math.log(2.0)})


def _regression(
    problem: Problem, predictions: Predictions, split: str, rule: str, out: Evaluation
) -> None:
    data = problem.data
    assert predictions.mu_SN is not None
    assert predictions.sigma_SN is not None
    draws = int(rule[2:]) if rule.startswith("mc") else 1
    metric = RegressionMetrics(
        target_mean=data.target_mean, target_std=data.target_std, sync_on_compute=False
    )
    metric.update(predictions.mu_SN[:draws], predictions.sigma_SN[:draws], predictions.targets)
    _add(out, split, rule, metric.compute())


def _add(out: Evaluation, split: str, rule: str, values: dict[str, Any]) -> None:
    for metric, value in values.items():
        out.metrics[f"{split}/{metric}@{rule}"] = float(value)
