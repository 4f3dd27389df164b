"""E-steps, M-steps and bounds on GPyTorch's kernels, against GPyTorch's own inference."""

import itertools
import math

import gpytorch
import pytest
import torch
from gp_cases import METHODS, data, learner, process, run_all, whole_batch

from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.posteriors.inducing import from_sites
from bayesrule.tasks.gp.em import Schedule
from bayesrule.tasks.gp.gpytorch_svgp import GPyTorchSVGP
from bayesrule.tasks.gp.inference import SGPR, AdamSVGP, DualSVGP, elbo
from bayesrule.tasks.gp.model import choose_inducing


def bound_and_gradient(gp, inference, x, y):
    """The bound at the current kernel and its derivatives, by name."""
    chol = gp.chol()
    batch = whole_batch(gp, chol, x, y)
    expected, kl = elbo(gp, inference.posterior(gp, chol, lambda: batch.phi), batch)
    named = {n: p for n, p in gp.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(expected - kl, list(named.values()))
    return (expected - kl).item(), dict(zip(named, grads, strict=True))


# ------------------------------------------------------------ C1: the same inference


@pytest.mark.parametrize("name", ["gaussian", "bernoulli_logit", "poisson", "student_t"])
def test_a_dual_step_is_a_step_of_gpytorchs_ngd(name):
    """Over ten steps to 1e-8; GPyTorch adds the jitter to k(x, x) as well, so it is added here."""
    gp, x, y = process(name)
    theirs = GPyTorchSVGP(gp, len(y), 0.3)
    theirs.hold_kernel()
    ours = DualSVGP(0.3, "projected", -math.inf)  # GPyTorch does not clip
    with torch.no_grad():
        chol = gp.chol()
        ours.start(gp, chol, y)
        phi, rest = gp.features(chol, x)
    for _ in range(10):
        theirs.e_step(x, y)
        batch = whole_batch(gp, chol, x, y)
        with torch.no_grad():
            ours.step(gp, chol, type(batch)(batch.rows, y, phi, rest + gp.jitter, 1.0, 0))
        q, p = theirs.posterior(), from_sites(ours.sites)
        assert (q.mean - p.mean).abs().max() < 1e-8
        assert (q.half.mT @ q.half - p.half.mT @ p.half).abs().max() < 1e-8
        assert q.kl().item() == pytest.approx(p.kl().item(), abs=1e-8)


@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("method", METHODS)
def test_methods_differ_in_m_steps_only(method, batch_size):
    reference = learner("bernoulli_logit", schedule=Schedule(1, 5, 0, 0.1, batch_size))
    other = learner("bernoulli_logit", METHODS[method](), Schedule(1, 5, 0, 0.1, batch_size))
    one, two = (run_all(em).posterior()[1] for em in (reference, other))
    assert torch.allclose(one.mean, two.mean, atol=1e-12)
    assert torch.allclose(one.half, two.half, atol=1e-12)


def test_batches_are_permutations_of_the_data():
    em = learner(schedule=Schedule(30, 1, 1, 0.1, 25))
    seen = [em.batch_rows(step).tolist() for step in range(6)]
    assert [len(rows) for rows in seen] == [25, 25, 10, 25, 25, 10]
    for epoch in (seen[:3], seen[3:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(60))
    assert seen[:3] != seen[3:]
    assert em.batch_rows(1).tolist() == seen[1]  # whatever was asked before
    chol = em.gp.chol()
    assert em._batch(2, chol, None, None).scale == 6.0


# -------------------------------------------------------------- C2: bounds of M-steps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gaussian", "bernoulli_logit"])
def test_the_m_step_follows_the_gradient_of_its_own_bound(name, method):
    """q is a function of the kernel: checked by differences, inducing inputs included."""
    gp, x, y = process(name, train_inducing=True)
    inference = METHODS[method]()
    with torch.no_grad():
        chol = gp.chol()
        inference.start(gp, chol, y)
        for _ in range(3):
            inference.step(gp, chol, whole_batch(gp, chol, x, y))
        inference.freeze(chol)
    _, grads = bound_and_gradient(gp, inference, x, y)
    h = 1e-5
    for param_name, param in gp.named_parameters():
        if not param.requires_grad:
            continue
        for place in range(min(2, param.numel())):
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    param.view(-1)[place] += sign * h
                ends.append(bound_and_gradient(gp, inference, x, y)[0])
                with torch.no_grad():
                    param.view(-1)[place] -= sign * h
            slope = (ends[0] - ends[1]) / (2 * h)
            assert grads[param_name].view(-1)[place].item() == pytest.approx(
                slope, rel=1e-5, abs=1e-5
            )


def test_with_gaussian_noise_the_dual_m_step_is_that_of_the_collapsed_bound():
    """After one full E-step the per-datum bound and its kernel gradient are SGPR's."""
    gp, x, y = process()
    dual, collapsed = DualSVGP(1.0, "per_datum", 0.0), SGPR()
    with torch.no_grad():
        chol = gp.chol()
        dual.start(gp, chol, y)
        dual.step(gp, chol, whole_batch(gp, chol, x, y))
        dual.freeze(chol)
        collapsed.start(gp, chol, y)
    one, slopes = bound_and_gradient(gp, dual, x, y)
    two, others = bound_and_gradient(gp, collapsed, x, y)
    assert one == pytest.approx(two, rel=1e-9)
    for name, slope in slopes.items():
        if "likelihood" not in name:  # the frozen sites hold the old noise
            assert torch.allclose(slope, others[name], rtol=1e-6, atol=1e-6), name


def test_the_collapsed_bound_is_gpytorchs():
    gp, x, y = process(jitter=1e-6)
    inference = SGPR()
    inference.start(gp, gp.chol(), y)
    ours, _ = bound_and_gradient(gp, inference, x, y)

    class Collapsed(gpytorch.models.ExactGP):
        def __init__(self):
            super().__init__(x, y, gp.observation.likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.InducingPointKernel(
                gp.kernel, gp.inducing.detach().clone(), gp.observation.likelihood
            )

        def forward(self, inputs):
            covar = self.covar_module(inputs)
            return gpytorch.distributions.MultivariateNormal(self.mean_module(inputs), covar)

    model = Collapsed().double().train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(gp.observation.likelihood, model)
    with torch.no_grad():
        theirs = len(y) * mll(model(x), y).item()
    assert ours == pytest.approx(theirs, rel=1e-4)  # GPyTorch has jitters of its own


def test_with_all_inputs_as_inducing_inputs_it_is_the_evidence():
    gp, x, y = process(n_inducing=60, jitter=1e-8)
    inference = SGPR()
    inference.start(gp, gp.chol(), y)
    ours, _ = bound_and_gradient(gp, inference, x, y)
    K = gp.kernel(x).to_dense() + gp.observation.likelihood.noise * torch.eye(60)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(60).double(), K).log_prob(y)
    assert ours == pytest.approx(evidence.item(), rel=1e-5)


# ------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("name", ["gaussian", "bernoulli_logit", "poisson", "softmax"])
def test_the_bound_rises(name):
    em = learner(name, schedule=Schedule(6, 4, 4, 0.05))
    em.start()
    bounds = []
    for step in range(em.schedule.total):
        if em.schedule.ends_e_phase(step):
            bounds.append(em.bound())
        em.step(step)
    bounds.append(em.bound())
    assert len(bounds) == 6
    slack = 2.0 if name == "softmax" else 0.0  # its draws change from step to step
    assert all(after > before - slack for before, after in itertools.pairwise(bounds))
    assert bounds[-1] > bounds[0]


def test_student_t_noise_keeps_sites_positive_where_its_curvature_is_not():
    gp, x, y = process("student_t")
    y[::7] += 8.0  # outliers, where g2 > 0
    inference = DualSVGP(0.5, "per_datum", 1e-8)
    with torch.no_grad():
        chol = gp.chol()
        inference.start(gp, chol, y)
        before = gp.observation.gradients(y, *from_sites(inference.sites).marginals(
            *gp.features(chol, x)), 0)[1]  # fmt: skip
        for _ in range(30):
            inference.step(gp, chol, whole_batch(gp, chol, x, y))
        eigenvalues = torch.linalg.eigvalsh(inference.sites.lam2)
        expected, kl = elbo(gp, from_sites(inference.sites), whole_batch(gp, chol, x, y))
        prior = DualSVGP(0.5, "projected", 1e-8)
        prior.start(gp, chol, y)
        first, none = elbo(gp, from_sites(prior.sites), whole_batch(gp, chol, x, y))
    assert (before > 0).any()
    assert (inference.datum[1] > 0).all()
    assert eigenvalues.min() > -1e-10
    assert expected - kl > first - none


def test_a_constant_mean_is_a_shift_of_the_targets():
    """The site update takes the GP's part of the marginal mean alone."""
    shifted = learner(schedule=Schedule(1, 3, 0, 0.1), constant_mean=True)
    with torch.no_grad():
        shifted.gp.mean.fill_(0.7)
    plain = learner(schedule=Schedule(1, 3, 0, 0.1))
    plain.targets = plain.targets - 0.7
    one, two = (run_all(em).posterior()[1] for em in (shifted, plain))
    assert torch.allclose(one.mean, two.mean, atol=1e-12)
    assert shifted.bound() == pytest.approx(plain.bound(), abs=1e-10)


def test_a_constant_mean_is_learnt():
    em = learner("poisson", schedule=Schedule(3, 2, 5, 0.1), constant_mean=True)
    run_all(em)
    assert em.gp.mean.abs().item() > 0.05


@pytest.mark.parametrize(
    ("raw_scale", "words"),
    [
        (math.nan, r"M-step 2: the kernel matrix .* not finite .*smaller task\.lr"),
        (3e3, r"M-step 2: the expected log-likelihood is -inf .*smaller task\.lr"),
    ],
)
def test_a_diverged_kernel_is_named(raw_scale, words):
    em = learner("poisson", schedule=Schedule(2, 1, 2, 0.1))
    em.start()
    em.step(0)
    with torch.no_grad():
        em._fixed_kernel()
        em.gp.kernel.raw_outputscale.fill_(raw_scale)
    with pytest.raises(NonFiniteLoss, match=words):
        em.step(1)


def test_adam_approaches_the_natural_gradients_optimum():
    slow = learner("bernoulli_logit", AdamSVGP(0.02), Schedule(1, 600, 0, 0.1))
    fast = learner("bernoulli_logit", schedule=Schedule(1, 30, 0, 0.1))
    run_all(slow), run_all(fast)
    assert slow.bound() == pytest.approx(fast.bound(), abs=0.05)
    assert slow.bound() <= fast.bound() + 1e-6


def test_the_collapsed_bound_refuses_other_likelihoods():
    with pytest.raises(ConfigError, match="posterior=sgpr is the collapsed bound of a Gaussian"):
        learner("poisson", SGPR(), Schedule(2, 0, 3, 0.1))


# -------------------------------------------------------------------- inducing inputs


def test_inducing_inputs_are_distinct_rows():
    x, _ = data("gaussian", n=12)
    x[1] = x[0]
    first = choose_inducing(x, 4, "first", 0)
    assert torch.equal(first, x[[0, 2, 3, 4]])
    drawn = choose_inducing(x, 4, "random", 0)
    assert torch.equal(drawn, choose_inducing(x, 4, "random", 0))
    assert not torch.equal(drawn, choose_inducing(x, 4, "random", 1))
    assert all((x == row).all(1).any() for row in drawn)
    with pytest.raises(ConfigError, match=r"model\.inducing=12: .* 11 distinct inputs"):
        choose_inducing(x, 12, "first", 0)
    grid = choose_inducing(x[:, :1], 3, "grid", 0)
    middle = 0.5 * (x[:, 0].min() + x[:, 0].max())
    assert torch.allclose(grid[1, 0], middle)
    with pytest.raises(ConfigError, match="single input"):
        choose_inducing(x, 3, "grid", 0)
