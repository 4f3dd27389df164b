"""Every curvature against a dense reference made from torch.func Jacobians, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from bayesrule.curvature import (
    fisher_diag,
    fisher_full,
    ggn_diag,
    ggn_full,
    jacobians,
    kfac,
    last_layer_ggn,
    last_layer_name,
    per_example_gradients,
    trainable,
)
from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Bernoulli, Categorical, Gaussian, Head
from bayesrule.posteriors.params import flatten


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


class Norm(nn.Module):
    """Convolution, batch and group normalisation, then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn, self.gn = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.gn(self.bn(self.conv(x)).relu()).mean((2, 3)))


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    if name == "mlp":
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
        x = randn(7, 4)
    elif name == "conv":
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 2, 2, dilation=2, bias=False),
            nn.Flatten(),
            nn.Linear(2, 3),
        )
        x = randn(7, 2, 6, 5)
    else:
        model = Norm()
        model.bn.running_mean += 0.3
        x = randn(7, 1, 4, 4)
    return model.double().train(), x


def targets(likelihood, n: int = 7) -> torch.Tensor:
    return randn(n, 3, seed=9) if isinstance(likelihood, Gaussian) else torch.arange(n) % 3


def batches(x, y, size: int = 3):
    return [{"input": x[i : i + size], "target": y[i : i + size]} for i in range(0, len(x), size)]


def dense_jacobian(model: nn.Module, x) -> torch.Tensor:
    modes = [m.training for m in model.modules()]
    model.eval()
    jac = jacrev(lambda p: functional_call(model, p, (x,)))(trainable(model))
    for m, training in zip(model.modules(), modes, strict=True):
        m.training = training
    return flatten(jac, leading=2)


def dense_ggn(model: nn.Module, likelihood, x, y) -> torch.Tensor:
    J = dense_jacobian(model, x)
    model.eval()
    with torch.no_grad():
        Lambda = likelihood.hessian(model(x), y)
    model.train()
    return torch.einsum("bcp,bcd,bdq->pq", J, Lambda, J)


