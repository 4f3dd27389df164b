"""MC dropout as a posterior: a point estimate whose draws are dropout masks.

p(y | x) ~ 1/S sum_s p(y | f(x; theta, mask_s))        (Gal & Ghahramani 2016, arXiv:1506.02142)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bayesrule.errors import Unsupported
from bayesrule.posteriors.base import Posterior
from bayesrule.posteriors.params import Params

__all__ = ["DropoutPosterior"]


class DropoutPosterior(Posterior):
    """A parameter vector, with the model's dropout layers left on when a draw is asked for.

    The draw is a mask inside the forward pass, not a parameter vector, so there is no `log_prob`,
    entropy or algebra. In prediction, draw s runs all batches inside one forked random state that
    is seeded with ``child_seed(seed, "predict", s)``: the masks are independent over items,
    reproducible for the same batches in the same order, and leave the global random state as it
    was. The rule `mean` predicts with dropout off.

    Args:
        state: The parameters, by name.
        p: Probability that replaces the layers' own while drawing; None keeps theirs.
        buffers: Non-random companions.

    Raises:
        Unsupported: `p` is outside [0, 1).
    """

    family: ClassVar[str] = "dropout"

    def __init__(
        self,
        state: Mapping[str, Tensor],
        p: float | None = None,
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(state, buffers)
        if p is not None and not 0.0 <= p < 1.0:
            raise Unsupported(f"the dropout probability must lie in [0, 1), not {p}")
        self.p = p

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Refuse: a draw is a mask in the forward pass."""
        del generator, n
        raise Unsupported(
            "DropoutPosterior has no parameter draws: its draws are masks inside the forward pass. "
            "Predict with it (rule 'mc<K>'), or use `sample_state` inside `sampling`"
        )

    def sample_state(self, generator: torch.Generator | None = None) -> Params:
        """Return the parameters with the buffers; the randomness is added by `sampling`."""
        del generator
        return self.mean_state()

    def sampling(self, model: nn.Module, seed: int) -> AbstractContextManager[None]:
        """Return the context that runs the model's dropout layers, with masks from `seed`.

        Raises:
            Unsupported: No dropout layer of the model would drop anything.
        """
        return self._masks(model, seed)

    @contextmanager
    def _masks(self, model: nn.Module, seed: int) -> Iterator[None]:
        layers = [module for module in model.modules() if isinstance(module, _DropoutNd)]
        if not any((layer.p if self.p is None else self.p) > 0 for layer in layers):
            raise Unsupported(
                f"{type(model).__name__} has no dropout layer with p > 0, so all draws would be "
                "equal; give the model dropout layers"
            )
        before = [(layer, layer.training, layer.p) for layer in layers]
        devices = sorted({t.device.index or 0 for t in model.parameters() if t.is_cuda})
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(seed)
            try:
                for layer in layers:
                    layer.train()
                    layer.p = layer.p if self.p is None else self.p
                yield
            finally:
                for layer, training, p in before:
                    layer.training, layer.p = training, p

    def _groups(self) -> dict[str, Params]:
        return {"mean": self._mean, "buffers": self._buffers}

    def _hyper(self) -> dict[str, Any]:
        return {"p": self.p}

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        return cls(groups["mean"], hyper["p"], buffers=groups["buffers"])
