"""Errors written for people: each message says what is wrong, where, and what to do.

Every error of the package derives from `BayesruleError`; the command line prints its message in
one line and leaves with `exit_code` (1: a run or check failed; 2: wrong usage or configuration).
"""

from __future__ import annotations

__all__ = [
    "BayesruleError",
    "ConfigError",
    "CorruptFile",
    "DataUnavailable",
    "ImproperDistribution",
    "NonFiniteLoss",
    "RunLocked",
    "Unsupported",
]


class BayesruleError(Exception):
    """Base class of all errors that bayesrule raises on purpose."""

    exit_code: int = 1


class ConfigError(BayesruleError):
    """Wrong usage or configuration: a key, name or value that does not exist or does not fit."""

    exit_code = 2


class DataUnavailable(BayesruleError):
    """No source (local mirror, installed package, hub) can serve a data set or model."""


class CorruptFile(BayesruleError):
    """A stored file is truncated, altered or not what its checksum says."""


class NonFiniteLoss(BayesruleError):
    """A loss or statistic became NaN or infinite; the message has the step and the term."""


class ImproperDistribution(BayesruleError, ValueError):
    """The result of posterior algebra is not a proper distribution."""


class Unsupported(BayesruleError):
    """A combination that has no meaning or no implementation; the message says why."""


class RunLocked(BayesruleError):
    """Another process is working on the same run."""
