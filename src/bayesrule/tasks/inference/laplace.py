"""The Laplace approximation: a Gaussian at the trained parameters with GGN precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from bayesrule.curvature import laplace
from bayesrule.errors import Unsupported
from bayesrule.tasks.inference.base import Inference, Measure, Single, with_buffers
from bayesrule.tasks.problem import Learnt, Problem

__all__ = ["Laplace"]


class Laplace(Inference):
    """q = N(mode, (GGN + prior_prec I)^-1) with a diagonal, Kronecker or last-layer GGN.

    Args:
        base: How the mode is found.
        structure: ``diag``, ``kron`` or ``last_layer``.
        prior_prec: Precision of the Gaussian prior; None maximises the Laplace evidence.
    """

    vectors = 1

    def __init__(
        self,
        base: Single,
        structure: Literal["diag", "kron", "last_layer"],
        prior_prec: float | None,
    ) -> None:
        self.base, self.structure, self.prior_prec = base, structure, prior_prec

    def optimizers(self) -> list[Mapping[str, Any]]:
        """Return the base's configuration."""
        return self.base.optimizers()

    def learn(self, problem: Problem, *, member: int = 0, measure: Measure | None = None) -> Learnt:
        """Train, then sum the curvature over the training data.

        Raises:
            Unsupported: For language models, before anything is trained.
        """
        if problem.data.kind == "lm":
            raise Unsupported(
                "the Laplace approximations need one output vector per item, and a language model "
                "gives one per token; use another posterior, such as ivon, swag or deep_ensemble"
            )
        model, _ = self.base.train(problem, problem.model(member), member)
        posterior = laplace(
            model,
            problem.likelihood,
            problem.train_batches,
            structure=self.structure,
            prior_prec=self.prior_prec,
        )
        return Learnt(model, with_buffers(posterior, model))
