"""What is a run? Composition and checking of configurations; nothing heavy is imported."""

from bayesrule.config.compose import Config, compose
from bayesrule.config.locate import accepted, locate
from bayesrule.config.locations import (
    cache_dir,
    conf_dir,
    experiments_dir,
    results_dir,
    root_dir,
    runs_dir,
)
from bayesrule.config.processes import check_processes

__all__ = [
    "Config",
    "accepted",
    "cache_dir",
    "check_processes",
    "compose",
    "conf_dir",
    "experiments_dir",
    "locate",
    "results_dir",
    "root_dir",
    "runs_dir",
]
