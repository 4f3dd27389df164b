"""Classification metrics against torchmetrics, scikit-learn and plain loops."""

import math

import metric_oracles as oracle
import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_accuracy,
    multiclass_calibration_error,
)

from bayesrule import metrics as M


def continuous(n=400, n_classes=6, seed=0):
    """Random predictions without ties and without confidences on an edge."""
    g = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, n_classes, generator=g, dtype=torch.float64)
    return logits.log_softmax(-1), torch.randint(n_classes, (n,), generator=g)


def tied():
    """12 items with ties, confidences on edges, and probabilities of exactly 0 and 1."""
    rows = [
        [1.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
        [0.6, 0.4, 0.0],
        [0.6, 0.2, 0.2],
        [0.2, 0.6, 0.2],
        [0.1, 0.1, 0.8],
        [0.8, 0.1, 0.1],
        [0.1, 0.9, 0.0],
        [0.9, 0.0, 0.1],
        [0.4, 0.4, 0.2],
        [0.25, 0.25, 0.5],
        [0.0, 0.0, 1.0],
    ]
    target = [0, 2, 0, 1, 1, 2, 0, 1, 2, 1, 2, 2]
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(target)


@pytest.mark.parametrize("n_bins", [10, 15, 20])
def test_calibration_errors_equal_torchmetrics_without_edges(n_bins):
    lp, y = continuous()
    for name, norm in (("ece", "l1"), ("rmsce", "l2"), ("mce", "max")):
        theirs = multiclass_calibration_error(lp.exp(), y, num_classes=6, n_bins=n_bins, norm=norm)
        ours = getattr(M, name)(lp, y, n_bins)
        assert float(ours) == pytest.approx(float(theirs), abs=1e-6), name


@pytest.mark.parametrize("data", ["continuous", "tied"])
@pytest.mark.parametrize("n_bins", [1, 4, 10, 15, 40])
def test_calibration_family_equals_loops(data, n_bins):
    if data == "tied":
        P, y = tied()
        lp = P.log()
    else:
        lp, y = continuous(60, 4)
        P = lp.exp()
    expected = oracle.calibration(P.numpy(), y.numpy(), n_bins)
    for name, value in expected.items():
        assert float(getattr(M, name)(lp, y, n_bins)) == pytest.approx(value, abs=1e-12), name
    adaptive = oracle.adaptive_ece(P.numpy(), y.numpy(), n_bins)
    assert float(M.ada_ece(lp, y, n_bins)) == pytest.approx(adaptive, abs=1e-12)
    classwise = oracle.classwise_ece(P.numpy(), y.numpy(), n_bins)
    assert float(M.cw_ece(lp, y, n_bins)) == pytest.approx(classwise, abs=1e-12)
    assert float(M.ks_ce(lp, y)) == pytest.approx(oracle.ks_error(P.numpy(), y.numpy()), abs=1e-12)


def test_edge_items_differ_from_torchmetrics_only_by_the_edge_rule():
    P, y = tied()
    inside = torch.where(P.amax(-1, keepdim=True) == P, P - 1e-4, P)
    theirs = multiclass_calibration_error(inside, y, num_classes=3, n_bins=10)
    assert float(M.ece(P.log(), y, 10)) == pytest.approx(float(theirs), abs=2e-4)


def test_proper_scores_equal_sklearn():
    lp, y = continuous()
    P = lp.exp().numpy()
    assert float(M.nll(lp, y)) == pytest.approx(sk.log_loss(y.numpy(), P), abs=1e-12)
    assert float(M.accuracy(lp, y)) == pytest.approx(
        float(multiclass_accuracy(lp, y, num_classes=6, average="micro")), abs=1e-7
    )
    for k in (1, 2, 5):
        theirs = sk.top_k_accuracy_score(y.numpy(), P, k=k, labels=range(6))
        assert float(M.top_k_accuracy(lp, y, k)) == pytest.approx(theirs, abs=1e-12)
    onehot = np.eye(6)[y.numpy()]
    assert float(M.brier(lp, y)) == pytest.approx(((P - onehot) ** 2).sum(1).mean(), abs=1e-12)


def test_binary_brier_is_the_one_column_form():
    lp, y = continuous(200, 2)
    theirs = sk.brier_score_loss(y.numpy(), lp[:, 1].exp().numpy())
    assert float(M.brier_binary(lp, y)) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_equals_sklearn(ties):
    g = torch.Generator().manual_seed(1)
    s_id = torch.randn(150, generator=g, dtype=torch.float64)
    s_ood = torch.randn(90, generator=g, dtype=torch.float64) + 0.8
    if ties:
        s_id, s_ood = (s_id * 2).round(), (s_ood * 2).round()
    score = torch.cat([s_id, s_ood]).numpy()
    label = np.r_[np.zeros(150), np.ones(90)]
    assert float(M.auroc(s_id, s_ood)) == pytest.approx(sk.roc_auc_score(label, score), abs=1e-12)
    assert float(M.aupr_out(s_id, s_ood)) == pytest.approx(
        sk.average_precision_score(label, score), abs=1e-12
    )
    assert float(M.aupr_in(s_id, s_ood)) == pytest.approx(
        sk.average_precision_score(1 - label, -score), abs=1e-12
    )
    i, o = s_id.tolist(), s_ood.tolist()
    assert float(M.auroc(s_id, s_ood)) == pytest.approx(oracle.auroc(i, o), abs=1e-12)
    assert float(M.fpr95(s_id, s_ood)) == pytest.approx(oracle.fpr_at_tpr(o, i), abs=1e-12)
    negated = oracle.fpr_at_tpr([-s for s in i], [-s for s in o])
    assert float(M.fpr95_id(s_id, s_ood)) == pytest.approx(negated, abs=1e-12)


def test_ranking_equals_torchmetrics_inside_the_unit_interval():
    g = torch.Generator().manual_seed(2)
    s_id, s_ood = torch.rand(80, generator=g), torch.rand(60, generator=g).sqrt()
    score, label = torch.cat([s_id, s_ood]), torch.cat([torch.zeros(80), torch.ones(60)]).long()
    assert float(M.auroc(s_id, s_ood)) == pytest.approx(float(binary_auroc(score, label)), abs=1e-6)
    assert float(M.aupr_out(s_id, s_ood)) == pytest.approx(
        float(binary_average_precision(score, label)), abs=1e-6
    )


def test_one_versus_rest_auroc_equals_sklearn_and_leaves_absent_classes_out():
    lp, y = continuous(300, 5)
    ours = M.auroc_ovr(lp, y)
    theirs = sk.roc_auc_score(y.numpy(), lp.exp().numpy(), multi_class="ovr", average="macro")
    assert float(ours.mean()) == pytest.approx(theirs, abs=1e-12)
    kept = y != 3
    absent = M.auroc_ovr(lp[kept], y[kept])
    assert absent.isnan().tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("seed", range(4))
def test_risk_curve_is_the_expectation_over_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 3, 7) / 4.0
    error = rng.integers(0, 2, 7).astype(float)
    expected = oracle.risk_curve_by_permutations(confidence, error)
    kappa, e = torch.tensor(confidence), torch.tensor(error)
    risk = M.risk_coverage_curve(kappa, e)
    np.testing.assert_allclose(risk.numpy(), expected, atol=1e-12)
    i = np.arange(1, 8)
    assert float(M.aurc(kappa, e)) == pytest.approx(expected.mean(), abs=1e-12)
    assert float(M.augrc(kappa, e)) == pytest.approx((i / 7 * expected).mean(), abs=1e-12)
    best = oracle.risk_curve_by_permutations(-error, error).mean()
    assert float(M.e_aurc(kappa, e)) == pytest.approx(expected.mean() - best, abs=1e-12)
    for c in (0.2, 0.5, 0.8, 1.0):
        expected_risk = expected[math.ceil(c * 7 - 1e-9) - 1]
        assert float(M.risk_at_coverage(kappa, e, c)) == pytest.approx(expected_risk, abs=1e-12)
        assert float(M.accuracy_at_coverage(kappa, e, c)) == pytest.approx(1 - expected_risk)
    for r in (0.0, 0.2, 0.4):
        admissible = [k for k in i if expected[k - 1] <= r + 1e-12]
        expected_cov = max(admissible, default=0) / 7
        assert float(M.coverage_at_risk(kappa, e, r)) == pytest.approx(expected_cov, abs=1e-12)


def test_ece_null_is_the_mean_ece_of_labels_drawn_from_the_predictions():
    lp, y = continuous(200, 4)
    rng = np.random.default_rng(0)
    P = lp.exp().numpy()
    draws = []
    for _ in range(400):
        labels = torch.tensor([rng.choice(4, p=row / row.sum()) for row in P])
        draws.append(float(M.ece(lp, labels)))
    ours = M.ece_null_draws(lp.exp().amax(-1), n_draws=400)
    error = math.hypot(np.std(draws), float(ours.std())) / math.sqrt(400)
    assert abs(float(ours.mean()) - np.mean(draws)) < 4 * error
    assert float(M.ece_null(lp, y, n_draws=400)) == float(ours.mean())
