# ruff: noqa: N802, N815  (shape suffixes in field names)
"""Running sums over posterior draws, batch by batch, for `predict_dataset`.

With weights w_s (1/S for Monte Carlo) and W_S = sum of the first S weights::

    log P_nk     = log sum_s w_s p_s(k | x_n) - log W_S       running log-sum-exp
    E[H]_n       = (1/W_S) sum_s w_s H[p_s(. | x_n)]          the aleatoric part; MI = H[P] - E[H]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesrule.errors import Unsupported

__all__ = ["Predictions"]


@dataclass(frozen=True)
class Predictions:
    """Predictions of a data set, on the CPU; N counts kept items (tokens for sequences).

    Attributes:
        rule: Name of the rule.
        n_samples: S, the number of draws that were averaged (1 for `mean` and the linearised).
        targets: The N targets.
        weights_S: Weights of the draws, summing to one.
        log_probs_NK: Averaged log-probabilities (classification, ``keep="all"``), else None.
        target_log_probs_N: log p(target), where targets are class indices.
        prefixes: Number of draws -> averaged log-probabilities (N, K) of that many draws; with
            ``keep="target"`` the (N,) log-probabilities of the targets.
        expected_entropy_N: Mean entropy of the draws' predictions, in nats; None if linearised.
        vote_NK: Weighted share of the draws that predict class k (``keep="all"``).
        mean_outputs: Weighted mean of the outputs (logits), for energy scores; None where not kept.
        mu_SN: Means of the predictive mixture, (S, N, ...), for regression.
        sigma_SN: Its standard deviations, noise included.
        index: Data indices of the N items if the batches have them (for tokens: of the sequence).
    """

    rule: str
    n_samples: int
    targets: Tensor
    weights_S: Tensor
    log_probs_NK: Tensor | None = None
    target_log_probs_N: Tensor | None = None
    prefixes: dict[int, Tensor] = field(default_factory=dict)
    expected_entropy_N: Tensor | None = None
    vote_NK: Tensor | None = None
    mean_outputs: Tensor | None = None
    mu_SN: Tensor | None = None
    sigma_SN: Tensor | None = None
    index: Tensor | None = None

    @property
    def mutual_information_N(self) -> Tensor:
        """H[P] - E[H], the epistemic part of the predictive entropy (BALD), in nats."""
        if self.log_probs_NK is None or self.expected_entropy_N is None:
            raise Unsupported("mutual information needs all class probabilities of sampled draws")
        P = self.log_probs_NK.double().exp()
        return torch.special.entr(P).sum(-1) - self.expected_entropy_N.double()


class _Order:
    """Keeps targets and indices of the first pass and requires the later passes to agree."""

    def __init__(self) -> None:
        self.first, self.position = True, 0
        self.targets: list[Tensor] = []
        self.index: list[Tensor] = []

    def see(self, targets: Tensor, index: Tensor | None) -> int:
        position = self.position
        if self.first:
            self.targets.append(targets)
            if index is not None:
                self.index.append(index)
        elif position >= len(self.targets) or not torch.equal(self.targets[position], targets):
            raise Unsupported(
                f"batch {position} has other targets than in the first pass: `batches` must give "
                "the same items in the same order for every draw (shuffling off)"
            )
        self.position += 1
        return position

    def end(self) -> None:
        if self.position == 0:
            raise Unsupported("`batches` gave nothing to predict")
        if self.position != len(self.targets):
            raise Unsupported(
                f"`batches` gave {self.position} batches after {len(self.targets)} in the first "
                "pass: it must give the same items for every draw (a generator that is used up?)"
            )
        self.first, self.position = False, 0

    def all_index(self) -> Tensor | None:
        return torch.cat(self.index) if self.index else None


def _cpu(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().cpu()


@dataclass
class _Item:
    """Running sums of one batch."""

    log_sum: Tensor
    entropy: Tensor
    vote: Tensor | None
    outputs: Tensor | None


class ClassCollector:
    """Collects log-probabilities of class predictions over draws."""

    def __init__(self, rule: str, prefixes: Sequence[int], keep: str, ignore: int | None) -> None:
        self.rule, self.wanted, self.keep, self.ignore = rule, set(prefixes), keep, ignore
        self.order = _Order()
        self.sums: list[_Item] = []
        self.current: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []
        self.weights: list[float] = []
        self.kept: dict[int, Tensor] = {}
        self.sampled = True

    def add(self, log_probs: Tensor, batch: Mapping[str, Any], outputs: Tensor | None) -> None:
        """Take the log-probabilities of one batch under the current draw."""
        targets = _cpu(batch["target"])
        K = log_probs.shape[-1]
        rows = log_probs.reshape(-1, K)
        targets, keep_rows = self._align(targets, log_probs)
        index = batch.get("index")
        if index is not None:
            index = _cpu(index)
            index = index.repeat_interleave(len(keep_rows) // max(1, len(index)))[keep_rows]
        self.order.see(targets[keep_rows], index)
        device_rows = keep_rows.to(rows.device)
        rows = rows[device_rows]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        entropy = torch.special.entr(rows.exp()).sum(-1).cpu()
        targets = targets[keep_rows]
        vote = logits = None
        if self.keep == "target":
            self._require_indices(targets, "keep='target'")
            rows = rows.gather(-1, targets.to(rows.device).unsqueeze(-1))
        else:
            vote = torch.nn.functional.one_hot(rows.argmax(-1), K).to(rows.dtype).cpu()
            if outputs is not None:
                logits = outputs.reshape(len(keep_rows), -1)[device_rows].to(rows.dtype).cpu()
        self.sampled = self.sampled and outputs is not None
        self.current.append((rows.cpu(), entropy, vote, logits))

    def _align(self, targets: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return flat targets and the mask of items to keep."""
        items = log_probs.shape[:-1]
        if targets.shape == log_probs.shape and targets.is_floating_point():
            soft = targets.reshape(-1, log_probs.shape[-1])
            return soft, torch.ones(len(soft), dtype=torch.bool)
        if targets.numel() != items.numel():
            raise Unsupported(
                f"targets of shape {tuple(targets.shape)} do not fit predictions of shape "
                f"{tuple(log_probs.shape)}: one class index per item is needed"
            )
        flat = targets.reshape(-1).long()
        keep = torch.ones_like(flat, dtype=torch.bool)
        return flat, keep if self.ignore is None else flat != self.ignore

    @staticmethod
    def _require_indices(targets: Tensor, what: str) -> None:
        if targets.is_floating_point():
            raise Unsupported(f"{what} needs class indices as targets, not soft labels")

    def end_of_draw(self, weight: float) -> None:
        """Fold the current draw into the running sums."""
        self.order.end()
        log_w = math.log(weight) if weight > 0 else -math.inf
        for b, (rows, entropy, vote, logits) in enumerate(self.current):
            new = rows + log_w
            if len(self.sums) <= b:
                self.sums.append(
                    _Item(
                        new,
                        weight * entropy,
                        None if vote is None else weight * vote,
                        None if logits is None else weight * logits,
                    )
                )
                continue
            item = self.sums[b]
            item.log_sum = torch.logaddexp(item.log_sum, new)
            item.entropy = item.entropy + weight * entropy
            item.vote = None if item.vote is None or vote is None else item.vote + weight * vote
            item.outputs = (
                None if item.outputs is None or logits is None else item.outputs + weight * logits
            )
        self.current = []
        self.weights.append(weight)
        if len(self.weights) in self.wanted:
            self.kept[len(self.weights)] = self._averaged()

    def _averaged(self) -> Tensor:
        rows = torch.cat([item.log_sum for item in self.sums]) - math.log(sum(self.weights))
        return rows.squeeze(-1) if self.keep == "target" else rows

    def finish(self) -> Predictions:
        """Return the predictions over all draws."""
        rows, W = self._averaged(), sum(self.weights)
        targets = torch.cat(self.order.targets)
        target_rows: Tensor | None = None
        if self.keep == "target":
            target_rows = rows
        elif not targets.is_floating_point():
            target_rows = rows.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        votes = [item.vote for item in self.sums if item.vote is not None]
        outputs = [item.outputs for item in self.sums if item.outputs is not None]
        return Predictions(
            rule=self.rule,
            n_samples=len(self.weights),
            targets=targets,
            weights_S=torch.tensor(self.weights, dtype=torch.float64) / W,
            log_probs_NK=None if self.keep == "target" else rows,
            target_log_probs_N=target_rows,
            prefixes=self.kept,
            expected_entropy_N=(
                torch.cat([item.entropy for item in self.sums]) / W if self.sampled else None
            ),
            vote_NK=torch.cat(votes) / W if votes else None,
            mean_outputs=torch.cat(outputs) / W if outputs else None,
            index=self.order.all_index(),
        )


