"""What one step of every optimiser must do in a plain PyTorch loop."""

import copy
import inspect
import pickle
import re
import sys

import pytest
import torch
from optim_cases import (
    F32,
    F64,
    Net,
    assert_identical,
    assert_params_equal,
    batches,
    closure_of,
    every_case,
    everything,
    known,
    learn,
    loss_of,
    oracle_cases,
    params_of,
)

from bayesrule.errors import Unsupported
from bayesrule.optim import memory


@oracle_cases
@pytest.mark.parametrize("dtype", [F32, F64])
def test_equals_torch_bit_by_bit(case, dtype):
    ours, theirs = Net(dtype), Net(dtype)
    opt_ours, opt_theirs = case(ours.parameters()), case.oracle(theirs.parameters())
    losses = learn(opt_ours, ours, batches(10, dtype))
    for batch, loss in zip(batches(10, dtype), losses, strict=True):
        assert torch.equal(opt_theirs.step(closure_of(opt_theirs, theirs, batch)), loss)
        assert not loss.requires_grad
    assert_params_equal(ours, theirs)


@oracle_cases
def test_step_without_a_closure_is_torch_s(case):
    ours, theirs = Net(), Net()
    for model, opt in (
        (ours, case(ours.parameters())),
        (theirs, case.oracle(theirs.parameters())),
    ):
        for batch in batches(5):
            opt.zero_grad()
            loss_of(model, batch).backward()
            opt.step()
    assert_params_equal(ours, theirs)


@every_case
def test_step_without_a_sample_is_refused(case):
    model = Net()
    opt = case(model.parameters())
    if not case.at_mean:
        with pytest.raises(RuntimeError, match="no sample"):
            opt.step()
    opt = case(model.parameters(), mc_samples=2)
    with pytest.raises(RuntimeError):
        opt.step()


@every_case
def test_the_loss_is_the_mean_over_samples(case):
    model = Net(F64)
    opt = case(model.parameters(), mc_samples=3)
    seen = []

    def closure():
        loss = closure_of(opt, model, batches(1, F64)[0])()
        seen.append(float(loss))
        return loss

    loss = opt.step(closure)
    assert len(seen) == 3 * case.stages
    assert float(loss) == pytest.approx(sum(seen[:: case.stages]) / 3, rel=1e-14)


@every_case
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("micro", [3, 5])
def test_micro_batches_are_one_batch(case, samples, micro):
    whole, parts = Net(F64), Net(F64)
    learn(case(whole.parameters(), mc_samples=samples), whole, batches(6, F64))
    learn(case(parts.parameters(), mc_samples=samples), parts, batches(6, F64), micro=micro)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@every_case
def test_closure_need_not_zero_the_gradients(case):
    plain, lazy = Net(), Net()
    opt_plain = case(plain.parameters(), mc_samples=2)
    opt_lazy = case(lazy.parameters(), mc_samples=2)
    learn(opt_plain, plain, batches(4))
    for batch in batches(4):

        def closure(batch=batch):
            loss = loss_of(lazy, batch)
            loss.backward()
            return loss

        opt_lazy.step(closure)
    assert_identical(everything(opt_plain), everything(opt_lazy))


@every_case
def test_gradients_from_outside_are_refused(case):
    model = Net()
    opt = case(model.parameters())
    learn(opt, model, batches(2))
    learn(opt, model, batches(1))  # the gradients that a step leaves are its own
    model.zero_grad()
    loss_of(model, batches(1)[0]).backward()
    before = everything(opt)
    with pytest.raises(RuntimeError, match="micro-batches inside the closure"):
        learn(opt, model, batches(1))
    assert_identical(before, everything(opt))
    opt.zero_grad()
    learn(opt, model, batches(1))
    loss_of(model, batches(1)[0]).backward()  # added to the step's own gradients
    with pytest.raises(RuntimeError, match="micro-batches inside the closure"):
        learn(opt, model, batches(1))


