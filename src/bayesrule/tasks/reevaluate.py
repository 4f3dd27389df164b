"""A finished run's posterior, loaded and evaluated again: other metrics, or other data.

Nothing is trained and nothing written into the run's folder. Without changes the metrics are those
of the record, bit by bit: draws, splits and batches are functions of the run's configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bayesrule.config import Config, compose
from bayesrule.config.compose import check_overrides, group_options
from bayesrule.data import DataBundle
from bayesrule.errors import BayesruleError, ConfigError, CorruptFile
from bayesrule.models import build_model
from bayesrule.posteriors import Mixture, Posterior, load_posterior
from bayesrule.runs import RunFolder, RunRecord, sha256_file
from bayesrule.tasks.evaluate import Evaluation, evaluate
from bayesrule.tasks.history import History
from bayesrule.tasks.inference import make_inference
from bayesrule.tasks.inputs import load_inputs
from bayesrule.tasks.problem import Learnt, Problem, make_likelihood
from bayesrule.tasks.signals import StopRequest
from bayesrule.tasks.task import Context, make_task

__all__ = [
    "Reevaluation",
    "changed_config",
    "evaluate_network",
    "export_curvature",
    "finished",
    "reevaluate",
]

_MAY_CHANGE = "data=NAME, data.OPTION=..., metrics.OPTION=..."
_SPLIT_OPTIONS = ("split_seed", "train_size", "test_size", "test_fraction", "val_fraction", "split")


@dataclass
class Reevaluation:
    """What a stored posterior achieves.

    Attributes:
        metrics: By name, ``<split>/<metric>@<rule>``.
        curves: Binned curves.
        data: Description of the data.
        notes: What a reader must know to judge the numbers.
    """

    metrics: dict[str, float]
    curves: dict[str, Any]
    data: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def finished(folder: RunFolder) -> RunRecord:
    """Return the record of a run whose posterior can be evaluated.

    Raises:
        CorruptFile: If the record or a posterior file is damaged, missing or altered.
        BayesruleError: If the run is not done, or has no posterior.
    """
    record = folder.record()
    if record is None:
        raise BayesruleError(
            f"run {folder.id} is not finished; the command that started it goes on with it"
        )
    if record.status != "done":
        reason = f" ({': '.join(record.error)})" if record.error else ""
        raise BayesruleError(
            f"run {folder.id} has {record.status}{reason}; only a finished run is evaluated"
        )
    stored = [name for name in record.files if name.startswith("posterior.")]
    task = str(record.config["task"]["_target_"]).rpartition(".")[2]
    if not stored:
        raise BayesruleError(f"run {folder.id} has no posterior: its task, {task}, leaves none")
    if "data" not in record.config:
        raise BayesruleError(
            f"run {folder.id} learnt from no data set (its task is {task}), and a stored posterior "
            "is evaluated on data sets only; `bayesrule runs show` has its metrics"
        )
    for name in stored:
        path = folder.path / name
        if not path.is_file():
            raise CorruptFile(f"{path} is missing; run {folder.id} had one when it ended")
        if sha256_file(path) != record.files[name]:
            raise CorruptFile(f"{path} was altered or damaged after run {folder.id} ended")
    return record


def changed_config(config: Config, overrides: Sequence[str]) -> Config:
    """Return a run's configuration with other data or metrics.

    Values that are not overridden stay those of the run. ``data=NAME`` starts from that set's own
    options.

    Args:
        config: The run's configuration.
        overrides: Words such as ``data=usps`` or ``metrics.mc_samples=256``.

    Raises:
        ConfigError: If a word changes anything else, or its value does not fit.
    """
    check_overrides(overrides)
    pairs = [word.split("=", 1) for word in overrides]
    for key, _ in pairs:
        if key == "seed":
            raise ConfigError(
                "seed: the run's seed decides which items were held out, so it stays; another seed "
                "is another run (`bayesrule train`)"
            )
        if key.partition(".")[0] not in ("data", "metrics") or key == "data.name":
            raise ConfigError(
                f"'{key}' cannot be changed for a stored posterior; what can: {_MAY_CHANGE}"
            )
    chosen = {key for key, _ in pairs if "." not in key}
    base = []
    if "data" not in chosen:
        name = config["data"]["name"]
        if name not in group_options("data"):
            if any(key.startswith("data.") for key, _ in pairs):
                raise ConfigError(f"data={name} is no longer declared in conf/data")
        else:
            base = [f"data={name}"]
    composed = compose([*base, *overrides])
    out = copy.deepcopy(config)
    for group in ("data", "metrics"):
        if group in chosen:
            out[group] = composed[group]
            continue
        if group == "data" and not base:
            continue
        set_keys = [key.split(".")[1] for key, _ in pairs if key.startswith(f"{group}.")]
        # options that are newer than the run take their defaults
        out[group] = {**composed[group], **out[group]}
        out[group] |= {key: composed[group][key] for key in set_keys}
    return out


def reevaluate(folder: RunFolder, overrides: Sequence[str] = ()) -> Reevaluation:
    """Evaluate the posterior of a finished run.

    Args:
        folder: The run.
        overrides: See `changed_config`.

    Raises:
        BayesruleError: If the run is not done, a file is damaged, or data and model do not fit.
    """
    record = finished(folder)
    before = folder.config()
    config = changed_config(before, overrides)
    torch.set_num_threads(config["trainer"]["threads"])
    posterior = load_posterior(folder.path)
    data = load_inputs(config)
    trained_on = record.details["data"]
    _check_fit(data, trained_on)
    found = make_task(config).evaluate_stored(config, folder, data, posterior, trained_on)
    notes = _notes(before["data"], config["data"], data, trained_on)
    return Reevaluation(found.metrics, found.curves, data.describe(), notes)


def export_curvature(
    folder: RunFolder, out: Path, kind: str, limit: int | None, overrides: Sequence[str] = ()
) -> list[Path]:
    """Write a finished run's mean as a model folder, with the curvature of its training data.

    Args:
        folder: The run.
        out: The folder to write into.
        kind: One of `bayesrule.tasks.merging.curvature.KINDS`.
        limit: Items that the curvature is computed from at most.
        overrides: See `changed_config`; other data give the curvature on those.

    Returns:
        The files.

    Raises:
        BayesruleError: As `reevaluate`; also for posteriors without one mean.
    """
    from bayesrule.tasks.merging.curvature import export

    record = finished(folder)
    config = changed_config(folder.config(), overrides)
    torch.set_num_threads(config["trainer"]["threads"])
    posterior = load_posterior(folder.path)
    if isinstance(posterior, Mixture):
        raise ConfigError("an ensemble has no one model to merge; choose a run of one training")
    trained_on = record.details["data"]
    problem = Problem.from_context(
        Context(config, folder, History(None), StopRequest(), writer=False)
    )
    _check_fit(problem.data, trained_on)
    learnt = _learnt(config, posterior, trained_on)
    return export(problem, learnt.model, posterior, out, kind, limit)


def evaluate_network(
    config: Config,
    folder: RunFolder,
    data: DataBundle,
    posterior: Posterior,
    trained_on: Mapping[str, Any],
) -> Evaluation:
    """Evaluate a posterior over a network's parameters; see `Task.evaluate_stored`."""
    problem = Problem(
        config,
        folder,
        data,
        make_likelihood(data, config["task"].get("noise_std", 1.0)),
        History(None),
        StopRequest(),
    )
    return evaluate(problem, _learnt(config, posterior, trained_on))


