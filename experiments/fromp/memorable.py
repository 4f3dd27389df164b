"""Which training items are memorable: the pictures, and how often the network is wrong about them.

Not part of the algorithm: a look at its memory (figure 2 of the paper shows such digits).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesrule.corrections import Strategy, select
from bayesrule.corrections.selection import lambda_trace
from bayesrule.posteriors.linear import eval_mode
from bayesrule.tasks.evaluate import Evaluation
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.supervised import Supervised

__all__ = ["Memorable"]


class Memorable(Supervised):
    """Supervised learning that also keeps pictures of the most and the least memorable items.

    Args:
        memory: Items of which the share that the network gets wrong is measured.
        shown: Pictures of each kind per class.
    """

    def __init__(self, memory: int = 40, shown: int = 3) -> None:
        self.memory, self.shown = memory, shown

    def evaluate(self, problem: Problem, learnt: Learnt) -> Evaluation:
        """Add ``memorable/err``, ``memorable/err_least`` and ``memorable/err_all`` (training)."""
        out = super().evaluate(problem, learnt)
        train = problem.data.train
        with eval_mode(learnt.model), torch.no_grad():
            outputs = [learnt.model(batch["input"]) for batch in problem.train_batches()]
        logits_NC, target = torch.cat(outputs), train.targets
        wrong = (logits_NC.argmax(-1) != target).double()
        out.metrics["memorable/err_all"] = float(wrong.mean())
        groups: dict[str, Strategy] = {"most": "lambda_descend", "least": "lambda_ascend"}
        pictures: dict[str, Any] = {}
        for name, strategy in groups.items():
            chosen = select(strategy, self.memory, target=target, logits=logits_NC)
            metric = "memorable/err" if name == "most" else "memorable/err_least"
            out.metrics[metric] = float(wrong[chosen].mean())
            pictures[name] = self._pictures(problem, target, chosen, lambda_trace(logits_NC))
        out.curves["memorable/pictures"] = pictures
        return out

    def _pictures(
        self, problem: Problem, target: Tensor, chosen: Tensor, score: Tensor
    ) -> list[dict[str, Any]]:
        """Return the first few items of each class as rows of whole numbers from 0 to 99."""
        kept = []
        for c in range(problem.data.n_outputs):
            for index in chosen[target[chosen] == c][: self.shown]:
                x = problem.data.train.batch(index[None])["input"][0].reshape(-1, 28)
                pixels = (99 * (x - x.min()) / (x.max() - x.min()).clamp_min(1e-12)).round()
                kept.append(
                    {
                        "class": c,
                        "item": int(index),
                        "score": float(score[index]),
                        "pixels": pixels.int().tolist(),
                    }
                )
        return kept
