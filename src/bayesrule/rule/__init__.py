"""The Bayesian learning rule as an object, and the algorithms that it contains as recipes."""

from bayesrule.rule.approximations import Approximations, StepSizes
from bayesrule.rule.gradients import (
    BernoulliGradient,
    ConjugateGradient,
    Gradient,
    InNaturalCoordinates,
    LossGradient,
    NodeGradient,
    QuadratureGradient,
    SpikeSlabGradient,
)
from bayesrule.rule.losses import DataLoss, LinearModel, function_loss, gaussian_prior
from bayesrule.rule.mixtures import ComponentGradient, GridGradient
from bayesrule.rule.rule import BayesianLearningRule, natural_step

__all__ = [
    "Approximations",
    "BayesianLearningRule",
    "BernoulliGradient",
    "ComponentGradient",
    "ConjugateGradient",
    "DataLoss",
    "Gradient",
    "GridGradient",
    "InNaturalCoordinates",
    "LinearModel",
    "LossGradient",
    "NodeGradient",
    "QuadratureGradient",
    "SpikeSlabGradient",
    "StepSizes",
    "function_loss",
    "gaussian_prior",
    "natural_step",
]
