"""A batch of several heads is what each item's own head makes of it."""

import pytest
import torch

from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Categorical, Gaussian, Head, Heads

HEADS = [(0, 1), (2, 3, 4)]
OUTPUTS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 4, 1, 2, 3, 1, 4])  # outputs of the network


def by_item(method):
    """Return a method of each item's own head, item by item."""
    rows = []
    for f, y in zip(OUTPUTS, TARGETS, strict=True):
        head = next(head for head in HEADS if int(y) in head)
        own = torch.tensor([head.index(int(y))])
        row = getattr(Head(Categorical(), head), method)(f[None], own)[0]
        rows.append(row @ row.T if method == "hessian_sqrt" else row)
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["nll", "residual", "hessian", "hessian_sqrt"])
def test_equals_each_items_own_head(method):
    ours = getattr(Heads(Categorical(), HEADS), method)(OUTPUTS, TARGETS)
    if method == "hessian_sqrt":  # roots differ by a rotation
        ours = ours @ ours.transpose(-1, -2)
    assert torch.allclose(ours, by_item(method), atol=1e-12)


def test_gradient_is_the_residual_and_stays_in_the_head():
    f = OUTPUTS.clone().requires_grad_()
    heads = Heads(Categorical(), HEADS)
    heads.nll(f, TARGETS).sum().backward()
    assert torch.allclose(f.grad, heads.residual(OUTPUTS, TARGETS), atol=1e-12)
    assert torch.equal(f.grad[0, 2:], torch.zeros(3, dtype=torch.float64))


def test_one_head_over_everything_is_the_base():
    heads = Heads(Categorical(), [tuple(range(5))] * 3)
    assert torch.equal(heads.nll(OUTPUTS, TARGETS), Categorical().nll(OUTPUTS, TARGETS))
    assert torch.equal(heads.log_probs(OUTPUTS), Categorical().log_probs(OUTPUTS))


def test_what_is_refused():
    with pytest.raises(Unsupported, match=r"share some"):
        Heads(Categorical(), [(0, 1), (1, 2)])
    with pytest.raises(Unsupported, match=r"of classes"):
        Heads(Gaussian(1.0), HEADS)
    heads = Heads(Categorical(), [(0, 1), (3, 4)])
    with pytest.raises(Unsupported, match=r"belongs to no head"):
        heads.nll(OUTPUTS, torch.full((7,), 2))
    with pytest.raises(Unsupported, match=r"needs the targets"):
        heads.hessian(OUTPUTS)
    with pytest.raises(Unsupported, match=r"cannot be drawn"):
        heads.sample(OUTPUTS)
