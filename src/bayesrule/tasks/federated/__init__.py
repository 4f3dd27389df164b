"""Federated learning of networks: clients, rounds, and an engine that may lose clients."""

from bayesrule.tasks.federated.task import FederatedLearning

__all__ = ["FederatedLearning"]
