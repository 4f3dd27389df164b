"""A Gaussian-process prior on GPyTorch's kernels, with inducing inputs and an observation model.

f = mean + g with g ~ GP(0, k), k(x, x') = variance * shape(x, x'); positive parameters pass through
softplus, everything is float64, and one jitter is added to k(Z, Z) wherever it is factorised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gpytorch
import torch
from torch import Tensor, nn

from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.posteriors.inducing import cholesky, features, residual_variance
from bayesrule.seeding import generator
from bayesrule.tasks.gp.likelihoods import Observation

__all__ = ["KERNELS", "GaussianProcess", "choose_inducing", "make_kernel"]

KERNELS = ("rbf", "matern12", "matern32", "matern52")


def make_kernel(options: Mapping[str, Any], n_inputs: int) -> gpytorch.kernels.Kernel:
    """Return the GPyTorch kernel of a model's options.

    Args:
        options: ``kernel``, ``ard``, ``lengthscale`` and ``variance``.
        n_inputs: D.
    """
    dims = n_inputs if options["ard"] else None
    name = options["kernel"]
    shape: Any
    if name == "rbf":
        shape = gpytorch.kernels.RBFKernel(ard_num_dims=dims)
    else:
        nu = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}[name]
        shape = gpytorch.kernels.MaternKernel(nu=nu, ard_num_dims=dims)
    kernel = gpytorch.kernels.ScaleKernel(shape).double()
    shape.lengthscale = options["lengthscale"] or math.sqrt(n_inputs)
    kernel.outputscale = options["variance"]
    return kernel


def choose_inducing(inputs_ND: Tensor, n_inducing: int, how: str, seed: int) -> Tensor:
    """Return the first inducing inputs, (M, D), distinct rows of the training inputs.

    Args:
        inputs_ND: Training inputs, scaled.
        n_inducing: M.
        how: ``first`` rows (already in random order where the seed drew the split), ``random``
            rows, or an evenly spaced ``grid`` over the range of a single input.
        seed: The run's seed.

    Raises:
        ConfigError: If there are fewer distinct rows than M, or a grid is asked for in many inputs.
    """
    if how == "grid":
        if inputs_ND.shape[1] != 1:
            raise ConfigError("model.inducing_init=grid is for a single input; use random or first")
        low, high = float(inputs_ND.min()), float(inputs_ND.max())
        return torch.linspace(low, high, n_inducing, dtype=inputs_ND.dtype).unsqueeze(-1)
    order = torch.arange(len(inputs_ND))
    if how == "random":
        order = torch.randperm(len(inputs_ND), generator=generator(seed, "inducing"))
    seen: set[bytes] = set()
    rows: list[int] = []
    for row in order.tolist():  # two equal rows would make k(Z, Z) singular
        content = inputs_ND[row].numpy().tobytes()
        if content not in seen:
            seen.add(content)
            rows.append(row)
        if len(rows) == n_inducing:
            return inputs_ND[rows].clone()
    raise ConfigError(
        f"model.inducing={n_inducing}: the training set has {len(rows)} distinct inputs only"
    )


class GaussianProcess(nn.Module):
    """Kernel, mean, inducing inputs and observation model, with their factorisations.

    Args:
        kernel: A GPyTorch kernel.
        inducing: Z, (M, D).
        observation: The observation model.
        jitter: Added to the diagonal of k(Z, Z).
        train_inducing: Whether Z is learnt.
        constant_mean: Whether a constant mean is learnt; 0 otherwise.
    """

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        inducing: Tensor,
        observation: Observation,
        *,
        jitter: float,
        train_inducing: bool = True,
        constant_mean: bool = False,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.observation = observation
        self.jitter = jitter
        self.inducing = nn.Parameter(inducing.double(), requires_grad=train_inducing)
        self.mean = nn.Parameter(
            torch.zeros(observation.n_latents, 1, dtype=torch.float64), requires_grad=constant_mean
        )

    @property
    def n_inducing(self) -> int:
        """M."""
        return len(self.inducing)

    @property
    def n_latents(self) -> int:
        """P."""
        return self.observation.n_latents

    def chol(self) -> Tensor:
        """Return L, the lower Cholesky factor of k(Z, Z) + jitter I.

        Raises:
            NonFiniteLoss: If there is none: kernel parameters diverged, or jitter is too small.
        """
        K = self.kernel(self.inducing).to_dense()
        eye = torch.eye(len(K), dtype=K.dtype, device=K.device)
        try:
            return cholesky(K + self.jitter * eye, "the kernel matrix of the inducing inputs")
        except ValueError as error:
            raise NonFiniteLoss(
                f"{error} ({self.describe()}); try a smaller task.lr or a larger model.jitter"
            ) from error

    def features(self, chol_MM: Tensor, inputs_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return phi_MB = L^-1 k(Z, X) and what it leaves of k(x, x), (B,)."""
        phi_MB = features(chol_MM, self.kernel(self.inducing, inputs_BD).to_dense())
        return phi_MB, residual_variance(self.kernel(inputs_BD, diag=True), phi_MB)

    def describe(self) -> str:
        """Return the same for a message: ``variance 1.3, lengthscale 0.7, noise 0.2``."""
        values = self.summary().items()
        return ", ".join(f"{name.partition('/')[2]} {value:.4g}" for name, value in values)

    def summary(self) -> dict[str, float]:
        """Return the parameters of kernel and likelihood for logs: means over dimensions."""
        out = {
            "model/variance": float(self.kernel.outputscale.detach()),
            "model/lengthscale": float(self.kernel.base_kernel.lengthscale.detach().mean()),
        }
        noise = getattr(self.observation.likelihood, "noise", None)
        return out if noise is None else {**out, "model/noise": float(noise.detach().reshape(()))}
