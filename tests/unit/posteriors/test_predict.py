"""Prediction by rule: exactness, prefixes, reproducibility, and that the model is left alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from bayesrule.errors import ConfigError, Unsupported
from bayesrule.likelihoods import Bernoulli, Categorical, Gaussian
from bayesrule.posteriors import Bernoulli as BinaryWeights
from bayesrule.posteriors import (
    DiagonalGaussian,
    DropoutPosterior,
    FullGaussian,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    PointMass,
    Predictor,
    Rule,
    forward_log_probs,
    forward_outputs,
    predict,
    predict_dataset,
)
from bayesrule.seeding import child_seed, generator


class Net(nn.Module):
    """A small classifier with buffers that matter and dropout."""

    def __init__(self, n_out: int = 4) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(3, 6), nn.BatchNorm1d(6)
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(6, n_out)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.norm(self.inner(x)))))


def net(n_out: int = 4, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net(n_out).double()
    model.norm.running_mean += torch.randn(6)
    model.norm.eval()  # mixed modes, to be kept
    return model


def params(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def diagonal(model: nn.Module, precision: float = 20.0) -> DiagonalGaussian:
    mean = params(model)
    return DiagonalGaussian(mean, {n: torch.full_like(p, precision) for n, p in mean.items()})


def data(n: int = 10, size: int = 4, n_out: int = 4):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    y = torch.randint(0, n_out, (n,), generator=g)
    index = torch.arange(n) + 100

    def batches():
        for i in range(0, n, size):
            part = slice(i, i + size)
            yield {"input": x[part], "target": y[part], "index": index[part]}

    return x, y, batches


def posteriors(model: nn.Module) -> dict:
    q = diagonal(model)
    mean, P = q.mean, q.num_params
    factors = {
        n: (torch.eye(p.shape[0]).double(), torch.eye(p.numel() // p.shape[0]).double())
        for n, p in mean.items()
    }
    return {
        "point": PointMass(mean),
        "isotropic": IsotropicGaussian(mean, 20.0),
        "diagonal": q,
        "full": FullGaussian(mean, 20.0 * torch.eye(P).double()),
        "kronecker": KroneckerGaussian(mean, factors, 19.0),
        "low_rank": LowRankGaussian(
            mean, q.variance(), {n: 0.1 * p.unsqueeze(0) for n, p in mean.items()}
        ),
        "mixture": Mixture([q, PointMass(mean)], [0.5, 0.5]),
        "ensemble": Mixture([PointMass(params(net(seed=s))) for s in range(3)], [0.6, 0.3, 0.1]),
        "dropout": DropoutPosterior(mean),
        "bernoulli": BinaryWeights({n: 3.0 * p for n, p in mean.items()}),
    }


def snapshot(model: nn.Module):
    return (
        {n: t.clone() for n, t in model.state_dict().items()},
        {n: id(p) for n, p in model.named_parameters()},
        [m.training for m in model.modules()],
        torch.get_rng_state().clone(),
    )


def unchanged(model: nn.Module, before) -> bool:
    state, ids, modes, rng = before
    return (
        all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        and {n: id(p) for n, p in model.named_parameters()} == ids
        and [m.training for m in model.modules()] == modes
        and torch.equal(torch.get_rng_state(), rng)
        and all(p.grad is None and p.requires_grad for p in model.parameters())
    )


@pytest.mark.parametrize("rule", ["mean", "mode", "mc3", "lin", "lin_mc5"])
@pytest.mark.parametrize("name", list(posteriors(net())))
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_every_posterior_under_every_rule(name, rule, kind):
    model = net()
    q, (x, y, batches) = posteriors(model)[name], data()
    before = snapshot(model)
    if rule.startswith("lin") and name in {"mixture", "ensemble", "dropout"}:
        with pytest.raises(Unsupported, match="covariance"):
            predict_dataset(model, q, batches, rule, Categorical())
        assert unchanged(model, before)
        return
    if rule == "mode" and name in {"mixture", "ensemble", "dropout"}:
        with pytest.raises(Unsupported, match="mode"):
            predict_dataset(model, q, batches, rule, Categorical())
        return
    if kind == "regression":
        targets = torch.randn(10, 4, dtype=torch.float64)
        before = snapshot(model)
        one = [{"input": x, "target": targets}]
        p = predict_dataset(model, q, lambda: one, rule, Gaussian(0.5))
        mu, sigma = Predictor(model, q, Gaussian(0.5), rule)(x)
        assert torch.equal(p.mu_SN, mu)
        assert torch.equal(p.sigma_SN, sigma)
        assert float(p.sigma_SN.min()) >= 0.5 - 1e-12
        assert p.weights_S.shape == (p.n_samples,) == p.mu_SN.shape[:1]
    else:
        p = predict_dataset(model, q, batches, rule, Categorical())
        torch.testing.assert_close(p.log_probs_NK.exp().sum(-1), torch.ones(10).double())
        assert torch.equal(p.targets, y)
        assert torch.equal(p.index, torch.arange(10) + 100)
        torch.testing.assert_close(p.target_log_probs_N, p.log_probs_NK[torch.arange(10), y])
        if name != "dropout" or rule == "mean":
            torch.testing.assert_close(Predictor(model, q, Categorical(), rule)(x), p.log_probs_NK)
    assert p.weights_S.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert unchanged(model, before)


def test_mean_rule_is_the_model_in_evaluation_mode():
    model = net()
    x, _, batches = data()
    p = predict_dataset(model, diagonal(model), batches, "mean", Categorical())
    with torch.no_grad():
        expected = model.eval()(x)
    torch.testing.assert_close(p.log_probs_NK, expected.log_softmax(-1))
    torch.testing.assert_close(p.mean_outputs, expected)
    assert float(p.mutual_information_N.abs().max()) < 1e-12


def test_mode_rule_is_the_model_with_the_most_probable_weights():
    model = net()
    q, (x, _, batches) = posteriors(model)["bernoulli"], data()
    p = predict_dataset(model, q, batches, "mode", Categorical())
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.where(param >= 0, 1.0, -1.0))
        expected = model.eval()(x)
    torch.testing.assert_close(p.mean_outputs, expected)
    gaussian = posteriors(model)["diagonal"]
    same = [predict_dataset(model, gaussian, batches, r, Categorical()) for r in ("mean", "mode")]
    assert torch.equal(same[0].log_probs_NK, same[1].log_probs_NK)


def test_mc_averages_probabilities_of_the_named_draws():
    model, seed = net(), 7
    q, (x, _, batches) = diagonal(model), data()
    p = predict_dataset(
        model, q, batches, "mc6", Categorical(), seed=seed, prefixes=(1, 2, 4, 6, 9)
    )
    model.eval()
    probs, logits = [], []
    for s in range(6):
        theta = q.sample(generator(seed, "predict", s))
        with torch.no_grad():
            logits.append(torch.func.functional_call(model, theta, (x,)))
        probs.append(logits[-1].softmax(-1))
    probs = torch.stack(probs)
    torch.testing.assert_close(p.log_probs_NK.exp(), probs.mean(0))
    assert sorted(p.prefixes) == [1, 2, 4, 6]
    for k, log_probs in p.prefixes.items():
        torch.testing.assert_close(log_probs.exp(), probs[:k].mean(0))
    entropy = -(probs * probs.log()).sum(-1)
    torch.testing.assert_close(p.expected_entropy_N, entropy.mean(0))
    total = -(probs.mean(0) * probs.mean(0).log()).sum(-1)
    torch.testing.assert_close(p.mutual_information_N, total - entropy.mean(0))
    torch.testing.assert_close(p.mean_outputs, torch.stack(logits).mean(0))
    votes = torch.nn.functional.one_hot(probs.argmax(-1), 4).double().mean(0)
    torch.testing.assert_close(p.vote_NK, votes)
    per_sample, weights = Predictor(model, q, Categorical(), "mc6", seed).per_sample(x)
    torch.testing.assert_close(per_sample.exp(), probs)
    assert weights.tolist() == [1 / 6] * 6


def test_draws_do_not_depend_on_batching_or_on_their_number():
    model = net()
    q = diagonal(model)
    few = predict_dataset(model, q, data(size=10)[2], "mc2", Categorical(), seed=3)
    many = predict_dataset(model, q, data(size=3)[2], "mc8", Categorical(), seed=3, prefixes=(2,))
    torch.testing.assert_close(few.log_probs_NK, many.prefixes[2])
    other = predict_dataset(model, q, data()[2], "mc2", Categorical(), seed=4)
    assert not torch.allclose(few.log_probs_NK, other.log_probs_NK)
    again = predict_dataset(model, q, data(size=10)[2], "mc2", Categorical(), seed=3)
    assert torch.equal(few.log_probs_NK, again.log_probs_NK)


def test_finite_support_is_exact_whatever_the_number_of_draws():
    model = net()
    members = [net(seed=s).eval() for s in range(3)]
    weights = [0.6, 0.3, 0.1]
    state = [
        PointMass(params(m), buffers={n: b.clone() for n, b in m.named_buffers()}) for m in members
    ]
    x, _, batches = data()
    with torch.no_grad():
        expected = sum(w * m(x).softmax(-1) for w, m in zip(weights, members, strict=True))
    for rule in ("mc1", "mc64"):
        p = predict_dataset(model, Mixture(state, weights), batches, rule, Categorical())
        torch.testing.assert_close(p.log_probs_NK.exp(), expected)
        assert p.n_samples == 3
        torch.testing.assert_close(p.weights_S, torch.tensor(weights).double())


def test_mixture_draws_visit_components_evenly():
    zero, one = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    narrow = [IsotropicGaussian(zero, 1e8), IsotropicGaussian(one, 1e8)]
    q = Mixture(narrow, [0.75, 0.25])
    which = [round(q.nth_sample_state(s, generator(0, s))["w"].item()) for s in range(40)]
    assert which == [q.component_of(s) for s in range(40)]
    for n in range(1, 41):
        assert abs(sum(which[:n]) - 0.25 * n) < 1
    assert q.sample(generator(0), 8)["w"].round().sum() == 2
    even = Mixture(narrow * 2)
    assert [even.component_of(s) for s in range(8)] == [0, 1, 2, 3] * 2
    assert Mixture(narrow, [0.0, 3.0]).component_of(5) == 1


def test_one_random_draw_of_a_mixture_follows_the_weights():
    points = [PointMass({"w": torch.tensor([float(k)])}) for k in range(3)]
    q = Mixture(points, [0.5, 0.3, 0.2])
    g = generator(0)
    counts = np.bincount([int(q.sample(g)["w"]) for _ in range(2000)], minlength=3)
    assert stats.chisquare(counts, [1000, 600, 400]).pvalue > 1e-3


# --- linearised ----------------------------------------------------------------------------------


def test_lin_is_exact_for_a_linear_regression_network():
    model = nn.Linear(3, 2).double()
    q = diagonal(model, 5.0)
    x = torch.randn(6, 3).double()
    mu, sigma = predict(model, q, x, "lin", Gaussian(0.3))
    with torch.no_grad():
        torch.testing.assert_close(mu[0], model(x))
    var = 0.3**2 + (x.square().sum(-1) + 1) / 5.0
    torch.testing.assert_close(sigma[0], var.sqrt().unsqueeze(-1).expand(6, 2))


def test_lin_for_classes_is_close_to_quadrature():
    model = nn.Linear(2, 1).double()
    q = diagonal(model, 1.5)
    x = torch.tensor([[0.5, -1.0], [2.0, 1.0]]).double()
    log_p = predict(model, q, x, "lin", Bernoulli())
    sampled = predict(model, q, x, "lin_mc4000", Bernoulli(), seed=1)
    for n in range(2):
        m = model(x[n]).item()
        v = (x[n].square().sum().item() + 1) / 1.5
        exact, _ = integrate.quad(
            lambda f, m, v: stats.norm.pdf(f, m, math.sqrt(v)) / (1 + math.exp(-f)),
            m - 25,
            m + 25,
            args=(m, v),
        )
        assert log_p[n, 1].exp().item() == pytest.approx(exact, abs=0.02)
        assert sampled[n, 1].exp().item() == pytest.approx(exact, abs=0.02)


def test_lin_holds_parameters_outside_the_posterior_and_uses_its_buffers():
    model = net()
    names = ("head.weight", "head.bias")
    mean = {n: params(model)[n] for n in names}
    buffers = {"norm.running_mean": torch.ones(6).double()}
    q = IsotropicGaussian(mean, 4.0, buffers=buffers)
    x, _, _ = data()
    mu, sigma = predict(model, q, x, "lin", Gaussian(1.0))
    model.eval()
    with torch.no_grad():
        state = {"norm.running_mean": torch.ones(6).double()}
        torch.testing.assert_close(mu[0], forward_outputs(model, state, x))
        model.norm.running_mean.fill_(1.0)
        features = torch.tanh(model.norm(model.inner(x)))
    var = 1 + (features.square().sum(-1) + 1) / 4.0
    torch.testing.assert_close(sigma[0], var.sqrt().unsqueeze(-1).expand_as(sigma[0]))


def test_lin_in_chunks_is_the_same(monkeypatch):
    import bayesrule.posteriors.linear as linear

    model, (x, _, _) = net(), data()
    whole = predict(model, diagonal(model), x, "lin", Categorical())
    monkeypatch.setattr(linear, "_MAX_JACOBIAN", 1)
    torch.testing.assert_close(predict(model, diagonal(model), x, "lin", Categorical()), whole)


# --- dropout -------------------------------------------------------------------------------------


def test_dropout_draws_are_the_seeded_masks():
    model, (x, _, _) = net(), data()
    q = DropoutPosterior(params(model), 0.5)
    one = [{"input": x, "target": torch.zeros(10).long()}]
    before = snapshot(model)
    p = predict_dataset(model, q, lambda: one, "mc3", Categorical(), seed=2)
    again = predict_dataset(model, q, lambda: one, "mc3", Categorical(), seed=2)
    assert torch.equal(p.log_probs_NK, again.log_probs_NK)
    assert unchanged(model, before)
    assert model.drop.p == 0.4
    probs = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.eval()
        model.drop.train()
        model.drop.p = 0.5
        for s in range(3):
            torch.manual_seed(child_seed(2, "predict", s))
            probs.append(model(x).softmax(-1))
    torch.testing.assert_close(p.log_probs_NK.exp(), torch.stack(probs).mean(0))
    assert float(p.mutual_information_N.min()) > 0


def test_dropout_needs_dropout_layers():
    model = nn.Linear(3, 2)
    with pytest.raises(Unsupported, match="no dropout layer"):
        predict(model, DropoutPosterior(params(model)), torch.zeros(1, 3), "mc2", Categorical())
    with pytest.raises(Unsupported, match=r"\[0, 1\)"):
        DropoutPosterior(params(model), 1.0)
    with pytest.raises(Unsupported, match="masks"):
        DropoutPosterior(params(model)).sample()


# --- sequences, mappings, targets ----------------------------------------------------------------


class Tokens(nn.Module):
    """Next-token logits, called the Hugging Face way."""

    def __init__(self, V: int = 5) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(V, 6), nn.Linear(6, V)

    def forward(self, input_ids, shift=None):
        hidden = self.token(input_ids)
        hidden = hidden if shift is None else hidden + shift
        return SimpleNamespace(logits=self.head(hidden))


def test_sequences_become_one_item_per_kept_token():
    torch.manual_seed(0)
    model = Tokens().double()
    q = diagonal(model)
    ids = torch.randint(0, 5, (4, 3))
    y = torch.randint(0, 5, (4, 3))
    y[0, 1] = y[2, 0] = -100
    lengths = [(ids[:2], y[:2]), (ids[2:, :2], y[2:, :2])]  # batches of unequal length

    def batches():
        for i, (a, b) in enumerate(lengths):
            yield {
                "input": {"input_ids": a},
                "target": b,
                "index": torch.tensor([2 * i, 2 * i + 1]),
            }

    full = predict_dataset(model, q, batches, "mc3", Categorical(), prefixes=(2,))
    assert full.log_probs_NK.shape == (8, 5)
    assert full.index.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert full.targets.tolist() == [t for _, b in lengths for t in b.flatten().tolist() if t >= 0]
    batch = Predictor(model, q, Categorical(), "mc3")({"input_ids": ids[:2]})
    assert batch.shape == (2, 3, 5)
    torch.testing.assert_close(full.log_probs_NK[:5], batch.reshape(-1, 5)[[0, 2, 3, 4, 5]])
    small = predict_dataset(model, q, batches, "mc3", Categorical(), prefixes=(2,), keep="target")
    assert small.log_probs_NK is None
    torch.testing.assert_close(small.target_log_probs_N, full.target_log_probs_N)
    torch.testing.assert_close(
        small.prefixes[2], full.prefixes[2].gather(-1, full.targets[:, None]).squeeze(-1)
    )
    torch.testing.assert_close(small.expected_entropy_N, full.expected_entropy_N)
    log_p = forward_log_probs(model, {}, {"input_ids": ids, "shift": torch.zeros(6)}, Categorical())
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(4, 3).double())
    with pytest.raises(Unsupported, match="one output vector per item"):
        predict(model, q, {"input_ids": ids}, "lin", Categorical())
    with pytest.raises(Unsupported, match="mutual information"):
        _ = small.mutual_information_N


def test_binary_outputs_give_two_classes():
    model = nn.Linear(3, 1).double()
    _, _, batches = data(n_out=2)
    p = predict_dataset(model, diagonal(model), batches, "mc4", Bernoulli())
    assert p.log_probs_NK.shape == (10, 2)
    assert p.mean_outputs.shape == (10, 1)


def test_soft_targets_are_kept():
    model, (x, _, _) = net(), data()
    soft = torch.rand(10, 4).double().softmax(-1)
    one = [{"input": x, "target": soft}]
    p = predict_dataset(model, PointMass(params(model)), lambda: one, "mean", Categorical())
    assert torch.equal(p.targets, soft)
    assert p.target_log_probs_N is None
    with pytest.raises(Unsupported, match="class indices"):
        predict_dataset(
            model, PointMass(params(model)), lambda: one, "mean", Categorical(), keep="target"
        )


def test_regression_targets_may_be_flat():
    model = nn.Linear(3, 1).double()
    x, _, _ = data()
    one = [{"input": x, "target": torch.zeros(10).double()}]
    p = predict_dataset(model, diagonal(model), lambda: one, "mc4", Gaussian(0.2))
    assert p.mu_SN.shape == p.sigma_SN.shape == (4, 10)
    with pytest.raises(Unsupported, match="do not fit"):
        predict_dataset(net(), diagonal(net()), lambda: one, "mean", Gaussian())


# --- what goes wrong -----------------------------------------------------------------------------


def test_the_model_is_restored_after_an_exception():
    model = net()
    x, _, _ = data()

    def broken():
        yield {"input": x, "target": torch.zeros(10).long()}
        raise RuntimeError("disk gone")

    for q in (diagonal(model), DropoutPosterior(params(model))):
        before = snapshot(model)
        with pytest.raises(RuntimeError, match="disk gone"):
            predict_dataset(model, q, broken, "mc2", Categorical())
        assert unchanged(model, before)
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        predict(model, diagonal(model), torch.zeros(2, 99).double(), "lin", Categorical())
    assert unchanged(model, before)


def test_batches_must_repeat_themselves():
    model = net()
    x, y, batches = data()
    passes = iter([list(batches()), list(batches())[:2]])
    with pytest.raises(Unsupported, match="nothing to predict"):
        predict_dataset(model, diagonal(model), lambda: [], "mean", Categorical())
    with pytest.raises(Unsupported, match="used up"):
        predict_dataset(model, diagonal(model), lambda: next(passes), "mc2", Categorical())
    g = torch.Generator().manual_seed(0)

    def shuffled():
        order = torch.randperm(10, generator=g)
        return [{"input": x[order], "target": y[order]}]

    with pytest.raises(Unsupported, match="same order"):
        predict_dataset(model, diagonal(model), shuffled, "mc2", Categorical())


def test_posteriors_of_other_models_are_refused_by_name():
    model = net()
    with pytest.raises(Unsupported, match=r"'inner\.weight'.*Linear lacks"):
        Predictor(nn.Linear(3, 4), diagonal(model), Categorical())
    with pytest.raises(Unsupported, match=r"'head\.weight'.*\(4, 6\) against \(5, 6\)"):
        Predictor(net(5), diagonal(model), Categorical())
    one = [{"input": torch.zeros(2, 3).double(), "target": torch.zeros(3).long()}]
    with pytest.raises(Unsupported, match="do not fit"):
        predict_dataset(model, diagonal(model), lambda: one, "mean", Categorical())

    class Odd(nn.Linear):
        def forward(self, x):
            return {"out": super().forward(x)}

    odd = Odd(3, 2)
    with pytest.raises(Unsupported, match="dict"):
        predict(odd, PointMass(params(odd)), torch.zeros(1, 3), "mean", Categorical())


def test_rules_are_parsed_or_refused():
    assert Rule.parse("mc64") == Rule("mc", 64)
    assert Rule.parse("lin_mc10") == Rule("lin_mc", 10)
    for text in ("mean", "mode", "lin", "mc1", "lin_mc200"):
        assert str(Rule.parse(text)) == text
    for text in ("mc", "mc0", "mc-1", "mean3", "mode2", "lin2", "MC4", "mc4 ", ""):
        with pytest.raises(ConfigError, match="prediction rule"):
            Rule.parse(text)
    with pytest.raises(Unsupported, match="no parameter draws"):
        Predictor(net(), diagonal(net()), Categorical(), "lin").outputs(torch.zeros(1, 3))
