"""task=gp: a sparse Gaussian process, its inference by EM, its evaluation, its plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesrule.config import Config, accepted, cache_dir, locate
from bayesrule.data import DataBundle, load_data, planned_sizes, random_like
from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.models import count_parameters
from bayesrule.posteriors import FullGaussian, Posterior, save_posterior
from bayesrule.posteriors.inducing import InducingGaussian
from bayesrule.runs import CheckpointFolder, RunFolder
from bayesrule.tasks.devices import training_device
from bayesrule.tasks.evaluate import Evaluation
from bayesrule.tasks.gp.em import PHASE, ExpectationMaximisation, Schedule
from bayesrule.tasks.gp.evaluate import Predictor, evaluate_split, items
from bayesrule.tasks.gp.inference import SparseInference
from bayesrule.tasks.gp.likelihoods import check_likelihood, make_observation
from bayesrule.tasks.gp.model import GaussianProcess, choose_inducing, make_kernel
from bayesrule.tasks.history import History
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

if TYPE_CHECKING:
    from bayesrule.tasks.plan import ArmPlan

__all__ = ["GaussianProcessTask", "stored_posterior"]


@dataclass
class GaussianProcessTask(Task):
    """Learns a kernel and q(u) from a table (images are flattened).

    Attributes:
        likelihood: One of `bayesrule.tasks.gp.likelihoods.LIKELIHOODS`, or ``auto``.
        noise: First noise variance.
        deg_free: First degrees of freedom (Student-t).
        likelihood_samples: Draws per datum (softmax).
        iterations: Outer iterations.
        e_steps: E-steps of each.
        m_steps: M-steps of each, but for the last.
        lr: Adam's learning rate in M-steps.
        batch_size: Items of a step; None: all.
        curve_from: First iteration of ``train/elbo_mean``.
    """

    likelihood: str
    noise: float
    deg_free: float
    likelihood_samples: int
    iterations: int
    e_steps: int
    m_steps: int
    lr: float
    batch_size: int | None
    curve_from: int

    def run(self, context: Context) -> Outcome:
        """Learn, save q(u) with the model, evaluate."""
        config = context.config
        self.check(config)
        inference = make_sparse_inference(config)
        schedule = self.schedule(config, inference)
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        em = self.learner(config, data, inference, schedule, context.history)
        em.run(
            CheckpointFolder(context.folder.path / "checkpoints" / PHASE),
            context.stop,
            seconds=config["trainer"]["checkpoint_seconds"],
            progress=config["trainer"]["progress"] and context.writer,
        )
        predictor = _predictor(em, config)
        save_posterior(stored_posterior(em), context.folder.path)
        found = _evaluate(predictor, data, config)
        curve = [b for b in em.bounds[self.curve_from :] if math.isfinite(b)] or em.bounds[-1:]
        found.metrics["train/elbo"] = em.bounds[-1]
        found.metrics["train/elbo_mean"] = sum(curve) / len(curve)
        details = {
            "data": data.describe(),
            "parameters": _count(em.gp),
            "steps": schedule.total,
            "model": em.gp.summary(),
            "curves": found.curves,
        }
        return Outcome(found.metrics, details)

    def check(self, config: Config) -> None:
        """Refuse what Lightning and networks have options for and a Gaussian process has not."""
        trainer, metrics = config["trainer"], config["metrics"]
        default = "leave it at its default"
        wrong = {
            "trainer.devices": (
                trainer["devices"] * trainer["nodes"] > 1,
                "it runs in one process; raise trainer.threads",
            ),
            "trainer.precision": (
                trainer["precision"] != "64-true",
                "kernel matrices need float64, so leave it at 64-true",
            ),
            "trainer.micro_batch_size": (
                trainer["micro_batch_size"] is not None,
                "task.batch_size is the batch of a step",
            ),
            "trainer.clip_grad_norm": (trainer["clip_grad_norm"] is not None, default),
            "trainer.compile": (trainer["compile"], default),
            "callbacks.patience": (
                config["callbacks"]["patience"] is not None,
                "task.iterations is the length of a run",
            ),
            "metrics.linearised": (metrics["linearised"], default),
            "metrics.curvature": (metrics["curvature"], default),
        }
        for key, (is_set, hint) in wrong.items():
            if is_set:
                raise ConfigError(f"{key} has no meaning for task=gp: {hint}")
        self.schedule(config, make_sparse_inference(config))

    def schedule(self, config: Config, inference: SparseInference) -> Schedule:
        """Return the EM schedule of a configuration; the collapsed bound has no E-steps.

        Raises:
            ConfigError: If nothing would be done, or a method has no mini-batches.
        """
        e_steps = self.e_steps if inference.has_e_step else 0
        if inference.full_batch_only and self.batch_size is not None:
            raise ConfigError(
                "task.batch_size: the collapsed bound (posterior=sgpr) is not a sum over data, so "
                "it has no mini-batches; use dual_svgp or svgp_natgrad"
            )
        if e_steps + self.m_steps == 0 or (e_steps == 0 and self.iterations == 1):
            raise ConfigError(
                "task.m_steps and task.iterations: posterior=sgpr has no E-steps, and the last "
                "iteration no M-steps, so nothing would be learnt"
            )
        limit = config["trainer"]["max_steps"]
        return Schedule(self.iterations, e_steps, self.m_steps, self.lr, self.batch_size, limit)

    def model(self, config: Config, data: DataBundle, inputs_ND: Tensor) -> GaussianProcess:
        """Return the freshly initialised process.

        Args:
            config: The configuration.
            data: The data set.
            inputs_ND: Training inputs, flat, float64.
        """
        options = config["model"]
        inducing = choose_inducing(
            inputs_ND.cpu(), options["inducing"], options["inducing_init"], config["seed"]
        )
        return self._around(config, data.kind, data.n_outputs, inducing)

    def _around(
        self, config: Config, kind: str, n_outputs: int, inducing: Tensor
    ) -> GaussianProcess:
        options = config["model"]
        observation = make_observation(
            self.likelihood,
            kind=kind,
            n_outputs=n_outputs,
            noise=self.noise,
            deg_free=self.deg_free,
            samples=self.likelihood_samples,
        )
        return GaussianProcess(
            make_kernel(options, inducing.shape[1]),
            inducing,
            observation,
            jitter=options["jitter"],
            train_inducing=options["train_inducing"],
            constant_mean=options["mean"] == "constant",
        )

    def learner(
        self,
        config: Config,
        data: DataBundle,
        inference: SparseInference,
        schedule: Schedule,
        history: History,
    ) -> ExpectationMaximisation:
        """Return the EM loop on the training split, nothing done yet.

        Raises:
            ConfigError: If likelihood, data and method do not go together.
        """
        device = training_device(config["trainer"]["accelerator"])
        inputs, targets = items(data.train, device)
        if self.likelihood == "poisson" and bool((targets != targets.round().abs()).any()):
            raise ConfigError(
                f"task.likelihood=poisson needs counts, and {data.name} has targets that are not: "
                "choose another set or likelihood (data.standardise_target=false keeps counts)"
            )
        if data.kind == "classification" and data.n_outputs == 2:
            targets = targets if self.likelihood == "softmax" else targets.double()
        em = ExpectationMaximisation(
            self.model(config, data, inputs).to(device),
            inference,
            inputs,
            targets,
            schedule,
            config["seed"],
            config["metrics"]["batch_size"],
            history,
        )
        em.measure = lambda iteration: self._measure(em, data, config, iteration)
        return em

    def _measure(
        self, em: ExpectationMaximisation, data: DataBundle, config: Config, iteration: int
    ) -> Mapping[str, float]:
        every = config["trainer"]["eval_every"]
        if every is None or (iteration + 1) % every:
            return {}
        out = Evaluation()
        name, split = ("val", data.val) if data.val is not None else ("test", data.test)
        cfg = {**config["metrics"], "ece_null_draws": 0}
        evaluate_split(_predictor(em, config), data, name, split, cfg, out)
        return out.metrics

    # ------------------------------------------------------------------ beside the run

    def evaluate_stored(
        self,
        config: Config,
        folder: RunFolder,
        data: DataBundle,
        posterior: Posterior,
        trained_on: Mapping[str, Any],
    ) -> Evaluation:
        """Rebuild the process from the posterior's companions and evaluate it."""
        state = {
            name.removeprefix("gp."): tensor
            for name, tensor in posterior.buffers.items()
            if name.startswith("gp.")
        }
        gp = self._around(config, data.kind, data.n_outputs, state["inducing"])
        gp.load_state_dict(state)
        gp.to(training_device(config["trainer"]["accelerator"]))
        kept = [posterior.buffers[f"q.{part}"] for part in ("mean", "half", "logdet")]
        with torch.no_grad():
            chol = gp.chol()
        q = InducingGaussian(*(tensor.to(chol.device) for tensor in kept))
        cfg = config["metrics"]
        predictor = Predictor(gp, chol, q, cfg["batch_size"], config["seed"], cfg["mc_samples"])
        found = _evaluate(predictor, data, config)
        if data.fingerprint == trained_on["fingerprint"]:  # not computed again: they are the run's
            record = folder.record()
            assert record is not None
            names = ("train/elbo", "train/elbo_mean")
            found.metrics.update({name: record.metrics[name] for name in names})
        return found

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return steps, parameters (model and moments of q(u)) and memory, from declared numbers.

        Memory is an upper estimate in closed form: a step with its gradients holds about eight
        copies of the (M, M) kernel matrix, of the (P, M, M) sites, of the (M, B) features and of
        the (P, M, B) half-products.
        """
        del counted
        self.check(config)
        inference = make_sparse_inference(config)
        schedule = self.schedule(config, inference)
        data = random_like(config["data"], n_items=2)
        check_likelihood(self.likelihood, data.kind, data.n_outputs)
        n_train = planned_sizes(config["data"])["train"]
        M = config["model"]["inducing"]
        if n_train < M:
            raise ConfigError(
                f"model.inducing={M}: data={data.name} has {n_train} training rows only"
            )
        gp = self._around(
            config, data.kind, data.n_outputs, torch.zeros(M, math.prod(data.input_shape))
        )
        P, B, parameters = gp.n_latents, min(self.batch_size or n_train, n_train), _count(gp)
        learnt = count_parameters(gp, trainable_only=True)
        held = 8 * (1 + P) * M * (M + B) + n_train * math.prod(data.input_shape)
        return Requirements(
            n_train=n_train,
            steps=schedule.total,
            parameters=parameters,
            vectors=StepVectors(round(2 * learnt / parameters, 1), round(held / parameters, 1)),
        )

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Take an E-step, an M-step and an E-step on random data, and predict once."""
        config = {**plan.config, "trainer": {**plan.config["trainer"], "accelerator": "cpu"}}
        inference = make_sparse_inference(config)
        size = min(self.batch_size or plan.n_train, 200)
        n_items = 2 * max(size, config["model"]["inducing"])
        batch = None if self.batch_size is None else size
        e_steps = 1 if inference.has_e_step else 0
        schedule = Schedule(2, e_steps, 1, self.lr, batch)
        data = random_like(config["data"], seed=config["seed"], n_items=n_items)
        if self.likelihood == "poisson":
            data.train.targets.abs_().round_()
            data.test.targets.abs_().round_()
        em = self.learner(config, data, inference, schedule, History(None))
        em.start()
        for step in range(schedule.total):
            em.step(step)
        predictor = _predictor(em, config)
        out = Evaluation()
        evaluate_split(predictor, data, "test", data.test, config["metrics"], out)
        value = out.metrics[f"test/nll@{predictor.rule}"]
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the test NLL after one step of each kind is {value}")
        return [] if n_items >= plan.n_train else [f"items {plan.n_train} -> {n_items}"]


