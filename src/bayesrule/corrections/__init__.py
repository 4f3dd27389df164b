"""Corrections: what is carried over from the past, as a loss term, a prior posterior, or both.

EWC, VCL, replay, FROMP, K-priors, a federated site and the anchor of a merge are all corrections.
"""

from bayesrule.corrections.base import Correction, Past
from bayesrule.corrections.ewc import EWC, OnlineEWC
from bayesrule.corrections.fromp import FROMP
from bayesrule.corrections.k_prior import DataTerm, KPrior, KPriorCorrection
from bayesrule.corrections.memory import Memory
from bayesrule.corrections.none import NoCorrection
from bayesrule.corrections.online_laplace import OnlineLaplace
from bayesrule.corrections.quadratic import KroneckerSum, QuadraticAnchor
from bayesrule.corrections.replay import DERPlusPlus, Replay
from bayesrule.corrections.reservoir import Reservoir
from bayesrule.corrections.retraining import Cumulative, Joint, Separate
from bayesrule.corrections.selection import Strategy, select
from bayesrule.corrections.si import SI
from bayesrule.corrections.vcl import VCL

__all__ = [
    "EWC",
    "FROMP",
    "SI",
    "VCL",
    "Correction",
    "Cumulative",
    "DERPlusPlus",
    "DataTerm",
    "Joint",
    "KPrior",
    "KPriorCorrection",
    "KroneckerSum",
    "Memory",
    "NoCorrection",
    "OnlineEWC",
    "OnlineLaplace",
    "Past",
    "QuadraticAnchor",
    "Replay",
    "Reservoir",
    "Separate",
    "Strategy",
    "select",
]
