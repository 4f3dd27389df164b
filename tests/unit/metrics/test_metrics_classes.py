"""The metric classes: equal to the functions, however the items are cut into batches."""

import math
import warnings

import pytest
import torch

from bayesrule import metrics as M

SPLITS = ([40], [1] * 40, [7, 5, 28], [13, 0, 27])


def samples(n=40, n_classes=6, n_samples=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_samples, n, n_classes, generator=g, dtype=torch.float64)
    logits[:, 20:30] = logits[:, 10:20]  # ties in every score
    return logits.log_softmax(-1), torch.randint(n_classes, (n,), generator=g)


def cut(sizes, *tensors, order=None):
    order = torch.arange(sum(sizes)) if order is None else order
    for index in order.split(sizes):
        yield tuple(t[..., index, :] if t.ndim > 1 else t[index] for t in tensors)


def feed_classification(sizes, *, order=None, n_classes=6, **options):
    lp_s, y = samples(n_classes=n_classes)
    metric = M.ClassificationMetrics(n_classes, **options)
    for lp, target in cut(sizes, lp_s, y, order=order):
        metric.update(None, target, lp)
    return metric


def feed_regression(sizes, *, order=None, mode="mixture", **options):
    g = torch.Generator().manual_seed(1)
    mean = torch.randn(4, 40, generator=g, dtype=torch.float64)
    std = (0.5 + torch.rand(4, 40, generator=g, dtype=torch.float64)).round(decimals=1)
    y = torch.randn(40, generator=g, dtype=torch.float64)
    metric = M.RegressionMetrics(**options)
    order = torch.arange(sum(sizes)) if order is None else order
    for i in order.split(sizes):
        if mode == "mixture":
            metric.update(mean[:, i], std[:, i], y[i])
        elif mode == "gaussian":
            metric.update(mean[0, i], std[0, i], y[i])
        else:
            metric.update(mean[:, i], None, y[i])
    return metric


def feed_ood(sizes, *, order=None):
    lp_s, _ = samples()
    far_s, _ = samples(seed=1)
    metric = M.OODMetrics(("entropy", "mi", "energy"), ("near", "far"))
    for lp, far in cut(sizes, lp_s, far_s, order=order):
        for source, batch in (("id", lp), ("near", 0.5 * far + 0.5 * lp), ("far", far)):
            batch = batch.log_softmax(-1)
            metric.update(None, source, batch, sample_logits=3 * batch)
    return metric


def feed_language(sizes, *, order=None):
    lp_s, y = samples()
    metric = M.LanguageMetrics()
    for lp, target in cut(sizes, lp_s[0], y, order=order):
        metric.update(lp, target)
    return metric


FEEDS = [
    feed_classification,
    lambda sizes, **kw: feed_classification(sizes, confidence="mi", n_classes=2, **kw),
    feed_regression,
    lambda sizes, **kw: feed_regression(sizes, mode="gaussian", **kw),
    lambda sizes, **kw: feed_regression(sizes, mode="samples", **kw),
    feed_ood,
    feed_language,
]


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("sizes", SPLITS)
def test_batches_and_order_do_not_matter(feed, sizes):
    whole = feed([40]).compute()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(len(sizes)))
    for value in (feed(sizes).compute(), feed(sizes, order=order).compute()):
        assert value == pytest.approx(whole, abs=1e-12, nan_ok=True)
    assert all(isinstance(v, float) for v in whole.values())


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # there was no update
@pytest.mark.parametrize("feed", FEEDS)
def test_reset_starts_again(feed):
    metric = feed([40])
    first = metric.compute()
    metric.reset()
    with pytest.warns(RuntimeWarning, match="no items"):
        empty = metric.compute()
    assert all(math.isnan(v) or v == 0 for v in empty.values())
    assert set(empty) | {"aleatoric", "mi", "variation_ratio", "n_samples"} >= set(first)


