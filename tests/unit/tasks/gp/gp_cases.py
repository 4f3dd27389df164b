"""Small Gaussian-process problems, their learners, and nothing random that is not seeded."""

import torch

from bayesrule.tasks.gp.em import ExpectationMaximisation, Schedule
from bayesrule.tasks.gp.inference import Batch, DualSVGP, NaturalSVGP
from bayesrule.tasks.gp.likelihoods import make_observation
from bayesrule.tasks.gp.model import GaussianProcess, make_kernel
from bayesrule.tasks.history import History

KERNEL = {"kernel": "matern52", "ard": True, "lengthscale": 0.7, "variance": 1.3}
KINDS = {
    "gaussian": ("regression", 1),
    "student_t": ("regression", 1),
    "poisson": ("regression", 1),
    "bernoulli_logit": ("classification", 2),
    "bernoulli_probit": ("classification", 2),
    "softmax": ("classification", 3),
}


def observation(name, **options):
    kind, n_outputs = KINDS[name]
    options = {"noise": 0.2, **options}
    return make_observation(name, kind=kind, n_outputs=n_outputs, **options)


def data(name, n=60, d=2, seed=0):
    """Inputs and targets that the likelihood `name` could have made."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=g, dtype=torch.float64) * 3.0
    f = torch.sin(2.0 * x[:, 0]) + 0.3 * x[:, 1]
    noise = torch.randn(n, generator=g, dtype=torch.float64)
    targets = {
        "gaussian": f + 0.3 * noise,
        "student_t": f + 0.3 * noise / torch.rand(n, generator=g, dtype=torch.float64),
        "poisson": (f.exp() + noise.abs()).round(),
        "bernoulli_logit": (f + noise > 0.4).double(),
        "bernoulli_probit": (f + noise > 0.4).double(),
        "softmax": torch.bucketize(f + 0.3 * noise, torch.tensor([0.0, 0.8], dtype=torch.float64)),
    }
    return x, targets[name]


def process(name="gaussian", n_inducing=10, jitter=1e-6, **options):
    x, y = data(name)
    model = {key: options.pop(key) for key in ("train_inducing", "constant_mean") if key in options}
    gp = GaussianProcess(
        make_kernel(KERNEL, 2), x[:n_inducing].clone(), observation(name, **options),
        jitter=jitter, **model,
    )  # fmt: skip
    return gp, x, y


def learner(name="gaussian", inference=None, schedule=None, history=None, **options):
    gp, x, y = process(name, **options)
    return ExpectationMaximisation(
        gp,
        inference or DualSVGP(0.7, "projected", 1e-8),
        x,
        y,
        schedule or Schedule(3, 2, 2, 0.05),
        seed=4,
        chunk=25,
        history=history or History(None),
    )


def run_all(em):
    em.start()
    for step in range(em.schedule.total):
        em.step(step)
    return em


def whole_batch(gp, chol, x, y, seed=0):
    phi, rest = gp.features(chol, x)
    return Batch(torch.arange(len(y)), y, phi, rest, 1.0, seed)


METHODS = {
    "projected": lambda: DualSVGP(0.7, "projected", 1e-8),
    "unprojected": lambda: DualSVGP(0.7, "unprojected", 1e-8),
    "per_datum": lambda: DualSVGP(0.7, "per_datum", 1e-8),
    "whitened": lambda: NaturalSVGP(0.7, True, 1e-8),
    "moments": lambda: NaturalSVGP(0.7, False, 1e-8),
}
