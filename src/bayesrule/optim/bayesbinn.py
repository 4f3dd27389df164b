"""BayesBiNN: the Bayesian learning rule for binary networks (Meng et al., 2020, arXiv 2002.10778).

The posterior is q(w) = prod_j Bernoulli over {-1, +1} with natural parameters lambda and mean
mu = tanh(lambda); the prior is one with lambda_0. The objective is ess E_q[loss] + KL(q || prior),
the loss being a **mean** over examples. One step (section 3, eq. 9 to 13)::

    u     ~ U(0, 1);  delta = 1/2 log(u / (1 - u))
    w     = tanh((lambda + delta) / tau)                    relaxed sample       perturb
    g     = grad loss(w)
    s     = (1 - w^2 + eps) / (tau (1 - mu^2 + eps))        dw/dmu
    G     = ess mean(s g)                                                        statistic
    momentum <- beta momentum + (1 - beta) (G + kl_weight (lambda - lambda_0))   update
    lambda <- lambda - lr momentum / (1 - beta^t)

With beta = 0 this is lambda <- (1 - lr) lambda - lr (ess s g - lambda_0). ``estimator="mean"``
takes the gradient at mu instead (w = mu, s = 1, no noise). The model holds mu outside a step;
`sampled_params()` for prediction gives binary draws sign(lambda + delta), `posterior()` the
`Bernoulli`, whose mode is sign(lambda).

At tau = 1e-10 in float32, the paper's setting for classification, w is exactly +-1 and
s = 1 / (1 - mu^2 + eps), up to 1e10: a straight-through step on lambda with a gain that grows with
|lambda|. `lag_mu` takes mu of the step before in s, as the authors' code does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.binary import Binary, BinaryOptimizer, Row
from bayesrule.optim.checks import check, check_groups
from bayesrule.posteriors import Bernoulli, Posterior
from bayesrule.posteriors.bernoulli import U_MIN, half_logit, sign
from bayesrule.posteriors.params import check_same_schema

__all__ = ["BayesBiNN", "bayesbinn_update"]


def bayesbinn_update(
    lam: Tensor,
    momentum: Tensor,
    stat: Tensor,
    prior: Tensor | float = 0.0,
    *,
    steps: int,
    lr: float,
    ess: float,
    beta: float = 0.0,
    kl_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return (lambda, momentum) after one step, as pure functions of tensors.

    Args:
        lam: Natural parameters lambda.
        momentum: Average of natural gradients.
        stat: Mean over samples of s g, the gradient with respect to mu.
        prior: Natural parameters lambda_0 of the prior.
        steps: Index t of this step, from 1.
        lr: Learning rate alpha.
        ess: Effective sample size N.
        beta: Decay of the momentum.
        kl_weight: Weight of the prior's term.
    """
    gradient = ess * stat + kl_weight * (lam - prior)
    momentum = beta * momentum + (1.0 - beta) * gradient
    return lam - lr * momentum / (1.0 - beta**steps), momentum


