"""Federated learning: K clients learn one posterior and keep their data.

Every algorithm is two pure functions, `client_update` and `server_update` (`algorithm`), whose
messages are posteriors and natural parameters of the shared algebra. `consensus` has the algorithms
on weight vectors, `sites` those whose duals are sites, `function_space` FedLap-Func. What a client
minimises is a value (`local`), and anything that minimises it is a solver: Newton and VON
(`exact`), or any optimiser of the repository on a network (`training`), among them IVON with a
general Gaussian prior and a linear-quadratic dual (`site_ivon`).
"""

from bayesrule.federated.algorithm import Algorithm, run_rounds
from bayesrule.federated.consensus import ADMM, FedADMM, FedAvg, FedDyn, FedProx
from bayesrule.federated.exact import LinearModel, Quadratic, newton, newton_solver, von, von_solver
from bayesrule.federated.function_space import FedLapFunc
from bayesrule.federated.local import LocalObjective, SoftLabels, Solve, delta_posterior
from bayesrule.federated.messages import (
    ClientState,
    Message,
    Reply,
    ServerState,
    num_bytes,
    refusal,
    state_refusal,
)
from bayesrule.federated.site_ivon import SiteIVON, site_ivon_update
from bayesrule.federated.sites import PVI, BayesianADMM, BregmanADMM, FedLap, FedLapCov, Sites
from bayesrule.federated.training import NetworkClient

__all__ = [
    "ADMM",
    "PVI",
    "Algorithm",
    "BayesianADMM",
    "BregmanADMM",
    "ClientState",
    "FedADMM",
    "FedAvg",
    "FedDyn",
    "FedLap",
    "FedLapCov",
    "FedLapFunc",
    "FedProx",
    "LinearModel",
    "LocalObjective",
    "Message",
    "NetworkClient",
    "Quadratic",
    "Reply",
    "ServerState",
    "SiteIVON",
    "Sites",
    "SoftLabels",
    "Solve",
    "delta_posterior",
    "newton",
    "newton_solver",
    "num_bytes",
    "refusal",
    "run_rounds",
    "site_ivon_update",
    "state_refusal",
    "von",
    "von_solver",
]
