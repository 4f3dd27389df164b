"""Knowledge adaptation: a model is changed with few of its past data, beside learning anew."""

from bayesrule.tasks.adaptation.task import Adaptation

__all__ = ["Adaptation"]
