"""GPyTorch's own sparse GP with natural gradients, around a model of ours: oracle and yardstick.

`gpytorch.variational.VariationalStrategy` (whitened) with a `NaturalVariationalDistribution`,
learnt by `gpytorch.optim.NGD`, exactly as GPyTorch's tutorial does it. One step of size rho gives
the q(u) of one dual E-step of size rho, up to one detail: GPyTorch adds the jitter to k(x, x) as
well. What differs is the time it takes.
"""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from torch import Tensor

from bayesrule.posteriors.inducing import InducingGaussian
from bayesrule.tasks.gp.likelihoods import Softmax
from bayesrule.tasks.gp.model import GaussianProcess

__all__ = ["GPyTorchSVGP"]


class _Approximate(gpytorch.models.ApproximateGP):
    """A zero-mean GP with the kernel and inducing inputs of ours."""

    def __init__(self, gp: GaussianProcess) -> None:
        batch = torch.Size([gp.n_latents]) if gp.n_latents > 1 else torch.Size([])
        natural = gpytorch.variational.NaturalVariationalDistribution(
            gp.n_inducing, batch_shape=batch, mean_init_std=0.0
        )
        strategy = gpytorch.variational.VariationalStrategy(
            self,
            gp.inducing.detach().clone(),
            natural,
            learn_inducing_locations=gp.inducing.requires_grad,
            jitter_val=gp.jitter,
        )
        if gp.n_latents > 1:
            strategy = gpytorch.variational.IndependentMultitaskVariationalStrategy(
                strategy, num_tasks=gp.n_latents
            )
        super().__init__(strategy)
        self.covar_module = gp.kernel
        self.mean_module = gpytorch.means.ZeroMean()

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Return the prior at x."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class GPyTorchSVGP:
    """GPyTorch's NGD on q(u), and Adam on kernel, likelihood and inducing inputs.

    Args:
        gp: The model; kernel and likelihood are shared with it, Z and q are copies.
        n_train: N.
        lr: rho of the natural-gradient step.
        model_lr: Adam's learning rate.
    """

    def __init__(
        self, gp: GaussianProcess, n_train: int, lr: float, model_lr: float = 0.01
    ) -> None:
        self.gp = gp
        self.model = _Approximate(gp).double()
        self.likelihood: Any = gp.observation.likelihood
        self.mll = gpytorch.mlls.VariationalELBO(self.likelihood, self.model, num_data=n_train)
        self.ngd = gpytorch.optim.NGD(self.model.variational_parameters(), num_data=n_train, lr=lr)
        learnt = [*self.model.hyperparameters(), *self.likelihood.parameters()]
        self.adam = torch.optim.Adam([p for p in learnt if p.requires_grad], lr=model_lr)
        self.n_train = n_train
        self.model.train()
        self.likelihood.train()

    def _bound(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the bound over N, as GPyTorch scales it."""
        draws = getattr(self.gp.observation, "samples", 10)
        with gpytorch.settings.num_likelihood_samples(draws):
            return self.mll(self.model(inputs), targets)

    def e_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one step of NGD on a batch; no gradient is taken for the kernel."""
        _gradients(-self._bound(inputs, targets), self.ngd)
        self.ngd.step()

    def m_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one step of Adam on a batch; no gradient is taken for q."""
        _gradients(-self._bound(inputs, targets), self.adam)
        self.adam.step()

    def em_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one step of NGD and one of Adam from one backward pass, as the tutorial does."""
        self.ngd.zero_grad()
        self.adam.zero_grad()
        (-self._bound(inputs, targets)).backward()
        self.ngd.step()
        self.adam.step()

    def hold_kernel(self) -> None:
        """Let no gradient flow to kernel, likelihood and Z: an E-step alone is timed fairly."""
        for param in (*self.model.hyperparameters(), *self.likelihood.parameters()):
            param.requires_grad_(False)

    @property
    def _strategy(self) -> Any:
        strategy = self.model.variational_strategy
        return (
            strategy.base_variational_strategy
            if isinstance(self.gp.observation, Softmax)
            else strategy
        )

    def posterior(self) -> InducingGaussian:
        """Return q(v) in our form; GPyTorch's whitened values are v."""
        with torch.no_grad():
            q = self._strategy._variational_distribution()  # the property is a stale cache
            mean = q.mean.reshape(self.gp.n_latents, -1)
            root = q.lazy_covariance_matrix.cholesky().to_dense()
            root = root.reshape(self.gp.n_latents, *root.shape[-2:])
            logdet = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            return InducingGaussian(mean, root.mT, logdet)

    @property
    def inducing(self) -> Tensor:
        """Z as it is now."""
        return self._strategy.inducing_points


def _gradients(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Put the gradients of an optimiser's own parameters where it looks for them."""
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
        param.grad = grad
