"""Laplace approximation and its evidence, from one pass over the data.

At the MAP estimate w* under the prior N(w0, diag(delta)^-1), with H the GGN of the summed negative
log-likelihood (Immer et al. 2021, arXiv:2104.04975)::

    q(w)         = N( w*, (H + diag(delta))^-1 )
    log p(D|M)  ~= log p(D|w*) - 1/2 (w*-w0)^T diag(delta) (w*-w0) + 1/2 sum_p log delta_p
                   - 1/2 logdet( H + diag(delta) )

exact for models linear in w with a Gaussian likelihood, structure ``full`` and w* the mode.
For the Gaussian likelihood H = H_1 / s^2 in the noise s, so that evidences at other noise levels
need no pass over the data. delta is one number, or one per parameter tensor ("layerwise").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesrule.curvature.ggn import ggn_diag, ggn_full
from bayesrule.curvature.kfac import Sharing, kfac
from bayesrule.curvature.last_layer import last_layer_ggn
from bayesrule.curvature.per_example import model_batches, trainable
from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.likelihoods import Gaussian, Likelihood
from bayesrule.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    KroneckerGaussian,
    Params,
    Posterior,
    eval_mode,
    forward_outputs,
)

__all__ = ["LaplaceFit", "fit_laplace", "laplace", "marglik", "tune_prior"]

Structure = Literal["diag", "kron", "full", "last_layer"]
Precision = float | Mapping[str, float | Tensor] | Tensor
LOG_PREC_RANGE = (-10.0, 14.0)
"""Range of log delta when tuning: precisions of unused biases otherwise run off to infinity."""


@dataclass(frozen=True)
class LaplaceFit:
    """What one pass over the data leaves: enough for posteriors and evidences at any prior.

    Attributes:
        structure: ``diag``, ``kron``, ``full`` or ``last_layer``.
        mean: w*, the parameters under the posterior, by name.
        diag: diag(H) by name (``diag``).
        factors: Name -> (G, A) with H = G (x) A (``kron``).
        dense: H, (P, P), flattened in key order (``full`` and ``last_layer``).
        log_lik: log p(D|w*), summed over `n_data` items.
        n_data: Number of items that the curvature and the likelihood stand for.
        noise_std: Noise of the Gaussian likelihood at the fit, else None.
        sse: Summed squared error and `n_targets` their number, for the Gaussian likelihood.
        n_targets: Number of scalar targets.
        eigenvalues: Eigenvalues per Kronecker block, as an outer product of those of G and A.
        companions: Other tensors of the model that the posterior carries along.
    """

    structure: Structure
    mean: Params
    log_lik: float
    n_data: float
    diag: Params = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    dense: Tensor | None = None
    noise_std: float | None = None
    sse: float = 0.0
    n_targets: float = 0.0
    eigenvalues: Params = field(default_factory=dict)
    companions: Params = field(default_factory=dict)

    def posterior(self, prior_prec: Precision, noise_std: float | None = None) -> Posterior:
        """Return N(w*, (H + diag(delta))^-1) in the family of the structure.

        Args:
            prior_prec: delta, one number or one per parameter name.
            noise_std: Another noise level than the fit's (Gaussian likelihood only).

        Returns:
            DiagonalGaussian, KroneckerGaussian or FullGaussian.
        """
        delta, c = _per_name(self.mean, prior_prec), _noise_factor(self, noise_std)
        if self.structure == "diag":
            precision = {n: c * h + delta[n].to(h) for n, h in self.diag.items()}
            return DiagonalGaussian(self.mean, precision, buffers=self.companions)
        if self.structure == "kron":
            scale = {n: float(c) for n in self.mean}
            return KroneckerGaussian(self.mean, self.factors, delta, scale, buffers=self.companions)
        assert self.dense is not None
        S = c * self.dense + torch.diag(_expand(self.mean, delta).to(self.dense))
        return FullGaussian(self.mean, S, buffers=self.companions)


def fit_laplace(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    structure: Structure = "diag",
    *,
    n_data: float | None = None,
    names: Collection[str] | None = None,
    sharing: Sharing = "expand",
    keep_rest: bool = False,
) -> LaplaceFit:
    """Compute the curvature and the likelihood at the model's own parameters.

    Args:
        model: Trained network, at w*; run in evaluation mode, left as it was.
        likelihood: The likelihood it was trained with.
        batches: Called for each of two passes; gives mappings with ``input`` and ``target``.
        structure: Of H. ``last_layer`` is the full GGN of the last `nn.Linear`.
        n_data: Items that the batches stand for; their own number when None. Curvature and
            likelihood are scaled by n_data over that number (subsets, duplicated data).
        names: Parameters under the posterior; the trainable ones when None. All others stay at
            their values in the model.
        sharing: How KFAC treats weights shared over positions.
        keep_rest: Put the rest of the model's state in the posterior's buffers, so that its file
            holds the whole network.

    Returns:
        The fit.

    Raises:
        Unsupported: The structure does not fit the model, a name is unknown, or there are no items.
    """
    if structure not in ("diag", "kron", "full", "last_layer"):
        raise Unsupported(
            f"{structure!r} is not a structure; use 'diag', 'kron', 'full' or 'last_layer'"
        )
    if structure == "last_layer" and names is not None:
        raise Unsupported("structure 'last_layer' chooses its own parameters; leave `names` out")
    mean = trainable(model)
    for name in names or ():
        if name not in mean:
            raise Unsupported(f"{type(model).__name__} has no trainable parameter {name!r}")
    mean = {n: p.clone() for n, p in mean.items() if names is None or n in names}
    log_lik, n_items, n_targets = _log_likelihood(model, likelihood, batches())
    ratio = 1.0 if n_data is None else n_data / n_items
    fit = LaplaceFit(structure, mean, ratio * log_lik, ratio * n_items, n_targets=ratio * n_targets)
    if isinstance(likelihood, Gaussian):
        s = likelihood.noise_std
        constant = 0.5 * n_targets * math.log(2.0 * math.pi * s**2)
        fit = replace(fit, noise_std=s, sse=ratio * 2.0 * s**2 * (-log_lik - constant))
    if structure == "diag":
        diag = ggn_diag(model, likelihood, batches(), params=mean)
        fit = replace(fit, diag={n: ratio * h for n, h in diag.items()})
    elif structure == "kron":
        factors = kfac(model, likelihood, batches(), names=names, sharing=sharing)
        factors = {n: (ratio * G, A) for n, (G, A) in factors.items()}
        values = {
            n: torch.outer(
                torch.linalg.eigvalsh(G.double()).clamp_min(0),
                torch.linalg.eigvalsh(A.double()).clamp_min(0),
            )
            for n, (G, A) in factors.items()
        }
        fit = replace(fit, factors=factors, eigenvalues=values)
    elif structure == "full":
        dense = ggn_full(model, likelihood, batches(), params=mean)
        fit = replace(fit, dense=ratio * dense)
    else:
        layer, dense = last_layer_ggn(model, likelihood, batches())
        fit = replace(fit, mean={n: p.clone() for n, p in layer.items()}, dense=ratio * dense)
    if keep_rest:
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        rest = {n: t.detach().clone() for n, t in state.items() if n not in fit.mean}
        fit = replace(fit, companions=rest)
    return fit


def laplace(
    model: nn.Module,
    likelihood: Likelihood,
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    structure: Structure = "diag",
    prior_prec: Precision | None = 1.0,
    n_data: float | None = None,
    *,
    names: Collection[str] | None = None,
    sharing: Sharing = "expand",
    keep_rest: bool = False,
) -> Posterior:
    """Return the Laplace posterior N(w*, (H + diag(delta))^-1) at the model's parameters.

    Arguments as in `fit_laplace`; `prior_prec` is delta, for the summed negative log-likelihood (a
    weight decay of delta / N in the mean loss). None takes the common delta of largest evidence.
    """
    fit = fit_laplace(
        model,
        likelihood,
        batches,
        structure,
        n_data=n_data,
        names=names,
        sharing=sharing,
        keep_rest=keep_rest,
    )
    return fit.posterior(tune_prior(fit)[0] if prior_prec is None else prior_prec)


def marglik(
    fit: LaplaceFit,
    prior_prec: Precision,
    noise_std: float | Tensor | None = None,
    *,
    prior_mean: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the Laplace estimate of log p(D | delta, s), differentiable in both.

    Args:
        fit: From `fit_laplace`.
        prior_prec: delta, one number or one per parameter name.
        noise_std: Noise of the Gaussian likelihood; the fit's own when None.
        prior_mean: w0; zero when None.

    Returns:
        0-d float64 tensor, in nats.

    Raises:
        Unsupported: A noise level is given for another likelihood than the Gaussian.
    """
    delta = {n: d.double() for n, d in _per_name(fit.mean, prior_prec).items()}
    c = _noise_factor(fit, noise_std)
    terms = [_log_lik(fit, noise_std)]
    for name, w in fit.mean.items():
        shift = w if prior_mean is None else w - prior_mean[name]
        terms.append(-0.5 * delta[name] * shift.double().square().sum())
        terms.append(0.5 * w.numel() * delta[name].log())
    if fit.structure in ("diag", "kron"):
        spectra = fit.diag if fit.structure == "diag" else fit.eigenvalues
        for name, h in spectra.items():
            terms.append(-0.5 * (c * h.double() + delta[name]).log().sum())
    else:
        assert fit.dense is not None
        S = c * fit.dense.double() + torch.diag(_expand(fit.mean, delta))
        L = torch.linalg.cholesky(S)
        terms.append(-L.diagonal().log().sum())
    return torch.stack([term.to("cpu") for term in terms]).sum()


