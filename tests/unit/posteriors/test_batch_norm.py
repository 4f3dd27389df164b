"""Running statistics of the network that is evaluated."""

import contextlib

import pytest
import torch
from torch import nn

from bayesrule.likelihoods import Categorical
from bayesrule.models import build_model
from bayesrule.posteriors import (
    Bernoulli,
    DiagonalGaussian,
    Predictor,
    forward_outputs,
    predict_dataset,
    reestimate_batch_norm,
)
from bayesrule.posteriors.linear import eval_mode

F64 = torch.float64


def network(**options):
    cfg = {
        "name": "mlp", "hidden": [6, 5], "activation": "relu", "bias": False, "norm": "batch",
        "norm_affine": False, "norm_outputs": True, "dropout": 0.4, "input_dropout": 0.2, **options,
    }  # fmt: skip
    return build_model(cfg, input_shape=(4,), n_outputs=3, seed=0).double()


def data(n=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator, dtype=F64)


def batches(x, size):
    def make():
        for start in range(0, len(x), size):
            part = x[start : start + size]
            yield {"input": part, "target": torch.arange(len(part)) % 3}

    return make


def signs(model):
    return {name: torch.where(p >= 0, 1.0, -1.0).to(F64) for name, p in model.named_parameters()}


def by_hand(model, weights, x):
    """Normalise layer by layer with the statistics of all of `x`."""
    h, found = x, []
    for name in ("layers.0.weight", "layers.1.weight", "head.0.weight"):
        z = h @ weights[name].T
        found.append((z.mean(0), z.var(0)))
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()
        h = torch.relu(z)
    return found


def test_one_batch_gives_the_exact_statistics_of_these_weights():
    model, x = network(), data()
    model(data(seed=9))  # statistics of other weights on other data
    weights = signs(model)
    state = reestimate_batch_norm(model, weights, batches(x, 40))
    norms = ("norms.0", "norms.1", "head.1")
    for norm, (mean, var) in zip(norms, by_hand(model, weights, x), strict=True):
        torch.testing.assert_close(state[f"{norm}.running_mean"], mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state[f"{norm}.running_var"], var, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(state[name], value) for name, value in weights.items())


def test_batches_are_averaged_and_a_small_last_one_is_left_out():
    model, x = network(), data(44)
    weights = signs(model)
    parts = [reestimate_batch_norm(model, weights, batches(x[i : i + 20], 20)) for i in (0, 20)]
    both = reestimate_batch_norm(model, weights, batches(x, 20))  # 20, 20 and 4 items
    name = "norms.0.running_var"
    torch.testing.assert_close(both[name], (parts[0][name] + parts[1][name]) / 2)
    assert both["norms.0.num_batches_tracked"] == 2


def test_the_model_is_left_as_it_was():
    model, x = network(), data()
    model.train()
    model.norms[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]

    def failing():
        yield {"input": x[:20]}
        raise KeyError

    for source in (batches(x, 10), failing):
        with contextlib.suppress(KeyError):
            reestimate_batch_norm(model, signs(model), source)
        assert [m.training for m in model.modules()] == modes
        assert [m.momentum for m in model.modules() if hasattr(m, "momentum")] == [0.1] * 3
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])
    plain = nn.Linear(4, 3).double()
    state = {"weight": torch.zeros(3, 4, dtype=F64)}
    assert reestimate_batch_norm(plain, state, batches(x, 10)) == state


@pytest.mark.parametrize("rule", ["mean", "mode", "mc3"])
def test_predictions_use_each_network_s_own_statistics(rule):
    model, x, train = network(), data(7, seed=3), data(30, seed=4)
    q = Bernoulli({name: p.detach() * 2 for name, p in model.named_parameters()})

    def prepare(state):
        return reestimate_batch_norm(model, state, batches(train, 30))

    found = predict_dataset(model, q, batches(x, 4), rule, Categorical(), seed=5, prepare=prepare)
    probs = []
    for draw in Predictor(model, q, Categorical(), rule, 5).draws():
        weights = draw.make()
        own = {}
        for norm, (mean, var) in zip(
            ("norms.0", "norms.1", "head.1"), by_hand(model, weights, train), strict=True
        ):
            own |= {f"{norm}.running_mean": mean, f"{norm}.running_var": var}
        with eval_mode(model), torch.no_grad():
            probs.append(torch.softmax(forward_outputs(model, {**weights, **own}, x), -1))
    expected = torch.stack(probs).mean(0).log()
    torch.testing.assert_close(found.log_probs_NK, expected, rtol=1e-6, atol=1e-6)
    without = predict_dataset(model, q, batches(x, 4), rule, Categorical(), seed=5)
    assert not torch.allclose(found.log_probs_NK, without.log_probs_NK, atol=1e-3)


def test_the_linearised_prediction_is_at_the_mean_s_own_statistics():
    model, x, train = network(), data(5, seed=3), data(30, seed=4)
    q = DiagonalGaussian(
        dict(model.named_parameters()),
        {name: torch.full_like(p, 1e6) for name, p in model.named_parameters()},
    )

    def prepare(state):
        return reestimate_batch_norm(model, state, batches(train, 30))

    mean, lin = (
        predict_dataset(model, q, batches(x, 5), rule, Categorical(), prepare=prepare)
        for rule in ("mean", "lin")
    )
    torch.testing.assert_close(lin.log_probs_NK, mean.log_probs_NK, rtol=1e-3, atol=1e-3)