@pytest.mark.parametrize("feed", FEEDS)
def test_empty_metric_is_nan_with_one_warning(feed):
    metric = feed([0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = metric.compute()
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert all(math.isnan(v) or (v == 0 and k.startswith("n")) for k, v in value.items())


@pytest.mark.parametrize("feed", FEEDS)
def test_every_key_is_in_the_table_and_safe_in_a_metric_name(feed):
    for key in feed([40]).compute():
        assert M.metric_info(key).definition
        assert "/" not in key
        assert "@" not in key
        assert M.metric_info(f"test/{key}@mc64") == M.metric_info(key)


def test_calling_the_metric_gives_the_batch_and_keeps_the_total():
    lp_s, y = samples()
    metric = M.ClassificationMetrics(6)
    batches = [metric(None, target, lp) for lp, target in cut([7, 33], lp_s, y)]
    for value, kept in zip(batches, (slice(0, 7), slice(7, 40))):
        lp = M.predictive_log_probs(lp_s[:, kept])
        assert value["nll"] == pytest.approx(float(M.nll(lp, y[kept])), abs=1e-12)
        assert value["ece"] == pytest.approx(float(M.ece(lp, y[kept])), abs=1e-12)
    assert metric.compute() == pytest.approx(feed_classification([40]).compute(), abs=1e-12)


def test_states_stay_float64_under_precision_changes():
    metric = feed_classification([20, 20]).half().float()
    assert metric.sums.dtype == metric.items[0].dtype == torch.float64


def test_no_errors_is_nan_for_error_detection_without_a_warning():
    metric = M.ClassificationMetrics(2)
    y = torch.tensor([1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.update(torch.nn.functional.one_hot(y, 2).double().log(), y)
        value = metric.compute()
    assert math.isnan(value["auroc_err"])
    assert math.isnan(value["auroc"])
    assert value["aurc"] == 0.0


def test_classification_equals_the_functions():
    lp_s, y = samples()
    lp = M.predictive_log_probs(lp_s)
    value = feed_classification([7, 33], ece_bins=(15, 20), coverages=(0.8, 0.5)).compute()
    conf, correct = M.top_label(lp, y)
    error = 1 - correct
    expected = {
        "acc": M.accuracy(lp, y),
        "err": M.err(lp, y),
        "top5": M.top_k_accuracy(lp, y, 5),
        "nll": M.nll(lp, y),
        "nll_n_zero": 0.0,
        "brier": M.brier(lp, y),
        "brier_top": M.brier_top(lp, y),
        "conf": conf.mean(),
        "ece": M.ece(lp, y),
        "ece20": M.ece(lp, y, 20),
        "oce": M.oce(lp, y),
        "uce": M.uce(lp, y),
        "rmsce": M.rmsce(lp, y),
        "rmsce_debiased": M.rmsce_debiased(lp, y),
        "mce": M.mce(lp, y),
        "mce_n": M.reliability_bins(conf, correct).mce_count(),
        "ada_ece": M.ada_ece(lp, y),
        "cw_ece": M.cw_ece(lp, y),
        "ks_ce": M.ks_ce(lp, y),
        "ece_null": M.ece_null(lp, y),
        "entropy": M.entropy(lp).mean(),
        "aleatoric": M.decompose(lp_s).aleatoric.mean(),
        "mi": M.mutual_information(lp_s).mean(),
        "variation_ratio": M.variation_ratio(lp_s).mean(),
        "n_samples": 3.0,
        "aurc": M.aurc(conf, error),
        "e_aurc": M.e_aurc(conf, error),
        "augrc": M.augrc(conf, error),
        "risk80": M.risk_at_coverage(conf, error, 0.8),
        "acc80": M.accuracy_at_coverage(conf, error, 0.8),
        "risk50": M.risk_at_coverage(conf, error, 0.5),
        "acc50": M.accuracy_at_coverage(conf, error, 0.5),
        "cov_r01": M.coverage_at_risk(conf, error, 0.01),
        "cov_r05": M.coverage_at_risk(conf, error, 0.05),
        "cov_r10": M.coverage_at_risk(conf, error, 0.10),
        "auroc_err": M.auroc(-conf[error == 0], -conf[error == 1]),
        "n": 40.0,
    }
    assert value == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-12)
    assert value["entropy"] == pytest.approx(value["aleatoric"] + value["mi"], abs=1e-12)


def test_binary_classification_adds_the_one_column_values():
    lp_s, y = samples(n_classes=2)
    lp = M.predictive_log_probs(lp_s)
    value = feed_classification([13, 27], n_classes=2).compute()
    assert value["brier_binary"] == pytest.approx(float(M.brier_binary(lp, y)))
    assert value["ece_pos"] == pytest.approx(float(M.ece_pos(lp, y)))
    assert value["auroc"] == pytest.approx(float(M.auroc(lp[y == 0, 1], lp[y == 1, 1])))
    assert "top5" not in value


@pytest.mark.parametrize(("kind", "sign"), [("entropy", -1), ("mi", -1)])
def test_confidence_of_selective_prediction_can_be_chosen(kind, sign):
    lp_s, y = samples()
    lp = M.predictive_log_probs(lp_s)
    score = M.entropy(lp) if kind == "entropy" else M.mutual_information(lp_s)
    error = 1 - M.top_label(lp, y)[1]
    value = feed_classification([40], confidence=kind).compute()
    assert value["aurc"] == pytest.approx(float(M.aurc(sign * score, error)))


def test_null_draws_can_be_left_out():
    assert "ece_null" not in feed_classification([40], n_null=0).compute()


def test_reliability_diagram_of_the_class():
    metric = feed_classification([7, 33], ece_bins=(10,))
    lp_s, y = samples()
    expected = M.reliability_bins(*M.top_label(M.predictive_log_probs(lp_s), y), 10)
    for ours, theirs in zip(metric.reliability(10), expected):
        assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)
    with pytest.raises(M.InvalidPrediction, match="bins"):
        metric.reliability(11)


def test_mask_and_ignore_index_equal_removal_in_every_class():
    lp_s, y = samples()
    keep = torch.arange(40) % 4 != 1
    removed = M.ClassificationMetrics(6)
    removed.update(None, y[keep], lp_s[:, keep])
    masked, ignored = M.ClassificationMetrics(6), M.ClassificationMetrics(6)
    masked.update(None, y, lp_s, mask=keep)
    ignored.update(None, torch.where(keep, y, -100), lp_s)
    assert masked.compute() == ignored.compute() == removed.compute()

    ood, ood_removed = M.OODMetrics(("mi",)), M.OODMetrics(("mi",))
    for source in ("id", "ood"):
        ood.update(None, source, lp_s, mask=keep)
        ood_removed.update(None, source, lp_s[:, keep])
    assert ood.compute() == ood_removed.compute()

    mean, std, t = torch.randn(2, 40), torch.rand(2, 40) + 0.1, torch.randn(40)
    reg, reg_removed = M.RegressionMetrics(), M.RegressionMetrics()
    reg.update(mean, std, t, mask=keep)
    reg_removed.update(mean[:, keep], std[:, keep], t[keep])
    assert reg.compute() == pytest.approx(reg_removed.compute(), nan_ok=True)


def test_language_metrics_count_tokens_not_batches():
    lp_s, y = samples()
    lp, target = lp_s[0].reshape(4, 10, 6), y.reshape(4, 10).clone()
    target[0, 3:] = -100
    metric = M.LanguageMetrics()
    metric.update(lp[:1], target[:1])
    metric.update(lp[1:], target[1:])
    value = metric.compute()
    assert value["n"] == 33.0
    assert value["nll"] == pytest.approx(float(M.nll(lp, target)), abs=1e-12)
    assert value["perplexity"] == pytest.approx(float(M.perplexity(lp, target)), rel=1e-12)
    assert value["perplexity"] == pytest.approx(math.exp(value["nll"]))
    assert value["bits"] == pytest.approx(value["nll"] / math.log(2))
    assert value["acc"] == pytest.approx(float(M.accuracy(lp, target)))


def test_language_metrics_of_float32_rows_sum_in_float64():
    lp_s, y = samples()
    metric = M.LanguageMetrics()
    for _ in range(50):
        metric.update(lp_s[0].float(), y)
    rounded = lp_s[0].float().double()
    assert metric.compute()["nll"] == pytest.approx(float(M.nll(rounded, y)), abs=1e-12)


def test_regression_equals_the_functions_in_original_units():
    g = torch.Generator().manual_seed(1)
    mean = torch.randn(4, 40, generator=g, dtype=torch.float64)
    std = (0.5 + torch.rand(4, 40, generator=g, dtype=torch.float64)).round(decimals=1)
    y = torch.randn(40, generator=g, dtype=torch.float64)
    value = feed_regression([7, 33], target_mean=2.0, target_std=3.0).compute()
    m, s, t = 3 * mean + 2, 3 * std, 3 * y + 2
    mu, sigma = M.moment_match(m, s)
    lo, hi = M.mixture_interval(m, s, 0.1)
    expected = {
        "nll": M.nll_mixture(m, s, t),
        "nll_mm": M.nll_mm(m, s, t),
        "rmse": M.rmse(mu, t),
        "mae": M.mae(mu, t),
        "crps": M.crps_mixture(m, s, t).mean(),
        "sharpness": M.sharpness(sigma),
        "mean_sigma": M.mean_sigma(sigma),
        "var_aleatoric": s.square().mean(),
        "var_epistemic": m.var(0, correction=0).mean(),
        "qce": M.qce(M.pit_mixture(m, s, t)),
        "qce_central": M.qce_central(M.pit_mixture(m, s, t)),
        "var_calibration": M.var_calibration(mu, sigma, t),
        "ence": M.ence(mu, sigma, t),
        "picp90": M.picp(lo, hi, t),
        "mpiw90": M.mpiw(lo, hi),
        "nmpiw90": M.nmpiw(lo, hi, t),
        "interval_score90": M.interval_score(lo, hi, t, 0.1),
        "n": 40.0,
    }
    for key, number in expected.items():
        assert value[key] == pytest.approx(float(number), abs=1e-12), key
    assert value["nll"] == pytest.approx(float(M.nll_mixture(mean, std, y)) + math.log(3.0))
    assert math.isnan(value["crps_fair"])
    assert {"picp", "mpiw", "nmpiw", "interval_score", "picp50"} <= set(value)


def test_regression_from_samples_and_gaussians():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4, 40, generator=g, dtype=torch.float64)
    torch.rand(4, 40, generator=g, dtype=torch.float64)
    y = torch.randn(40, generator=g, dtype=torch.float64)
    value = feed_regression([40], mode="samples").compute()
    assert value["crps"] == pytest.approx(float(M.crps_ens(x, y).mean()))
    assert value["crps_fair"] == pytest.approx(float(M.crps_fair(x, y).mean()))
    assert value["qce"] == pytest.approx(float(M.qce(M.pit_samples(x, y))))
    assert value["picp50"] == pytest.approx(float(M.picp(*M.sample_interval(x, 0.5), y)))
    assert math.isnan(value["nll"])
    gaussian = feed_regression([40], mode="gaussian").compute()
    assert gaussian["var_epistemic"] == 0.0
    assert gaussian["nll"] == pytest.approx(gaussian["nll_mm"])


def test_regression_takes_targets_of_several_dimensions_and_a_common_std():
    mean, y = torch.randn(3, 10, 2), torch.randn(10, 2)
    metric, flat = M.RegressionMetrics(), M.RegressionMetrics()
    metric.update(mean, torch.tensor(0.7), y)
    flat.update(mean.reshape(3, 20), torch.full((3, 20), 0.7), y.reshape(20))
    assert metric.compute() == pytest.approx(flat.compute(), nan_ok=True)


def test_ood_equals_the_functions_per_set_and_on_average():
    lp_s, _ = samples()
    far_s, _ = samples(seed=1)
    value = feed_ood([5, 35]).compute()
    near_s = (0.5 * far_s + 0.5 * lp_s).log_softmax(-1)
    scores = [M.entropy_score(M.predictive_log_probs(s)) for s in (lp_s, near_s, far_s)]
    for key, function in (("auroc", M.auroc), ("fpr95", M.fpr95), ("aupr_in", M.aupr_in)):
        near, far = float(function(scores[0], scores[1])), float(function(scores[0], scores[2]))
        assert value[f"{key}_near"] == pytest.approx(near)
        assert value[f"{key}_far"] == pytest.approx(far)
        assert value[key] == pytest.approx((near + far) / 2)
    mi = [M.mi_score(s) for s in (lp_s, near_s)]
    assert value["auroc_mi_near"] == pytest.approx(float(M.auroc(*mi)))
    energy = [M.energy_score(3 * s) for s in (lp_s.log_softmax(-1), near_s)]
    assert value["auroc_energy_near"] == pytest.approx(float(M.auroc(*energy)))
    assert (value["n_id"], value["n_ood"]) == (40.0, 80.0)


def test_single_ood_set_has_no_set_keys():
    lp_s, _ = samples()
    metric = M.OODMetrics()
    metric.update(lp_s[0], "id")
    metric.update(lp_s[1], "ood")
    kinds = ("auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_id")
    assert set(metric.compute()) == {*kinds, *(f"{k}_msp" for k in kinds), "n_id", "n_ood"}


def test_classification_refuses_what_does_not_fit():
    lp_s, y = samples()
    lp = M.predictive_log_probs(lp_s)
    metric = M.ClassificationMetrics(6)
    for arguments, message in (
        ((None, y), "give log_probs"),
        ((lp[:, :5].log_softmax(-1), y), "5 classes"),
        ((lp_s.mean(0).log_softmax(-1) * 1.0, y, lp_s * 1.0), "not logits"),
        ((lp[:30], y[:30], lp_s[:, :30, :3].log_softmax(-1)), "samples, items, classes"),
    ):
        with pytest.raises(M.InvalidPrediction, match=message):
            metric.update(*arguments)
    assert metric.sums.sum() == 0  # a refused batch leaves no trace
    with pytest.raises(M.InvalidPrediction, match="needs sample_log_probs"):
        M.ClassificationMetrics(6, confidence="mi").update(lp, y)
    with pytest.raises(M.InvalidPrediction, match="confidence"):
        M.ClassificationMetrics(6, confidence="margin")
    with pytest.raises(M.InvalidPrediction, match="n_classes"):
        M.ClassificationMetrics(1)
    metric.update(lp, y)
    metric.update(None, y, lp_s)
    with pytest.raises(M.InvalidPrediction, match="40 of 80 items"):
        metric.compute()


def test_other_classes_refuse_what_does_not_fit():
    lp_s, _ = samples()
    lp = lp_s[0]
    for arguments, message in (
        ((lp, "elsewhere"), "source"),
        ((None, "id"), "give log_probs"),
        ((lp.exp(), "id"), "sum to"),
    ):
        with pytest.raises(M.InvalidPrediction, match=message):
            M.OODMetrics().update(*arguments)
    with pytest.raises(M.InvalidPrediction, match="sample_logits"):
        M.OODMetrics(("energy",)).update(lp, "id")
    with pytest.raises(M.InvalidPrediction, match="sample_log_probs"):
        M.OODMetrics(("mi",)).update(lp, "id")
    for options in ({"scores": ("margin",)}, {"ood_sets": ("id",)}, {"ood_sets": ("msp",)}):
        with pytest.raises(M.InvalidPrediction, match="distinct names"):
            M.OODMetrics(**options)
    y = torch.zeros(4)
    for arguments, message in (
        ((torch.zeros(5), torch.ones(5), y), "do not fit"),
        ((torch.zeros(4), torch.zeros(4), y), "observation noise"),
        ((torch.zeros(4), None, y), "samples"),
        ((torch.full((4,), math.nan), torch.ones(4), y), "NaN"),
    ):
        with pytest.raises(M.InvalidPrediction, match=message):
            M.RegressionMetrics().update(*arguments)
    for options in ({"alphas": ()}, {"alphas": (0.0,)}, {"target_std": 0.0}):
        with pytest.raises(M.InvalidPrediction, match=r"alphas|target_std"):
            M.RegressionMetrics(**options)


def test_items_of_probability_zero_are_counted():
    lp = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2]), 3).double().log()
    metric = M.ClassificationMetrics(3)
    metric.update(lp, torch.tensor([0, 1, 0, 2]))
    assert metric.compute()["nll_n_zero"] == 2.0
