"""`RegressionMetrics`: every score of a regression from one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesrule.metrics._inputs import InvalidPrediction, keep_items
from bayesrule.metrics.crps import crps_ens, crps_fair, crps_gauss, crps_mixture
from bayesrule.metrics.decomposition import variance_decomposition
from bayesrule.metrics.intervals import (
    interval_score,
    mixture_interval,
    mpiw,
    nmpiw,
    picp,
    pit_mixture,
    pit_samples,
    qce,
    qce_central,
    sample_interval,
)
from bayesrule.metrics.regression import (
    check_std,
    ence,
    mae,
    mean_sigma,
    nll_items,
    nll_mixture_items,
    rmse,
    sharpness,
    var_calibration,
)
from bayesrule.metrics.state import ExactMetric

__all__ = ["RegressionMetrics"]

COLUMNS = ("target", "mean", "std", "nll", "nll_mm", "crps", "crps_fair", "pit", "alea", "epi")


class RegressionMetrics(ExactMetric):
    """Accumulates the scores of Gaussian, mixture or sample predictives.

    The form of the predictive follows from the arguments of `update`: ``mean`` and ``std`` of the
    target's shape are a Gaussian, with one axis of samples in front an equally weighted mixture;
    ``mean`` with samples in front and no ``std`` are samples that include the observation noise.
    Samples have no density: ``nll``, ``nll_mm`` and the variance split are NaN for them, and
    ``crps_fair`` is NaN for the others. Targets of several dimensions count one item per
    coordinate.

    Args:
        alphas: One minus the nominal levels of the intervals. The first gives ``picp``, ``mpiw``,
            ``nmpiw`` and ``interval_score``; others carry the level, e.g. ``picp90``.
        ence_bins: Equal-mass bins of `ence`.
        target_mean: Subtracted from the targets when they were standardised.
        target_std: Divided by then. Predictions and targets are both mapped back to original units.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    def __init__(
        self,
        alphas: Sequence[float] = (0.05, 0.1, 0.5),
        ence_bins: int = 10,
        target_mean: float = 0.0,
        target_std: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not alphas or not all(0.0 < alpha < 1.0 for alpha in alphas):
            raise InvalidPrediction(f"alphas must lie in (0, 1), got {tuple(alphas)}")
        if not target_std > 0:
            raise InvalidPrediction(f"target_std must be positive, got {target_std}")
        self.alphas = tuple(alphas)
        self.ence_bins = ence_bins
        self.target_mean = target_mean
        self.target_std = target_std
        self.add_rows("items", len(COLUMNS) + 2 * len(self.alphas))

    def update(
        self,
        mean: Tensor,
        std: Tensor | None,
        target: Tensor,
        mask: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            mean: Means (N,) or (S, N), or samples (S, N) if `std` is None; N may be several axes.
            std: Standard deviations with observation noise, broadcastable to `mean`, or None.
            target: Targets, shape (N,).
            mask: False drops an item.

        Raises:
            InvalidPrediction: Shapes do not fit, a value is not finite, or a std is not positive.
        """
        if mean.shape[-target.ndim :] != target.shape or mean.ndim - target.ndim not in (0, 1):
            raise InvalidPrediction(
                f"mean {tuple(mean.shape)} and target {tuple(target.shape)} do not fit: mean needs "
                "the target's shape, or one axis of samples in front of it"
            )
        keep = keep_items(target, mask, None)
        y_N = self._original(target)[keep]
        mean_SN = self._original(mean if mean.ndim > target.ndim else mean[None])[:, keep]
        if not bool(y_N.isfinite().all()) or not bool(mean_SN.isfinite().all()):
            raise InvalidPrediction("a predictive mean, sample or target is NaN or infinite")
        if std is None:
            columns = self._sample_columns(mean_SN, y_N, sampled=mean.ndim > target.ndim)
        else:
            full = mean if mean.ndim > target.ndim else mean[None]
            sigma = std.detach().to(torch.float64) * self.target_std
            columns = self._mixture_columns(mean_SN, sigma.expand(full.shape)[:, keep], y_N)
        self.add_to_rows("items", columns)

    def _original(self, value: Tensor) -> Tensor:
        return value.detach().to(torch.float64) * self.target_std + self.target_mean

    def _mixture_columns(self, mean_SN: Tensor, std_SN: Tensor, y_N: Tensor) -> list[Tensor]:
        check_std(std_SN)
        var = variance_decomposition(mean_SN, std_SN)
        mu_N, sigma_N = mean_SN.mean(0), var.total.sqrt()
        single = mean_SN.shape[0] == 1
        crps_N = crps_gauss(mu_N, std_SN[0], y_N) if single else crps_mixture(mean_SN, std_SN, y_N)
        columns = [
            y_N,
            mu_N,
            sigma_N,
            nll_mixture_items(mean_SN, std_SN, y_N),
            nll_items(mu_N, sigma_N, y_N),
            crps_N,
            torch.full_like(y_N, float("nan")),
            pit_mixture(mean_SN, std_SN, y_N),
            var.aleatoric,
            var.epistemic,
        ]
        for alpha in self.alphas:
            columns.extend(mixture_interval(mean_SN, std_SN, alpha))
        return columns

    def _sample_columns(self, x_SN: Tensor, y_N: Tensor, *, sampled: bool) -> list[Tensor]:
        if not sampled:
            raise InvalidPrediction(
                "std is None, so mean must hold samples with an axis in front of the target's shape"
            )
        nan_N = torch.full_like(y_N, float("nan"))
        mu_N = x_SN.mean(0)
        columns = [y_N, mu_N, (x_SN - mu_N).square().mean(0).sqrt(), nan_N, nan_N]
        columns += [crps_ens(x_SN, y_N), crps_fair(x_SN, y_N), pit_samples(x_SN, y_N)]
        columns += [nan_N, nan_N]
        for alpha in self.alphas:
            columns.extend(sample_interval(x_SN, alpha))
        return columns

    def compute(self) -> dict[str, float]:
        """Return all values over the items seen so far, on all processes."""
        rows = self.rows("items")
        with self.one_warning_if_empty(len(rows)):
            return {key: float(value) for key, value in self._values(rows).items()}

    def _values(self, rows: Tensor) -> dict[str, Tensor]:
        col = dict(zip(COLUMNS, rows.T))
        y, mu, sigma = col["target"], col["mean"], col["std"]
        values = {
            "nll": col["nll"].mean(),
            "nll_mm": col["nll_mm"].mean(),
            "rmse": rmse(mu, y),
            "mae": mae(mu, y),
            "crps": col["crps"].mean(),
            "crps_fair": col["crps_fair"].mean(),
            "sharpness": sharpness(sigma),
            "mean_sigma": mean_sigma(sigma),
            "var_aleatoric": col["alea"].mean(),
            "var_epistemic": col["epi"].mean(),
            "qce": qce(col["pit"]),
            "qce_central": qce_central(col["pit"]),
            "var_calibration": var_calibration(mu, sigma, y),
            "ence": ence(mu, sigma, y, self.ence_bins),
        }
        for i, alpha in enumerate(self.alphas):
            lo, hi = rows[:, len(COLUMNS) + 2 * i], rows[:, len(COLUMNS) + 2 * i + 1]
            at = "" if i == 0 else f"{round(100 * (1 - alpha))}"
            values[f"picp{at}"] = picp(lo, hi, y)
            values[f"mpiw{at}"] = mpiw(lo, hi)
            values[f"nmpiw{at}"] = nmpiw(lo, hi, y)
            values[f"interval_score{at}"] = interval_score(lo, hi, y, alpha)
        values["n"] = rows.new_tensor(float(len(rows)))
        return values