def tune_prior(
    fit: LaplaceFit,
    *,
    layerwise: bool = False,
    noise: bool = False,
    steps: int = 50,
    prior_mean: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, float], float | None, float]:
    """Return the prior precision (and noise) that maximise the evidence of the fit.

    A grid over one common log delta in [-10, 14] gives the start; L-BFGS on the log parameters does
    the rest. No pass over the data is made, and w* is not moved: alternate with training for the
    full procedure of the paper.

    Args:
        fit: From `fit_laplace`.
        layerwise: One precision per parameter tensor instead of a common one.
        noise: Maximise over the noise of the Gaussian likelihood too.
        steps: L-BFGS iterations.
        prior_mean: w0; zero when None.

    Returns:
        delta by parameter name, the noise (None if the likelihood has none), and the log evidence.

    Raises:
        Unsupported: `noise` is asked of a likelihood without one.
        ImproperDistribution: The evidence is not finite anywhere on the grid.
    """
    if noise and fit.noise_std is None:
        raise Unsupported("only the Gaussian likelihood has a noise level to maximise over")
    names = list(fit.mean)
    low, high = LOG_PREC_RANGE

    def evidence(log_delta: Tensor, log_noise: Tensor | None) -> Tensor:
        values = log_delta.clamp(low, high).exp().expand(len(names))
        s = None if log_noise is None else log_noise.clamp(-10.0, 10.0).exp()
        return marglik(fit, dict(zip(names, values, strict=True)), s, prior_mean=prior_mean)

    base = None if fit.noise_std is None else math.log(fit.noise_std)
    starts = [(base or 0.0) + shift for shift in ((-2.0, -1.0, 0.0, 1.0, 2.0) if noise else (0.0,))]
    grid = [
        (float(evidence(d, torch.tensor(t).double() if noise else None)), d, t)
        for d in torch.linspace(low, high, 49, dtype=torch.float64)
        for t in starts
    ]
    grid = [entry for entry in grid if math.isfinite(entry[0])]
    if not grid:
        raise ImproperDistribution("the evidence is not finite for any prior precision tried")
    _, d0, t0 = max(grid, key=lambda entry: entry[0])
    log_delta = d0.repeat(len(names) if layerwise else 1).requires_grad_()
    log_noise = torch.tensor(t0, dtype=torch.float64, requires_grad=True) if noise else None
    free = [log_delta] if log_noise is None else [log_delta, log_noise]
    optimiser = torch.optim.LBFGS(
        free, max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-10
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -evidence(log_delta, log_noise)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        best = float(evidence(log_delta, log_noise))
        values = log_delta.clamp(low, high).exp().expand(len(names)).tolist()
        s = fit.noise_std if log_noise is None else float(log_noise.clamp(-10.0, 10.0).exp())
    return dict(zip(names, values, strict=True)), s, best


def _log_likelihood(
    model: nn.Module, likelihood: Likelihood, batches: Iterable[Mapping[str, Any]]
) -> tuple[float, float, float]:
    """Return the summed log-likelihood, the number of items, and of scalar targets."""
    log_lik, n_items, n_targets = 0.0, 0.0, 0.0
    with eval_mode(model), torch.no_grad():
        for input, target in model_batches(model, batches):
            outputs = forward_outputs(model, {}, input)
            log_lik -= float(likelihood.nll(outputs, target).double().sum())
            n_items += float(likelihood.count(outputs, target))
            n_targets += target.numel()
    if n_items == 0:
        raise Unsupported("no items: a curvature needs at least one batch")
    return log_lik, n_items, n_targets


def _per_name(mean: Mapping[str, Tensor], prior_prec: Precision) -> Params:
    if not isinstance(prior_prec, Mapping):
        prior_prec = dict.fromkeys(mean, prior_prec)
    for name in mean:
        if name not in prior_prec:
            raise Unsupported(f"prior_prec has no entry for {name!r}")
    result = {n: torch.as_tensor(prior_prec[n], dtype=torch.float64) for n in mean}
    for name, d in result.items():
        if d.ndim or not bool((d > 0) & torch.isfinite(d)):
            raise ImproperDistribution(
                f"the prior precision of {name!r} must be one positive finite number, not {d}"
            )
    return {n: d.to(mean[n].device) for n, d in result.items()}


def _expand(mean: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([delta[n].expand(w.numel()) for n, w in mean.items()])


def _noise_factor(fit: LaplaceFit, noise_std: float | Tensor | None) -> Tensor | float:
    """Return c with H(noise_std) = c H(fit): the squared ratio of noises."""
    if noise_std is None:
        return 1.0
    if fit.noise_std is None:
        raise Unsupported("only the Gaussian likelihood has a noise level")
    return (fit.noise_std / noise_std) ** 2


def _log_lik(fit: LaplaceFit, noise_std: float | Tensor | None) -> Tensor:
    if noise_std is None:
        return torch.tensor(fit.log_lik, dtype=torch.float64)
    var = torch.as_tensor(noise_std, dtype=torch.float64) ** 2
    return -0.5 * fit.sse / var - 0.5 * fit.n_targets * (2.0 * math.pi * var).log()
