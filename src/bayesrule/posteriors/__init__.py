"""Posteriors as values: families, algebra, files and prediction. Notation: NOTATION.md."""

from bayesrule.posteriors.base import (
    FAMILIES,
    Expectation,
    ExponentialFamily,
    Natural,
    Posterior,
    power_product,
)
from bayesrule.posteriors.full import FullGaussian
from bayesrule.posteriors.gaussian import DiagonalGaussian, GaussianPosterior, IsotropicGaussian
from bayesrule.posteriors.io import load_posterior, save_posterior
from bayesrule.posteriors.params import Params
from bayesrule.posteriors.point_mass import PointMass

__all__ = [
    "FAMILIES",
    "DiagonalGaussian",
    "Expectation",
    "ExponentialFamily",
    "FullGaussian",
    "GaussianPosterior",
    "IsotropicGaussian",
    "Natural",
    "Params",
    "PointMass",
    "Posterior",
    "load_posterior",
    "power_product",
    "save_posterior",
]