LIKELIHOODS = [Categorical(), Gaussian(0.6)]
MODELS = ["mlp", "conv", "norm"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_jacobians(name, chunk_size):
    model, x = build(name)
    J = jacobians(model, None, x, chunk_size=chunk_size)
    torch.testing.assert_close(J, dense_jacobian(model, x))
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=["categorical", "gaussian"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_ggn_diagonal_and_full(name, likelihood, chunk_size):
    model, x = build(name)
    y = targets(likelihood)
    reference = dense_ggn(model, likelihood, x, y)
    full = ggn_full(model, likelihood, batches(x, y), chunk_size=chunk_size)
    torch.testing.assert_close(full, reference)
    for method in ("hooks", "func"):
        diag = ggn_diag(model, likelihood, batches(x, y), chunk_size=chunk_size, method=method)
        torch.testing.assert_close(flatten(diag), reference.diagonal())
        assert list(diag) == list(trainable(model))
        assert all(m.training for m in model.modules())


class Scaled(nn.Module):
    """A weight used outside a layer: hooks refuse it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x * self.scale)


def test_diagonals_fall_back_where_hooks_refuse():
    model, x, y = Scaled().double(), randn(7, 4), targets(Categorical())
    with pytest.raises(Unsupported, match="beside its child modules"):
        ggn_diag(model, Categorical(), batches(x, y), method="hooks")
    diag = ggn_diag(model, Categorical(), batches(x, y))
    torch.testing.assert_close(
        flatten(diag), dense_ggn(model, Categorical(), x, y).diagonal(), rtol=1e-10, atol=1e-12
    )
    func = fisher_diag(model, Categorical(), batches(x, y), method="func")
    for name, f in fisher_diag(model, Categorical(), batches(x, y)).items():
        assert torch.equal(f, func[name])


def test_a_head_of_some_outputs_and_some_parameters_have_the_diagonal_of_theirs():
    model, x = build("mlp")
    head, y = Head(Categorical(), (0, 2)), torch.arange(7) % 2
    reference = dense_ggn(model, head, x, y).diagonal()
    found = ggn_diag(model, head, batches(x, y), method="hooks")
    torch.testing.assert_close(flatten(found), reference)
    assert float(found["3.weight"][1].abs().max()) == 0.0  # of the output outside the head
    some = {name: p.detach() for name, p in model.named_parameters() if name != "0.weight"}
    for method in ("hooks", "func"):
        diag = ggn_diag(model, head, batches(x, y), params=some, method=method)
        assert list(diag) == list(some)
        torch.testing.assert_close(flatten(diag), flatten({n: found[n] for n in some}))


def test_ggn_of_a_linear_model_is_its_hessian():
    model = nn.Linear(4, 1).double()
    x, y = randn(9, 4), torch.arange(9) % 2

    def loss(theta):
        f = functional_call(model, {"weight": theta[:4].reshape(1, 4), "bias": theta[4:]}, (x,))
        return Bernoulli().nll(f, y).sum()

    H = torch.func.hessian(loss)(flatten(trainable(model)))
    torch.testing.assert_close(ggn_full(model, Bernoulli(), batches(x, y)), H)
    _, last = last_layer_ggn(model, Bernoulli(), batches(x, y))
    torch.testing.assert_close(last, H)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=["categorical", "gaussian"])
def test_per_example_gradients_equal_a_loop(name, likelihood):
    model, x = build(name)
    y = targets(likelihood)
    g = per_example_gradients(model, likelihood.loss, {"input": x, "target": y}, chunk_size=4)
    model.eval()
    for b in range(len(x)):
        model.zero_grad()
        likelihood.loss(model(x[b : b + 1]), y[b : b + 1]).backward()
        for n, p in model.named_parameters():
            torch.testing.assert_close(g[n][b], p.grad)


@pytest.mark.parametrize("name", MODELS)
def test_empirical_fisher_is_the_sum_of_outer_products(name):
    model, x = build(name)
    y = targets(Categorical())
    g = per_example_gradients(model, nn.CrossEntropyLoss(), {"input": x, "target": y})
    g_BP = flatten(g, leading=1)
    torch.testing.assert_close(fisher_full(model, Categorical(), batches(x, y)), g_BP.T @ g_BP)
    diag = fisher_diag(model, Categorical(), batches(x, y), chunk_size=2)
    torch.testing.assert_close(flatten(diag), g_BP.square().sum(0))


def test_monte_carlo_fisher_has_the_ggn_as_its_mean():
    model, x = build("mlp")
    y = targets(Categorical())
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            flatten(
                fisher_diag(model, Categorical(), [{"input": x, "target": y}], generator=generator)
            )
            for _ in range(400)
        ]
    )
    truth = dense_ggn(model, Categorical(), x, y).diagonal()
    z = (draws.mean(0) - truth) / (draws.std(0) / 20 + 1e-12)
    assert float(z.abs().max()) < 4.5


def test_frozen_parameters_are_held():
    model, x = build("mlp")
    y = targets(Categorical())
    model[0].weight.requires_grad_(False)
    diag = ggn_diag(model, Categorical(), batches(x, y))
    assert list(diag) == ["0.bias", "3.weight", "3.bias"]
    model[0].weight.requires_grad_(True)
    everything = ggn_diag(model, Categorical(), batches(x, y))
    for n in diag:
        torch.testing.assert_close(diag[n], everything[n])


# --- last layer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_last_layer_is_a_block_of_the_full_ggn(name):
    model, x = build(name)
    y = targets(Categorical())
    params, last = last_layer_ggn(model, Categorical(), batches(x, y))
    P = last.shape[0]
    torch.testing.assert_close(last, dense_ggn(model, Categorical(), x, y)[-P:, -P:])
    assert [n.rpartition(".")[2] for n in params] == ["weight", "bias"]
    assert all(m.training for m in model.modules())


def test_last_layer_needs_a_linear_end():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with pytest.raises(Unsupported, match=r"does not end in an nn\.Linear"):
        last_layer_name(model, torch.randn(2, 3))
    shared = nn.Linear(3, 3)
    with pytest.raises(Unsupported, match="more than once"):
        last_layer_name(nn.Sequential(shared, nn.Tanh(), shared), torch.randn(2, 3))
    assert last_layer_name(nn.Linear(3, 2), torch.randn(2, 3)) == ""


# --- KFAC ----------------------------------------------------------------------------------------


def kron(factors, name):
    G, A = factors[name]
    return torch.kron(G, A)


def blocks(model, matrix) -> dict[str, torch.Tensor]:
    result, start = {}, 0
    for n, p in trainable(model).items():
        result[n] = matrix[start : start + p.numel(), start : start + p.numel()]
        start += p.numel()
    return result


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=["categorical", "gaussian"])
def test_kfac_factors_of_linear_layers_from_their_definition(likelihood):
    model, x = build("mlp")
    y = targets(likelihood)
    factors = kfac(model, likelihood, batches(x, y))
    model.eval()
    with torch.no_grad():
        Lambda = likelihood.hessian(model(x), y)
        hidden = model[:2](x)
    slope = 1 - hidden.square()
    # d f / d s for the first layer: W2 diag(tanh'), for the last: the identity.
    J1 = model[3].weight.detach() * slope.unsqueeze(1)
    G1 = torch.einsum("bch,bcd,bdk->hk", J1, Lambda, J1)
    G2 = Lambda.sum(0)
    for name, G, a in (("0.weight", G1, x), ("3.weight", G2, hidden)):
        torch.testing.assert_close(factors[name][0], G)
        torch.testing.assert_close(factors[name][1], a.T @ a / len(x))
    exact = blocks(model, dense_ggn(model, likelihood, x, y))
    for name in ("0.bias", "3.bias"):
        torch.testing.assert_close(kron(factors, name), exact[name])
    if isinstance(likelihood, Gaussian):  # same Lambda for all items: the last layer is exact
        torch.testing.assert_close(kron(factors, "3.weight"), exact["3.weight"])
    assert list(factors) == list(trainable(model))
    assert all(not p.grad_fn and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kfac_of_one_item_is_exact_without_sharing(sharing):
    model, x = build("mlp")
    y = targets(Gaussian())
    one = [{"input": x[:1], "target": y[:1]}]
    exact = blocks(model, dense_ggn(model, Gaussian(), x[:1], y[:1]))
    factors = kfac(model, Gaussian(), one, sharing=sharing)
    for name, block in exact.items():
        torch.testing.assert_close(kron(factors, name), block)


def test_kfac_of_convolutions():
    model, x = build("conv")
    y = targets(Categorical())
    factors = kfac(model, Categorical(), batches(x, y))
    reduced = kfac(model, Categorical(), batches(x, y), sharing="reduce")
    exact = blocks(model, dense_ggn(model, Categorical(), x, y))
    for name in ("0.bias", "4.bias"):
        torch.testing.assert_close(kron(factors, name), exact[name])
        torch.testing.assert_close(kron(reduced, name), exact[name])
    # A convolution with one output position is a linear layer on its patch.
    model.eval()
    with torch.no_grad():
        hidden = model[:2](x)
        Lambda = Categorical().hessian(model(x), y)
    patch = hidden[:, :, 0:3:2, 0:3:2].reshape(len(x), -1)
    W = model[4].weight.detach()
    G = torch.einsum("co,bcd,dp->op", W, Lambda, W)
    for f in (factors, reduced):
        torch.testing.assert_close(f["2.weight"][0], G)
        torch.testing.assert_close(f["2.weight"][1], patch.T @ patch / len(x))
    # The first convolution from its definition: positions of unfolded inputs.
    unfolded = torch.nn.functional.unfold(x, 3, stride=2, padding=1).mT
    T = unfolded.shape[1]
    pre = model[0](x).detach().requires_grad_()
    J = torch.func.vmap(jacrev(lambda s: model[2:](s.relu().unsqueeze(0))[0]))(pre.detach())
    J = J.flatten(3).mT  # (B, C, T, O)
    G0 = torch.einsum("bcto,bcd,bdtp->op", J, Lambda, J)
    torch.testing.assert_close(factors["0.weight"][0], G0)
    A0 = torch.einsum("bti,btj->ij", unfolded, unfolded) / (len(x) * T)
    torch.testing.assert_close(factors["0.weight"][1], A0)
    mean, summed = unfolded.mean(1), J.sum(2)
    torch.testing.assert_close(reduced["0.weight"][1], mean.T @ mean / len(x))
    torch.testing.assert_close(
        reduced["0.weight"][0], torch.einsum("bco,bcd,bdp->op", summed, Lambda, summed)
    )


def test_kfac_refuses_what_it_does_not_cover_by_name():
    model, x = build("norm")
    data = batches(x, targets(Categorical()))
    with pytest.raises(Unsupported, match="'bn' is BatchNorm2d"):
        kfac(model, Categorical(), data)
    for p in (*model.bn.parameters(), *model.gn.parameters()):
        p.requires_grad_(False)
    assert set(kfac(model, Categorical(), data)) == {
        "conv.weight",
        "conv.bias",
        "head.weight",
        "head.bias",
    }
    assert set(kfac(model, Categorical(), data, names=["head.bias"])) == {"head.bias"}
    with pytest.raises(Unsupported, match=r"'bn\.weight'"):
        kfac(model, Categorical(), data, names=["bn.weight"])
    grouped = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Flatten())
    with pytest.raises(Unsupported, match="groups=2"):
        kfac(grouped, Gaussian(), [])
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(Unsupported, match="share a weight"):
        kfac(tied, Gaussian(), [])
    layer = nn.Linear(3, 3)
    twice = [{"input": torch.randn(2, 3), "target": torch.randn(2, 3)}]
    with pytest.raises(Unsupported, match="more than once"):
        kfac(nn.Sequential(layer, nn.Tanh(), layer), Gaussian(), twice)
    assert not layer._forward_hooks
    with pytest.raises(Unsupported, match="at least one batch"):
        kfac(nn.Linear(3, 3), Gaussian(), [])
    with pytest.raises(Unsupported, match="one output vector per item"):
        kfac(
            nn.Linear(3, 3),
            Categorical(),
            [{"input": torch.randn(2, 4, 3), "target": None or torch.zeros(2, 4).long()}],
        )


def test_sequences_have_no_jacobian():
    with pytest.raises(Unsupported, match="one output vector"):
        jacobians(nn.Linear(3, 2), None, torch.randn(2, 4, 3))
    with pytest.raises(Unsupported, match="at least one batch"):
        ggn_diag(nn.Linear(3, 2), Gaussian(), [])
