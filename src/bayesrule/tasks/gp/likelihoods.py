"""Observation models p(y | f) of Gaussian processes: GPyTorch's, with what the dual update asks.

An update needs, per datum and latent process, the expected log-likelihood under independent
marginals N(mu, v) and its derivatives g1 = d/d mu, g2 = d/d v. For one latent process they are
those of GPyTorch's own `expected_log_prob` (closed form or 20-point Gauss-Hermite quadrature), by
autograd, so that they are the exact gradient of the bound that is computed. For softmax GPyTorch
averages over draws; the mean's derivative is taken through the draws, the variance's by Price's
theorem, d/d v_c E[log p] = 1/2 E[d^2 log p / d f_c^2] = -1/2 E[p_c (1 - p_c)], which has less noise
and is never positive.

GPyTorch 1.15 has Poisson with rate softplus(f) and Bernoulli with the probit link, whose log Phi is
off by up to 2e-3 below -1; the canonical links (logit; exp, in closed form) and torch's log Phi are
put in here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods.likelihood import _OneDimensionalLikelihood
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn
from torch.nn import functional as F

from bayesrule.errors import ConfigError

__all__ = ["LIKELIHOODS", "Observation", "OneLatent", "Softmax", "make_observation"]

QUADRATURE_POINTS = 20
MIN_NOISE = 1e-6  # of the noise variance, as in GPflow


class LogitBernoulli(_OneDimensionalLikelihood):
    """p(y = 1 | f) = sigmoid(f), y in {0, 1}."""

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return Bernoulli(logits = f)."""
        return torch.distributions.Bernoulli(logits=function_samples)


