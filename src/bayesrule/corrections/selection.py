"""Which past items a memory keeps.

Scores of an item with logits f in R^C and curvature Lambda(f) = diag(p) - p p^T, p = softmax(f)
(one logit: p (1 - p), p = sigmoid(f))::

    lambda_descend   tr Lambda = sum_c p_c (1 - p_c), largest first (the memorable past of Pan
                     et al., 2020; also of Khan and Swaroop, 2021)
    lambda_ascend    the same, smallest first
    random           uniformly, without replacement
    k_centre         greedy: the point farthest from those that were taken (Gonzalez, 1985)
    leverage         tr A_i (sum_j A_j^T A_j + delta I)^{-1} A_i^T, largest first, with
                     A_i = Lambda_i^{1/2} J_i: ridge leverage of the GGN (Alaoui and Mahoney, 2015)

By default a memory is class-balanced: floor(m / C) items of each of the C classes that occur, and
where a class has fewer, the others share what is left.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Bernoulli, Categorical

__all__ = [
    "Strategy",
    "k_centre",
    "lambda_trace",
    "leverage_scores",
    "per_class_quota",
    "select",
    "weighted_jacobian",
]

Strategy = Literal["lambda_descend", "lambda_ascend", "random", "k_centre", "leverage"]


def lambda_trace(logits_NC: Tensor) -> Tensor:
    """Return tr Lambda = sum_c p_c (1 - p_c) per item, in float64.

    Args:
        logits_NC: Logits of the item's own head, shape (N, C); C = 1 (or shape (N,)) is one logit
            of a binary target.

    Returns:
        Scores of shape (N,); they do not change if a constant is added to all logits of an item.
    """
    logits = logits_NC.double()
    if logits.ndim == 1 or logits.shape[-1] == 1:
        flat = logits.reshape(len(logits))
        return flat.sigmoid() * (-flat).sigmoid()
    top = logits.argmax(-1, keepdim=True)
    others = (logits - logits.gather(-1, top)).exp().scatter(-1, top, 0.0)
    rest = others.sum(-1)  # 1 - p of the most probable class is rest / z: no cancellation
    z = 1.0 + rest
    q = others / z.unsqueeze(-1)
    return (q * (1.0 - q)).sum(-1) + rest / z.square()


def weighted_jacobian(features: Tensor, logits_NC: Tensor) -> Tensor:
    """Return A_i = Lambda_i^{1/2} J_i, the square root of each item's GGN.

    Args:
        features: Jacobians d f / d w of shape (N, C, P), or features x of a linear model of shape
            (N, P), for which the curvature is the scalar tr Lambda: A_i = sqrt(tr Lambda_i) x_i.
        logits_NC: Logits, shape (N, C).

    Returns:
        Shape (N, R, P), in float64; R = C, or 1 for features.
    """
    features, logits = features.double(), logits_NC.double()
    if features.ndim == 2:
        return (lambda_trace(logits).sqrt().unsqueeze(-1) * features).unsqueeze(1)
    one = logits.ndim == 1 or logits.shape[-1] == 1
    root_NCR = (Bernoulli() if one else Categorical()).hessian_sqrt(logits)
    return root_NCR.mT @ features


def leverage_scores(rows_NRP: Tensor, prior_prec: float) -> Tensor:
    """Return the ridge leverage tr A_i (sum_j A_j^T A_j + delta I)^{-1} A_i^T per item.

    Solves in the smaller of parameter and function space; the scores sum to the effective number
    of parameters.

    Args:
        rows_NRP: Square roots A_i of the items' curvature, shape (N, R, P) or (N, P).
        prior_prec: delta > 0.

    Returns:
        Shape (N,), each in [0, R).
    """
    rows = rows_NRP.double()
    rows = rows.unsqueeze(1) if rows.ndim == 2 else rows
    n, r, p = rows.shape
    flat = rows.reshape(n * r, p)
    if p <= n * r:
        prec = flat.mT @ flat + prior_prec * torch.eye(p, dtype=flat.dtype)
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(prec), flat.mT, upper=False)
        scores = half.square().sum(0)
    else:  # tr A (A^T A + d I)^{-1} A^T = 1 - d diag((A A^T + d I)^{-1})
        gram = flat @ flat.mT
        inverse = torch.cholesky_inverse(
            torch.linalg.cholesky(gram + prior_prec * torch.eye(n * r, dtype=flat.dtype))
        )
        scores = (inverse * gram).sum(1)
    return scores.reshape(n, r).sum(1)


def k_centre(points: Tensor, m: int, *, first: int = 0) -> Tensor:
    """Return m indices by farthest-first traversal; a 2-approximation of the k-centre problem.

    Args:
        points: Inputs or features, shape (N, ...).
        m: How many, at most N.
        first: Index of the first centre.

    Returns:
        Indices in the order in which they were taken; of equally far points the first.
    """
    flat = points.reshape(len(points), -1).double()
    chosen = [first]
    distance = (flat - flat[first]).square().sum(1)
    distance[first] = -1.0
    while len(chosen) < m:
        new = int(distance.argmax())
        chosen.append(new)
        distance = torch.minimum(distance, (flat - flat[new]).square().sum(1))
        distance[new] = -1.0  # never again, duplicates included
    return torch.tensor(chosen[:m])


def per_class_quota(counts: list[int], m: int) -> list[int]:
    """Return how many items of each class a balanced memory of m takes.

    floor(m / C) each. Where a class has fewer, the rest of m goes to the others, evenly, the first
    ones taking what does not divide; m of at least the number of items takes them all.

    Args:
        counts: Items of each class.
        m: Size of the memory.
    """
    if m >= sum(counts):
        return list(counts)
    each = m // len(counts)
    quota = [min(each, count) for count in counts]
    if min(counts) >= each:
        return quota
    left = m - sum(quota)
    while left:
        open_ = [c for c, count in enumerate(counts) if quota[c] < count]
        share = max(left // len(open_), 1)
        for c in open_:
            more = min(share, counts[c] - quota[c], left)
            quota[c] += more
            left -= more
    return quota


def select(
    strategy: Strategy,
    m: int,
    *,
    target: Tensor,
    logits: Tensor | None = None,
    input: Tensor | None = None,
    features: Tensor | None = None,
    prior_prec: float = 1.0,
    balanced: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the indices of the items that a memory of size m keeps.

    Args:
        strategy: See the module's docstring.
        m: Size of the memory; a balanced one has floor(m / C) items per class.
        target: Labels, shape (N,); they serve the balance only.
        logits: The model's logits of the items' head, (N, C); lambda and leverage need them.
        input: Inputs, (N, ...); k_centre needs them or `features`, which it prefers.
        features: Features (N, P) or, for leverage, Jacobians (N, C, P).
        prior_prec: Ridge of leverage.
        balanced: Class by class; False: over all items at once (then exactly min(m, N)).
        generator: Of random, and of the first centre of each class.

    Returns:
        Indices of shape (M,), M <= m, without repetition; class by class, the first choice first.

    Raises:
        Unsupported: For an unknown strategy, or without what a strategy needs.
    """
    if strategy not in get_args(Strategy):
        raise Unsupported(f"memory selection {strategy!r}: one of {', '.join(get_args(Strategy))}")
    n = len(target)
    if balanced:
        classes = target.unique().tolist()
        groups = [(target == c).nonzero().flatten().cpu() for c in classes]
    else:
        groups = [torch.arange(n)]
    quota = per_class_quota([len(group) for group in groups], m) if n else []
    score = _scores(strategy, logits, features, prior_prec, generator, n)
    if score is None:
        points = _needed("features or inputs", strategy, input if features is None else features)
        taken = [
            group[_spread(points[group], q, generator)] for group, q in zip(groups, quota) if q
        ]
    else:
        taken = [
            group[score[group].argsort(descending=True, stable=True)[:q]]
            for group, q in zip(groups, quota)
        ]
    return torch.cat(taken) if taken else torch.empty(0, dtype=torch.long)


def _scores(
    strategy: Strategy,
    logits: Tensor | None,
    features: Tensor | None,
    prior_prec: float,
    generator: torch.Generator | None,
    n: int,
) -> Tensor | None:
    """Return what is wanted to be large, on the CPU, or None for k_centre."""
    if strategy == "k_centre":
        return None
    if strategy == "random":
        return torch.randperm(n, generator=generator).double()
    logits = _needed("logits", strategy, logits)
    if strategy == "leverage":
        rows = weighted_jacobian(_needed("features", strategy, features), logits)
        return leverage_scores(rows.cpu(), prior_prec)
    trace = lambda_trace(logits).cpu()
    return trace if strategy == "lambda_descend" else -trace


def _needed(what: str, strategy: Strategy, value: Tensor | None) -> Tensor:
    if value is None:
        raise Unsupported(f"memory selection {strategy} needs {what}")
    return value


def _spread(points: Tensor, m: int, generator: torch.Generator | None) -> Tensor:
    first = int(torch.randint(len(points), (1,), generator=generator))
    return k_centre(points, m, first=first)
