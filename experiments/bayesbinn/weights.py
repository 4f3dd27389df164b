"""Are the evaluated networks binary? Counted over all of a network's parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bayesrule.seeding import generator
from bayesrule.tasks.evaluate import Evaluation
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.supervised import Supervised

__all__ = ["BinaryWeights"]

DRAWS = 4


class BinaryWeights(Supervised):
    """Supervised learning that also counts how many weights of its predictors are binary."""

    def evaluate(self, problem: Problem, learnt: Learnt) -> Evaluation:
        """Add ``weights/binary`` (of the plug-in network) and ``weights/binary_draws``."""
        out = super().evaluate(problem, learnt)
        q, seed = learnt.posterior, problem.config["seed"]
        plug_in = q.mode_state() if q.own_mode else q.mean_state()
        draws = [q.nth_sample_state(s, generator(seed, "weights", s)) for s in range(DRAWS)]
        out.metrics["weights/binary"] = self._share(learnt, plug_in)
        out.metrics["weights/binary_draws"] = min(self._share(learnt, draw) for draw in draws)
        return out

    @staticmethod
    def _share(learnt: Learnt, state: Mapping[str, Tensor]) -> float:
        """Return the share of the network's parameters that are exactly -1 or +1 in `state`."""
        own = dict(learnt.model.named_parameters())
        tensors = [state.get(name, parameter).detach() for name, parameter in own.items()]
        binary = sum(int((t.abs() == 1).sum()) for t in tensors)
        return binary / sum(t.numel() for t in tensors)
