"""Tuning: settings are proposed, run with every seed, judged on the validation split."""

from bayesrule.tasks.tuning.objective import Objective
from bayesrule.tasks.tuning.search import Search, Settings
from bayesrule.tasks.tuning.summary import write_summary
from bayesrule.tasks.tuning.workers import tune

__all__ = ["Objective", "Search", "Settings", "tune", "write_summary"]
