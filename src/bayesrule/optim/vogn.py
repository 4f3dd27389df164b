"""VOGN: variational online Gauss-Newton (Osawa et al., 2019, arXiv 1906.02506), and OGN.

The posterior is a diagonal Gaussian around `mean`, the prior N(0, I / delta) with
delta = `prior_prec`, the objective ess E_q[loss] + tau KL(q || prior), and the loss a **mean** over
examples. With dt = tau delta / ess and gamma = `damping`, one step is (algorithm 1)::

    theta = mean + sigma noise,   sigma^2 = T / (ess (hess + dt + gamma)),  noise ~ N(0, I)  perturb
    g_i   = gradient of example i's loss at theta                                        observe
    g = mean_i g_i,    h = mean_i g_i^2          (square inside: Gauss-Newton diagonal)  statistic
    momentum <- beta1 momentum + (g + dt mean)   (`ema`: (1 - beta1) (g + dt mean))      update
    hess     <- (1 - D hess_rate) hess + hess_rate h
    mean     <- mean - lr momentum / (hess + dt + gamma)                  (new hess)

The text of the paper has T = 1, D = tau (``tempering="text"``), the authors' code T = tau, D = 1
(``tempering="code"``); for tau = 1 they agree. On a linear model ``code`` converges to the
tempered posterior, precision ess h / tau + delta; ``text`` to ess h / tau + tau delta. Mixing the
two would temper the data twice. `hess_rate` (beta2 in the paper) is the weight of the **new**
value; it is not Adam's beta2. OGN is the same without noise.

`ess` is the number of examples times the paper's factor for data augmentation; it scales the noise
and dt alike. With ``prior=`` another Gaussian is the prior (yesterday's posterior, in continual
learning): dt becomes the vector tau delta / ess, and dt mean becomes dt (mean - prior mean). What
may be carried over as a prior is the tempered posterior, without the damping (`as_prior`)::

    precision = ess hess / tau + delta   (`code`)      ess hess + delta   (`text`: hess -> h / tau)

Both compose over tasks. What training draws from, `posterior`, includes the damping, and under
``text`` has tau delta in place of delta: it would temper the old prior again at every task.

What is required: the loss is a mean over examples, one per row of the batch. With sequences, masked
items or further forward passes in the closure the squares would be of other terms than the loss's
(the training routine refuses the first two).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesrule.errors import Unsupported
from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.checks import check, check_groups
from bayesrule.optim.gaussian_prior import GaussianPriorOptimizer
from bayesrule.optim.watching import recorder_of
from bayesrule.posteriors import DiagonalGaussian, Posterior

__all__ = ["OGN", "VOGN", "vogn_update"]

Tempering = Literal["text", "code"]


def vogn_update(
    mean: Tensor,
    momentum: Tensor,
    hess: Tensor,
    grad: Tensor,
    grad_sq: Tensor,
    *,
    lr: float,
    ess: float,
    beta1: float,
    hess_rate: float,
    prior_prec: float | Tensor,
    tau: float,
    damping: float,
    prior_mean: float | Tensor = 0.0,
    ema: bool = True,
    tempering: Tempering = "text",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean, momentum, hess) after one VOGN update, as pure functions of tensors.

    All tensors have the same shape. The optimiser runs the same equations in place.

    Args:
        mean: Posterior mean mu.
        momentum: m.
        hess: Gauss-Newton diagonal s of the mean loss.
        grad: g, averaged over examples and samples.
        grad_sq: h, the per-example squares averaged likewise.
        lr: Learning rate alpha.
        ess: Effective sample size N.
        beta1: Decay of the momentum.
        hess_rate: Weight of h in the average.
        prior_prec: delta.
        tau: Weight of the KL term.
        damping: gamma.
        prior_mean: Mean of the prior.
        ema: Whether the momentum is an average (toy code) or a heavy ball (paper).
        tempering: Where tau enters, see the module docstring.
    """
    dt = tau * prior_prec / ess
    decay = tau if tempering == "text" else 1.0
    momentum = beta1 * momentum + (1.0 - beta1 if ema else 1.0) * (grad + dt * (mean - prior_mean))
    hess = (1.0 - decay * hess_rate) * hess + hess_rate * grad_sq
    return mean - lr * momentum / (hess + dt + damping), momentum, hess


