"""STE, Bop and PMF against their algorithms written out; tensors that stay real; refusals."""

import pytest
import torch

from bayesrule.optim import PMF, STE, BayesBiNN, Bop
from bayesrule.optim.pmf import inverse_temperature

F64 = torch.float64
KINDS = {
    "bayesbinn": lambda params, **o: BayesBiNN(params, lr=0.05, ess=5.0, tau=0.7, seed=1, **o),
    "ste": lambda params, **o: STE(params, lr=0.05, **o),
    "bop": lambda params, **o: Bop(params, lr=0.3, threshold=0.02, **o),
    "pmf": lambda params, **o: PMF(params, lr=0.05, growth=1.3, growth_every=2, **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def start(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64) / 3


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def quartic(w):
    target = start(*w.shape, seed=7)
    return ((w - target) ** 4).sum() + (w.sum() - 1.0).square() / 10


def gradient(w):
    w = w.detach().clone().requires_grad_()
    return torch.autograd.grad(quartic(w), w)[0]


def run(opt, weight, steps):
    for _ in range(steps):

        def closure():
            loss = quartic(weight)
            loss.backward()
            return loss

        opt.step(closure)


def test_ste_is_adam_on_latent_weights_with_gradients_at_their_signs():
    weight = torch.nn.Parameter(start(4, 3))
    run(opt := STE([weight], lr=0.1, beta1=0.8, clip=0.3), weight, 12)
    latent = torch.nn.Parameter(start(4, 3).clamp(-0.3, 0.3))
    adam = torch.optim.Adam([latent], lr=0.1, betas=(0.8, 0.999))
    for _ in range(12):
        latent.grad = gradient(sign(latent))
        adam.step()
        with torch.no_grad():
            latent.clamp_(-0.3, 0.3)
    assert torch.equal(opt.state[weight]["latent"], latent)
    assert torch.equal(weight, sign(latent))
    assert not torch.equal(weight, sign(start(4, 3)))
    assert opt.state[weight]["latent"].abs().max() == 0.3


def test_ste_is_the_learning_rule_with_the_limit_of_low_temperature():
    """tau -> 0, no noise, no entropy: lambda <- lambda - a grad loss(sign(lambda))."""
    lam = start(4, 3)
    w = torch.tanh(lam / 1e-10)
    assert torch.equal(w, sign(lam))
    weight = torch.nn.Parameter(start(4, 3))
    opt = STE([weight], lr=0.1, beta1=0.0, beta2=0.0, clip=float("inf"))
    run(opt, weight, 1)  # with beta = 0 Adam's step is the sign of the gradient
    expected = lam - 0.1 * gradient(w).sign()
    torch.testing.assert_close(opt.state[weight]["latent"], expected, rtol=1e-7, atol=1e-7)


def test_bop_flips_where_the_average_gradient_points_out():
    weight, momentum = sign(start(5, 4)), torch.zeros(5, 4, dtype=F64)
    param = torch.nn.Parameter(start(5, 4))
    opt, flips = Bop([param], lr=0.3, threshold=0.5), 0
    assert torch.equal(param, weight)
    for _ in range(10):
        momentum = 0.7 * momentum + 0.3 * gradient(weight)
        for index in range(20):
            m, w = momentum.view(-1)[index], weight.view(-1)[index]
            if abs(m) > 0.5 and m.sign() == w.sign():
                weight.view(-1)[index] = -w
                flips += 1
        run(opt, param, 1)
        assert torch.equal(param, weight)
    torch.testing.assert_close(opt.state[param]["momentum"], momentum, rtol=1e-12, atol=1e-12)
    assert flips > 3


def test_pmf_is_adam_through_a_softmax_over_two_labels():
    """With one score per label, the softmax's mean is tanh of half their difference."""
    weight = torch.nn.Parameter(start(4, 3))
    opt = PMF([weight], lr=0.1, growth=1.3, growth_every=2)
    u, beta = torch.nn.Parameter(start(4, 3)), 1.0
    adam = torch.optim.Adam([u], lr=0.1)
    for step in range(10):
        scores = torch.stack([u, -u], -1)  # of +1 and -1
        probs = torch.softmax(beta * scores, -1)
        w = probs[..., 0] - probs[..., 1]
        adam.zero_grad()
        quartic(w).backward()
        adam.step()
        beta = beta * 1.3 if step % 2 == 0 else beta
        run(opt, weight, 1)
        torch.testing.assert_close(opt.state[weight]["latent"], u.data, rtol=1e-9, atol=1e-9)
        assert torch.equal(weight, sign(opt.state[weight]["latent"]))
    with opt.sampled_params(train=True):
        torch.testing.assert_close(weight.data, torch.tanh(beta * u).data, rtol=1e-8, atol=1e-8)
        quartic(weight).backward()
    with opt.sampled_params():  # a prediction is made with binary weights
        assert torch.equal(weight, sign(opt.state[weight]["latent"]))


def test_inverse_temperature_grows_by_steps_and_is_bounded():
    betas = [inverse_temperature(step, 2.0, 3) for step in range(8)]
    assert betas == pytest.approx([1, 2, 2, 2, 4, 4, 4, 8])
    assert inverse_temperature(10**9, 1.2, 1, beta_max=50.0) == pytest.approx(50.0)
    assert inverse_temperature(10**9, 1.0, 1) == 1.0


# ------------------------------------------------------------ which tensors are binary


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
        ).double()


def learn(model, opt, steps):
    x, y = start(9, 4, seed=1), torch.arange(9) % 2

    def closure():
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return [float(opt.step(closure)) for _ in range(steps)]


@every_kind
def test_biases_and_norms_stay_real_with_a_warning(kind):
    model = net()
    with pytest.warns(UserWarning, match=r"such as '0\.bias', as real numbers by Adam") as said:
        opt = KINDS[kind](model.named_parameters())
    for way in ("model.bias=false", "binary='all'", "real_lr_factor"):
        assert way in str(said[0].message)
    twin = net()  # at Adam's own rate, following the schedule of lr
    fixed = KINDS[kind](twin.named_parameters(), real_lr_factor=1e-3 / opt.defaults["lr"])
    for each in (opt, fixed):
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: 0.5)
    learn(model, opt, 3)
    learn(twin, fixed, 3)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="binary"):
        KINDS[kind](net().named_parameters(), binary="most")
    model = net()
    for param in model.parameters():
        param.requires_grad_(param.ndim == 2)
    KINDS[kind](model.named_parameters())  # frozen ones are no matter


