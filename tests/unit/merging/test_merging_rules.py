"""Merging rules beside NumPy, their identities, and the algebra of posteriors that they are."""

import numpy as np
import pytest
import torch
from merging_oracles import by_formula, draw, regmean, slerp

from bayesrule.errors import ConfigError, ImproperDistribution
from bayesrule.merging import METHODS, MergeOptions, laplace_posterior, merge, merge_posteriors
from bayesrule.merging import engine as engine_module
from bayesrule.merging.gram import linear_grams
from bayesrule.merging.sparsify import keep_mask, kth_magnitude
from bayesrule.posteriors import DiagonalGaussian, FullGaussian, IsotropicGaussian

SHAPES = {"a.weight": (7, 5), "a.bias": (7,), "b.weight": (3, 7)}
ALPHAS = (0.7, 0.2, 0.4)
FORMULAS = (
    "average", "weighted", "task_arithmetic", "fisher", "fisher_base", "gradient_matching", "ties",
)  # fmt: skip


def tensors(model, dtype=torch.float64):
    return {name: torch.tensor(np.asarray(v), dtype=dtype) for name, v in model.items()}


def case(seed=0, n_models=3):
    base, models, H, H0 = draw(np.random.default_rng(seed), SHAPES, n_models)
    keys = dict(
        models=[tensors(m) for m in models],
        base=tensors(base),
        curvatures=[tensors(h) for h in H],
        base_curvature=tensors(H0),
    )
    return (base, models, H, H0), keys


def merged(method, options=None, **keys):
    models = keys.pop("models")
    return merge(method, models, options=options or MergeOptions(), **keys)[0]


def close(found, expected, tolerance=1e-10):
    for name, tensor in found.items():
        other = expected[name]
        other = other if isinstance(other, torch.Tensor) else torch.from_numpy(other)
        torch.testing.assert_close(tensor, other, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("piece", [6, 1 << 20])
def test_methods_equal_numpy(method, piece, monkeypatch):
    monkeypatch.setattr(engine_module, "PIECE", piece)
    raw, keys = case()
    alphas = None if method == "average" else ALPHAS
    found = merged(method, MergeOptions(alphas=alphas, delta0=0.01), **keys)
    close(found, by_formula(method, *raw, ALPHAS, delta0=0.01))


@pytest.mark.parametrize("seed", range(3))
def test_slerp_and_regmean_equal_numpy(seed):
    rng = np.random.default_rng(seed)
    (_, models, _, _), keys = case(seed, 2)
    found = merged("slerp", MergeOptions(alphas=(0.6, 0.3)), models=keys["models"])
    close(found, {k: slerp(models[0][k], models[1][k], 1 / 3) for k in SHAPES})
    X = [rng.normal(size=(20, 5)) for _ in range(2)]
    grams = [x.T @ x for x in X]
    held = [{"a.weight": torch.from_numpy(G)} for G in grams]
    found = merged(
        "regmean", MergeOptions(off_diagonal=0.7), models=keys["models"], curvatures=held
    )
    close(found, {
        **by_formula("average", *case(seed, 2)[0], ()),
        "a.weight": regmean([m["a.weight"] for m in models], grams, 0.7),
    })  # fmt: skip


def test_regmean_fits_the_outputs_of_all_layers():
    """With all of the Gram matrices it is least squares on stacked inputs and outputs."""
    rng = np.random.default_rng(0)
    W, X = [rng.normal(size=(4, 6)) for _ in range(2)], [rng.normal(size=(30, 6)) for _ in range(2)]
    layers = [torch.nn.Linear(6, 4, bias=False).double() for _ in range(2)]
    grams = [
        linear_grams(layer, [torch.from_numpy(x[:11]), torch.from_numpy(x[11:])], ["weight"])
        for layer, x in zip(layers, X)
    ]
    found = merged(
        "regmean",
        MergeOptions(off_diagonal=1.0),
        models=[{"weight": torch.from_numpy(w)} for w in W],
        curvatures=grams,
    )
    target = np.concatenate([x @ w.T for x, w in zip(X, W)])
    expected = np.linalg.lstsq(np.concatenate(X), target, rcond=None)[0].T
    close(found, {"weight": expected})


def test_dare_is_its_masks_and_unbiased():
    raw, keys = case()
    options = MergeOptions(alphas=ALPHAS, density=0.4, seed=3)
    deltas = [
        {
            name: a * (m[name] - keys["base"][name]) / 0.4
            * keep_mask(SHAPES[name], 0.4, 3, t, name, 0)
            for name in SHAPES
        }
        for t, (a, m) in enumerate(zip(ALPHAS, keys["models"]))
    ]  # fmt: skip
    found = merged("dare", options, **keys)
    close(found, {n: keys["base"][n] + sum(d[n] for d in deltas) for n in SHAPES})
    stacked = {n: torch.stack([d[n] for d in deltas]) for n in SHAPES}
    agree = {n: (d.sign() == d.sum(0).sign()) & (d != 0) for n, d in stacked.items()}
    mean = {n: (d * agree[n]).sum(0) / agree[n].sum(0).clamp_min(1) for n, d in stacked.items()}
    close(merged("dare_ties", options, **keys), {n: keys["base"][n] + mean[n] for n in SHAPES})
    draws = [
        merged("dare", MergeOptions(alphas=ALPHAS, density=0.4, seed=s), **keys) for s in range(400)
    ]
    average = {n: torch.stack([d[n] for d in draws]).mean(0) for n in SHAPES}
    close(average, by_formula("task_arithmetic", *raw, ALPHAS), 0.2)
    everything = merged("dare", MergeOptions(alphas=ALPHAS, density=1.0), **keys)
    close(everything, by_formula("task_arithmetic", *raw, ALPHAS))


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 1.0])
def test_threshold_is_the_kth_largest(density):
    rng = np.random.default_rng(1)
    values = (rng.normal(size=5000) * 10.0 ** rng.integers(-30, 5, size=5000)).astype(np.float32)
    values[:300] = values[0]  # ties
    parts = [torch.from_numpy(p) for p in np.array_split(values, 7)]
    k = max(1, int(density * len(values)))
    assert kth_magnitude(lambda: parts, density) == np.sort(np.abs(values))[-k]