@every_case
def test_a_closure_that_raises_leaves_the_mean(case):
    model, calls = Net(), []
    opt = case(model.parameters(), mc_samples=2)
    learn(opt, model, batches(2))
    before = params_of(model)

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return closure_of(opt, model, batches(1)[0])()

    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    assert all(map(torch.equal, before, params_of(model)))
    opt.zero_grad()
    learn(opt, model, batches(2))  # and it can go on


@every_case
def test_closure_must_return_the_loss(case):
    model = Net()
    opt = case(model.parameters())
    with pytest.raises(RuntimeError, match="return the loss"):
        opt.step(lambda: None)


@every_case
def test_step_hooks_run_once(case):
    torch.optim.SGD(Net().parameters())  # torch wraps a class's step when it is first used
    torch.optim.AdamW(Net().parameters())
    model, calls = Net(), []
    opt = case(model.parameters())
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))
    learn(opt, model, batches(1))
    assert calls == ["pre", "post"]


# ------------------------------------------------------------------ parameters


@every_case
def test_groups_have_their_own_options(case):
    name, value = case.per_group

    def run(first, second, steps=5):
        model = Net(F64)
        groups = [
            {"params": model[0].parameters(), **first},
            {"params": model[2].parameters(), **second},
        ]
        opt = case(groups)
        learn(opt, model, batches(steps, F64))
        return params_of(model), [case.learnt_of(opt, p) for p in model.parameters()]

    (start, _), (both, _) = run({}, {}, 0), run({}, {"lr": 0.0})
    assert not torch.equal(both[0], start[0])
    assert torch.equal(both[2], start[2])
    assert torch.equal(both[3], start[3])
    # an option of one group differs from the default, and from the same option of the other
    default, first, second = (
        learnt for _, learnt in (run({}, {}), run({name: value}, {}), run({}, {name: value}))
    )
    assert not torch.allclose(first[0], default[0], rtol=1e-9)
    assert not torch.allclose(second[2], default[2], rtol=1e-9)
    assert not torch.allclose(first[0], second[0], rtol=1e-9)


@oracle_cases
def test_groups_equal_torch_s(case):
    ours, theirs = Net(), Net()

    def groups(model):
        return [
            {"params": model[0].parameters(), "lr": 0.3, "weight_decay": 0.2},
            {"params": model[2].parameters()},
        ]

    learn(case(groups(ours)), ours, batches(6))
    opt = case.oracle(groups(theirs))
    learn(opt, theirs, batches(6))
    assert_params_equal(ours, theirs)


@every_case
def test_frozen_parameters_stay(case):
    model = Net()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    opt = case(model.named_parameters(), mc_samples=2)

    def closure():
        assert torch.equal(model[0].weight, frozen)  # not perturbed either
        return closure_of(opt, model, batches(1)[0])()

    for _ in range(3):
        opt.step(closure)
    assert torch.equal(model[0].weight, frozen)
    assert model[0].weight not in opt.state
    assert "0.weight" not in opt.posterior().names
    with opt.sampled_params():
        assert torch.equal(model[0].weight, frozen)


