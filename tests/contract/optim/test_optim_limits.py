"""Limits in which an optimiser must be a simpler one."""

import pytest
import torch
from optim_cases import (
    F32,
    F64,
    Net,
    assert_params_equal,
    batches,
    closure_of,
    learn,
    params_of,
)

from bayesrule.optim import ASAM, SAM, SGD, AdamW, SAMAdamW

OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


@pytest.mark.parametrize("dtype", [F32, F64])
def test_sam_of_radius_zero_is_sgd(dtype):
    sharp, plain = Net(dtype), Net(dtype)
    learn(SAM(sharp.parameters(), **OPTIONS, rho=0.0), sharp, batches(8, dtype))
    learn(SGD(plain.parameters(), **OPTIONS), plain, batches(8, dtype))
    assert_params_equal(sharp, plain)


def test_sam_over_adamw_of_radius_zero_is_adamw_and_otherwise_is_not():
    options = {"lr": 0.01, "weight_decay": 0.1}
    sharp, plain, moved = Net(F64), Net(F64), Net(F64)
    learn(SAMAdamW(sharp.parameters(), **options, rho=0.0), sharp, batches(8, F64))
    learn(AdamW(plain.parameters(), **options), plain, batches(8, F64))
    learn(SAMAdamW(moved.parameters(), **options, rho=0.3), moved, batches(8, F64))
    assert_params_equal(sharp, plain)
    assert not all(map(torch.equal, params_of(moved), params_of(plain)))


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_asam_moves_by_rho_in_units_of_the_weights(eta):
    rho, model = 0.3, Net(F64)
    opt = ASAM(model.parameters(), **OPTIONS, rho=rho, eta=eta)
    mean, points, grads = params_of(model), [], []
    closure = closure_of(opt, model, batches(1, F64)[0])

    def watched():
        points.append(params_of(model))
        loss = closure()
        grads.append([p.grad.clone() for p in model.parameters()])
        return loss

    opt.step(watched)
    scale = torch.cat([m.abs().flatten() + eta for m in mean])
    g = torch.cat([each.flatten() for each in grads[0]])
    offset = torch.cat([(p - m).flatten() for p, m in zip(points[1], mean, strict=True)])
    expected = rho * scale * scale * g / (scale * g).norm()
    torch.testing.assert_close(offset, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("two_groups", [False, True])
def test_sam_moves_by_rho_along_the_gradient_over_all_groups(two_groups):
    rho, model = 0.3, Net(F64)
    groups = [{"params": layer.parameters()} for layer in (model[0], model[2])]
    opt = SAM(groups if two_groups else model.parameters(), **OPTIONS, rho=rho)
    mean, points, grads = params_of(model), [], []
    closure = closure_of(opt, model, batches(1, F64)[0])

    def watched():
        points.append(params_of(model))
        loss = closure()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        return loss

    opt.step(watched)
    assert all(map(torch.equal, points[0], mean))
    offset = torch.cat([(p - m).flatten() for p, m in zip(points[1], mean, strict=True)])
    assert float(offset.norm()) == pytest.approx(rho, rel=1e-10)
    torch.testing.assert_close(offset, rho * grads[0] / grads[0].norm(), rtol=1e-10, atol=1e-14)
    # and the step is SGD's, with the second gradient, from the mean
    flat = torch.cat([m.flatten() for m in mean])
    expected = flat - 0.1 * (grads[1] + 0.01 * flat)
    got = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


def test_sam_has_one_radius():
    model = Net()
    groups = [{"params": model[0].parameters(), "rho": 0.1}, {"params": model[2].parameters()}]
    with pytest.raises(ValueError, match="rho"):
        SAM(groups, **OPTIONS)


def test_sam_at_a_stationary_point_stays():
    weight = torch.nn.Parameter(torch.zeros(3, dtype=F64))
    opt = SAM([weight], lr=0.1, momentum=0.0, rho=0.1)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert torch.equal(weight, torch.zeros(3, dtype=F64))