def make_sparse_inference(config: Config) -> SparseInference:
    """Return the inference that a configuration's posterior names."""
    options = config["posterior"]
    target: Any = locate(options["_target_"], "posterior._target_")
    made: SparseInference = target(**accepted(target, options))
    return made


def stored_posterior(em: ExpectationMaximisation) -> FullGaussian:
    """Return q(u) as a value: N(L mean, (L^-T Sigma^-1 L^-1)^-1), block by latent process.

    Its companions are the model's state (``gp.``) and q(v) itself (``q.``), from which predictions
    are rebuilt bit by bit.
    """
    chol, q = em.posterior()
    eye = torch.eye(len(chol), dtype=chol.dtype, device=chol.device)
    inverse = torch.linalg.solve(q.half.mT, torch.linalg.solve_triangular(chol, eye, upper=False))
    blocks = inverse.mT @ inverse
    buffers = {f"gp.{name}": tensor for name, tensor in em.gp.state_dict().items()}
    buffers |= {"q.mean": q.mean, "q.half": q.half, "q.logdet": q.logdet}
    precision = torch.block_diag(*blocks)
    return FullGaussian({"u": q.mean @ chol.mT}, precision, buffers=buffers)


def _predictor(em: ExpectationMaximisation, config: Config) -> Predictor:
    cfg = config["metrics"]
    chol, q = em.posterior()
    return Predictor(em.gp, chol, q, cfg["batch_size"], config["seed"], cfg["mc_samples"])


def _evaluate(predictor: Predictor, data: DataBundle, config: Config) -> Evaluation:
    out, cfg = Evaluation(), config["metrics"]
    splits = {"test": data.test, "val": data.val}
    if cfg["train_split"]:
        splits["train"] = data.train
    for name, split in splits.items():
        if split is not None:
            evaluate_split(predictor, data, name, split, cfg, out)
    return out


def _count(gp: GaussianProcess) -> int:
    """Return the numbers that are learnt: of the model, and mean and covariance of q(u)."""
    M = gp.n_inducing
    return count_parameters(gp, trainable_only=True) + gp.n_latents * (M + M * (M + 1) // 2)
