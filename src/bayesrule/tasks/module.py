"""The one LightningModule: a network, a likelihood, an optimiser that owns the posterior.

Optimisation is manual: `training_step` hands the optimiser a closure over the whole (global) batch,
so that a method may evaluate it at several points; micro-batches and clipping are inside it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from bayesrule.errors import NonFiniteLoss, Unsupported
from bayesrule.likelihoods import Likelihood
from bayesrule.models import learnt_state
from bayesrule.optim import PosteriorOptimizer

__all__ = ["LearnModule", "Penalty", "forward", "micro_batches"]

_MASKED = -100  # targets that losses ignore

Batch = Mapping[str, Any]
Penalty = Callable[[nn.Module], Tensor | None]


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call the model on a tensor, or by keyword on a mapping of tensors."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _map(fn: Callable[[Any], Any], value: Any) -> Any:
    """Apply `fn` to a tensor, or to every tensor of a mapping."""
    if isinstance(value, Mapping):
        return {name: _map(fn, item) for name, item in value.items()}
    return fn(value)


def micro_batches(batch: Batch, size: int | None) -> Iterator[tuple[Batch, float]]:
    """Split a batch into parts of at most `size` items, with their weights in the mean.

    The mean is over the targets that count: all of them, or the tokens that are not masked.
    """
    total = len(batch["target"])
    if size is None or size >= total:
        yield batch, 1.0
        return
    counted = _counted(batch["target"])
    for start in range(0, total, size):
        part = slice(start, min(start + size, total))
        share = float(counted[part].sum() / counted.sum())
        if share > 0.0:  # a part without a target that counts has no mean
            yield _map(operator.itemgetter(part), batch), share


def _counted(target: Tensor) -> Tensor:
    """Return the number of targets of each item that count, in double precision."""
    if target.is_floating_point() or target.ndim == 1:
        return torch.ones(len(target), dtype=torch.float64)
    return (target != _MASKED).flatten(1).sum(1).double().cpu()


class LearnModule(pl.LightningModule):
    """Learns q by calling ``opt.step(closure)`` once per batch.

    Args:
        model: The network.
        optimizer: Owns the posterior over the network's parameters.
        likelihood: Gives the mean loss.
        factor: Learning-rate factor of the step.
        micro_batch_size: See `micro_batches`.
        clip_grad_norm: Bound on the gradient norm of each sample.
        penalty: A further loss term of the model (a correction for what was learnt before).
        see_gradients: Called with the model whenever its gradients are those of the batch's loss
            alone, before the penalty's are added and before clipping.
        remake: Makes the optimiser anew when the trainer has sharded the network.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: PosteriorOptimizer,
        likelihood: Likelihood,
        factor: Callable[[int], float],
        *,
        micro_batch_size: int | None = None,
        clip_grad_norm: float | None = None,
        penalty: Penalty | None = None,
        see_gradients: Callable[[nn.Module], None] | None = None,
        remake: Callable[[nn.Module], PosteriorOptimizer] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.optimizer = optimizer
        self.likelihood = likelihood
        self.factor = factor
        self.micro_batch_size = micro_batch_size
        self.clip_grad_norm = clip_grad_norm
        self.penalty = penalty
        self.see_gradients = see_gradients
        self.remake = remake
        # a checkpoint does not hold the parameters that stay as the model is built
        self.strict_loading = not getattr(model, "fixed", ())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what a checkpoint keeps: the state without weights that stay as they are."""
        state = super().state_dict(*args, **kwargs)
        if not self.strict_loading:
            kept = {f"model.{name}" for name in learnt_state(self.model)}
            for name in [name for name in state if name not in kept]:
                del state[name]
        return state

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its learning-rate schedule, stepped once per batch."""
        if self.remake is not None:
            self.optimizer = self.remake(self.model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.factor)
        return [self.optimizer], [scheduler]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Run one step of the optimiser on one global batch."""
        optimizer: Any = self.optimizers()
        loss = optimizer.step(self.closure(batch, self.manual_backward))
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        return {"loss": loss}

    def closure(self, batch: Batch, backward: Callable[[Tensor], Any]) -> Callable[[], Tensor]:
        """Return the closure of a step: gradients zeroed, mean loss of the batch, backward.

        Args:
            batch: One global batch.
            backward: What runs a backward pass: the trainer's, or `Tensor.backward` without one.
        """

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            total = torch.zeros((), device=self.device)
            for part, weight in micro_batches(self._own_part(batch), self.micro_batch_size):
                outputs = forward(self.model, part["input"])
                if self.optimizer.observes:
                    self._one_term_per_example(part["target"])
                loss = self.likelihood.loss(outputs, part["target"])
                self._finite(loss, "the likelihood's loss")
                backward(loss * weight)
                total = total + loss.detach() * weight
            if self.see_gradients is not None:
                self.see_gradients(self.model)
            if self.penalty is not None:
                total = total + self._correct(self.penalty, backward)
            if self.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            return total

        return closure

    def _correct(self, penalty: Penalty, backward: Callable[[Tensor], Any]) -> Tensor:
        """Add the gradient of the penalty, whose passes are not over examples of the batch."""
        with self.optimizer.unobserved():
            term = penalty(self.model)
            if term is None:
                return torch.zeros((), device=self.device)
            self._finite(term, "the correction's loss")
            backward(term)
        return term.detach()

    def _own_part(self, batch: Batch) -> Batch:
        """Return the part of the batch that the optimiser's current sample is for."""
        if self.optimizer.batch_split == 1:
            return batch
        return {name: _map(self.optimizer.part, value) for name, value in batch.items()}

    def _one_term_per_example(self, target: Tensor) -> None:
        """Refuse batches whose loss is no mean over examples: squares would be of other terms."""
        mask = self.likelihood.mask(target)
        ignored = mask is not None and not bool(mask.all())
        sequences = self.likelihood.kind == "classification" and not target.is_floating_point()
        if ignored or (sequences and target.ndim > 1 and target[0].numel() > 1):
            what = (
                f"items that do not count (target {self.likelihood.ignore_index})"
                if ignored
                else f"sequences (targets of shape {tuple(target.shape)})"
            )
            raise Unsupported(
                f"{type(self.optimizer).__name__} learns from the gradient of each example's own "
                f"loss, one loss term per example; this batch has {what}, for which its statistics "
                "would be of other terms than the loss's. Choose a posterior that needs gradients "
                "only (ivon, bbb, adamw), or leave those items out of the data"
            )

    def _finite(self, value: Tensor, term: str) -> None:
        if not torch.isfinite(value):
            lr = self.optimizer.param_groups[0]["lr"]
            raise NonFiniteLoss(
                f"{term} is {value.item()} at step {self.global_step + 1} (epoch "
                f"{self.current_epoch + 1}, learning rate {lr:.4g}): training diverged; try a "
                "smaller posterior.lr"
            )
