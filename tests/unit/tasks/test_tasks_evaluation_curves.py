"""Curves that an evaluation keeps: who is taken for whom, and the risk at some coverages."""

import pytest
import torch

from bayesrule.tasks.evaluate import CONFUSION_CLASSES, COVERAGES, Evaluation, add_classification

CFG = {"ece_bins": [15], "ece_null_draws": 0}


def curves(n, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (n,), generator=generator)
    out = Evaluation()
    log_probs = logits.log_softmax(-1)
    add_classification(out, "test", "mean", log_probs, targets, n_outputs=classes, cfg=CFG)
    return out, log_probs, targets


def test_confusion_counts_each_item_once():
    out, log_probs, targets = curves(200, 5)
    counts = out.curves["test/confusion@mean"]["counts"]
    naive = [[0] * 5 for _ in range(5)]
    for row, target in zip(log_probs.tolist(), targets.tolist(), strict=True):
        naive[target][row.index(max(row))] += 1
    assert counts == naive
    right = sum(counts[k][k] for k in range(5))
    assert right / 200 == pytest.approx(out.metrics["test/acc@mean"], abs=1e-12)


@pytest.mark.parametrize("n", [1, 7, 500])
def test_risk_at_full_coverage_is_the_error_rate(n):
    out, log_probs, targets = curves(n, 3)
    curve = out.curves["test/risk_coverage@mean"]
    assert len(curve["coverage"]) == min(n, COVERAGES)
    assert curve["coverage"][-1] == 1.0
    assert curve["risk"][-1] == pytest.approx(out.metrics["test/err@mean"], abs=1e-12)
    order = sorted(range(n), key=lambda i: -float(log_probs[i].max()))
    wrong = [int(log_probs[i].argmax() != targets[i]) for i in order]
    for coverage, risk in zip(curve["coverage"], curve["risk"], strict=True):
        kept = round(coverage * n)
        assert risk == pytest.approx(sum(wrong[:kept]) / kept, abs=1e-12)


def test_many_classes_have_no_confusion():
    out, *_ = curves(50, CONFUSION_CLASSES + 1)
    assert "test/confusion@mean" not in out.curves
    assert "test/risk_coverage@mean" in out.curves
