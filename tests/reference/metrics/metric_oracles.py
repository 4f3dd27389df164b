"""Slow, loop-by-loop NumPy versions of the metrics, written from their definitions alone."""

import math
from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np


def top(P, y):
    conf, correct = [], []
    for row, target in zip(P, y):
        best = max(range(len(row)), key=lambda k: (row[k], -k))
        conf.append(row[best])
        correct.append(float(best == target))
    return np.array(conf), np.array(correct)


def bin_of(conf, n_bins):
    for b in range(n_bins):
        if conf <= (b + 1) / n_bins + 1e-10:
            return b
    return n_bins - 1


def gaps(conf, correct, bins):
    out = []
    for b in sorted(set(bins)):
        inside = [i for i in range(len(conf)) if bins[i] == b]
        acc = sum(correct[i] for i in inside) / len(inside)
        mean = sum(conf[i] for i in inside) / len(inside)
        out.append((len(inside), acc, mean))
    return out


def calibration(P, y, n_bins):
    conf, correct = top(P, y)
    groups = gaps(conf, correct, [bin_of(c, n_bins) for c in conf])
    n = len(conf)
    debiased = sum(m / n * ((a - c) ** 2 - a * (1 - a) / (m - 1)) for m, a, c in groups if m >= 2)
    return {
        "ece": sum(m / n * abs(a - c) for m, a, c in groups),
        "oce": sum(m / n * max(0, c - a) for m, a, c in groups),
        "uce": sum(m / n * max(0, a - c) for m, a, c in groups),
        "rmsce": math.sqrt(sum(m / n * (a - c) ** 2 for m, a, c in groups)),
        "rmsce_debiased": math.sqrt(max(0.0, debiased)),
        "mce": max(abs(a - c) for m, a, c in groups),
    }


def classwise_ece(P, y, n_bins):
    n, n_classes = P.shape
    total = 0.0
    for k in range(n_classes):
        hit = [float(t == k) for t in y]
        groups = gaps(P[:, k], hit, [bin_of(p, n_bins) for p in P[:, k]])
        total += sum(m / n * abs(a - c) for m, a, c in groups)
    return total / n_classes


def adaptive_ece(P, y, n_bins):
    conf, correct = top(P, y)
    order = sorted(range(len(conf)), key=lambda i: conf[i])
    conf, correct = conf[order], correct[order]
    n = len(conf)
    cuts = set()
    for j in range(1, n_bins):
        cut = round(Fraction(j * n, n_bins))
        while 0 < cut < n and conf[cut] == conf[cut - 1]:
            cut += 1
        cuts.add(cut)
    bins = [sum(cut <= i for cut in cuts) for i in range(n)]
    return sum(m / n * abs(a - c) for m, a, c in gaps(conf, correct, bins))


def ks_error(P, y):
    conf, correct = top(P, y)
    n = len(conf)
    return max(
        abs(sum(correct[i] - conf[i] for i in range(n) if conf[i] <= t)) / n for t in set(conf)
    )


def risk_curve_by_permutations(confidence, error):
    """Average over all orders that respect the confidence: exact, exponential."""
    n = len(confidence)
    total, count = np.zeros(n), 0
    for order in permutations(range(n)):
        if all(confidence[order[i]] >= confidence[order[i + 1]] for i in range(n - 1)):
            total += np.cumsum([error[i] for i in order]) / np.arange(1, n + 1)
            count += 1
    return total / count


def auroc(score_id, score_ood):
    wins = sum((o > i) + 0.5 * (o == i) for o in score_ood for i in score_id)
    return wins / (len(score_id) * len(score_ood))


def fpr_at_tpr(positive, negative, tpr=0.95):
    for t in sorted({*positive, *negative}, reverse=True):
        if sum(p >= t for p in positive) >= tpr * len(positive) - 1e-9:
            return sum(s >= t for s in negative) / len(negative)
    raise AssertionError


def expected_normalised_calibration_error(mean, std, y, n_bins):
    order = np.argsort(std, kind="stable")
    mean, std, y = mean[order], std[order], y[order]
    n = len(y)
    cuts = [0, *(round(Fraction(j * n, n_bins)) for j in range(1, n_bins)), n]
    terms = []
    for a, b in pairwise(cuts):
        rmv = math.sqrt(np.mean(std[a:b] ** 2))
        terms.append(abs(rmv - math.sqrt(np.mean((y[a:b] - mean[a:b]) ** 2))) / rmv)
    return float(np.mean(terms))