class VOGN(GaussianPriorOptimizer):
    """Variational online Gauss-Newton, see the module docstring for the equations.

    Example:
        >>> opt = VOGN(model.parameters(), lr=0.01, ess=len(train_set), model=model)
        >>> loss = opt.step(closure)         # hooks on the layers take per-example squares

    Args:
        params: Parameters, named parameters or parameter groups; every option below up to
            `damping` may be set per group.
        lr: Learning rate alpha.
        ess: Effective sample size N, the number of training examples (times a factor when data
            are augmented).
        hess_init: s0 >= 0.
        beta1: Decay of the momentum, in [0, 1).
        hess_rate: Weight of the new squares in their average, in [0, 1].
        prior_prec: delta >= 0.
        tau: Weight of the KL term; 1 is Bayes, smaller is colder.
        damping: gamma >= 0, added to the precision over ess.
        ema: Momentum as an average, (1 - beta1) on the new gradient, instead of a heavy ball. A
            heavy ball has the effective learning rate lr / (1 - beta1).
        tempering: ``"text"`` or ``"code"``, see the module docstring; ``"code"`` is the tempered
            posterior.
        tau_init: First tau, changed linearly to `tau` over `tau_warmup` steps (None: no warm-up).
        tau_warmup: Steps of that warm-up.
        prior: Another prior than N(0, I / delta), keyed by parameter name (with ``model`` or named
            parameters).
        mc_samples: Samples S per step.
        model: The network whose layers are watched for per-example gradients; required.
        seed: See `PosteriorOptimizer.setup`, as for `generator`, `noise` and `sync`.
        generator: The noise stream.
        noise: Replacement of the standard normal draw.
        sync: How several processes share one posterior.

    Raises:
        ValueError: If an option is out of range.
        Unsupported: If a layer has no per-example gradients, or `model` is missing.
    """

    stochastic = True
    observes = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        ess: float,
        hess_init: float = 0.1,
        beta1: float = 0.9,
        hess_rate: float = 1e-3,
        prior_prec: float = 1.0,
        tau: float = 1.0,
        damping: float = 0.0,
        ema: bool = True,
        tempering: Tempering = "text",
        tau_init: float | None = None,
        tau_warmup: int = 0,
        mc_samples: int = 1,
        *,
        model: nn.Module | None = None,
        prior: DiagonalGaussian | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        if tempering not in ("text", "code"):
            raise ValueError(f"tempering must be 'text' or 'code', got {tempering!r}")
        if tau_warmup < 0:
            raise ValueError(f"tau_warmup must be >= 0, got {tau_warmup}")
        if tau_init is not None and not 0 <= tau_init <= 1:
            raise ValueError(f"tau_init must be in [0, 1], got {tau_init}")
        if tau_warmup and tau_init is None:
            raise ValueError("tau_warmup needs tau_init, the first weight of the KL term")
        defaults = {
            "lr": lr,
            "ess": ess,
            "hess_init": hess_init,
            "beta1": beta1,
            "hess_rate": hess_rate,
            "prior_prec": prior_prec,
            "tau": tau,
            "damping": damping,
        }
        self.ema, self.tempering = ema, tempering
        self.tau_init, self.tau_warmup = tau_init, tau_warmup
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            ess=check("> 0"),
            hess_init=check(">= 0"),
            beta1=check(">= 0", "< 1"),
            hess_rate=check(">= 0", "<= 1"),
            prior_prec=check(">= 0"),
            tau=check(">= 0", "<= 1"),
            damping=check(">= 0"),
        )
        for group in self.param_groups:
            least = min(group["tau"], group["tau"] if tau_init is None else tau_init)
            if prior is None and group["damping"] + least * group["prior_prec"] <= 0:
                raise ValueError(
                    "damping and tau * prior_prec are 0 at some step: the precision of a weight "
                    "that gets no gradient would be 0"
                )
        self._noise_room: list[Tensor] = []
        self.setup(mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync)
        self._watched = model
        self._recorder = recorder_of(type(self).__name__, model, self.trainable(), "squares")
        if prior is not None:
            self.set_prior(prior, model)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters of the watched network, which are learnt from the next step on."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("tau_now", float(group["tau"] if self.tau_init is None else self.tau_init))
        if hasattr(self, "_recorder"):  # not while the first groups are added
            name, params = type(self).__name__, self.trainable()
            self._recorder = recorder_of(name, self._watched, params, "squares")

    def _learnt(self) -> list[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Return (parameter, its state, its group) for every trainable parameter, in order."""
        return [
            (p, self.param_state(p, momentum=0.0, hess=group["hess_init"]), group)
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def _warm_up(self) -> None:
        """Move every group's `tau_now` to the value of the next step."""
        for group in self.param_groups:
            tau = group["tau"]
            if self.tau_init is not None and group["steps"] < self.tau_warmup:
                tau = self.tau_init + (tau - self.tau_init) * group["steps"] / self.tau_warmup
            group["tau_now"] = float(tau)

    def _with_prior(self, *operands: str) -> list[tuple[dict[str, Any], tuple[Tensor, ...]]]:
        """Return, per parameter, its group and operands, with a prior of its own last."""
        rows = []
        for param, state, group in self._learnt():
            own = self.own_prior(state)
            rows.append((group, (param, *(state[name] for name in operands), *own)))
        return rows

    def _dt(self, group: dict[str, Any], own: tuple[Tensor, ...]) -> float | Tensor:
        """Return dt = tau delta / ess, a tensor where the parameter has a prior of its own."""
        weight = group["tau_now"] / group["ess"]
        return own[1] * weight if own else group["prior_prec"] * weight

    def precision(self, group: dict[str, Any], hess: Tensor, dt: float | Tensor) -> Tensor:
        """Return 1 / sigma^2, the precision that is sampled from."""
        temperature = group["tau_now"] if self.tempering == "code" else 1.0
        return (hess + dt + group["damping"]) * (group["ess"] / max(temperature, 1e-30))

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to theta = mean + sigma noise."""
        if noise is None:  # OGN
            return
        rows = zip(self._with_prior("hess"), noise, strict=True)
        cut = ((group, (param, eps, *rest)) for (group, (param, *rest)), eps in rows)
        for group, (param, eps, hess, *own), _ in self._scratch.blocks(cut, written=1):
            param.addcmul_(eps, self.precision(group, hess, self._dt(group, tuple(own))).rsqrt_())

    def observing(self) -> AbstractContextManager[None]:
        """Watch the layers, whose inputs and output gradients give the squares."""
        return self._recorder.recording()

    def unobserved(self) -> AbstractContextManager[None]:
        """Watch no passes that are not over the batch's examples."""
        return self._recorder.paused()

    def collect(self, stage: int) -> None:
        """Keep the mean gradient and the mean of per-example squares."""
        squares = self._recorder.mean_squares()
        names = self.names(self._watched)
        self.accumulate("grad", self.gradients())
        own = [squares[names[p]].to(p.dtype) for p in self.trainable()]
        self.accumulate("grad_sq", own, local=True)

    def update(self, statistics: dict[str, list[Tensor]]) -> None:
        """Apply `vogn_update`, over blocks of all parameters."""
        rows = (
            (group, (mean, momentum, hess, grad, grad_sq, *own))
            for (group, (mean, momentum, hess, *own)), grad, grad_sq in zip(
                self._with_prior("momentum", "hess"),
                statistics["grad"],
                statistics["grad_sq"],
                strict=True,
            )
        )
        for group, operands, work in self._scratch.blocks(rows, written=3):
            mean, momentum, hess, grad, grad_sq, *own = operands
            dt = self._dt(group, tuple(own))
            from_prior = torch.sub(mean, own[0], out=work) if own else work.copy_(mean)
            pull = from_prior.mul_(dt).add_(grad)
            if self.ema:
                momentum.lerp_(pull, 1.0 - group["beta1"])
            else:
                momentum.mul_(group["beta1"]).add_(pull)
            decay = group["tau_now"] if self.tempering == "text" else 1.0
            rate = group["hess_rate"]
            hess.mul_(1.0 - decay * rate).add_(grad_sq, alpha=rate)
            prec = torch.add(hess, dt, out=work).add_(group["damping"])
            mean.addcdiv_(momentum, prec, value=-float(group["lr"]))
        self._warm_up()

    def posterior(self, model: nn.Module | None = None) -> DiagonalGaussian:
        """Return q = N(mean, sigma^2), what training samples are drawn from."""
        names = self.names(model)
        rows = zip(self.trainable(), self._with_prior("hess"), strict=True)
        precision = {
            names[param]: self.precision(group, hess.detach(), self._dt(group, tuple(own)))
            for param, (group, (_, hess, *own)) in rows
        }
        return DiagonalGaussian(self.named_mean(model), precision)

    def as_prior(self, model: nn.Module | None = None) -> DiagonalGaussian:
        """Return the tempered posterior without the damping, see the module docstring.

        Raises:
            Unsupported: If tau is 0, where there is no posterior.
        """
        names, precision = self.names(model), {}
        for param, (group, (_, hess, *own)) in zip(
            self.trainable(), self._with_prior("hess"), strict=True
        ):
            if group["tau"] == 0:
                raise Unsupported(
                    f"{type(self).__name__} with tau=0 has no posterior that could be a prior: the "
                    "loss has infinite weight against it; choose tau > 0"
                )
            weight = group["ess"] / (group["tau"] if self.tempering == "code" else 1.0)
            delta = own[1] if own else group["prior_prec"]
            precision[names[param]] = hess.detach() * weight + delta
        return DiagonalGaussian(self.named_mean(model), precision)

    @torch.no_grad()
    def set_posterior(self, q: Posterior, model: nn.Module | None = None) -> None:
        """Go on from `q`, in the sense of `posterior`, with no momentum; set the prior first.

        Where q is less certain than prior and damping, hess is zero, as it cannot be negative.

        Raises:
            Unsupported: If `q` is no diagonal Gaussian.
        """
        rows = list(self._gaussian_rows(q, model, "posterior"))
        for (param, state, group), (_, mean, precision) in zip(self._learnt(), rows, strict=True):
            dt = self._dt(group, self.own_prior(state))
            temperature = group["tau_now"] if self.tempering == "code" else 1.0
            scale = precision.to(param) * (temperature / group["ess"])
            state["hess"].copy_(scale.sub_(dt).sub_(group["damping"]).clamp_(min=0.0))
            state["momentum"].zero_()
            param.copy_(mean)


class OGN(VOGN):
    """Online Gauss-Newton: VOGN without noise, its gradients taken at the mean.

    The posterior has VOGN's precision, which is what a Laplace approximation would take from it;
    the method's own prediction is the one at the mean. Options are those of `VOGN`.
    """

    stochastic = False
