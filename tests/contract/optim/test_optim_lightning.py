"""Every optimiser gives the same numbers under Lightning as in a plain loop."""

import logging

import lightning.pytorch as pl
import pytest
import torch
from optim_cases import Net, assert_identical, batches, every_case, everything, learn, loss_of

from bayesrule.likelihoods import Categorical
from bayesrule.tasks.module import LearnModule

STEPS = 8

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _quiet():
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def trainer(tmp_path, **options):
    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        **options,
    )  # fmt: skip


class Loader:
    """Batches as they are (Lightning takes a list for several loaders)."""

    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        return iter(self.steps)


def factor(step):
    return 1.0 / (1 + step)


class Losses(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"].detach())


def plain(case, samples, micro=None, clip=None, autocast=False, scheduled=True):
    """Return everything after a bare loop with the oracle's own closure."""
    model = Net()
    opt = case(model.parameters(), mc_samples=samples)
    losses = []
    for i, batch in enumerate(batches(STEPS)):
        for group in opt.param_groups:
            group["lr"] = opt.defaults["lr"] * (factor(i) if scheduled else 1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
            losses += learn(opt, model, [batch], micro=micro, clip=clip)
    return everything(opt), losses


@every_case
@pytest.mark.parametrize(
    ("samples", "micro", "clip", "precision"),
    [
        (1, None, None, "32-true"),
        (3, None, None, "32-true"),
        (1, 4, None, "32-true"),
        (3, 4, 0.2, "32-true"),
        (3, 4, 0.2, "bf16-mixed"),
    ],
)
def test_our_module_equals_the_plain_loop(case, samples, micro, clip, precision, tmp_path):
    model, losses = Net(), Losses()
    opt = case(model.parameters(), mc_samples=samples)
    module = LearnModule(
        model, opt, Categorical(), factor, micro_batch_size=micro, clip_grad_norm=clip
    )
    run = trainer(tmp_path, precision=precision, callbacks=[losses])
    run.fit(module, Loader(batches(STEPS)))
    assert run.global_step == STEPS
    state, expected = plain(case, samples, micro, clip, autocast=precision != "32-true")
    assert_identical(everything(opt), state)
    assert all(torch.equal(a, b) for a, b in zip(losses.seen, expected, strict=True))


class Automatic(pl.LightningModule):
    """A module as people write them."""

    def __init__(self, case, samples):
        super().__init__()
        self.model = Net()
        self.own = case(self.model.parameters(), mc_samples=samples)

    def configure_optimizers(self):
        return self.own

    def training_step(self, batch, batch_idx):
        return loss_of(self.model, batch)


@every_case
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_automatic_optimisation(case, samples, clip, tmp_path):
    module = Automatic(case, samples)
    run = trainer(tmp_path, gradient_clip_val=clip)
    run.fit(module, Loader(batches(STEPS)))
    assert run.global_step == STEPS
    state, _ = plain(case, samples, clip=clip, scheduled=False)
    assert_identical(everything(module.own), state)


@every_case
def test_automatic_accumulation_is_refused(case, tmp_path):
    with pytest.raises(RuntimeError, match="micro-batches inside the closure"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(Automatic(case, 1), Loader(batches(STEPS)))


@every_case
def test_lightning_s_own_checkpoint_resumes(case, tmp_path):
    def make():
        model = Net()
        opt = case(model.parameters(), mc_samples=2)
        return opt, LearnModule(model, opt, Categorical(), factor)

    whole, module = make()
    trainer(tmp_path).fit(module, Loader(batches(STEPS)))
    _, module = make()
    run = trainer(tmp_path, max_steps=3)
    run.fit(module, Loader(batches(3)))
    run.save_checkpoint(tmp_path / "at3.ckpt")
    second, module = make()
    later = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    rest = Loader(batches(STEPS)[3:])
    later.fit(module, rest, ckpt_path=tmp_path / "at3.ckpt", weights_only=True)
    assert_identical(everything(second), everything(whole))
