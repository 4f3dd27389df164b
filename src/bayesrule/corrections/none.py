"""No correction: the network goes on with the loss of the current experience alone (fine-tuning).

::

    w_t = argmin_w  mean loss of D_t,   started at w_{t-1}
"""

from __future__ import annotations

from bayesrule.corrections.base import Correction

__all__ = ["NoCorrection"]


class NoCorrection(Correction):
    """Nothing is kept of the past but the weights."""
