"""Every merging method again, in plain NumPy on whole flat models: independent of the library."""

import numpy as np


def draw(rng, shapes, n_models):
    """Return base, models and curvatures of some shapes."""

    def one(f):
        return {name: f(shape) for name, shape in shapes.items()}

    base = one(lambda s: rng.normal(size=s))
    models = [
        {k: v + 0.3 * rng.normal(size=v.shape) for k, v in base.items()} for _ in range(n_models)
    ]
    H = [one(lambda s: rng.gamma(0.5, 4.0, size=s)) for _ in range(n_models)]
    return base, models, H, one(lambda s: rng.gamma(0.5, 4.0, size=s))


def _flat(model):
    return np.concatenate([v.reshape(-1) for v in model.values()])


def _back(flat, like):
    out, start = {}, 0
    for name, v in like.items():
        out[name] = flat[start : start + v.size].reshape(v.shape)
        start += v.size
    return out


def by_formula(method, base, models, H, H0, alphas, *, delta0=0.0, density=0.2):
    """Return the merged model of the methods that are one formula of flat vectors."""
    m0, ms = _flat(base), [_flat(m) for m in models]
    hs, h0 = [_flat(h) for h in H], _flat(H0) + delta0
    if method == "average":
        out = sum(ms) / len(ms)
    elif method == "weighted":
        out = sum(a * m for a, m in zip(alphas, ms)) / sum(alphas)
    elif method == "task_arithmetic":
        out = m0 + sum(a * (m - m0) for a, m in zip(alphas, ms))
    elif method == "fisher":
        out = sum(a * h * m for a, h, m in zip(alphas, hs, ms)) / sum(
            a * h for a, h in zip(alphas, hs)
        )
    elif method in ("fisher_base", "gradient_matching"):
        hbar = h0 + sum(a * h for a, h in zip(alphas, hs))
        top = hs if method == "fisher_base" else [h0 + h for h in hs]
        out = m0 + sum(a * p * (m - m0) for a, p, m in zip(alphas, top, ms)) / hbar
    elif method == "ties":
        deltas = []
        for a, m in zip(alphas, ms):
            d = m - m0
            k = max(1, int(density * d.size))
            order = np.argsort(-np.abs(d), kind="stable")
            kept = np.zeros_like(d)
            kept[order[:k]] = d[order[:k]]
            deltas.append(a * kept)
        d = np.stack(deltas)
        agree = (np.sign(d) == np.sign(d.sum(0))) & (d != 0)
        out = m0 + (d * agree).sum(0) / np.maximum(agree.sum(0), 1)
    else:
        raise ValueError(method)
    return _back(out, base)


def slerp(u, v, w):
    a, b = u.reshape(-1), v.reshape(-1)
    omega = np.arccos(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))
    return (np.sin((1 - w) * omega) * u + np.sin(w * omega) * v) / np.sin(omega)


def regmean(weights, grams, off_diagonal):
    total, pull = 0.0, 0.0
    for W, G in zip(weights, grams):
        R = np.where(np.eye(len(G), dtype=bool), G, off_diagonal * G)
        total, pull = total + R, pull + R @ W.T
    return np.linalg.solve(total, pull).T