class MomentCollector:
    """Collects means and standard deviations of regression predictions over draws."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self.order = _Order()
        self.current: list[tuple[Tensor, Tensor]] = []
        self.mu: list[Tensor] = []
        self.sigma: list[Tensor] = []
        self.weights: list[float] = []

    def add(self, mu: Tensor, sigma: Tensor, batch: Mapping[str, Any]) -> None:
        """Take the moments of one batch under the current draw."""
        targets = _cpu(batch["target"])
        if targets.numel() != mu.numel():
            raise Unsupported(
                f"targets of shape {tuple(targets.shape)} do not fit predictions of shape "
                f"{tuple(mu.shape)}"
            )
        index = batch.get("index")
        self.order.see(targets, None if index is None else _cpu(index))
        self.current.append((_cpu(mu).reshape(targets.shape), _cpu(sigma).reshape(targets.shape)))

    def end_of_draw(self, weight: float) -> None:
        """Close the current draw."""
        self.order.end()
        self.mu.append(torch.cat([mu for mu, _ in self.current]))
        self.sigma.append(torch.cat([sigma for _, sigma in self.current]))
        self.current = []
        self.weights.append(weight)

    def finish(self) -> Predictions:
        """Return the predictive mixture over all draws."""
        return Predictions(
            rule=self.rule,
            n_samples=len(self.weights),
            targets=torch.cat(self.order.targets),
            weights_S=torch.tensor(self.weights, dtype=torch.float64) / sum(self.weights),
            mu_SN=torch.stack(self.mu),
            sigma_SN=torch.stack(self.sigma),
            index=self.order.all_index(),
        )
