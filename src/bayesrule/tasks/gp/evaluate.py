"""From q(u) to metrics: ``<split>/<metric>@<rule>``.

Rules: ``quad``, the predictive p(y | x) integrated over q(f) in closed form or by Gauss-Hermite
quadrature; for softmax ``mc<K>``, averaged over K draws of f; and ``mean``, plugged in at the mean
of f. Regression scores that need a density are there for Gaussian noise; for other likelihoods
there are the NLL and the errors of the predictive mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor

from bayesrule.data import DataBundle, Split
from bayesrule.metrics import RegressionMetrics
from bayesrule.posteriors.inducing import InducingGaussian
from bayesrule.seeding import child_seed
from bayesrule.tasks.evaluate import Evaluation, add_classification, add_ood, ood_scores
from bayesrule.tasks.gp.likelihoods import LogPoisson, Softmax
from bayesrule.tasks.gp.model import GaussianProcess

__all__ = ["Predictor", "evaluate_split", "items"]


@dataclass(frozen=True)
class Predictor:
    """A learnt Gaussian process.

    Attributes:
        gp: The model.
        chol: L = chol k(Z, Z).
        q: q(v) of the whitened inducing values.
        chunk: Items of a pass.
        seed: The run's seed; draws for softmax come from a child of it.
        samples: Draws of f for softmax.
    """

    gp: GaussianProcess
    chol: Tensor
    q: InducingGaussian
    chunk: int
    seed: int
    samples: int

    @property
    def rule(self) -> str:
        """Name of the rule of the integrated predictive."""
        return f"mc{self.samples}" if isinstance(self.gp.observation, Softmax) else "quad"

    @torch.no_grad()
    def latent(self, inputs_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(f), each (P, N)."""
        means, variances = [], []
        for part in inputs_ND.split(self.chunk):
            phi, rest = self.gp.features(self.chol, part)
            mean, var = self.q.marginals(phi, rest)
            means.append(mean + self.gp.mean)
            variances.append(var)
        return torch.cat(means, dim=1), torch.cat(variances, dim=1)

    @torch.no_grad()
    def log_predictive(self, targets_N: Tensor, mean_PN: Tensor, var_PN: Tensor) -> Tensor:
        """Return log p(y_n | x_n), (N,)."""
        draws = child_seed(self.seed, "predict")
        return self.gp.observation.log_predictive(targets_N, mean_PN, var_PN, draws, self.samples)

    def class_log_probs(self, mean_PN: Tensor, var_PN: Tensor, n_classes: int) -> Tensor:
        """Return log p(y_n = c | x_n), (N, C)."""
        dtype = torch.int64 if isinstance(self.gp.observation, Softmax) else mean_PN.dtype
        labels = torch.arange(n_classes, device=mean_PN.device, dtype=dtype)
        columns = [
            self.log_predictive(label.expand(mean_PN.shape[1]), mean_PN, var_PN) for label in labels
        ]
        log_probs_NC = torch.stack(columns, dim=1)
        return log_probs_NC - log_probs_NC.logsumexp(1, keepdim=True)  # quadrature: 1e-16

    def moments(self, mean_N: Tensor, var_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return predictive mean and, where it is that of a Gaussian, standard deviation of y."""
        likelihood: Any = self.gp.observation.likelihood
        if isinstance(likelihood, LogPoisson):
            return (mean_N + 0.5 * var_N).exp(), None
        gaussian = isinstance(likelihood, gpytorch.likelihoods.GaussianLikelihood)
        return mean_N, (var_N + likelihood.noise.detach()).sqrt() if gaussian else None


def items(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return inputs (N, D) as flat float64 rows, and targets (N,)."""
    batch = split.whole()
    inputs = batch["input"].flatten(1).double().to(device)
    targets = batch["target"].to(device)
    return inputs, targets.double().squeeze(-1) if targets.is_floating_point() else targets


def evaluate_split(
    predictor: Predictor,
    data: DataBundle,
    name: str,
    split: Split,
    cfg: Mapping[str, Any],
    out: Evaluation,
) -> None:
    """Add one split's metrics to `out`.

    Args:
        predictor: The learnt process.
        data: The data set that the split is of.
        name: The split's name in metrics.
        split: Its items.
        cfg: The ``metrics`` group.
        out: Receives metrics and curves.
    """
    device = predictor.chol.device
    inputs, targets = items(split, device)
    mean, var = predictor.latent(inputs)
    for rule, spread in (("mean", torch.zeros_like(var)), (predictor.rule, var)):
        if data.kind == "classification":
            log_probs = predictor.class_log_probs(mean, spread, data.n_outputs)
            add_classification(
                out, name, rule, log_probs, targets, n_outputs=data.n_outputs, cfg=cfg
            )
            if name == "test" and data.ood:
                outside = {
                    other: ood_scores(_outside(predictor, items(companion, device)[0], data, rule))
                    for other, companion in data.ood.items()
                }
                add_ood(out, rule, ood_scores(log_probs), outside, n_outputs=data.n_outputs)
        else:
            _regression(predictor, data, name, rule, (targets, mean, spread), out)


def _outside(predictor: Predictor, inputs: Tensor, data: DataBundle, rule: str) -> Tensor:
    """Return class log-probabilities of a companion's items under a rule, (N, C)."""
    mean, var = predictor.latent(inputs)
    spread = torch.zeros_like(var) if rule == "mean" else var
    return predictor.class_log_probs(mean, spread, data.n_outputs)


def _regression(
    predictor: Predictor,
    data: DataBundle,
    split: str,
    rule: str,
    what: tuple[Tensor, Tensor, Tensor],
    out: Evaluation,
) -> None:
    targets, mean, var = what
    expected, std = predictor.moments(mean[0], var[0])
    if std is not None:
        metric = RegressionMetrics(
            target_mean=data.target_mean, target_std=data.target_std, sync_on_compute=False
        )
        metric.update(expected, std, targets)
        values = {key: float(value) for key, value in metric.compute().items()}
    else:
        gap = (expected - targets) * data.target_std
        nll = -predictor.log_predictive(targets, mean, var).mean() + math.log(data.target_std)
        values = {
            "nll": float(nll),
            "rmse": float(gap.square().mean().sqrt()),
            "mae": float(gap.abs().mean()),
        }
    out.metrics.update({f"{split}/{key}@{rule}": value for key, value in values.items()})