# --------------------------------------------------------------------------- identities


def test_limits():
    _, keys = case()
    zero = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
    opts = MergeOptions(alphas=ALPHAS)
    ta = merged("task_arithmetic", opts, **keys)
    close(merged("gradient_matching", opts, **{**keys, "curvatures": [zero] * 3}), ta)  # H_t = 0
    without_prior = MergeOptions(alphas=ALPHAS, delta0=1e-13)
    close(  # H_0 = 0
        merged("gradient_matching", without_prior, **{**keys, "base_curvature": zero}),
        merged("fisher", opts, **keys),
        1e-8,
    )
    one = {**keys, "models": keys["models"][:1], "curvatures": keys["curvatures"][:1]}
    close(merged("gradient_matching", MergeOptions(alphas=[1.0]), **one), one["models"][0])
    close(merged("gradient_matching", MergeOptions(alphas=[0.0]), **keys), keys["base"])


def test_isotropic_closed_form():
    """H_0 = a I, H_t = b I gives P_t = (a + b) / (a + b sum alpha)."""
    _, keys = case()
    a, b = 2.0, 0.7

    def full(c):
        return {n: torch.full(s, c, dtype=torch.float64) for n, s in SHAPES.items()}

    keys |= {"curvatures": [full(b)] * 3, "base_curvature": full(a)}
    P = (a + b) / (a + b * sum(ALPHAS))
    scaled = MergeOptions(alphas=[P * x for x in ALPHAS])
    close(
        merged("gradient_matching", MergeOptions(alphas=ALPHAS, delta0=0.0), **keys),
        merged("task_arithmetic", scaled, **keys),
    )


def test_uncertainty_rule_is_fisher_with_base_and_a_pull():
    _, keys = case()
    opts = MergeOptions(alphas=ALPHAS)
    H0, H = keys["base_curvature"], keys["curvatures"]
    hbar = {n: H0[n] + sum(a * h[n] for a, h in zip(ALPHAS, H)) for n in SHAPES}
    pull = {
        n: sum(a * (m[n] - keys["base"][n]) for a, m in zip(ALPHAS, keys["models"]))
        * H0[n]
        / hbar[n]
        for n in SHAPES
    }
    plus = merged("fisher_base", opts, **keys)
    close(merged("gradient_matching", opts, **keys), {n: plus[n] + pull[n] for n in SHAPES})


def test_rule_is_the_product_of_posteriors():
    """Equation 5 is the mean of prior * prod (q_t / prior) ** alpha_t, its precision Hbar."""
    _, keys = case()
    prior = DiagonalGaussian(keys["base"], keys["base_curvature"])
    qs = [
        laplace_posterior(m, h, keys["base_curvature"])
        for m, h in zip(keys["models"], keys["curvatures"])
    ]
    product = merge_posteriors(prior, qs, ALPHAS)
    options = MergeOptions(alphas=ALPHAS, delta0=0.0)
    found, precision, _ = merge("gradient_matching", keys["models"], options=options, **{
        k: v for k, v in keys.items() if k != "models"
    })  # fmt: skip
    close(found, product.mean)
    close(precision, product.precision)
    literal = prior
    for q, a in zip(qs, ALPHAS):
        literal = literal * (q / prior) ** a
    close(found, literal.mean)
    # equal precisions everywhere: task arithmetic
    spheres = [IsotropicGaussian(m, 2.5) for m in (keys["base"], *keys["models"])]
    close(
        merge_posteriors(spheres[0], spheres[1:], ALPHAS).mean,
        merged("task_arithmetic", MergeOptions(alphas=ALPHAS), **keys),
    )


