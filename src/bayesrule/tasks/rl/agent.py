"""The learner: an online Q-network whose posterior an optimiser owns, and a lagging copy of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.errors import NonFiniteLoss
from bayesrule.optim import PosteriorOptimizer
from bayesrule.tasks.rl.losses import Bootstrap, Transitions, follow, q_learning_loss

__all__ = ["Agent"]


def _has_modes(model: nn.Module) -> bool:
    """Return whether training and evaluation mode differ."""
    modules = list(model.modules())
    norms = any(isinstance(module, nn.modules.batchnorm._NormBase) for module in modules)
    return norms or any(
        isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0.0 for module in modules
    )


class Agent:
    """Q-values, how they act, and how one step of learning is taken.

    Args:
        model: The online network, (B, ...) to (B, A).
        optimizer: Owns the posterior over its parameters.
        gamma: Discount.
        bootstrap: The network that values the next state; see `bayesrule.tasks.rl.losses`.
        kappa: Weight of functional regularisation.
        all_actions: Whether it is over all actions.
        scale: Observations are divided by this.
        clip_grad_norm: Bound on the gradient's norm.
        factor: Learning-rate factor of the update.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: PosteriorOptimizer,
        *,
        gamma: float,
        bootstrap: Bootstrap,
        kappa: float,
        all_actions: bool = False,
        scale: float = 1.0,
        clip_grad_norm: float | None = None,
        factor: Callable[[int], float] = lambda step: 1.0,
    ) -> None:
        self.online, self.optimizer = model, optimizer
        self.lagging = copy.deepcopy(model).requires_grad_(False)
        self.lagging.eval()
        self.gamma, self.bootstrap, self.kappa = gamma, bootstrap, kappa
        self.all_actions, self.scale = all_actions, scale
        self.clip_grad_norm, self.factor = clip_grad_norm, factor
        self.updates = 0
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        # switching modes takes as long as a small network's forward pass
        self._has_modes = _has_modes(model)
        self._rates = [group["lr"] for group in optimizer.param_groups]

    # -------------------------------------------------------------------- values

    def _input(self, obs: Tensor) -> Tensor:
        x = obs.to(self.device, self.dtype)
        return x if self.scale == 1.0 else x / self.scale

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """Return Q(s, .) at the posterior's mean, (B, A), in evaluation mode."""
        switch = self.online.training and self._has_modes
        if switch:
            self.online.eval()
        try:
            return self.online(self._input(obs))
        finally:
            if switch:
                self.online.train()

    def greedy(self, obs: Tensor) -> int:
        """Return argmax_a Q(s, a) of one observation."""
        return int(self.values(obs[None]).argmax())

    # ------------------------------------------------------------------ learning

    def learn(self, batch: Transitions) -> float:
        """Take one step of the optimiser on a batch and return the loss.

        Raises:
            NonFiniteLoss: If a term of the loss is not finite; it names the update and the term.
        """
        batch = Transitions(
            self._input(batch.obs),
            batch.action.to(self.device),
            batch.reward.to(self.device, self.dtype),
            self._input(batch.next_obs),
            batch.done.to(self.device, self.dtype),
        )
        factor = self.factor(self.updates)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            split = self.optimizer.batch_split > 1
            loss = q_learning_loss(
                self.online,
                self.lagging,
                batch.map(self.optimizer.part) if split else batch,
                gamma=self.gamma,
                bootstrap=self.bootstrap,
                kappa=self.kappa,
                all_actions=self.all_actions,
            )
            self._finite(loss.td, "the temporal-difference loss")
            if loss.penalty is not None:
                self._finite(loss.penalty, "the functional regularisation")
            total = loss.total
            total.backward()
            if self.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.online.parameters(), self.clip_grad_norm)
            return total.detach()

        loss = self.optimizer.step(closure)
        self.updates += 1
        assert loss is not None
        return float(loss)

    def _finite(self, value: Tensor, term: str) -> None:
        if not torch.isfinite(value):
            lr = self.optimizer.param_groups[0]["lr"]
            raise NonFiniteLoss(
                f"{term} is {value.item()} at update {self.updates + 1} (learning rate {lr:.4g}): "
                "training diverged; try a smaller posterior.lr, a target network "
                "(task.bootstrap=target) or functional regularisation (task.kappa=1)"
            )

    def follow(self, tau: float) -> None:
        """Move the lagging network towards the online one."""
        follow(self.lagging, self.online, tau)

    # --------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return both networks, the optimiser with its noise streams, and the counter."""
        return {
            "online": dict(self.online.state_dict()),
            "lagging": dict(self.lagging.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.online.load_state_dict(state["online"])
        self.lagging.load_state_dict(state["lagging"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = int(state["updates"])
