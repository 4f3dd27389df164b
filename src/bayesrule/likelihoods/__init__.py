"""Likelihoods p(y | f): losses, links, residuals and GGN factors of network outputs."""

from bayesrule.likelihoods.base import Likelihood
from bayesrule.likelihoods.bernoulli import Bernoulli
from bayesrule.likelihoods.categorical import Categorical
from bayesrule.likelihoods.gaussian import Gaussian
from bayesrule.likelihoods.head import Head
from bayesrule.likelihoods.heads import Heads

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Head", "Heads", "Likelihood"]