class ProbitBernoulli(gpytorch.likelihoods.BernoulliLikelihood):
    """p(y = 1 | f) = Phi(f), y in {0, 1}."""

    def expected_log_prob(
        self, observations: Tensor, function_dist: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return E log Phi((2 y - 1) f), by quadrature."""
        sign = 2.0 * observations - 1.0
        return self.quadrature(lambda f: torch.special.log_ndtr(sign * f), function_dist)


class LogPoisson(_OneDimensionalLikelihood):
    """y ~ Poisson(exp f), with E log p = y mu - exp(mu + v/2) - log y! in closed form."""

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return Poisson(exp f)."""
        return torch.distributions.Poisson(function_samples.exp())

    def expected_log_prob(
        self, observations: Tensor, function_dist: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return y mu - exp(mu + v/2) - log y! per item."""
        mean, var = function_dist.mean, function_dist.variance
        return observations * mean - (mean + 0.5 * var).exp() - torch.lgamma(observations + 1.0)


class Observation(nn.Module, ABC):
    """A likelihood of P latent processes with independent Gaussian marginals.

    Attributes:
        likelihood: The GPyTorch likelihood, whose parameters are learnt.
        n_latents: P.
        log_concave: Whether g2 <= 0 always.
    """

    n_latents: int = 1
    log_concave: bool = True

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood: Any = likelihood

    @abstractmethod
    def expected_log_prob(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int
    ) -> Tensor:
        """Return E log p(y_n | f_n), (N,), differentiable in the marginals and own parameters.

        Args:
            targets_N: The targets.
            mean_PN: Marginal means.
            var_PN: Marginal variances.
            seed: Seed of the draws, where draws are taken.
        """

    @abstractmethod
    def gradients(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return g1 and g2, the derivatives by mean and variance, each (P, N)."""

    @abstractmethod
    def log_predictive(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int, n: int
    ) -> Tensor:
        """Return log of the integral of p(y_n | f) q(f), (N,); `n` draws where draws are taken."""


class OneLatent(Observation):
    """A one-dimensional GPyTorch likelihood.

    Args:
        likelihood: The GPyTorch likelihood.
        log_concave: Whether it is log-concave in f.
    """

    def __init__(self, likelihood: nn.Module, *, log_concave: bool = True) -> None:
        super().__init__(likelihood)
        self.log_concave = log_concave
        nodes, weights = np.polynomial.hermite.hermgauss(QUADRATURE_POINTS)
        # GPyTorch makes its nodes in the default dtype: 8 digits, here all 16
        self.nodes = torch.from_numpy(nodes)
        self.weights = torch.from_numpy(weights)
        if hasattr(self.likelihood, "quadrature"):
            self.likelihood.quadrature.locations = self.nodes
            self.likelihood.quadrature.weights = self.weights

    def _apply(self, fn: Any, recurse: bool = True) -> OneLatent:
        self.nodes, self.weights = fn(self.nodes), fn(self.weights)
        super()._apply(fn, recurse)
        return self

    def expected_log_prob(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int
    ) -> Tensor:
        """Return GPyTorch's `expected_log_prob`, (N,)."""
        q = MultivariateNormal(mean_PN[0], DiagLinearOperator(var_PN[0]))
        return self.likelihood.expected_log_prob(targets_N, q)

    def gradients(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return the derivatives of `expected_log_prob`, by autograd."""
        with torch.enable_grad():
            mean, var = (t.detach().requires_grad_() for t in (mean_PN, var_PN))
            total = self.expected_log_prob(targets_N, mean, var, seed).sum()
            g1, g2 = torch.autograd.grad(total, (mean, var))
        return g1, g2

    def log_predictive(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int, n: int
    ) -> Tensor:
        """Return the log predictive density, by quadrature unless it has a closed form."""
        mean_N, var_N = mean_PN[0], var_PN[0]
        if isinstance(self.likelihood, gpytorch.likelihoods.GaussianLikelihood):
            std_N = (var_N + self.likelihood.noise).sqrt()
            return torch.distributions.Normal(mean_N, std_N).log_prob(targets_N)
        if isinstance(self.likelihood, gpytorch.likelihoods.BernoulliLikelihood):
            return torch.special.log_ndtr((2.0 * targets_N - 1.0) * mean_N / (1.0 + var_N).sqrt())
        f_QN = mean_N + (2.0 * var_N).sqrt() * self.nodes.unsqueeze(-1)
        log_w_Q1 = self.weights.log().unsqueeze(-1) - 0.5 * math.log(math.pi)
        return (self.likelihood(f_QN).log_prob(targets_N) + log_w_Q1).logsumexp(0)


class Softmax(Observation):
    """p(y = c | f) = softmax(f)_c with one latent process per class, by draws.

    Args:
        n_classes: C = P.
        samples: Draws of f per datum for expectations in training.
    """

    def __init__(self, n_classes: int, samples: int) -> None:
        super().__init__(
            gpytorch.likelihoods.SoftmaxLikelihood(num_classes=n_classes, mixing_weights=False)
        )
        self.n_latents, self.samples = n_classes, samples

    def _draw(self, mean_PN: Tensor, var_PN: Tensor, seed: int, n: int) -> Tensor:
        """Return draws f_SNP; the noise depends on the seed alone."""
        shape = (n, *mean_PN.shape)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, generator=generator, dtype=mean_PN.dtype).to(mean_PN.device)
        return (mean_PN + var_PN.sqrt() * noise).mT

    def _log_prob(self, f_SNP: Tensor, targets_N: Tensor) -> Tensor:
        """Return log p(y_n | f), (S, N), of GPyTorch's categorical distribution."""
        return self.likelihood.forward(f_SNP).log_prob(targets_N)

    def expected_log_prob(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int
    ) -> Tensor:
        """Return the average over draws of log p(y_n | f), (N,)."""
        f_SNP = self._draw(mean_PN, var_PN, seed, self.samples)
        return self._log_prob(f_SNP, targets_N).mean(0)

    def gradients(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return E[1(y = c) - p_c] and -1/2 E[p_c (1 - p_c)], over the draws."""
        p_SNP = self._draw(mean_PN, var_PN, seed, self.samples).softmax(-1)
        labels_NP = F.one_hot(targets_N, self.n_latents).to(mean_PN.dtype)
        g1_NP = labels_NP - p_SNP.mean(0)
        g2_NP = -0.5 * (p_SNP * (1.0 - p_SNP)).mean(0)
        return g1_NP.mT.contiguous(), g2_NP.mT.contiguous()

    def log_predictive(
        self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor, seed: int, n: int
    ) -> Tensor:
        """Return the log of the average over `n` draws of p(y_n | f), (N,)."""
        log_p_SN = self._log_prob(self._draw(mean_PN, var_PN, seed, n), targets_N)
        return log_p_SN.logsumexp(0) - math.log(n)


LIKELIHOODS = {
    "gaussian": "regression",
    "student_t": "regression",
    "poisson": "regression",
    "bernoulli_logit": "classification",
    "bernoulli_probit": "classification",
    "softmax": "classification",
}
"""Name -> kind of data."""


def make_observation(
    name: str,
    *,
    kind: str,
    n_outputs: int,
    noise: float,
    deg_free: float = 4.0,
    samples: int = 20,
) -> Observation:
    """Return the observation model of a configuration.

    Args:
        name: One of `LIKELIHOODS`, or ``auto``: Gaussian for regression, logit Bernoulli for two
            classes, softmax for more.
        kind: The data's kind.
        n_outputs: Classes, or target dimensions.
        noise: Initial noise variance (Gaussian) or squared scale (Student-t).
        deg_free: Initial degrees of freedom (Student-t), above 2.
        samples: Draws per datum (softmax).

    Raises:
        ConfigError: If the likelihood does not fit the data; says which do.
    """
    check_likelihood(name, kind, n_outputs)
    if name == "auto":
        binary = "bernoulli_logit" if n_outputs == 2 else "softmax"
        name = "gaussian" if kind == "regression" else binary
    if name == "softmax":
        return Softmax(n_outputs, samples).double()
    made: Any
    if name == "gaussian":
        made = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=GreaterThan(MIN_NOISE))
    elif name == "student_t":
        made = gpytorch.likelihoods.StudentTLikelihood(noise_constraint=GreaterThan(MIN_NOISE))
    elif name == "poisson":
        made = LogPoisson()
    else:
        made = LogitBernoulli() if name == "bernoulli_logit" else ProbitBernoulli()
    made.double()
    if name in ("gaussian", "student_t"):
        made.noise = noise
    if name == "student_t":
        made.deg_free = deg_free
    return OneLatent(made, log_concave=name != "student_t").double()


def check_likelihood(name: str, kind: str, n_outputs: int) -> None:
    """Refuse a likelihood that does not fit the data.

    Raises:
        ConfigError: Saying which likelihoods do.
    """
    if kind not in ("regression", "classification"):
        raise ConfigError(
            f"task=gp learns from tables of inputs with one target each, not from kind {kind!r}"
        )
    fitting = [key for key, of in LIKELIHOODS.items() if of == kind]
    if kind == "classification" and n_outputs > 2:
        fitting = ["softmax"]
    if kind == "regression" and n_outputs > 1:
        raise ConfigError(
            f"task=gp has one latent process for a regression target; the data have {n_outputs}"
        )
    if name != "auto" and name not in fitting:
        what = f"{n_outputs} classes" if kind == "classification" else "regression"
        raise ConfigError(
            f"task.likelihood={name} does not fit data of {what}: choose auto or "
            f"{', '.join(fitting)}"
        )
