"""One table of all logged metric keys: definition, direction and unit.

Keys that carry a number or a name are listed with a placeholder, e.g. ``ece{M}`` for ``ece20``;
`metric_info` finds the entry of a concrete key. A logged name is ``<split>/<key>@<rule>``, so no
key contains ``/`` or ``@``. Means are over items unless said otherwise, logarithms are natural,
shares are fractions and never per cent.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

__all__ = ["DIRECTIONS", "MetricInfo", "higher_is_better", "metric_info"]

Direction = Literal["higher", "lower", "target", "none"]


class MetricInfo(NamedTuple):
    """What a metric key means.

    Attributes:
        definition: Formula or words.
        direction: ``higher`` or ``lower`` is better; ``target``: best at `target`; ``none``:
        describes
            without being good or bad.
        unit: Unit of the value.
        target: Best value where the direction is ``target``.
    """

    definition: str
    direction: Direction
    unit: str
    target: float | None = None


DIRECTIONS: dict[str, MetricInfo] = {
    # scores of a categorical predictive P_nk; conf = max_k P_nk, ties to the lowest class
    "acc": MetricInfo("mean 1[argmax_k P_k = y]", "higher", "fraction"),
    "err": MetricInfo("1 - acc", "lower", "fraction"),
    "top{k}": MetricInfo("mean 1[y among the k most probable classes]", "higher", "fraction"),
    "nll": MetricInfo(
        "-mean log P_y, or minus the mean log predictive density of a regression", "lower", "nats"
    ),
    "nll_n_zero": MetricInfo(
        "number of items with P_y exactly 0, floored at 1e-12 in nll", "lower", "items"
    ),
    "brier": MetricInfo("mean sum_k (P_k - 1[y = k])^2, in [0, 2]", "lower", "1"),
    "brier_binary": MetricInfo("mean (P_1 - y)^2 of two classes, brier / 2", "lower", "1"),
    "brier_top": MetricInfo("mean (conf - 1[correct])^2", "lower", "1"),
    "conf": MetricInfo("mean conf", "none", "fraction"),
    # calibration of the top label, 15 equal-width bins (lo, hi]
    "ece": MetricInfo("sum_b (n_b/N) |acc_b - conf_b|, 15 bins", "lower", "fraction"),
    "ece{M}": MetricInfo("ece with M bins", "lower", "fraction"),
    "oce": MetricInfo("sum_b (n_b/N) max(0, conf_b - acc_b)", "lower", "fraction"),
    "uce": MetricInfo("sum_b (n_b/N) max(0, acc_b - conf_b)", "lower", "fraction"),
    "rmsce": MetricInfo("sqrt(sum_b (n_b/N) (acc_b - conf_b)^2)", "lower", "fraction"),
    "rmsce_debiased": MetricInfo(
        "rmsce with acc_b (1 - acc_b)/(n_b - 1) taken off each square", "lower", "fraction"
    ),
    "mce": MetricInfo("max_b |acc_b - conf_b| over non-empty bins", "lower", "fraction"),
    "mce_n": MetricInfo("number of items in the bin that gives mce", "none", "items"),
    "ada_ece": MetricInfo("ece with 15 equal-mass bins that never split ties", "lower", "fraction"),
    "cw_ece": MetricInfo(
        "mean over classes of the ece of P_k against 1[y = k]", "lower", "fraction"
    ),
    "ks_ce": MetricInfo(
        "max_j |(1/N) sum_{i<=j} (correct_i - conf_i)|, sorted by conf", "lower", "fraction"
    ),
    "ece_pos": MetricInfo("ece of P(y = 1) of two classes", "lower", "fraction"),
    "ece_null": MetricInfo("mean ece if y were drawn from P: its noise floor", "none", "fraction"),
    # uncertainty
    "entropy": MetricInfo("mean H[P], total uncertainty", "none", "nats"),
    "aleatoric": MetricInfo("mean over items and samples of H[p_s]", "none", "nats"),
    "mi": MetricInfo("entropy - aleatoric: mutual information, epistemic", "none", "nats"),
    "variation_ratio": MetricInfo("mean 1 - max_k votes_k / S", "none", "fraction"),
    "n_samples": MetricInfo("number of posterior samples S", "none", "samples"),
    # selective prediction
    "aurc": MetricInfo("(1/N) sum_i risk(i), risk of the i most confident", "lower", "fraction"),
    "e_aurc": MetricInfo("aurc less that of the best order", "lower", "fraction"),
    "augrc": MetricInfo("(1/N) sum_i (i/N) risk(i)", "lower", "fraction"),
    "risk{c}": MetricInfo("risk(ceil(c N)) at a coverage of c per cent", "lower", "fraction"),
    "acc{c}": MetricInfo("1 - risk at a coverage of c per cent", "higher", "fraction"),
    "cov_r{r}": MetricInfo(
        "largest coverage whose risk is at most r per cent, 0 if none", "higher", "fraction"
    ),
    "auroc_err": MetricInfo(
        "AUROC of telling wrong from right predictions by the confidence", "higher", "fraction"
    ),
    # detection; OOD positive, or class 1 of two classes
    "auroc": MetricInfo("P(s+ > s-) + P(s+ = s-)/2", "higher", "fraction"),
    "aupr_out": MetricInfo("average precision, OOD positive", "higher", "fraction"),
    "aupr_in": MetricInfo("average precision, in-distribution positive", "higher", "fraction"),
    "fpr95": MetricInfo("FPR where 95 % of the OOD items are found", "lower", "fraction"),
    "fpr95_id": MetricInfo("fpr95 with in-distribution items positive", "lower", "fraction"),
    "n_id": MetricInfo("number of in-distribution items", "none", "items"),
    "n_ood": MetricInfo("number of OOD items, all sets", "none", "items"),
    # regression; sigma includes the observation noise
    "nll_mm": MetricInfo("nll of the moment-matched Gaussian", "lower", "nats"),
    "rmse": MetricInfo("sqrt(mean (y - mu)^2)", "lower", "target"),
    "mae": MetricInfo("mean |y - mu|", "lower", "target"),
    "crps": MetricInfo(
        "mean E|X - y| - E|X - X'|/2 of the predictive; V-statistic for samples", "lower", "target"
    ),
    "crps_fair": MetricInfo("crps of samples with 1/(2 S (S - 1))", "lower", "target"),
    "sharpness": MetricInfo("sqrt(mean sigma^2)", "none", "target"),
    "mean_sigma": MetricInfo("mean sigma", "none", "target"),
    "var_aleatoric": MetricInfo("mean over items and samples of sigma_s^2", "none", "target^2"),
    "var_epistemic": MetricInfo("mean var_s(mu_s), population", "none", "target^2"),
    "qce": MetricInfo(
        "mean_tau |tau - mean 1[F(y) <= tau]|, tau = .05, .., .95", "lower", "fraction"
    ),
    "qce_central": MetricInfo("qce of central intervals", "lower", "fraction"),
    "var_calibration": MetricInfo("mean ((y - mu)/sigma)^2", "target", "1", 1.0),
    "ence": MetricInfo(
        "mean_b |rmv_b - rmse_b| / rmv_b over equal-mass bins of sigma", "lower", "fraction"
    ),
    "picp": MetricInfo("mean 1[lo <= y <= hi], central 95 % interval", "target", "fraction", 0.95),
    "picp{c}": MetricInfo("picp of the central c % interval", "target", "fraction"),
    "mpiw": MetricInfo("mean(hi - lo), central 95 % interval", "none", "target"),
    "mpiw{c}": MetricInfo("mpiw of the central c % interval", "none", "target"),
    "nmpiw": MetricInfo("mpiw / (max y - min y)", "none", "fraction"),
    "nmpiw{c}": MetricInfo("nmpiw of the central c % interval", "none", "fraction"),
    "interval_score": MetricInfo(
        "mean (hi - lo) + (2/a)(lo - y)_+ + (2/a)(y - hi)_+, a = .05", "lower", "target"
    ),
    "interval_score{c}": MetricInfo(
        "interval_score of the central c % interval", "lower", "target"
    ),
    # language models; an item is a token
    "perplexity": MetricInfo("exp(nll)", "lower", "1"),
    "bits": MetricInfo("nll / log 2", "lower", "bits"),
    "n": MetricInfo("number of items", "none", "items"),
    # reinforcement learning; a game is a whole one, unclipped and undiscounted
    "return": MetricInfo("mean return of games", "higher", "reward"),
    "length": MetricInfo("mean number of steps of games", "none", "steps"),
    "auc": MetricInfo(
        "mean over windows of training of the mean return of the games that ended in it",
        "higher",
        "reward",
    ),
    "last20": MetricInfo(
        "mean return of the games that ended in the last fifth of training", "higher", "reward"
    ),
    "games": MetricInfo("number of games that ended in training", "none", "games"),
    "max": MetricInfo("mean over states from the buffer of max_a Q(s, a)", "none", "reward"),
    "mse": MetricInfo("mean (Q(s, a) - Q*(s, a))^2 over states and actions", "lower", "reward^2"),
    "log_mse": MetricInfo("log(mse)", "lower", "nats"),
    # continual learning; a[t, j] is acc on task j after task t of T (`bayesrule.metrics.continual`)
    "forgetting": MetricInfo(
        "mean over j < T of max_{j <= t < T} a[t, j] - a[T, j]", "lower", "fraction"
    ),
    "forgetting_max": MetricInfo(
        "mean over j < T of max_{t <= T} a[t, j] - a[T, j]", "lower", "fraction"
    ),
    "bwt": MetricInfo("mean over j < T of a[T, j] - a[j, j]", "higher", "fraction"),
    "fwt": MetricInfo(
        "mean over j > 1 of a[j-1, j] - acc of the untrained network", "higher", "fraction"
    ),
    "learning_acc": MetricInfo("mean over j of a[j, j]", "higher", "fraction"),
    "learning_acc_new": MetricInfo("mean over j > 1 of a[j, j]", "higher", "fraction"),
    "incremental_acc": MetricInfo(
        "mean over t of the mean over j <= t of a[t, j]", "higher", "fraction"
    ),
    "task_il_acc": MetricInfo(
        "acc among the classes of each item's task, whose id is given", "higher", "fraction"
    ),
    "class_il_acc": MetricInfo("acc among the classes of all tasks", "higher", "fraction"),
    "items": MetricInfo("items of the past that are kept", "none", "items"),
    "bytes": MetricInfo("bytes that the past takes", "none", "bytes"),
    "rewarded": MetricInfo("transitions in the buffer with a reward above 0", "none", "items"),
}

_OOD_KEY = re.compile(r"(auroc|aupr_out|aupr_in|fpr95_id|fpr95)_\w+")
_TEMPLATES = {
    re.compile(re.sub(r"\\{\w\\}", r"(\\d+)", re.escape(key))): key
    for key in DIRECTIONS
    if "{" in key
}


def metric_info(key: str) -> MetricInfo:
    """Return the entry of a logged key.

    Args:
        key: A key such as ``ece20`` or ``auroc_msp``; a full name ``test/ece20@mc64`` is fine too.

    Returns:
        Definition, direction, unit and target.

    Raises:
        KeyError: There is no such metric.
    """
    name = key.rsplit("/", 1)[-1].split("@", 1)[0]
    if name in DIRECTIONS:
        return DIRECTIONS[name]
    for pattern, template in _TEMPLATES.items():
        match = pattern.fullmatch(name)
        if match:
            info = DIRECTIONS[template]
            level = int(match.group(1)) / 100.0
            return info._replace(target=level) if info.direction == "target" else info
    match = _OOD_KEY.fullmatch(name)
    if match:
        return DIRECTIONS[match.group(1)]
    raise KeyError(f"no metric is called {name!r}; bayesrule.metrics.DIRECTIONS lists all keys")


def higher_is_better(key: str) -> bool | None:
    """Return True or False where a metric has a direction, None where it has a target or none."""
    return {"higher": True, "lower": False}.get(metric_info(key).direction)