def test_order_of_the_models_does_not_matter():
    _, keys = case()
    turned = {**keys, "models": keys["models"][::-1], "curvatures": keys["curvatures"][::-1]}
    for method in FORMULAS:
        alphas = None if method == "average" else ALPHAS
        back = None if method == "average" else ALPHAS[::-1]
        close(
            merged(method, MergeOptions(alphas=alphas), **keys),
            merged(method, MergeOptions(alphas=back), **turned),
        )


def test_identical_models_are_returned():
    _, keys = case(n_models=2)
    theta = keys["models"][0]
    keys["models"] = [theta, theta]
    weights = MergeOptions(alphas=(0.3, 0.7))
    for method in ("weighted", "task_arithmetic", "fisher", "gradient_matching", "slerp"):
        close(merged(method, weights, **keys), theta)
    close(merged("average", **keys), theta)
    G = {"a.weight": torch.eye(5, dtype=torch.float64)}
    close(merged("regmean", models=keys["models"], curvatures=[G, G]), theta)
    plus = merged("fisher_base", weights, **keys)  # shrinks towards the base model
    assert (plus["a.weight"] - theta["a.weight"]).abs().max() > 1e-3


def test_entries_without_curvature():
    """The base model's for fisher, task arithmetic for the uncertainty rule (delta0 / delta0)."""
    _, keys = case()
    for each in (*keys["curvatures"], keys["base_curvature"]):
        each["a.bias"].zero_()
    assert torch.equal(merged("fisher", **keys)["a.bias"], keys["base"]["a.bias"])
    opts = MergeOptions(alphas=ALPHAS)
    ta = merged("task_arithmetic", opts, **keys)
    torch.testing.assert_close(merged("gradient_matching", opts, **keys)["a.bias"], ta["a.bias"])
    alone = {k: keys[k] for k in ("models", "curvatures")}
    mean = sum(m["a.bias"] for m in keys["models"]) / 3
    torch.testing.assert_close(merged("fisher", **alone)["a.bias"], mean)


def test_removal_floors_the_precision_and_says_so():
    _, keys = case(n_models=1)
    options = MergeOptions(alphas=[-1.0], floor=0.1, delta0=0.0)
    rest = {k: v for k, v in keys.items() if k != "models"}
    found, precision, report = merge("gradient_matching", keys["models"], options=options, **rest)
    below, total = 0, 0
    for n in SHAPES:
        H0, H = keys["base_curvature"][n], keys["curvatures"][0][n]
        S = (H0 - H).maximum(0.1 * H0)
        expected = keys["base"][n] - (H0 + H) * (keys["models"][0][n] - keys["base"][n]) / S
        torch.testing.assert_close(found[n], expected)
        torch.testing.assert_close(precision[n], S)
        below, total = below + int((H0 - H < 0.1 * H0).sum()), total + H0.numel()
    assert report["floored"] == below / total > 0
    prior = DiagonalGaussian(keys["base"], keys["base_curvature"])
    q = laplace_posterior(keys["models"][0], keys["curvatures"][0], keys["base_curvature"])
    with pytest.raises(ImproperDistribution):
        merge_posteriors(prior, [q], [-1.0])


def test_normalised_fisher():
    _, keys = case()
    norms = [torch.cat([h.flatten() for h in H.values()]).norm() for H in keys["curvatures"]]
    scaled = [{n: h / s for n, h in H.items()} for H, s in zip(keys["curvatures"], norms)]
    close(
        merged("fisher", MergeOptions(normalize=True), **keys),
        merged("fisher", **{**keys, "curvatures": scaled}),
    )


def test_running_statistics_are_averaged():
    models = [{"n.running_var": torch.tensor([v])} for v in (1.0, 3.0)]
    base = {"n.running_var": torch.tensor([5.0])}
    found = merged("task_arithmetic", MergeOptions(alphas=[1.0]), models=models, base=base)
    assert found["n.running_var"].item() == 2.0


# --------------------------------------------------------------------------- quadratic losses


def _ridge(rng, n, P=4):
    X, y = rng.normal(size=(n, P)), rng.normal(size=n)
    return X.T @ X, X.T @ y


def _gaussian(mean, precision):
    return FullGaussian({"w": torch.from_numpy(mean)}, torch.from_numpy(precision))


