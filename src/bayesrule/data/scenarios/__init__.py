"""Scenarios: how a classification set becomes a stream of experiences.

Each is one file with a class derived from `Scenario` and a YAML in ``conf/scenario``.
"""

from bayesrule.data.scenarios.base import Scenario, StreamSizes, make_scenario
from bayesrule.data.scenarios.permuted import Permuted
from bayesrule.data.scenarios.rotated import Rotated
from bayesrule.data.scenarios.split import SplitClasses

__all__ = ["Permuted", "Rotated", "Scenario", "SplitClasses", "StreamSizes", "make_scenario"]
