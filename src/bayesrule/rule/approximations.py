"""What may be approximated in the Bayesian learning rule, each choice apart from the others.

Adam is the diagonal Gaussian rule with `delta`, `minibatch`, `hess="sqgrad"`, `sqrt`,
`slow_scale`, `momentum="average"` and `bias_correction`. Without `sqrt` and momentum, and with
`hess="gn"`, it is OGN; without `delta` too it is VOGN. The formulas are in `rule`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

from bayesrule.errors import ConfigError

__all__ = ["Approximations", "StepSizes"]

_CHOICES = {
    "hess": ("exact", "gn", "sqgrad"),
    "momentum": ("none", "heavy_ball", "average"),
}


@dataclass(frozen=True)
class Approximations:
    """The approximations of one algorithm; the default is the rule itself, with none.

    Attributes:
        delta: E_q[f(theta)] is replaced by f at the mean (the delta method).
        minibatch: The sum over data is replaced by (N/M) times the sum over a batch.
        hess: Curvature of the data: `exact` Hessian; `gn`, sum of squares (outer products) of the
            gradients of single items, the empirical Fisher; `sqgrad`, the square of the whole
            gradient estimate, regulariser included.
        sqrt: The step is divided by the square root of the scale.
        slow_scale: The scale has a step size of its own, smaller than the mean's.
        momentum: `heavy_ball` adds gamma (m_t - m_{t-1}); `average` steps along the average
            u <- gamma u + (1 - gamma) g, the same for a scale that does not change and rho / (1 -
            gamma) in place of rho.
        bias_correction: Averages that start at 0 are divided by 1 - gamma^t and 1 - (1-b)^t.
        positive_definite: S takes the second-order step that stays positive definite (Lin et al.
            2020), and the mean steps with the old S.
        resp: The responsibility of a mixture's component is replaced by the sampled indicator.
        temp: Binary weights are relaxed with this temperature; 0 is the limit theta = sign(lambda).
        no_decay: The shrinkage of lambda (entropy and prior) is left out.
    """

    delta: bool = False
    minibatch: bool = False
    hess: str = "exact"
    sqrt: bool = False
    slow_scale: bool = False
    momentum: str = "none"
    bias_correction: bool = False
    positive_definite: bool = False
    resp: bool = False
    temp: float | None = None
    no_decay: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"approximation {name}={getattr(self, name)!r}: choose one of "
                    + ", ".join(choices)
                )
        if self.temp is not None and self.temp < 0:
            raise ConfigError(f"approximation temp={self.temp}: a temperature is not negative")

    def active(self) -> dict[str, bool | str | float]:
        """Return the approximations that are made, by name: those that differ from the default."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    def require(self, meaningful: Collection[str], family: str) -> None:
        """Require that every approximation made has a meaning for a family.

        Raises:
            ConfigError: Naming the first that has none, and those that have.
        """
        for name in self.active():
            if name not in meaningful:
                raise ConfigError(
                    f"approximation {name} has no meaning for {family}; there are "
                    + ", ".join(sorted(meaningful))
                )

    def __str__(self) -> str:
        words = [
            name if value is True else f"{name}={value}" for name, value in self.active().items()
        ]
        return ", ".join(words) or "none"


@dataclass(frozen=True)
class StepSizes:
    """The step sizes of one algorithm.

    Attributes:
        rho: Step of lambda, or of the mean where the scale has its own.
        scale: Step b of the scale; read with `slow_scale` only.
        momentum: gamma; read with `momentum` only.
        damping: c, added to the divisor of the step.
        weights: Step of a mixture's weights; None: rho, 0: the weights stay.
    """

    rho: float
    scale: float | None = None
    momentum: float = 0.0
    damping: float = 0.0
    weights: float | None = None

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ConfigError(f"step size rho={self.rho} must be positive")
        if self.scale is not None and not self.scale > 0:
            raise ConfigError(f"step size scale={self.scale} must be positive")

    def given(self) -> dict[str, float]:
        """Return the step sizes that are not at their default, by name; rho always."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            field.name: values[field.name]
            for field in fields(self)
            if field.name == "rho" or values[field.name] != field.default
        }

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value:g}" for name, value in self.given().items())

    def check(self, approximations: Approximations) -> None:
        """Require the numbers that the approximations read.

        Raises:
            ConfigError: One is missing, or given and never read.
        """
        for flag, name, given in (
            ("slow_scale", "scale", self.scale is not None),
            ("momentum", "momentum", self.momentum != 0.0),
        ):
            made = flag in approximations.active()
            if made != given:
                word = "needs" if made else "is off, so nothing reads"
                raise ConfigError(f"approximation {flag} {word} the step size {name}")
