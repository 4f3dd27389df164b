"""Ways to learn a posterior on a problem; one file per composite method."""

from bayesrule.tasks.inference.base import Inference, Single, make_inference
from bayesrule.tasks.inference.dropout import MCDropout
from bayesrule.tasks.inference.ensemble import DeepEnsemble
from bayesrule.tasks.inference.laplace import Laplace
from bayesrule.tasks.inference.swag import SWAG

__all__ = [
    "SWAG",
    "DeepEnsemble",
    "Inference",
    "Laplace",
    "MCDropout",
    "Single",
    "make_inference",
]