def _learnt(config: Config, posterior: Posterior, trained_on: Mapping[str, Any]) -> Learnt:
    """Return the posterior with the network that its draws are put into."""
    model = build_model(
        config["model"],
        input_shape=trained_on["input_shape"],
        n_outputs=trained_on["n_outputs"],
        seed=config["seed"],
    )
    network = make_inference(config["posterior"]).network(model)
    if config["trainer"]["precision"] == "64-true":
        network.double()
    if not isinstance(posterior, Mixture):
        network.load_state_dict(posterior.mean_state(), strict=False)
    return Learnt(network, posterior)


def _check_fit(data: DataBundle, trained_on: dict[str, Any]) -> None:
    """Check that a network trained on one data set can be asked about another.

    Raises:
        ConfigError: If not; the message names what differs.
    """
    own = trained_on["name"]
    if data.kind != trained_on["kind"]:
        raise ConfigError(
            f"data={data.name} is for {data.kind}, the run was trained on {own} "
            f"({trained_on['kind']})"
        )
    there, here = tuple(trained_on["input_shape"]), tuple(data.input_shape)
    fits = here[0] <= there[0] if data.kind == "lm" else here == there
    if not fits:
        raise ConfigError(
            f"data={data.name} has inputs of shape {here}, the run's network takes {there} "
            f"(it was trained on {own})"
        )
    if data.n_outputs != trained_on["n_outputs"]:
        words = {"classification": "classes", "regression": "targets", "lm": "tokens"}[data.kind]
        raise ConfigError(
            f"data={data.name} has {data.n_outputs} {words}, the run's network has "
            f"{trained_on['n_outputs']} (it was trained on {own})"
        )


def _notes(
    before: dict[str, Any], after: dict[str, Any], data: DataBundle, trained_on: dict[str, Any]
) -> list[str]:
    if data.fingerprint == trained_on["fingerprint"]:
        return []
    notes = []
    if data.name != trained_on["name"]:
        notes.append(
            f"inputs of {data.name} are scaled by its own training rows, not by those of "
            f"{trained_on['name']}"
        )
    elif data.source.sha256 != trained_on["source"]["sha256"]:
        notes.append(f"{data.name} has other content now than when the run was made")
    else:
        other = [key for key in _SPLIT_OPTIONS if before.get(key) != after.get(key)]
        if other and not after.get("n_test"):
            notes.append(
                f"data.{other[0]} changes the split: some of these test items may have been "
                "training items of the run"
            )
        if data.scaling != trained_on["scaling"]:
            notes.append("inputs are scaled otherwise than in the run")
    return notes