class _WithUnused(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.spare = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.ones_(self.spare.weight)
        known(self)

    @property
    def unused(self):
        return self.spare.weight

    def forward(self, x):
        return self.net(x)


@every_case
def test_unused_parameters(case):
    model = _WithUnused()
    opt = case(model.parameters(), mc_samples=2)
    learn(opt, model, batches(4))
    assert torch.isfinite(model.unused).all()
    if case.oracle is None:
        return
    theirs = _WithUnused()
    learn(case.oracle(theirs.parameters()), theirs, batches(4))
    assert torch.equal(model.unused, theirs.unused)  # no weight decay without a gradient
    assert torch.equal(model.unused, torch.ones(2, 2))


class _Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        net = Net()
        self.first, self.out = net[0], net[2]
        self.inner = torch.nn.Linear(7, 5, bias=False)
        self.inner.weight = torch.nn.Parameter(torch.linspace(-1, 1, 35).view(5, 7))
        self.again = torch.nn.Linear(7, 5, bias=False)
        self.again.weight = self.inner.weight
        known(self)

    def forward(self, x):
        for layer in (self.inner, self.again):
            x = torch.tanh(layer(torch.tanh(self.first(x))))
        return self.out(torch.tanh(self.first(x)))


@every_case
def test_tied_weights(case):
    model, shapes = _Tied(), []

    def noise(like):
        shapes.append(tuple(like.shape))
        return torch.ones_like(like)

    opt = case(model.named_parameters(), noise=noise)
    learn(opt, model, batches(4))
    assert model.again.weight is model.inner.weight
    assert opt.posterior().names == tuple(name for name, _ in model.named_parameters())
    assert "again.weight" not in opt.posterior().names
    assert len(shapes) == (20 if case.stochastic else 0)  # five tensors, each once a step
    if case.oracle is not None:
        theirs = _Tied()
        learn(case.oracle(theirs.parameters()), theirs, batches(4))
        assert_params_equal(model, theirs)


@every_case
def test_conversion_after_construction(case):
    model, expected = Net(F32), Net(F32).double()
    opt = case(model.parameters(), mc_samples=2)
    model.to(F64)
    opt_expected = case(expected.parameters(), mc_samples=2)
    learn(opt, model, batches(4, F64))
    learn(opt_expected, expected, batches(4, F64))
    assert_identical(everything(opt), everything(opt_expected))


@every_case
def test_conversion_after_a_first_look(case):
    """Asking for the posterior makes the state, which then follows the parameters."""
    model = Net(F32)
    opt = case(model.named_parameters())
    with opt.sampled_params():
        pass
    opt.posterior()
    model.to(F64)
    learn(opt, model, batches(3, F64))
    for param in model.parameters():
        for name in case.state:
            assert opt.state[param][name].dtype == F64
    assert opt.posterior().mean["0.weight"].dtype == F64


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_refused(case, dtype):
    with pytest.raises(Unsupported, match="autocast"):
        case(Net(dtype).parameters())
    case(Net(dtype).requires_grad_(False).parameters())  # frozen ones hold no posterior


@every_case
@pytest.mark.parametrize("samples", [1, 3])
def test_autocast_around_the_step_or_inside_the_closure(case, samples):
    """Autocast keeps half-precision copies of the weights; they must not outlive a sample."""

    def run(outside):
        model = Net()
        opt = case(model.parameters(), mc_samples=samples)
        losses = []
        for batch in batches(5):

            def closure(batch=batch):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_of(model, batch)
                loss.backward()
                return loss

            with torch.autocast("cpu", torch.bfloat16, enabled=outside):
                losses.append(opt.step(closure))
                if outside:  # what is left afterwards is the new mean
                    after = loss_of(model, batch)
            if outside:
                with torch.autocast("cpu", torch.bfloat16):
                    assert torch.equal(loss_of(model, batch), after)
        return everything(opt), losses

    inside, outside = run(False), run(True)
    assert_identical(inside[0], outside[0])
    assert inside[1] == outside[1]
    assert all(v.dtype == F32 for k, v in inside[0].items() if k.startswith("param"))


@every_case
@pytest.mark.parametrize("block", [100, 1000, 100_000])
def test_layout_size_and_type_of_tensors(case, block, monkeypatch):
    """Updates run over blocks, large tensors cut and small ones gathered: it must not matter."""
    if case.takes_model:
        pytest.skip("learns from layers, and these tensors are in none")
    monkeypatch.setattr(memory, "BLOCK", block)
    monkeypatch.setattr(memory, "SMALL", block // 2)

    def run(weights):
        opt = case(weights, mc_samples=2, noise=lambda like: like.detach().sin())
        for _ in range(3):

            def closure():
                loss = sum((w - 0.5).pow(4).sum() for w in weights)
                loss.backward()
                return loss

            opt.step(closure)
        return weights

    gen = torch.Generator().manual_seed(0)
    values = [torch.rand(shape, generator=gen, dtype=F64) for shape in ((8, 4, 3, 3), (30, 25))]
    values += [torch.rand(shape, generator=gen, dtype=F64) for shape in ((7,), (), (0, 3))]
    values += [torch.rand(shape, generator=gen, dtype=F32) for shape in ((5,), (40, 5))]
    plain = run([torch.nn.Parameter(v.clone()) for v in values])
    last = [
        values[0].to(memory_format=torch.channels_last),
        values[1].T.contiguous().T,
        *values[2:],
    ]
    other = run([torch.nn.Parameter(v.clone()) for v in last])
    one_by_one = [run([torch.nn.Parameter(v.clone())])[0] for v in values]
    for i, p in enumerate(plain):
        if case.exact:
            assert torch.equal(p, other[i])
            assert torch.equal(p, one_by_one[i])
        else:
            torch.testing.assert_close(p, other[i], rtol=case.rounding(p), atol=case.rounding(p))


# --------------------------------------------------------- schedule, options


@every_case
def test_learning_rate_schedule(case):
    scheduled, by_hand = Net(), Net()
    opt, opt_hand = case(scheduled.parameters()), case(by_hand.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.3)
    for i, batch in enumerate(batches(6)):
        opt.step(closure_of(opt, scheduled, batch))
        schedule.step()
        for group in opt_hand.param_groups:
            group["lr"] = opt_hand.defaults["lr"] * 0.3 ** (i // 2)
        opt_hand.step(closure_of(opt_hand, by_hand, batch))
    for p, q in zip(scheduled.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@every_case
def test_options_out_of_range(case):
    torch_says = {"lr": "learning rate", "beta1": "beta", "beta2": "beta", "eps": "epsilon"}
    for name, value in case.wrong.items():
        said = f"(?i){name}|{torch_says.get(name, name)}"
        with pytest.raises(ValueError, match=said):
            case(Net().parameters(), **{name: value})
    with pytest.raises(ValueError, match=r"lr|learning rate"):
        case(Net().parameters(), lr=float("nan"))
    with pytest.raises(ValueError, match=r"seed= or generator="):
        case(Net().parameters(), seed=1, generator=torch.Generator())
    groups = [{"params": Net()[0].parameters()}, {"params": Net()[2].parameters(), "lr": -1.0}]
    with pytest.raises(ValueError, match=r"lr|learning rate"):
        case(groups)


@every_case
def test_names_of_the_posterior(case):
    model = Net()
    names = tuple(name for name, _ in model.named_parameters())
    assert case(model.named_parameters()).posterior().names == names
    assert case(model.parameters()).posterior(model).names == names
    assert case(model.parameters()).posterior().names == ("0", "1", "2", "3")
    with pytest.raises(ValueError, match="not in the model"):
        case(model.parameters()).posterior(Net())


@every_case
def test_the_posterior_is_a_value(case):
    model = Net()
    opt = case(model.named_parameters())
    learn(opt, model, batches(2))
    q = opt.posterior()
    mean = {name: value.clone() for name, value in q.mean.items()}
    for name, param in model.named_parameters():
        assert torch.equal(mean[name], param)
    learn(opt, model, batches(2))
    for name, value in q.mean.items():
        assert torch.equal(value, mean[name])
        assert not value.requires_grad


@every_case
def test_copies_are_refused(case):
    opt = case(Net().parameters())
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            duplicate(opt)


@every_case
def test_documentation(case):
    module = sys.modules[case.kind.__module__]
    family = [kind for kind in case.kind.__mro__ if kind.__module__ == module.__name__]
    text = "\n".join(str(part.__doc__) for part in (module, *family))
    assert re.search(r"<-.*\blr\b", text), "its update equation"
    for name in inspect.signature(case.kind.__init__).parameters:
        if name not in ("self", "params"):
            assert f"`{name}`" in text or f"{name}: " in text, f"{name} is not described"
