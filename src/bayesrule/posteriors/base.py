"""What a posterior is: an immutable value q(theta), keyed by parameter name.

`Posterior` has a mean, draws, and (where the family has them) a density, an entropy and a
Kullback-Leibler divergence. `ExponentialFamily` adds natural parameters lambda, expectation
parameters mu, and with them the algebra on which merging, federation and continual learning rest::

    q(theta) = h(theta) exp( <lambda, T(theta)> - A(lambda) ),      mu = E_q[T] = grad A(lambda)

    q * r   has   lambda_q + lambda_r         (product of experts, renormalised)
    q / r   has   lambda_q - lambda_r         (the site that turns r into q)
    q ** a  has   a lambda_q                  (tempering)

A result that is not a distribution raises `ImproperDistribution`. Sites may be improper on the
way (a client that saw nothing has lambda = 0); do such arithmetic on `q.natural()`, a plain vector
space, and come back with `from_natural`. Values are never changed in place; constructors copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bayesrule.errors import Unsupported
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import (
    Params,
    check_same_schema,
    num_params,
    own,
    tree_map,
)

__all__ = ["FAMILIES", "ExponentialFamily", "Posterior", "power_product"]

FAMILIES: dict[str, type[Posterior]] = {}
"""Family name -> class, filled when a family is defined; `load_posterior` looks names up here."""


class Posterior(ABC):
    """A distribution q over named parameters, with non-random companions (`buffers`).

    Attributes:
        family: Name in files and messages.
        space: Where theta lives, in words.
        own_mode: Whether the mode is a parameter vector worth predicting with beside the mean.
    """

    family: ClassVar[str] = ""
    space: ClassVar[str] = "R^P"
    own_mode: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("family"):
            FAMILIES[cls.family] = cls

    def __init__(
        self, mean: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None
    ) -> None:
        if not mean:
            raise Unsupported(f"{type(self).__name__} needs at least one named parameter")
        for name, tensor in mean.items():
            if not tensor.is_floating_point():
                raise Unsupported(
                    f"parameter {name!r} has dtype {tensor.dtype}; only floating-point tensors can "
                    "be random. Pass integer state through `buffers`"
                )
        self._mean = own(mean)
        self._buffers = own(buffers or {})

    @property
    def mean(self) -> Params:
        """E_q[theta] by parameter name."""
        return dict(self._mean)

    @property
    def mode(self) -> Params:
        """The theta of largest q(theta), by parameter name.

        Raises:
            Unsupported: It is not known in closed form.
        """
        raise Unsupported(self._no("a mode in closed form", "mode"))

    @property
    def buffers(self) -> Params:
        """Non-random companions that a draw needs, such as BatchNorm statistics."""
        return dict(self._buffers)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names, in flattening order."""
        return tuple(self._mean)

    @property
    def num_params(self) -> int:
        """P, the number of scalar parameters."""
        return num_params(self._mean)

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw from q.

        Args:
            generator: Source of the noise; torch's default generator when None.
            n: Number of draws. None gives one draw without a sample axis.

        Returns:
            Tensors of the parameters' shapes, with a leading axis n when n is an integer.
        """

    def sample_state(self, generator: torch.Generator | None = None) -> Params:
        """Draw once and add the buffers: a state for `torch.func.functional_call`."""
        return {**self.sample(generator), **self._buffers}

    def mean_state(self) -> Params:
        """Return the mean with the buffers: the state of the plug-in prediction."""
        return {**self._mean, **self._buffers}

    def mode_state(self) -> Params:
        """Return the mode with the buffers."""
        return {**self.mode, **self._buffers}

    def nth_sample_state(self, s: int, generator: torch.Generator | None = None) -> Params:
        """Return the state of draw number `s` of a prediction.

        Families that can spread their draws evenly (mixtures: over components) use `s` for that.
        """
        del s
        return self.sample_state(generator)

    def support(self) -> list[tuple[float, Params]] | None:
        """Return (weight, state) pairs if q has finitely many values, else None."""
        return None

    def sampling(self, model: nn.Module, seed: int) -> AbstractContextManager[None]:
        """Return the context in which `model` is run with one draw.

        Nothing for distributions over parameters; dropout switches its masks on here.
        """
        del model, seed
        return nullcontext()

    def log_prob(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Return log q(theta), summed over all entries, as a 0-d tensor.

        Raises:
            Unsupported: The family has no density, or the names or shapes do not fit.
        """
        raise Unsupported(self._no("a density", "log_prob"))

    def entropy(self) -> Tensor:
        """Return H(q) = -E_q[log q] in nats, as a 0-d tensor.

        Raises:
            Unsupported: There is no closed form.
        """
        raise Unsupported(self._no("a closed-form entropy", "entropy"))

    def kl(self, other: Posterior) -> Tensor:
        """Return KL(q || other) = E_q[log q - log other] in nats, as a 0-d tensor.

        Raises:
            Unsupported: There is no closed form, or the names or shapes do not fit.
        """
        raise Unsupported(self._no(f"a closed-form divergence to {other.family}", "kl"))

    def entropy_mc(self, generator: torch.Generator | None = None, n: int = 64) -> Tensor:
        """Return the Monte-Carlo entropy -(1/n) sum_s log q(theta_s), theta_s ~ q."""
        return -self._expect_log_prob(self, generator, n)

    def kl_mc(
        self, other: Posterior, generator: torch.Generator | None = None, n: int = 64
    ) -> Tensor:
        """Return the Monte-Carlo divergence (1/n) sum_s [log q - log other](theta_s)."""
        check_same_schema(self._mean, other._mean)
        draws = self.sample(generator, n)
        terms = []
        for s in range(n):
            theta = {name: draw[s] for name, draw in draws.items()}
            terms.append(self.log_prob(theta) - other.log_prob(theta))
        return torch.stack(terms).mean()

    def _expect_log_prob(
        self, other: Posterior, generator: torch.Generator | None, n: int
    ) -> Tensor:
        draws = self.sample(generator, n)
        terms = [other.log_prob({name: draw[s] for name, draw in draws.items()}) for s in range(n)]
        return torch.stack(terms).mean()

    def functional_variance(self, jac: Mapping[str, Tensor]) -> Tensor:
        """Return J Sigma J^T, the covariance of the linearised outputs.

        Args:
            jac: Jacobian by parameter, each (B, C, *shape).

        Returns:
            cov_BCC of shape (B, C, C).

        Raises:
            Unsupported: The family has no covariance to linearise with.
        """
        raise Unsupported(self._no("a covariance", "the linearised prediction"))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return the same distribution on another device or in another floating-point dtype."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        groups = {group: tree_map(move, params) for group, params in self._groups().items()}
        return self._from_groups(groups, self._hyper())

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Return the same distribution with other parameter names.

        Args:
            names: New name by old name; what it lacks keeps its name.
        """
        groups = {
            group: {names.get(name, name): tensor for name, tensor in params.items()}
            for group, params in self._groups().items()
        }
        return self._from_groups(groups, self._hyper())

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> Self:
        """Return the same distribution with other non-random companions."""
        return self._from_groups({**self._groups(), "buffers": own(buffers)}, self._hyper())

    @abstractmethod
    def _groups(self) -> dict[str, Params]:
        """Return every tensor of the value, by group then name; files and `to` are built on it."""

    def _hyper(self) -> dict[str, Any]:
        """Return what is not a tensor, as JSON values."""
        return {}

    @classmethod
    @abstractmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        """Inverse of `_groups` and `_hyper`."""

    def _check_theta(self, theta: Mapping[str, Tensor]) -> None:
        check_same_schema(self._mean, theta, "the posterior and theta")

    def _no(self, what: str, name: str) -> str:
        return f"{type(self).__name__} does not have {what}, so `{name}` has no meaning here"

    def __mul__(self, other: Posterior) -> Posterior:
        raise self._no_algebra("*", other)

    def __truediv__(self, other: Posterior) -> Posterior:
        raise self._no_algebra("/", other)

    def __pow__(self, power: float) -> Posterior:
        raise self._no_algebra("**", power)

    def _no_algebra(self, sign: str, other: object) -> Unsupported:
        right = type(other).__name__ if isinstance(other, Posterior) else repr(other)
        return Unsupported(
            f"{type(self).__name__} {sign} {right} is not defined: {type(self).__name__} is not an "
            "exponential family, so it has no natural parameters to add or scale"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._mean)} tensors, {self.num_params:,} parameters)"


class ExponentialFamily(Posterior):
    """A posterior with natural and expectation parameters, closed under `*`, `/` and `**`."""

    @abstractmethod
    def natural(self) -> Natural[Any]:
        """Return lambda, the natural parameters."""

    @abstractmethod
    def expectation(self) -> Expectation[Any]:
        """Return mu = E_q[T], the expectation parameters."""

    @classmethod
    @abstractmethod
    def from_natural(
        cls, natural: Natural[Any], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return q with natural parameters `natural`.

        Raises:
            ImproperDistribution: No distribution has them.
        """

    @classmethod
    @abstractmethod
    def from_expectation(
        cls, expectation: Expectation[Any], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return q with expectation parameters `expectation`.

        Raises:
            ImproperDistribution: No distribution has them.
        """

    def embed(self, other: ExponentialFamily) -> Self | None:
        """Return `other` as a member of this family if that is exact, else None."""
        return other if type(other) is type(self) else None

    def _rebuild(self, natural: Natural[Any], buffers: Mapping[str, Tensor]) -> Self:
        return self.from_natural(natural, buffers=buffers)

    def __mul__(self, other: Posterior) -> ExponentialFamily:
        """Return the renormalised product: lambda_q + lambda_r.

        The buffers are the left operand's, or the right one's when the left has none.
        """
        left, right = _promote(self, other, "*")
        return left._rebuild(left.natural() + right.natural(), self._buffers or other._buffers)

    def __truediv__(self, other: Posterior) -> ExponentialFamily:
        """Return the renormalised ratio: lambda_q - lambda_r."""
        left, right = _promote(self, other, "/")
        return left._rebuild(left.natural() - right.natural(), self._buffers or other._buffers)

    def __pow__(self, power: float) -> Self:
        """Return the tempered distribution: a lambda_q."""
        return self._rebuild(self.natural() * float(power), self._buffers)


def _promote(
    left: ExponentialFamily, right: Posterior, sign: str
) -> tuple[ExponentialFamily, ExponentialFamily]:
    """Bring two members to the smallest of their families that holds both exactly."""
    if not isinstance(right, ExponentialFamily):
        what = f"{right.family or type(right).__name__} has no natural parameters"
        raise Unsupported(f"{type(left).__name__} {sign} {type(right).__name__}: {what}")
    check_same_schema(left._mean, right._mean)
    as_left = left.embed(right)
    if as_left is not None:
        return left, as_left
    as_right = right.embed(left)
    if as_right is not None:
        return as_right, right
    if left.space != right.space:
        raise Unsupported(
            f"{type(left).__name__} {sign} {type(right).__name__} is not defined: the first lives "
            f"on {left.space}, the second on {right.space}"
        )
    raise Unsupported(
        f"{type(left).__name__} {sign} {type(right).__name__} is not exact in either family; "
        "convert both to FullGaussian (`FullGaussian.from_gaussian`) if P x P fits in memory"
    )


def power_product(factors: Sequence[tuple[ExponentialFamily, float]]) -> ExponentialFamily:
    """Return prod_k q_k ** a_k, requiring properness of the result only.

    `prior * prod((q_t / prior) ** a_t)` asks every site q_t / prior to be proper; here only the
    final natural parameter sum_k a_k lambda_k must be.

    Args:
        factors: Pairs (q_k, a_k); exponents of any sign.

    Returns:
        The renormalised product in the smallest family holding all factors; buffers of the first
        factor that has any.

    Raises:
        ImproperDistribution: The result is not a distribution.
        Unsupported: No family holds all factors, names differ, or there are no factors.
    """
    if not factors:
        raise Unsupported("power_product needs at least one factor")
    target = factors[0][0]
    for q, _ in factors[1:]:
        target, _ = _promote(target, q, "*")
    terms = []
    for q, power in factors:
        _, member = _promote(target, q, "*")
        terms.append(member.natural() * float(power))
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    buffers = next((q.buffers for q, _ in factors if q.buffers), {})
    return target._rebuild(result, buffers)