class BayesBiNN(BinaryOptimizer):
    """Bayesian learning rule for binary weights, see the module docstring for the equations.

    Example:
        >>> opt = BayesBiNN(model.parameters(), lr=1e-4, ess=len(train_set))
        >>> loss = opt.step(closure)
        >>> q = opt.posterior(model)  # q.mode: the binary weights
        >>> opt.set_prior(q, model)  # yesterday's posterior, for the next task

    Args:
        params: Parameters, named parameters or parameter groups. Everything but `estimator` and
            `lag_mu` may be set per group.
        lr: Learning rate alpha.
        ess: Effective sample size N, normally the number of training examples (10 times that in
            the paper's CIFAR runs with augmentation).
        tau: Temperature of the relaxation.
        beta: Decay of the momentum, in [0, 1).
        lam_init: |lambda| at the start; the signs are those of the model's initial weights.
        kl_weight: Weight of KL(q || prior).
        eps: Keeps s positive where tanh saturates.
        mc_samples: Samples S per step.
        estimator: ``"concrete"`` (relaxed samples) or ``"mean"`` (at mu).
        lag_mu: Take mu of the step before in s.
        binary: Which tensors are binary, see `bayesrule.optim.binary`.
        real_lr_factor: Learning rate of the others over `lr`; None: see `binary`.
        seed: See `PosteriorOptimizer.setup`, as for `generator` and `sync`.
        generator: The noise stream.
        noise: Replacement of the uniform draw u.
        sync: How several processes share one posterior.

    Raises:
        ValueError: If an option is out of range.
    """

    stochastic = True
    shards = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        ess: float,
        tau: float = 1e-10,
        beta: float = 0.0,
        lam_init: float = 10.0,
        kl_weight: float = 1.0,
        eps: float = 1e-10,
        mc_samples: int = 1,
        estimator: Literal["concrete", "mean"] = "concrete",
        lag_mu: bool = False,
        binary: Binary = "matrices",
        real_lr_factor: float | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        if estimator not in ("concrete", "mean"):
            raise ValueError(f"estimator must be 'concrete' or 'mean', got {estimator!r}")
        defaults = {
            "lr": lr,
            "ess": ess,
            "tau": tau,
            "beta": beta,
            "lam_init": lam_init,
            "kl_weight": kl_weight,
            "eps": eps,
            "binary": binary,
            "real_lr_factor": real_lr_factor,
        }
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            ess=check("> 0"),
            tau=check("> 0"),
            beta=check(">= 0", "< 1"),
            lam_init=check(">= 0"),
            kl_weight=check(">= 0"),
            eps=check(">= 0"),
        )
        self.stochastic = estimator == "concrete"
        self.lag_mu = lag_mu
        self._draws: list[Tensor] = []
        self.setup_binary(
            mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync
        )

    @property
    def random(self) -> bool:
        """Draws for prediction are random, whatever the estimator."""
        return True

    def first_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Start at lambda = +-lam_init."""
        lam = sign(param.detach()) * group["lam_init"]
        state = {"lam": lam, "momentum": torch.zeros_like(param, requires_grad=False)}
        return state | ({"lam_before": lam.clone()} if self.lag_mu else {})

    def point(self, state: dict[str, Any], param: Tensor) -> Tensor:
        """Return the mean mu = tanh(lambda)."""
        return torch.tanh(state["lam"])

    # ------------------------------------------------------------------ step

    def standard_noise(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill `out` with u ~ U(0, 1)."""
        out.uniform_(generator=generator)

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to the relaxed sample w = tanh((lambda + delta) / tau); keep the draws' memory."""
        if not self.stochastic:
            for _, param, state, _ in self._rows():
                torch.tanh(state["lam"], out=param)
            return
        assert noise is not None
        self._draws = noise
        rows = ((group, (p, noise[i], state["lam"])) for i, p, state, group in self._rows())
        for group, (w, u, lam), delta in self._scratch.blocks(rows, written=1):
            torch.logit(u, eps=U_MIN, out=delta).mul_(0.5)
            w.copy_(delta.add_(lam).div_(group["tau"]).tanh_())

    def place_draw(self, noise: list[Tensor] | None) -> None:
        """Write a binary draw sign(lambda + delta)."""
        assert noise is not None
        for i, param, state, _ in self._rows():
            param.copy_(sign(state["lam"] + half_logit(noise[i])))

    def collect(self, stage: int) -> None:
        """Keep s g (g itself for tensors that are not binary)."""
        grads = self.gradients()
        if self.stochastic:
            stats, self._draws = self._draws, []
            known, learnt = "lam_before" if self.lag_mu else "lam", self._rows()
            rows = (
                (group, (stats[i], p, state[known], grads[i]))
                for i, p, state, group in self._rows()
            )
            for group, (stat, w, lam, grad), slope in self._scratch.blocks(rows, written=1):
                mu = torch.tanh(lam, out=stat)
                mu.square_().neg_().add_(1.0).add_(group["eps"]).mul_(group["tau"])
                torch.mul(w, w, out=slope).neg_().add_(1.0).add_(group["eps"])
                torch.mul(slope.div_(mu), grad, out=stat)
            for i, _, _, _ in learnt:
                grads[i] = stats[i]
        self.accumulate("grad", grads)

    def update_binary(self, rows: list[Row], statistics: list[Tensor]) -> None:
        """Apply `bayesbinn_update` in place, over blocks of all tensors."""
        operands = []
        for i, param, state, group in rows:
            extra = [state["lam_before"]] if self.lag_mu else []
            prior = [state["prior"]] if "prior" in state else []
            tensors = (param, state["lam"], state["momentum"], *extra, statistics[i], *prior)
            operands.append((group, tensors))
        written = 4 if self.lag_mu else 3
        for group, (mu, lam, momentum, *more), gradient in self._scratch.blocks(
            operands, written=written
        ):
            if self.lag_mu:
                more.pop(0).copy_(lam)
            stat, *prior = more
            torch.sub(lam, prior[0], out=gradient) if prior else gradient.copy_(lam)
            gradient.mul_(group["kl_weight"]).add_(stat, alpha=group["ess"])
            momentum.lerp_(gradient, 1.0 - group["beta"])
            debias = 1.0 - group["beta"] ** group["steps"]
            lam.sub_(momentum, alpha=float(group["lr"]) / debias)
            torch.tanh(lam, out=mu)

    # ------------------------------------------------------- posterior, prior

    def posterior(self, model: torch.nn.Module | None = None) -> Bernoulli:
        """Return q over the binary tensors; others are the model's own."""
        self._refuse_inside_a_sample()
        names = self.names(model)
        return Bernoulli({names[p]: state["lam"] for _, p, state, _ in self._rows()})

    def prior(self, model: torch.nn.Module | None = None) -> Bernoulli:
        """Return the prior, uniform unless `set_prior` was called."""
        names = self.names(model)
        return Bernoulli(
            {
                names[p]: state.get("prior", torch.zeros_like(state["lam"]))
                for _, p, state, _ in self._rows()
            }
        )

    @torch.no_grad()
    def set_posterior(self, q: Posterior, model: torch.nn.Module | None = None) -> None:
        """Go on from the natural parameters of `q`, with no momentum.

        Raises:
            Unsupported: `q` is no Bernoulli over the binary tensors.
        """
        for (_, param, state, _), lam in self._matched(q, model):
            state["lam"].copy_(lam)
            state["momentum"].zero_()
            param.copy_(torch.tanh(state["lam"]))
            if self.lag_mu:
                state["lam_before"].copy_(state["lam"])

    @torch.no_grad()
    def set_prior(self, prior: Posterior, model: torch.nn.Module | None = None) -> None:
        """Make `prior` the prior: its natural parameters are lambda_0.

        Raises:
            Unsupported: `prior` is no Bernoulli over the binary tensors.
        """
        for (_, _, state, _), lam in self._matched(prior, model):
            state["prior"] = lam.to(state["lam"]).clone()

    def _matched(self, q: Posterior, model: torch.nn.Module | None) -> list[tuple[Row, Tensor]]:
        """Return every row with the natural parameters that `q` has for it."""
        self._refuse_inside_a_sample()
        if not isinstance(q, Bernoulli):
            raise Unsupported(
                f"{type(self).__name__} has a Bernoulli posterior and prior over binary weights; a "
                f"{type(q).__name__} lives on {q.space}"
            )
        names = self.names(model)
        rows = self._rows()
        own = {names[param]: param for _, param, _, _ in rows}
        check_same_schema(own, q.lam, "the optimiser and the given posterior")
        lam = q.lam
        return [(row, lam[names[row[1]]]) for row in rows]
