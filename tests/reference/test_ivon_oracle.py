"""IVON equals the authors' `ivon-opt`, float64, step by step, with the same injected noise."""

import itertools

import pytest
import torch

from bayesrule.optim import IVON

ivon_opt = pytest.importorskip("ivon", reason="the oracle ivon-opt is a test dependency")


_randn = torch.randn  # the test replaces it while the oracle draws


def _model():
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)
    ).double()


def _groups(model, two):
    if not two:
        return [{"params": list(model.parameters())}]
    return [
        {"params": list(model[0].parameters()), "weight_decay": 0.02},
        {"params": list(model[2].parameters()), "weight_decay": 0.3},
    ]


class _SharedNoise:
    """Cuts the oracle's flat draw per group into tensors in parameter order."""

    def __init__(self, model, two):
        self.sizes = [sum(p.numel() for p in g["params"]) for g in _groups(model, two)]
        self.generator = torch.Generator().manual_seed(11)
        self.flat = []
        self.queue = []

    def draw_group(self, *args, **kwargs):  # stands in for torch.randn in the oracle
        out = _randn(args[0], generator=self.generator, dtype=torch.float64)
        self.flat.append(out)
        return out

    def __call__(self, like):
        if not self.queue:
            self.queue = [torch.cat(self.flat[: len(self.sizes)])]
            del self.flat[: len(self.sizes)]
        flat = self.queue[0]
        out, rest = flat[: like.numel()].view(like.shape), flat[like.numel() :]
        self.queue = [rest] if len(rest) else []
        return out


_CASES = list(
    itertools.product(
        ["price", "gradsq"],
        [1, 3],
        [float("inf"), 0.05],
        [True, False],
        [True, False],
        [False, True],
    )
)


@pytest.mark.parametrize(("approx", "S", "clip", "rescale", "debias", "two"), _CASES)
def test_equals_the_authors_code(approx, S, clip, rescale, debias, two, monkeypatch):
    theirs, ours = _model(), _model()
    noise = _SharedNoise(theirs, two)
    # hess_init is exact in float32, to which the oracle rounds it first
    options = dict(
        lr=0.1, ess=50.0, hess_init=0.75, beta1=0.8, beta2=0.95, weight_decay=0.05, mc_samples=S,
        hess_approx=approx, clip_radius=clip, debias=debias, rescale_lr=rescale,
    )  # fmt: skip
    opt_theirs = ivon_opt.IVON(_groups(theirs, two), **options)
    opt_ours = IVON(_groups(ours, two), **options, noise=noise)
    gen = torch.Generator().manual_seed(5)
    for _ in range(50):
        x = _randn(8, 5, generator=gen, dtype=torch.float64)
        y = torch.randint(0, 3, (8,), generator=gen)
        monkeypatch.setattr(torch, "randn", noise.draw_group)
        for _ in range(S):
            with opt_theirs.sampled_params(train=True):
                opt_theirs.zero_grad()
                torch.nn.functional.cross_entropy(theirs(x), y).backward()
        monkeypatch.setattr(torch, "randn", _randn)
        opt_theirs.step()

        def closure(x=x, y=y):
            opt_ours.zero_grad()
            loss = torch.nn.functional.cross_entropy(ours(x), y)
            loss.backward()
            return loss

        opt_ours.step(closure)
        theirs_flat = torch.cat([p.detach().flatten() for p in theirs.parameters()])
        ours_flat = torch.cat([p.detach().flatten() for p in ours.parameters()])
        torch.testing.assert_close(ours_flat, theirs_flat, rtol=1e-12, atol=1e-12)
        for name in ("hess", "momentum"):
            expected = torch.cat([g[name] for g in opt_theirs.param_groups])
            got = torch.cat([opt_ours.state[p][name].flatten() for p in ours.parameters()])
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
