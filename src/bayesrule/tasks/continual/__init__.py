"""Continual learning: a stream of experiences, one posterior, and what is carried over.

The outer loop is `loop`, what it measures is `scores`, what it leaves for a killed run `position`.
"""

from bayesrule.tasks.continual.task import ContinualLearning

__all__ = ["ContinualLearning"]
