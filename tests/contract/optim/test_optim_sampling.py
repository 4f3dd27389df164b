"""Noise, samples and saved state of every optimiser."""

import io

import pytest
import torch
from optim_cases import (
    F32,
    F64,
    Net,
    assert_identical,
    batches,
    closure_of,
    every_case,
    everything,
    known,
    learn,
    loss_of,
    params_of,
    random_cases,
    stochastic_cases,
)

from bayesrule.errors import Unsupported


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---------------------------------------------------------------- saved state


@every_case
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("own", [False, True], ids=["seed", "generator"])
def test_resumed_is_bit_equal(case, dtype, at, own):
    def make(model, seed):
        source = {"generator": torch.Generator().manual_seed(seed)} if own else {"seed": seed}
        return case(model.named_parameters(), mc_samples=2, **source)

    whole, first, second = Net(dtype), Net(dtype), Net(dtype)
    opt_whole, opt_first = make(whole, 1), make(first, 1)
    steps = batches(6, dtype)
    learn(opt_whole, whole, steps)
    learn(opt_first, first, steps[:at])
    opt_second = make(second, 2)
    learn(opt_second, second, steps)  # what it had done before must not matter
    second.load_state_dict(through_a_file(first.state_dict()))
    opt_second.load_state_dict(through_a_file(opt_first.state_dict()))
    assert_identical(everything(opt_second), everything(opt_first))
    learn(opt_second, second, steps[at:])
    assert_identical(everything(opt_second), everything(opt_whole))
    for samplers in (opt_whole, opt_second):  # the stream of predictions goes on too
        with samplers.sampled_params():
            pass
    assert_identical(everything(opt_second), everything(opt_whole))


@every_case
def test_saved_state_is_a_copy_of_the_streams(case):
    model = Net()
    opt = case(model.parameters())
    learn(opt, model, batches(1))
    saved = opt.state_dict()["bayesrule"]
    streams = {name: value.clone() for name, value in saved["streams"].items()}
    learn(opt, model, batches(2))
    for name, value in saved["streams"].items():
        assert torch.equal(value, streams[name])
    assert bool(streams) == case.stochastic


@every_case
def test_a_foreign_state_is_refused(case):
    model = Net()
    with pytest.raises(ValueError, match="bayesrule"):
        case(model.parameters()).load_state_dict(torch.optim.SGD(model.parameters()).state_dict())


@every_case
def test_schedule_and_optimiser_resume_together(case):
    def make():
        model = Net()
        opt = case(model.parameters())
        return model, opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 6)

    def run(model, opt, schedule, steps):
        for batch in steps:
            opt.step(closure_of(opt, model, batch))
            schedule.step()

    whole, first, second = make(), make(), make()
    run(*whole, batches(6))
    run(*first, batches(6)[:3])
    for new, old in zip(second, first, strict=True):
        new.load_state_dict(through_a_file(old.state_dict()))
    run(*second, batches(6)[3:])
    assert_identical(everything(second[1]), everything(whole[1]))


# ------------------------------------------------------------------- sampling


@every_case
@pytest.mark.parametrize("train", [False, True])
def test_the_mean_is_back_also_when_the_body_raises(case, train):
    if train and case.stages > 1:
        pytest.skip("takes two gradients per sample: see the test that it says so")
    model = Net()
    opt = case(model.parameters())
    learn(opt, model, batches(2))
    mean = params_of(model)
    for fails in (False, True):
        try:
            with opt.sampled_params(train=train):
                moved = [not torch.equal(m, p) for m, p in zip(mean, model.parameters())]
                moves = (case.stochastic or opt.relaxed) if train else case.random
                assert all(moved) if moves else not any(moved)
                loss_of(model, batches(1)[0]).backward()
                if fails:
                    raise KeyError("body")
        except KeyError:
            assert fails
        assert all(map(torch.equal, mean, params_of(model)))
        opt.zero_grad()


@every_case
def test_nesting_is_refused(case):
    model = Net()
    opt = case(model.parameters())
    mean = params_of(model)
    with pytest.raises(RuntimeError, match="nest"), opt.sampled_params(), opt.sampled_params():
        pass
    with pytest.raises(RuntimeError, match="nest"), opt.sampled_params():
        learn(opt, model, batches(1))
    with pytest.raises(RuntimeError, match="outside"), opt.sampled_params():
        opt.posterior()
    assert all(map(torch.equal, mean, params_of(model)))
    learn(opt, model, batches(1))


@every_case
@pytest.mark.parametrize("samples", [1, 3])
def test_samples_by_hand_equal_the_closure(case, samples):
    by_closure, by_hand = Net(), Net()
    opt_closure = case(by_closure.parameters(), mc_samples=samples)
    opt_hand = case(by_hand.parameters(), mc_samples=samples)
    if case.stages > 1:
        with pytest.raises(Unsupported, match=r"step\(closure\)"), opt_hand.sampled_params(True):
            pass
        return
    learn(opt_closure, by_closure, batches(5))
    for batch in batches(5):
        for _ in range(samples):
            with opt_hand.sampled_params(train=True):
                loss_of(by_hand, batch).backward()  # zero_grad may be left out here too
            with opt_hand.sampled_params():  # a look in between changes nothing
                pass
        assert opt_hand.step() is None
    ours, theirs = everything(opt_hand), everything(opt_closure)
    ours.pop("stream predict", None)
    assert_identical(ours, theirs)


