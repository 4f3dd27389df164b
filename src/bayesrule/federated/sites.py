"""Algorithms whose duals are sites: Bayesian ADMM, Bregman ADMM, PVI, FedLap, FedLap-Cov.

Natural parameters of a Gaussian N(m, S^-1) are lambda = (S m, -S/2); K clients, prior lambda_0, a
dual eta_k = (v_k, -V_k/2) a client, started at zero. All methods here are one algorithm::

    client    q_k = argmin E_q[l_k]/tau + <eta_k, E_q T> + rho KL(q || q_g)
    dual      eta_k <- eta_k + gamma rho (lambda_k - lambda_g)
    server    lambda_g <- (1 - alpha) mean_k lambda_k + alpha (lambda_0 + sum_k eta_k)

which reads, in mean and precision::

    v_k <- v_k + gamma rho (S_k m_k - S_g m_g);          V_k <- V_k + gamma rho (S_k - S_g)
    S_g <- (1 - alpha) mean_k S_k + alpha (S_0 + sum_k V_k)
    m_g <- S_g^-1 [ (1 - alpha) mean_k S_k m_k + alpha (S_0 m_0 + sum_k v_k) ]

| method | family | alpha | rho | gamma |
|---|---|---|---|---|
| Bayesian ADMM (Moellenhoff et al., 2026) | any | 1/(1 + K rho) | free | free |
| Bregman ADMM (Wang and Banerjee, 2014) | any | 1/(1 + K rho) | free | free, in mu (see below) |
| PVI (Ashman et al., 2022) | any | 1 | 1 | damping |
| FedLap (Swaroop et al., 2025) | isotropic of fixed precision delta | 1 | 1 | its rho |
| FedLap-Cov (the same) | diagonal or full, delta method | 1 | 1 | its rho |

Bayesian ADMM in the isotropic family of fixed precision is federated ADMM with penalty rho delta.
Its client is the exact minimiser in the family if the solver is; with the delta method (l_k at the
mean) it is the paper's Laplace variant. At an exact client optimum with gamma = 1, V_k = E_q[hess
l_k]/tau and v_k = V_k m_k - E_q[grad l_k]/tau: the dual is minus the natural gradient of the
client's loss, its site. At a fixed point q_g is the joint variational posterior.

In Bregman ADMM the dual moves in expectation coordinates, mu = (m, S^-1 + m m^T)::

    v_k <- v_k + gamma rho (m_k - m_g);      V_k <- V_k - 2 gamma rho (mu2_k - mu2_g)

FedLap's own dual is v_k/delta in these units. Its server is w_g <- sum_k v_k / delta.

Messages: 2P numbers down and 2P up (mean and precision) for P parameters, P each where the
precision is fixed: the server moves its own copy of sum_k eta_k by the same formula as the clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayesrule.errors import Unsupported
from bayesrule.federated.algorithm import Algorithm, ServerSolve, require_replies
from bayesrule.federated.local import LocalObjective, Solve, clamp_precision, zero_natural
from bayesrule.federated.messages import ClientState, Message, Reply, ServerState
from bayesrule.posteriors import IsotropicGaussian, NaturalGaussian, PointMass, Posterior
from bayesrule.posteriors.natural import Natural
from bayesrule.posteriors.params import Params

__all__ = ["PVI", "BayesianADMM", "BregmanADMM", "FedLap", "FedLapCov", "Sites"]


@dataclass(frozen=True)
class Sites(Algorithm):
    """The one algorithm of the module's docstring.

    Attributes:
        rho: Weight of KL(q || q_g).
        gamma: Damping of the dual step.
        alpha: Server's step; None: 1/(1 + K rho).
        temperature: tau.
        coordinates: ``natural``, or ``expectation`` for Bregman ADMM's dual step.
        start_at: First server mean: ``prior``, or ``init`` (the network's initial weights). With
            ``prior`` clients still begin their first search at the initial weights.
        dual_init: ``zero``, or ``split``: eta_k = (S_0 (w_init - m_0)/K, 0), so that the server's
            equation holds at the start.
        floor: Diagonal precisions of the server are at least this part of the prior's.
    """

    rho: float = 1.0
    gamma: float = 1.0
    alpha: float | None = None
    temperature: float = 1.0
    coordinates: str = "natural"
    start_at: str = "prior"
    dual_init: str = "zero"
    floor: float = 1e-3

    def start(
        self, prior: NaturalGaussian, num_clients: int, init: Params | None = None
    ) -> ServerState:
        """Start at the prior, or at the initial weights with the prior's precision."""
        q, start = prior, init
        if self.start_at == "init" and init is not None:
            q, start = _moved(prior, init), None
        state = ServerState(0, num_clients, q, prior, zero_natural(prior), start)
        return replace(state, dual_sum=self._first_dual(state, init) * float(num_clients))

    def client_start(self, state: ServerState, client: int) -> ClientState:
        """Return a client with its first dual."""
        init = state.posterior.mean if state.start is None else state.start
        return ClientState(self._first_dual(state, init))

    def _first_dual(self, state: ServerState, init: Params | None) -> Natural[Any]:
        zero = zero_natural(state.prior)
        if self.dual_init == "zero" or init is None:
            return zero
        away = _moved(state.prior, init).natural() - state.prior.natural()
        return away * (1.0 / state.num_clients)

    def sends(self, state: ServerState) -> tuple[str, ...]:
        """Return the mean, and the precision where it is learnt."""
        return _travelling(state.posterior)

    def client_update(
        self, message: Message, state: ClientState, client: int, num_items: int, solve: Solve
    ) -> tuple[Reply, ClientState]:
        """Find q_k, then move the dual."""
        q, carried = solve(self.objective(message, state, client), state.carried)
        assert state.dual is not None
        dual = state.dual + self.dual_step(q, message.posterior)
        reply = Reply(client, num_items, q, sent=_travelling(q))
        return reply, replace(state, dual=dual, calls=state.calls + 1, carried=carried)

    def objective(self, message: Message, state: ClientState, client: int) -> LocalObjective:
        """Return what client `client` minimises."""
        return LocalObjective(
            message.posterior,
            rho=self.rho,
            weight=1.0 / self.temperature,
            tilt=state.dual,
            start=message.start,
        )

    def dual_step(self, q: NaturalGaussian, server: NaturalGaussian) -> Natural[Any]:
        """Return gamma rho (lambda_k - lambda_g), or the same of mu in expectation coordinates."""
        step = self.gamma * self.rho
        if self.coordinates == "natural":
            return (q.natural() - server.natural()) * step
        move = (q.expectation() - server.expectation()) * step
        return Natural(move.mean1, move.mean2)

    def server_update(
        self, state: ServerState, replies: Sequence[Reply], solve: ServerSolve | None = None
    ) -> ServerState:
        """Add the dual steps of the clients that answered, then average with their posteriors.

        Raises:
            ImproperDistribution: The result is not a distribution (a full covariance is not
                clamped).
        """
        require_replies(replies)
        duals = state.dual_sum
        assert duals is not None
        for reply in replies:
            duals = duals + self.dual_step(reply.posterior, state.posterior)
        alpha = 1.0 / (1.0 + state.num_clients * self.rho) if self.alpha is None else self.alpha
        prior = state.prior.natural()
        natural = prior + duals
        if alpha != 1.0:
            mean = replies[0].posterior.natural()
            for reply in replies[1:]:
                mean = mean + reply.posterior.natural()
            natural = mean * ((1.0 - alpha) / len(replies)) + natural * alpha
        if isinstance(state.prior, IsotropicGaussian):  # a fixed precision has no rounding errors
            natural = Natural(natural.nat1, prior.nat2)
        natural, clamped = clamp_precision(natural, prior, self.floor)
        q = type(state.prior).from_natural(natural, buffers=state.posterior.buffers)
        info = {"clamped": clamped}
        return replace(
            state, round=state.round + 1, posterior=q, dual_sum=duals, start=None, info=info
        )

    def predictive(self, state: ServerState) -> Posterior:
        """Return q_g, or its mean where the precision was not learnt."""
        q = state.posterior
        return PointMass(q.mean, buffers=q.buffers) if isinstance(q, IsotropicGaussian) else q


def _travelling(q: NaturalGaussian) -> tuple[str, ...]:
    return ("mean",) if isinstance(q, IsotropicGaussian) else ("mean", "precision")


def _moved(q: NaturalGaussian, mean: Params) -> NaturalGaussian:
    """Return q with another mean."""
    groups = {**q._groups(), "mean": {name: mean[name] for name in q.names}}
    return type(q)._from_groups(groups, q._hyper())


@dataclass(frozen=True)
class BayesianADMM(Sites):
    """ADMM from Bayesian duality; the prior's family says which: isotropic, diagonal or full.

    With a diagonal family and IVON as the clients' solver it is the paper's IVON-ADMM.
    """


@dataclass(frozen=True)
class BregmanADMM(Sites):
    """Bayesian ADMM with the dual step in expectation coordinates."""

    coordinates: str = "expectation"


@dataclass(frozen=True)
class PVI(Sites):
    """Partitioned variational inference; gamma < 1 damps it."""

    rho: float = 1.0
    alpha: float | None = 1.0


@dataclass(frozen=True)
class FedLap(Sites):
    """FedLap; `gamma` is the paper's damping rho, the prior's precision its delta.

    Raises:
        Unsupported: If the prior is not isotropic.
    """

    gamma: float = 0.1
    alpha: float | None = 1.0
    start_at: str = "init"

    def start(
        self, prior: NaturalGaussian, num_clients: int, init: Params | None = None
    ) -> ServerState:
        """Start at the initial weights."""
        if not isinstance(prior, IsotropicGaussian):
            raise Unsupported(
                f"FedLap has a fixed isotropic covariance, not a {type(prior).__name__}: use "
                "FedLapCov for a learnt one"
            )
        return super().start(prior, num_clients, init)


@dataclass(frozen=True)
class FedLapCov(Sites):
    """FedLap-Cov; `gamma` is the paper's damping rho, clients are solved by the delta method.

    Raises:
        Unsupported: If the prior is isotropic.
    """

    gamma: float = 0.1
    alpha: float | None = 1.0
    start_at: str = "init"

    def start(
        self, prior: NaturalGaussian, num_clients: int, init: Params | None = None
    ) -> ServerState:
        """Start at the initial weights with the prior's precision."""
        if isinstance(prior, IsotropicGaussian):
            raise Unsupported(
                "FedLapCov learns a covariance: its prior is a DiagonalGaussian or a FullGaussian"
            )
        return super().start(prior, num_clients, init)
