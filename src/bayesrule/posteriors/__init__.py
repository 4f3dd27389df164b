"""Posteriors as values: families, algebra, files and prediction. Notation: NOTATION.md."""

from bayesrule.posteriors.base import (
    FAMILIES,
    ExponentialFamily,
    Posterior,
    power_product,
)
from bayesrule.posteriors.batch_norm import reestimate_batch_norm
from bayesrule.posteriors.bernoulli import (
    Bernoulli,
    concrete_log_prob,
    concrete_sample,
    concrete_slope,
    half_logit,
)
from bayesrule.posteriors.categorical import Categorical
from bayesrule.posteriors.collect import Predictions
from bayesrule.posteriors.constant_base import ConstantBaseMeasure
from bayesrule.posteriors.dirichlet import Beta, Dirichlet
from bayesrule.posteriors.dropout import DropoutPosterior
from bayesrule.posteriors.full import FullGaussian
from bayesrule.posteriors.gamma import Gamma, Wishart
from bayesrule.posteriors.gauss_markov import GaussMarkov
from bayesrule.posteriors.gaussian import (
    DiagonalGaussian,
    GaussianPosterior,
    IsotropicGaussian,
    NaturalGaussian,
)
from bayesrule.posteriors.io import load_posterior, save_posterior
from bayesrule.posteriors.kronecker import KroneckerGaussian
from bayesrule.posteriors.linear import eval_mode, forward_outputs
from bayesrule.posteriors.low_rank import LowRankGaussian, SwagMoments
from bayesrule.posteriors.mixture import Mixture
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import Params
from bayesrule.posteriors.point_mass import PointMass
from bayesrule.posteriors.predict import (
    Predictor,
    Rule,
    forward_log_probs,
    predict,
    predict_dataset,
)

__all__ = [
    "FAMILIES",
    "Bernoulli",
    "Beta",
    "Categorical",
    "ConstantBaseMeasure",
    "DiagonalGaussian",
    "Dirichlet",
    "DropoutPosterior",
    "Expectation",
    "ExponentialFamily",
    "FullGaussian",
    "Gamma",
    "GaussMarkov",
    "GaussianPosterior",
    "IsotropicGaussian",
    "KroneckerGaussian",
    "LowRankGaussian",
    "Mixture",
    "Natural",
    "NaturalGaussian",
    "Params",
    "PointMass",
    "Posterior",
    "Predictions",
    "Predictor",
    "Rule",
    "SwagMoments",
    "Wishart",
    "concrete_log_prob",
    "concrete_sample",
    "concrete_slope",
    "eval_mode",
    "forward_log_probs",
    "forward_outputs",
    "half_logit",
    "load_posterior",
    "power_product",
    "predict",
    "predict_dataset",
    "reestimate_batch_norm",
    "save_posterior",
]