@every_case
def test_the_number_of_samples_is_checked(case):
    if case.stages > 1:
        pytest.skip("takes no samples by hand")
    model = Net()
    opt = case(model.parameters(), mc_samples=2)
    with opt.sampled_params(train=True):
        loss_of(model, batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match="1 samples were collected, mc_samples=2"):
        opt.step()
    with opt.sampled_params(train=True):
        loss_of(model, batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match="one way or the other"):
        learn(opt, model, batches(1))


@every_case
def test_predicting_does_not_move_training(case):
    plain, looking = Net(), Net()
    opt_plain, opt_looking = case(plain.parameters()), case(looking.parameters())
    for i, batch in enumerate(batches(5)):
        opt_plain.step(closure_of(opt_plain, plain, batch))
        opt_looking.step(closure_of(opt_looking, looking, batch))
        for _ in range(i):
            with opt_looking.sampled_params(), torch.no_grad():
                loss_of(looking, batch)
    ours, theirs = everything(opt_looking), everything(opt_plain)
    ours.pop("stream predict", None)
    assert_identical(ours, theirs)


@random_cases
def test_predictions_differ_from_draw_to_draw(case):
    model = Net()
    opt, draws = case(model.parameters()), []
    for _ in range(2):
        with opt.sampled_params():
            draws.append(params_of(model))
    # of binary weights, a small tensor may come out the same
    assert not any(torch.equal(a, b) for a, b in zip(*draws, strict=True) if a.numel() > 20)


# ---------------------------------------------------------------------- noise


@every_case
def test_noise_hook(case):
    model = Net()
    model[0].bias.requires_grad_(False)
    wanted, seen = [(7, 5), (3, 7), (3,)], []

    def noise(like):
        seen.append(tuple(like.shape))
        assert like.dtype == F32
        return torch.full_like(like, 0.5)

    opt = case(model.parameters(), mc_samples=2, noise=noise)
    learn(opt, model, batches(3))
    assert seen == 6 * case.stochastic * wanted
    with opt.sampled_params():
        pass
    assert seen == (6 * case.stochastic + case.random) * wanted


@stochastic_cases
def test_noise_hook_replaces_the_draw(case):
    """The hook gets what the stream would have given: then nothing changes; its tensors stay."""
    plain, hooked, handed = Net(), Net(), []
    stream = torch.Generator().manual_seed(9)

    def noise(like):
        draw = torch.empty(like.shape)
        opt.standard_noise(draw, stream)
        handed.extend((draw, draw.clone()))
        return draw

    opt = case(plain.parameters(), mc_samples=2, generator=torch.Generator().manual_seed(9))
    learn(opt, plain, batches(4))
    learn(case(hooked.parameters(), mc_samples=2, noise=noise), hooked, batches(4))
    assert all(map(torch.equal, params_of(plain), params_of(hooked)))
    assert all(map(torch.equal, handed[::2], handed[1::2]))
    fresh = Net()
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        learn(case(fresh.parameters(), noise=lambda like: torch.zeros(2)), fresh, batches(1))


@every_case
def test_seeds(case):
    def run(**options):
        model = Net()
        opt = case(model.parameters(), **options)
        learn(opt, model, batches(3))
        return params_of(model)

    same = all(map(torch.equal, run(seed=1), run(seed=1)))
    other = all(map(torch.equal, run(seed=1), run(seed=2)))
    assert same
    assert other == (not case.stochastic)
    torch.manual_seed(4)  # without a seed: torch's
    first = run(seed=None)
    torch.manual_seed(4)
    torch.rand(5)
    assert all(map(torch.equal, first, run(seed=None)))


@every_case
def test_the_global_random_state_is_neither_read_nor_moved(case):
    def run(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = Net()
        opt = case(model.parameters(), mc_samples=2)
        learn(opt, model, batches(3))
        with opt.sampled_params():
            pass
        assert torch.equal(torch.get_rng_state(), before)
        return params_of(model)

    assert all(map(torch.equal, run(1), run(2)))


def whitened(q, offset):
    """Uncorrelated entries of variance 1, if q's mean + offset is a draw from q."""
    if q.family != "kronecker_gaussian":
        return {name: x / q.variance()[name].sqrt() for name, x in offset.items()}
    z = {}
    for name, (G, A) in q.factors.items():
        (g, U), (a, V) = torch.linalg.eigh(G), torch.linalg.eigh(A)
        precision = q.scale[name] * torch.outer(g, a) + q.delta[name]
        z[name] = U.mT @ offset[name].reshape(precision.shape) @ V * precision.sqrt()
    return z


@random_cases
def test_the_sample_has_the_posterior_s_mean_and_variance(case):
    """Standardised by `posterior()`, the sum of squared draws is near their number."""
    model = known(torch.nn.Linear(200, 100, dtype=F64))
    opt = case(model.named_parameters())

    inputs = torch.linspace(-1, 1, 800, dtype=F64).view(4, 200)

    def closure():
        loss = model(inputs).square().mean() / 50
        loss.backward()
        return loss

    for _ in range(3):
        opt.step(closure)
    q = opt.posterior()
    var = q.variance()
    # fourth moments: 3 of a normal variable, 1 / (p (1 - p)) - 3 of a sign, p (1 - p) = var / 4
    fourth = {n: 4.0 / v - 3.0 if q.family == "bernoulli" else 3.0 + 0 * v for n, v in var.items()}
    with opt.sampled_params():
        z = whitened(q, {n: p.detach() - q.mean[n] for n, p in model.named_parameters()})
    n = q.num_params
    total, squares = (sum(float((x**k).sum()) for x in z.values()) for k in (1, 2))
    assert abs(total) < 4.5 * n**0.5
    assert abs(squares - n) < 4.5 * sum(float((f - 1).sum()) for f in fourth.values()) ** 0.5
