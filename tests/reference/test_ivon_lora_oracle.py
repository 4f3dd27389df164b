"""IVON over adapters: the authors' optimiser with the settings of their LoRA script."""

import ivon as ivon_opt
import pytest
import torch
from torch.nn import functional as F

from bayesrule.config import compose
from bayesrule.models import build_model
from bayesrule.optim import IVON

SCRIPT = {
    "lr": 0.03, "ess": 1e6, "hess_init": 1e-3, "beta1": 0.9, "beta2": 0.99999,
    "weight_decay": 1e-3, "clip_radius": 1e-3, "rescale_lr": False,
}  # fmt: skip


def problem():
    cfg = compose(["task=lora", "model.weights=tiny", "model.dropout=0.0", "model.lora_rank=2"])
    model = build_model(cfg["model"], input_shape=(8,), n_outputs=3, seed=0)
    g = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(1000, (6, 8), generator=g), torch.randint(3, (6,), generator=g))
        for _ in range(10)
    ]
    return model, batches


def learnt(model):
    return [p for p in model.parameters() if p.requires_grad]


def closure_of(model, optimizer, tokens, target):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens), target)
        loss.backward()
        return loss

    return closure


def test_ten_steps_on_adapters_equal_the_authors_code(monkeypatch):
    """Equal noise gives equal losses, means and Hessians to 1e-6."""
    (ours, batches), (theirs, _) = problem(), problem()
    sizes = [p.numel() for p in learnt(ours)]
    g = torch.Generator().manual_seed(3)
    draws = [torch.randn(sum(sizes), generator=g) for _ in batches]
    pieces = iter([piece for draw in draws for piece in draw.split(sizes)])
    whole = iter(draws)
    opt = IVON(learnt(ours), **SCRIPT, noise=lambda like: next(pieces).view_as(like).to(like))
    ref = ivon_opt.IVON(learnt(theirs), **SCRIPT, mc_samples=1)
    for tokens, target in batches:
        loss = opt.step(closure_of(ours, opt, tokens, target))
        with monkeypatch.context() as patch:
            patch.setattr("ivon._ivon.torch.randn", lambda *a, **k: next(whole))
            with ref.sampled_params(train=True):
                ref.zero_grad()
                expected = F.cross_entropy(theirs(tokens), target)
                expected.backward()
        ref.step()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for a, b in zip(learnt(ours), learnt(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    hess = torch.cat([opt.state[p]["hess"].flatten() for p in learnt(ours)])
    torch.testing.assert_close(hess, ref.param_groups[0]["hess"], rtol=0, atol=1e-6)


def test_a_tiny_clip_radius_gives_sign_steps():
    """lr xi = c moves every coordinate by c, against the sign of its debiased gradient."""
    model, batches = problem()
    model.double()
    with torch.no_grad():
        for p in learnt(model):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).double())
    xi, c = 1e-12, 1e-3
    opt = IVON(learnt(model), **{**SCRIPT, "clip_radius": xi, "lr": c / xi})
    before = [p.detach().clone() for p in learnt(model)]
    opt.step(closure_of(model, opt, *batches[0]))
    for p, m0 in zip(learnt(model), before, strict=True):
        g = opt.state[p]["momentum"] / (1 - 0.9) + SCRIPT["weight_decay"] * m0
        torch.testing.assert_close(p.detach(), m0 - c * g.sign(), rtol=0, atol=1e-9)


def test_only_a_draw_moves_the_first_factor_at_the_start():
    """B = 0: IVON moves A in its first step, and AdamW does not."""
    from bayesrule.optim import AdamW

    moved = {}
    for name, make in (
        ("ivon", lambda p: IVON(p, **{**SCRIPT, "weight_decay": 0.0}, seed=0)),
        ("adamw", lambda p: AdamW(p, lr=1e-3, weight_decay=0.0)),
    ):
        model, batches = problem()
        first = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}
        opt = make(learnt(model))
        opt.step(closure_of(model, opt, *batches[0]))
        after = dict(model.named_parameters())
        moved[name] = [not torch.equal(after[n], p) for n, p in first.items()]
    assert all(moved["ivon"])
    assert not any(moved["adamw"])
