"""Small problems with known joint solutions, for the tests of federated algorithms."""

import torch

from bayesrule.federated import LinearModel, Quadratic, newton_solver
from bayesrule.likelihoods import Bernoulli
from bayesrule.posteriors import DiagonalGaussian, FullGaussian, IsotropicGaussian

DELTA = 0.7


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratics(num_clients=3, P=4, seed=0):
    """Quadratic losses of full rank, with different minima."""
    losses = []
    for k in range(num_clients):
        A = normal(2 * P, P, seed=seed + 10 * k)
        losses.append(Quadratic(A.mT @ A / P, 3.0 * normal(P, seed=seed + 10 * k + 1)))
    return losses


def logistic_data(n=120, D=3, seed=0):
    """Inputs and labels of one logistic regression, and rows of clients sorted by class."""
    X = normal(n, D, seed=seed)
    X = torch.cat([X, torch.ones(n, 1, dtype=X.dtype)], dim=1)
    w = normal(D + 1, seed=seed + 1)
    noise = torch.rand(n, generator=torch.Generator().manual_seed(seed + 2), dtype=X.dtype)
    y = (torch.sigmoid(X @ w) > noise).long()
    order = torch.argsort(y, stable=True)
    return X[order], y[order]


def logistic_losses(num_clients=3, **options):
    X, y = logistic_data(**options)
    parts = zip(X.tensor_split(num_clients), y.tensor_split(num_clients), strict=True)
    return [LinearModel(Bernoulli(), Xk, yk, 1) for Xk, yk in parts]


def zeros(P):
    return {"w": torch.zeros(P, dtype=torch.float64)}


def prior(family, P, delta=DELTA, mean=None):
    mean = zeros(P) if mean is None else {"w": mean}
    if family == "isotropic":
        return IsotropicGaussian(mean, delta)
    if family == "diagonal":
        return DiagonalGaussian(mean, {"w": torch.full((P,), delta, dtype=torch.float64)})
    return FullGaussian(mean, delta * torch.eye(P, dtype=torch.float64))


def solvers(losses, num_items=1):
    return [(num_items, newton_solver(loss)) for loss in losses]


def joint_quadratic(losses, delta=DELTA):
    """Return (m*, S*) of sum l_k + delta/2 ||w||^2."""
    S = sum(loss.H for loss in losses) + delta * torch.eye(len(losses[0].b), dtype=torch.float64)
    return torch.linalg.solve(S, sum(loss.b for loss in losses)), S


def joint_gradient(losses, w, delta=DELTA):
    return sum(loss.grad(w) for loss in losses) + delta * w
