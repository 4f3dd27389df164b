"""Ridge regression on digits, five clients of two digits each: rounds to the joint solution.

Client k has l_k(w) = 1/2 sum_i ||W x_i - onehot(y_i)||^2, the joint problem is
sum_k l_k + delta/2 ||W||^2. The ten outputs are ten problems with one Hessian, so that each is a
quadratic in 65 unknowns (64 pixels and a bias), and the error is that of all of them together::

    error = ||W_g - W*||_F / ||W*||_F
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayesrule.config import Config, cache_dir
from bayesrule.data import load_data, random_like
from bayesrule.errors import ImproperDistribution
from bayesrule.federated import (
    ADMM,
    Algorithm,
    BayesianADMM,
    BregmanADMM,
    Quadratic,
    newton_solver,
    run_rounds,
)
from bayesrule.posteriors import FullGaussian, IsotropicGaussian, NaturalGaussian
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["RidgeRounds"]

DIVERGED = 1e6  # recorded for an error that is not finite, or larger
PAIRS = 5
OUTPUTS = 10


class RidgeRounds(Task):
    """Error after each round of Bayesian ADMM, federated ADMM and Bregman ADMM.

    ``error/<method>_round<r>``; ``error/admm_round1`` is the best over `admm_rhos`. With them
    ``identity/isotropic``, the largest difference between the iterates of Bayesian ADMM in the
    isotropic family and of federated ADMM.

    Args:
        delta: Prior precision.
        rounds: Rounds of every method.
        admm_rhos: Penalties of federated ADMM.
    """

    def __init__(self, delta: float, rounds: int, admm_rhos: list[float]) -> None:
        self.delta, self.rounds, self.admm_rhos = delta, rounds, admm_rhos

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the client updates; there is no network."""
        steps = PAIRS * OUTPUTS * self.rounds * (4 + len(self.admm_rhos))
        return Requirements(int(config["data"]["train_size"]), steps, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Do one round on random data of the shape."""
        batch = random_like(plan.config["data"], n_items=40).train.whole()
        y = torch.arange(40) % 10
        found = RidgeRounds(self.delta, 1, self.admm_rhos[:1]).curves(batch["input"], y)
        assert found["bayes_admm"][0] < 1e-6
        return ["one round, 40 random items"]

    def run(self, context: Context) -> Outcome:
        """Compute; some seconds, so nothing is checkpointed."""
        config = context.config
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        batch = data.train.whole()
        curves = self.curves(batch["input"], batch["target"])
        metrics = {"identity/isotropic": curves.pop("difference")[0]}
        for name, errors in curves.items():
            for r in {1, 5, self.rounds}:
                if r <= len(errors):
                    metrics[f"error/{name}_round{r}"] = errors[r - 1]
        admm = [name for name in curves if name.startswith("admm_")]
        for r in (1, self.rounds):
            best = min(metrics[f"error/{name}_round{r}"] for name in admm)
            metrics[f"error/admm_round{r}"] = best
        details = {"data": data.describe(), "parameters": 0, "curves": {"error": curves}}
        return Outcome(metrics, details)

    def curves(self, inputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
        """Return the error after each round, by method.

        Args:
            inputs: Pixels in [0, 1].
            labels: Digits.
        """
        X = inputs.flatten(1).double()
        X = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], dim=1)
        Y = torch.nn.functional.one_hot(labels, OUTPUTS).double()
        D, eye = X.shape[1], torch.eye(X.shape[1], dtype=X.dtype)
        groups = [(X[labels // 2 == k], Y[labels // 2 == k]) for k in range(PAIRS)]
        exact = torch.linalg.solve(X.mT @ X + self.delta * eye, X.mT @ Y)
        full = FullGaussian({"w": torch.zeros(D).double()}, self.delta * eye)
        flat = IsotropicGaussian({"w": torch.zeros(D).double()}, self.delta)
        K = PAIRS
        methods: dict[str, tuple[Algorithm, NaturalGaussian]] = {
            "bayes_admm": (BayesianADMM(rho=1.0 / K), full),
            "bayes_admm_rho1": (BayesianADMM(rho=1.0), full),
            "bregman": (BregmanADMM(rho=1.0, gamma=0.1), full),
            "bregman_undamped": (BregmanADMM(rho=1.0 / K), full),
        }
        for rho in self.admm_rhos:
            methods[f"admm_{rho:g}"] = (ADMM(rho=rho, delta=self.delta), flat)
        curves = {
            name: self._errors(algorithm, q0, groups, exact)
            for name, (algorithm, q0) in methods.items()
        }
        iso = self._means(BayesianADMM(rho=self.admm_rhos[0] / self.delta), flat, groups)
        admm = self._means(ADMM(rho=self.admm_rhos[0], delta=self.delta), flat, groups)
        difference = max(float((a - b).abs().max()) for a, b in zip(iso, admm, strict=True))
        return {**curves, "difference": [difference]}

    def _errors(
        self,
        algorithm: Algorithm,
        q0: NaturalGaussian,
        groups: list[tuple[Tensor, Tensor]],
        exact: Tensor,
    ) -> list[float]:
        means = self._means(algorithm, q0, groups)
        errors = [float((W - exact).norm() / exact.norm()) for W in means]
        errors += [DIVERGED] * (self.rounds - len(errors))
        return [min(e, DIVERGED) if e == e else DIVERGED for e in errors]

    def _means(
        self, algorithm: Algorithm, q0: NaturalGaussian, groups: list[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """Return the server's weights (D, 10) after each round, as far as they are proper."""
        H = [X.mT @ X for X, _ in groups]
        columns: list[list[Tensor]] = []
        for c in range(OUTPUTS):
            losses = [Quadratic(Hk, X.mT @ Y[:, c]) for Hk, (X, Y) in zip(H, groups, strict=True)]
            solvers = [
                (len(X), newton_solver(one)) for one, (X, _) in zip(losses, groups, strict=True)
            ]
            column: list[Tensor] = []
            try:
                start = algorithm.start(q0, len(groups))
                for state in run_rounds(algorithm, start, solvers, self.rounds):
                    column.append(state.posterior.mean["w"])
            except ImproperDistribution:
                pass  # it diverged: the rounds so far are what there is
            columns.append(column)
        length = min(len(column) for column in columns)
        return [torch.stack([column[r] for column in columns], dim=1) for r in range(length)]
