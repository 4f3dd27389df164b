"""The training routine: what a stop, a monitor and a logger that fails do."""

import signal
import warnings

import pytest
import torch

from bayesrule.config import compose
from bayesrule.errors import ConfigError, Unsupported
from bayesrule.likelihoods import Categorical
from bayesrule.optim import BBB, VOGN, AdamW
from bayesrule.runs import RunFolder, RunStore
from bayesrule.tasks import supervised
from bayesrule.tasks.callbacks import Checkpointing
from bayesrule.tasks.execute import execute
from bayesrule.tasks.history import History
from bayesrule.tasks.module import LearnModule, micro_batches
from bayesrule.tasks.signals import Stopped, StopRequest

SMALL = ["trainer.epochs=4", "metrics.mc_samples=2", "metrics.prefixes=[1]",
         "metrics.ece_null_draws=0", "trainer.progress=false"]  # fmt: skip


def test_micro_batches_cover_the_batch_with_weights_that_sum_to_one():
    batch = {"input": {"a": torch.arange(10), "b": torch.arange(20).view(10, 2)},
             "target": torch.arange(10)}  # fmt: skip
    parts = list(micro_batches(batch, 4))
    assert [len(part["target"]) for part, _ in parts] == [4, 4, 2]
    assert sum(weight for _, weight in parts) == pytest.approx(1.0)
    assert torch.equal(torch.cat([p["input"]["b"] for p, _ in parts]), batch["input"]["b"])
    assert [w for _, w in micro_batches(batch, None)] == [1.0]


def test_micro_batches_of_masked_texts_weigh_the_tokens_that_count():
    """The mean over all tokens that count is the weighted mean of the parts' means."""
    target = torch.tensor([[1, -100, -100], [2, 0, 1], [-100, -100, -100], [-100, -100, -100]])
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    batch = {"input": logits, "target": target}
    likelihood = Categorical()
    parts = list(micro_batches(batch, 1))
    assert [weight for _, weight in parts] == [0.25, 0.75]
    total = sum(w * likelihood.loss(p["input"], p["target"]) for p, w in parts)
    torch.testing.assert_close(total, likelihood.loss(logits, target))


def test_a_split_batch_is_refused_where_it_does_not_divide_and_changes_the_numbers(tmp_path):
    words = [*SMALL, "posterior=sam", "data.train_size=120", "trainer.epochs=1"]
    store = RunStore(tmp_path)
    whole = execute(compose([*words, "trainer.batch_size=40"]), store)
    split = execute(compose([*words, "trainer.batch_size=40", "posterior.batch_split=4"]), store)
    assert whole.status == split.status == "done"
    assert whole.metrics["test/nll@mean"] != split.metrics["test/nll@mean"]
    config = compose([*words, "trainer.batch_size=117", "posterior.batch_split=4"])
    with pytest.raises(ConfigError, match=r"smallest batch of a process has 3 items"):
        execute(config, store)


def test_a_signal_while_a_run_is_evaluated_stops_what_comes_after_it(tmp_path, monkeypatch):
    measured = supervised.evaluate

    def interrupted(problem, learnt):
        signal.raise_signal(signal.SIGTERM)
        return measured(problem, learnt)

    monkeypatch.setattr(supervised, "evaluate", interrupted)
    store, config = RunStore(tmp_path), compose([*SMALL, "trainer.epochs=1"])
    with pytest.raises(Stopped) as stopped:
        execute(config, store)
    assert stopped.value.exit_code == 143
    assert store.folder(config).record().status == "done"
    assert execute(config, store).status == "done"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_a_signal_at_the_end_of_an_epoch_stops_after_a_checkpoint(
    tmp_path, monkeypatch, signum, hook
):
    saving = getattr(Checkpointing, hook)

    def interrupted(self, trainer, *rest):
        saving(self, trainer, *rest)
        if trainer.current_epoch == 0 and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            signal.raise_signal(signum)

    monkeypatch.setattr(Checkpointing, hook, interrupted)
    store, config = RunStore(tmp_path), compose([*SMALL, "trainer.epochs=2"])
    with pytest.raises(Stopped):
        execute(config, store)
    assert store.folder(config).record().status == "stopped"
    assert list(store.folder(config).path.glob("checkpoints/*/step-*.ckpt"))


def test_early_stopping_needs_a_monitor_that_is_measured(tmp_path):
    words = [*SMALL, "callbacks=early_stopping", "trainer.eval_every=1"]
    with pytest.raises(ConfigError, match=r"val/nll@mean is not measured"):
        execute(compose(words), RunStore(tmp_path))


