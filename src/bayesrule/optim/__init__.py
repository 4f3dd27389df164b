"""How is q learnt step by step? Every optimiser is a `torch.optim.Optimizer`.

One file per method; each module docstring is the method's equations.
"""

from bayesrule.optim.base import PosteriorOptimizer
from bayesrule.optim.bbb import BBB
from bayesrule.optim.bsam import BSAM
from bayesrule.optim.ivon import IVON
from bayesrule.optim.point import SGD, AdamW
from bayesrule.optim.sam import ASAM, SAM, SAMAdamW
from bayesrule.optim.vogn import OGN, VOGN

__all__ = [
    "ASAM",
    "BBB",
    "BSAM",
    "IVON",
    "OGN",
    "SAM",
    "SGD",
    "VOGN",
    "AdamW",
    "PosteriorOptimizer",
    "SAMAdamW",
]