@pytest.mark.parametrize("alphas", [(1.0, 1.0, 1.0), (0.3, 2.0, 0.9)])
def test_ridge_merging_is_joint_training(alphas):
    rng = np.random.default_rng(0)
    H0, b0 = _ridge(rng, 9)
    H0 = H0 + 0.5 * np.eye(4)
    theta0 = np.linalg.solve(H0, b0)
    tasks = [_ridge(rng, 6) for _ in alphas]
    qs = [_gaussian(np.linalg.solve(H0 + H, b0 + b), H0 + H) for H, b in tasks]
    joint = np.linalg.solve(
        H0 + sum(a * H for a, (H, _) in zip(alphas, tasks)),
        b0 + sum(a * b for a, (_, b) in zip(alphas, tasks)),
    )
    found = merge_posteriors(_gaussian(theta0, H0), qs, alphas).mean["w"].numpy()
    np.testing.assert_allclose(found, joint, atol=1e-10)
    ta = theta0 + sum(a * (q.mean["w"].numpy() - theta0) for a, q in zip(alphas, qs))
    assert np.abs(ta - joint).max() > 1e-3


def test_ridge_removal_is_retraining():
    rng = np.random.default_rng(1)
    (Hk, bk), (Hb, bb) = _ridge(rng, 12), _ridge(rng, 5)
    Hk = Hk + np.eye(4)
    H0, b0 = Hk + Hb, bk + bb
    theta0 = np.linalg.solve(H0, b0)
    bad = np.linalg.solve(H0 + Hb, b0 + bb)  # theta_0, fine-tuned on the bad data again
    found = merge_posteriors(_gaussian(theta0, H0), [_gaussian(bad, H0 + Hb)], [-1.0])
    retrained = np.linalg.solve(Hk, bk)
    np.testing.assert_allclose(found.mean["w"].numpy(), retrained, atol=1e-10)
    assert np.abs(2 * theta0 - bad - retrained).max() > 1e-3


def test_error_of_task_arithmetic_is_the_gradient_mismatch():
    """Equation 3, logistic regression solved by damped Newton steps, to 1e-8."""
    rng = np.random.default_rng(2)
    P, alphas = 3, (0.8, 0.5)
    H0, theta0 = np.diag([2.0, 0.7, 1.3]), rng.normal(size=P)
    tasks = [(rng.normal(size=(25, P)), rng.integers(0, 2, size=25)) for _ in alphas]

    def sigmoid(X, w):
        return 1 / (1 + np.exp(-X @ w))

    def gradient(t, w):
        X, y = tasks[t]
        return X.T @ (sigmoid(X, w) - y)

    def hessian(t, w):
        p = sigmoid(tasks[t][0], w)
        return (tasks[t][0] * (p * (1 - p))[:, None]).T @ tasks[t][0]

    def solve(weights):
        w = theta0.copy()
        for k in range(80):
            g = sum(a * gradient(t, w) for t, a in weights) + H0 @ (w - theta0)
            H = sum(a * hessian(t, w) for t, a in weights) + H0
            w = w - (0.3 if k < 30 else 1.0) * np.linalg.solve(H, g)
        return w

    single = [solve([(t, 1.0)]) for t in range(2)]
    joint = solve(list(enumerate(alphas)))
    ta = theta0 + sum(a * (w - theta0) for a, w in zip(alphas, single))
    mismatch = sum(
        a * (gradient(t, joint) - gradient(t, w)) for t, (a, w) in enumerate(zip(alphas, single))
    )
    np.testing.assert_allclose(joint - ta, -np.linalg.solve(H0, mismatch), atol=1e-8)
    curvatures = [hessian(t, w) for t, w in enumerate(single)]
    qs = [_gaussian(w, H0 + H) for w, H in zip(single, curvatures)]
    ug = merge_posteriors(_gaussian(theta0, H0), qs, alphas).mean["w"].numpy()
    assert np.abs(ug - joint).max() < 0.2 * np.abs(ta - joint).max()


# --------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("method", "keys", "options", "word"),
    [
        ("task_arithmetic", ["models"], {}, "needs the base model"),
        ("fisher", ["models"], {}, "curvature file of each"),
        ("gradient_matching", ["models", "base", "curvatures"], {}, "H_0"),
        ("slerp", ["models"], {}, "merges two models, got 3"),
        ("weighted", ["models"], {"alphas": [1, 2]}, "2 factors for 3 models"),
        ("average", ["models"], {"alphas": [1, 2, 3]}, "equal weights"),
        ("fisher", ["models", "curvatures"], {"alphas": [-1]}, "not negative"),
    ],
)
def test_what_is_missing_is_named(method, keys, options, word):
    _, held = case()
    with pytest.raises(ConfigError, match=word):
        merged(method, MergeOptions(**options), **{key: held[key] for key in keys})


def test_every_method_is_tested_here():
    assert {*FORMULAS, "slerp", "regmean", "dare", "dare_ties"} == set(METHODS)