def test_early_stopping_stops(tmp_path):
    words = [*SMALL, "callbacks=early_stopping", "callbacks.patience=2", "trainer.eval_every=1",
             "data.val_fraction=0.2", "posterior=sgd", "posterior.lr=1e-12",
             "posterior.momentum=0", "trainer.epochs=9", "trainer.schedule=constant"]  # fmt: skip
    record = execute(compose(words), RunStore(tmp_path))
    rows = RunStore(tmp_path).get(record.id).history()
    epochs = [row["epoch"] for row in rows if "val/nll@mean" in row]
    assert record.status == "done"
    assert len(epochs) < 9


def test_a_logger_that_fails_never_stops_training_and_is_finished_all_the_same(tmp_path):
    class Broken:
        closed = 0

        def log(self, number, row):
            raise OSError("no network")

        def summary(self, metrics, details):
            raise AssertionError("was left out after its first failure")

        def close(self):
            self.closed += 1
            raise OSError("no network")

    broken = Broken()
    history = History(None, [broken])
    with pytest.warns(UserWarning, match="Broken failed and is left out: no network"):
        history.append({"phase": "train", "step": 1, "epoch": 0, "train/loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history.summary({}, {})
        history.close()
        history.close()
    assert broken.closed == 1


def test_other_loggers_are_told_every_row_of_the_file_once_in_order(tmp_path):
    class Told(list):
        def log(self, number, row):
            self.append((number, row["step"]))

        def summary(self, metrics, details):
            self.append("summary")

        def close(self):
            self.append("close")

    def row(step):
        return {"phase": "train", "step": step, "epoch": 0, "train/loss": 0.5}

    folder = RunFolder(tmp_path, "0" * 16)
    first = History(folder, [])
    first.append(row(1))
    length = first.sync()
    first.append(row(2))  # after the checkpoint, then killed
    first.close()
    told = Told()
    second = History(folder, [told])
    second.rewind(length)
    second.append(row(2))
    second.rewind(length)  # a phase that starts again writes the same rows
    second.append(row(2))
    second.append(row(3))
    second.summary({}, {})
    second.close()
    assert told == [(0, 1), (1, 2), (2, 3), "summary", "close"]
    finished = Told()
    third = History(folder, [finished])  # killed before its record: nothing is trained again
    third.summary({}, {})
    third.close()
    assert finished == [(0, 1), (1, 2), (2, 3), "summary", "close"]


def test_a_second_interrupt_does_not_wait():
    request = StopRequest()
    request._receive(signal.SIGINT, None)
    assert request.signum == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        request._receive(signal.SIGINT, None)


def test_curvature_comparison_is_exact_for_a_posterior_with_the_ggn(tmp_path):
    words = ["posterior=ivon", "metrics.curvature=true", "model.hidden=[]", *SMALL]
    metrics = execute(compose(words), RunStore(tmp_path)).metrics
    assert -1.0 <= metrics["curvature/spearman"] <= 1.0
    refused = execute(compose(["posterior=sgd", *words[1:]]), RunStore(tmp_path))
    assert refused.status == "failed"
    assert "has none" in refused.error[1]


def test_masked_items_and_sequences_are_refused_where_each_example_counts():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    x, likelihood = torch.randn(5, 4), Categorical()

    def step(optimizer, input, target):
        module = LearnModule(model, optimizer, likelihood, lambda step: 1.0)
        batch = {"input": input, "target": target}
        return optimizer.step(module.closure(batch, lambda loss: loss.backward()))

    vogn = VOGN(model.parameters(), 0.01, 5.0, model=model)
    step(vogn, x, torch.tensor([0, 1, 2, 0, 1]))
    masked = torch.tensor([0, 1, 2, -100, 1])
    with pytest.raises(Unsupported, match=r"do not count \(target -100\)"):
        step(vogn, x, masked)
    with pytest.raises(Unsupported, match=r"sequences .*\(5, 2\)"):
        step(vogn, torch.randn(5, 2, 4), torch.zeros(5, 2, dtype=torch.long))
    model.zero_grad()
    step(BBB(model.parameters(), 0.01, 5.0), x, masked)


def test_a_correction_sees_the_gradient_of_the_batchs_own_loss_unclipped():
    torch.manual_seed(0)
    model, likelihood, seen = torch.nn.Linear(4, 3), Categorical(), []
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    own = torch.autograd.grad(likelihood.loss(model(x), y), model.weight)[0]
    opt = AdamW(model.parameters(), 0.0)
    module = LearnModule(
        model, opt, likelihood, lambda step: 1.0, micro_batch_size=2, clip_grad_norm=1e-3,
        penalty=lambda m: 10.0 * m.weight.square().sum(),
        see_gradients=lambda m: seen.append(m.weight.grad.clone()),
    )  # fmt: skip
    opt.step(module.closure({"input": x, "target": y}, lambda loss: loss.backward()))
    torch.testing.assert_close(seen, [own])
