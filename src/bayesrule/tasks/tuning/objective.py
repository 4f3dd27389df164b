"""What a search minimises or maximises: a metric that no test item has a part in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bayesrule.config import Config
from bayesrule.errors import ConfigError

__all__ = ["Objective"]

_LOWER = ("nll", "ece", "brier", "rmse", "mae", "loss", "bpc", "perplexity", "epoch_loss")
_HIGHER = ("acc", "elbo", "elbo_mean", "auroc")
_SPLITS = ("val", "train")


@dataclass(frozen=True)
class Objective:
    """A named metric and its direction.

    Attributes:
        metric: ``<split>/<metric>@<rule>`` with a split other than the test one.
        direction: ``minimize`` or ``maximize``.
    """

    metric: str
    direction: Literal["minimize", "maximize"]

    @classmethod
    def of(cls, metric: str, direction: Literal["minimize", "maximize"] | None = None) -> Objective:
        """Check a metric, and find its direction where its name says it.

        Raises:
            ConfigError: If it is measured on test data, or has no known direction.
        """
        split, slash, rest = metric.partition("/")
        if split in ("test", "ood") or not slash:
            raise ConfigError(
                f"--metric {metric}: settings are chosen on validation data, never on test data; "
                "name a metric of the validation split such as val/nll@mean"
            )
        if split not in _SPLITS:
            raise ConfigError(
                f"--metric {metric}: name a metric of the validation split, such as val/nll@mean "
                "(or of the training data, such as train/elbo)"
            )
        name = rest.partition("@")[0].rpartition("/")[2].rstrip("0123456789")
        if direction is None:
            if name not in (*_LOWER, *_HIGHER):
                raise ConfigError(
                    f"--metric {metric}: say whether it is to be small or large: "
                    "--direction minimize or --direction maximize"
                )
            direction = "minimize" if name in _LOWER else "maximize"
        return cls(metric, direction)

    @property
    def worst(self) -> float:
        """Value of a setting whose training diverged."""
        return math.inf if self.direction == "minimize" else -math.inf

    def check(self, config: Config) -> None:
        """Refuse a configuration that does not measure the metric.

        Raises:
            ConfigError: If there is no validation split.
        """
        if not self.metric.startswith("val/"):
            return
        data = config.get("data")
        if not isinstance(data, Mapping):
            raise ConfigError(f"--metric {self.metric}: this task has no validation split")
        if not data.get("val_fraction") and not data.get("validation_split"):
            raise ConfigError(
                f"--metric {self.metric} needs a validation split and data.val_fraction is "
                f"{data.get('val_fraction')}: set data.val_fraction=0.2, say"
            )

    def value(self, metrics: Mapping[str, Any]) -> float:
        """Return the metric of a finished run; the worst value if it is NaN.

        Raises:
            ConfigError: If the run does not measure it; says what there is.
        """
        if self.metric not in metrics:
            have = sorted(name for name in metrics if name.partition("/")[0] in _SPLITS)
            raise ConfigError(
                f"--metric {self.metric} is not measured; there is {', '.join(have) or 'none'}"
            )
        value = float(metrics[self.metric])
        return self.worst if math.isnan(value) else value
