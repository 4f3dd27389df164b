"""How is q learnt step by step? Every optimiser is a `torch.optim.Optimizer`.

One file per method; each module docstring is the method's equations.
"""

from bayesrule.optim.base import PosteriorOptimizer
from bayesrule.optim.ivon import IVON
from bayesrule.optim.point import SGD, AdamW
from bayesrule.optim.sam import SAM

__all__ = ["IVON", "SAM", "SGD", "AdamW", "PosteriorOptimizer"]
