"""How is q learnt step by step? Every optimiser is a `torch.optim.Optimizer`.

One file per method; each module docstring is the method's equations.
"""

from bayesrule.optim.base import PosteriorOptimizer
from bayesrule.optim.bayesbinn import BayesBiNN
from bayesrule.optim.bbb import BBB
from bayesrule.optim.bop import Bop
from bayesrule.optim.bsam import BSAM
from bayesrule.optim.ivon import IVON
from bayesrule.optim.noisy_kfac import KFAC, NoisyKFAC
from bayesrule.optim.pmf import PMF
from bayesrule.optim.point import SGD, AdamW
from bayesrule.optim.sam import ASAM, SAM, SAMAdamW
from bayesrule.optim.ste import STE
from bayesrule.optim.vogn import OGN, VOGN

__all__ = [
    "ASAM",
    "BBB",
    "BSAM",
    "IVON",
    "KFAC",
    "OGN",
    "PMF",
    "SAM",
    "SGD",
    "STE",
    "VOGN",
    "AdamW",
    "BayesBiNN",
    "Bop",
    "NoisyKFAC",
    "PosteriorOptimizer",
    "SAMAdamW",
]
