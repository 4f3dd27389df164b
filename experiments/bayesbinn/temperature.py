"""BayesBiNN's step beside a straight-through one, for falling temperatures (claim C2).

After a short training at the posterior's own temperature, mini-batches and uniform draws are fixed,
and for each tau the step's increment G = s g(w_tau) is compared with g(sign(lambda + delta)), the
gradient that STE would take at the same binary draw. Everything runs in float32, as training does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from bayesrule.optim import BayesBiNN
from bayesrule.posteriors import Bernoulli, half_logit
from bayesrule.posteriors.bernoulli import sign
from bayesrule.seeding import generator
from bayesrule.tasks.evaluate import Evaluation
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.supervised import Supervised

__all__ = ["Temperatures"]

START = 10.0  # |lambda| at the start in the paper's settings for classification
COLDEST = 1e-10


class Temperatures(Supervised):
    """Supervised learning that also compares BayesBiNN's step with STE's.

    Args:
        taus: Temperatures.
        batches: Mini-batches compared.
    """

    def __init__(self, taus: Sequence[float], batches: int = 10) -> None:
        self.taus, self.batches = [float(tau) for tau in taus], batches

    def evaluate(self, problem: Problem, learnt: Learnt) -> Evaluation:
        """Add ``ste/<measure>_<tau>``.

        ``sign``: share of weights whose increment has the sign of STE's gradient; ``cosine``: of
        g(w_tau) and STE's gradient; ``distance``: mean |w_tau - sign(lambda + delta)|. At the
        paper's start, |lambda| = 10 everywhere, ``ste/cosine_start`` is that of the increment.
        """
        out = super().evaluate(problem, learnt)
        assert isinstance(learnt.posterior, Bernoulli)
        for tau in self.taus:
            for name, value in self._compare(problem, learnt, learnt.posterior, tau).items():
                if name != "increment":
                    out.metrics[f"ste/{name}_{tau:g}"] = value
        start = Bernoulli({name: START * sign(lam) for name, lam in learnt.posterior.lam.items()})
        found = self._compare(problem, learnt, start, COLDEST)
        out.metrics["ste/cosine_start"] = found["increment"]
        out.metrics["ste/sign_start"] = found["sign"]
        return out

    def _compare(
        self, problem: Problem, learnt: Learnt, q: Bernoulli, tau: float
    ) -> dict[str, float]:
        """Return the measures at one temperature, averaged over mini-batches."""
        rows = []
        for index, batch in enumerate(self._some_batches(problem)):
            model = copy.deepcopy(learnt.model).train()
            noise = generator(problem.config["seed"], "temperature", index)
            draws = {n: torch.rand(t.shape, generator=noise) for n, t in q.lam.items()}
            w_tau, g_tau, increment = _relaxed_step(problem, model, q, draws, batch, tau)
            binary = {n: sign(q.lam[n] + half_logit(u)) for n, u in draws.items()}
            ste = _gradient(problem, model, binary, batch)
            flat = [_flat(each) for each in (w_tau, g_tau, increment, binary, ste)]
            rows.append(_measures(*flat))
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def _some_batches(self, problem: Problem) -> Iterator[dict[str, Tensor]]:
        size, train = problem.config["trainer"]["batch_size"], problem.data.train
        for index in range(self.batches):
            first = (index * size) % max(1, len(train) - size)
            yield train.batch(torch.arange(first, first + size))


def _relaxed_step(
    problem: Problem,
    model: nn.Module,
    q: Bernoulli,
    draws: dict[str, Tensor],
    batch: dict[str, Tensor],
    tau: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Take one step of the optimiser and return w_tau, g(w_tau) and s g(w_tau)."""
    ordered = iter(draws.values())
    opt = BayesBiNN(
        model.named_parameters(), lr=1.0, ess=1.0, tau=tau, kl_weight=0.0, binary="all",
        noise=lambda like: next(ordered),
    )  # fmt: skip
    opt.set_posterior(q, model)
    seen: dict[str, Tensor] = {}

    def closure() -> Tensor:
        loss = _loss(problem, model, batch)
        loss.backward()
        seen.update({n: p.detach().clone() for n, p in model.named_parameters()})
        return loss

    opt.step(closure)
    named = dict(model.named_parameters())
    grads = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
    # with ess = 1, no momentum and no prior the momentum is the statistic s g itself
    return seen, grads, {n: opt.state[p]["momentum"].clone() for n, p in named.items()}


def _gradient(
    problem: Problem, model: nn.Module, weights: dict[str, Tensor], batch: dict[str, Tensor]
) -> dict[str, Tensor]:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    model.zero_grad()
    _loss(problem, model, batch).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _loss(problem: Problem, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    forward: Callable[[Tensor], Tensor] = model
    return problem.likelihood.loss(forward(batch["input"]), batch["target"])


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten().double() for t in tensors.values()])


def _measures(
    w_tau: Tensor, g_tau: Tensor, increment: Tensor, binary: Tensor, ste: Tensor
) -> dict[str, float]:
    return {
        "sign": float((increment.sign() == ste.sign()).double().mean()),
        "cosine": float(torch.cosine_similarity(g_tau, ste, dim=0)),
        "increment": float(torch.cosine_similarity(increment, ste, dim=0)),
        "distance": float((w_tau - binary).abs().mean()),
    }