@every_kind
def test_all_tensors_may_be_binary(kind):
    model = net()
    opt = KINDS[kind](model.named_parameters(), binary="all")
    learn(model, opt, 3)
    weights = opt.posterior(model)
    values = weights.mode if kind == "bayesbinn" else weights.mean
    assert set(values) == {name for name, _ in model.named_parameters()}
    assert all(bool((t.abs() == 1).all()) for t in values.values())


@every_kind
def test_tensors_that_are_not_binary_are_learnt_by_adam(kind):
    """With the binary ones held still, the rest moves as under torch's Adam."""
    model = net()
    opt = KINDS[kind](model.named_parameters(), real_lr_factor=2.0)
    seen = []

    def remember(module, inputs, outputs):
        seen.append([p.detach().clone() for p in model.parameters() if p.ndim == 2])

    handle = model.register_forward_hook(remember)
    learn(model, opt, 6)
    handle.remove()

    twin = net()
    real = [p for p in twin.parameters() if p.ndim == 1]
    adam = torch.optim.Adam(real, lr=2.0 * opt.defaults["lr"])
    x, y = start(9, 4, seed=1), torch.arange(9) % 2
    for weights in seen:
        with torch.no_grad():
            for p, w in zip((p for p in twin.parameters() if p.ndim == 2), weights, strict=True):
                p.copy_(w)
        adam.zero_grad()
        torch.nn.functional.cross_entropy(twin(x), y).backward()
        adam.step()
    for ours, theirs in zip((p for p in model.parameters() if p.ndim == 1), real, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    names = set(opt.posterior(model).names)
    matrices = {n for n, p in model.named_parameters() if p.ndim == 2}
    assert names == (matrices if kind == "bayesbinn" else set(dict(model.named_parameters())))


@every_kind
def test_groups_choose_and_resume(kind):
    """A real-valued head by Adam on a binary body; the resumed run is bit-equal."""

    def make():
        model = net()
        groups = [
            {"params": [("w", model[0].weight)]},
            {"params": [("b", model[0].bias)], "binary": "all"},
            {
                "params": [*model[1].named_parameters(), *model[3].named_parameters("head")],
                "binary": "none",
                "real_lr_factor": 0.5,
            },
        ]
        return model, KINDS[kind](groups)

    (whole, opt), (first, half) = make(), make()
    learn(whole, opt, 6)
    learn(first, half, 3)
    second, resumed = make()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(half.state_dict())
    learn(second, resumed, 3)
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    head = whole[3].weight
    assert len(head.unique()) == head.numel()
    if kind != "bayesbinn":
        assert set(whole[0].weight.unique().tolist()) <= {-1.0, 1.0}
        assert set(whole[0].bias.unique().tolist()) <= {-1.0, 1.0}
