"""Curvature: per-example gradients, Jacobians, GGN and Fisher matrices, KFAC, Laplace.

Every curvature is the SUM over items of the per-item negative log-likelihood's; prior terms,
averages and temperatures belong to the callers. `PerExampleRecorder` alone returns means over the
examples of a batch, as an optimiser needs them.
"""

from bayesrule.curvature.ggn import fisher_diag, fisher_full, ggn_diag, ggn_full
from bayesrule.curvature.jacobian import jacobians, jacobians_by_name
from bayesrule.curvature.kfac import kfac
from bayesrule.curvature.laplace import LaplaceFit, fit_laplace, laplace, marglik, tune_prior
from bayesrule.curvature.last_layer import last_layer_ggn, last_layer_name
from bayesrule.curvature.layer_rules import LayerRule, register_rule
from bayesrule.curvature.per_example import per_example_gradients, trainable
from bayesrule.curvature.recorder import PerExampleRecorder

__all__ = [
    "LaplaceFit",
    "LayerRule",
    "PerExampleRecorder",
    "fisher_diag",
    "fisher_full",
    "fit_laplace",
    "ggn_diag",
    "ggn_full",
    "jacobians",
    "jacobians_by_name",
    "kfac",
    "laplace",
    "last_layer_ggn",
    "last_layer_name",
    "marglik",
    "per_example_gradients",
    "register_rule",
    "trainable",
    "tune_prior",
]
