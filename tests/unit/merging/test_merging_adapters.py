"""Adapters are merged in the product B A, not in the factors."""

import json

import numpy as np
import pytest
import torch
from folder_cases import write_adapter
from safetensors.torch import load_file

from bayesrule.cli.main import main
from bayesrule.merging import MergeOptions, merge

LAYERS = ("q", "v")


def deltas(folder):
    """Return s B A by layer, in NumPy, as PEFT defines it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    held = {
        k: v.double().numpy() for k, v in load_file(folder / "adapter_model.safetensors").items()
    }
    s = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    stem = "base_model.model."
    found = {
        n: s * held[f"{stem}{n}.lora_B.weight"] @ held[f"{stem}{n}.lora_A.weight"] for n in LAYERS
    }
    assert held[f"{stem}q.lora_A.weight"].shape[0] == config["r"]
    return found


@pytest.fixture
def pair(tmp_path):
    return [
        write_adapter(tmp_path / "A", 0, rank=2, alpha=8, head=True),
        write_adapter(tmp_path / "B", 1, rank=3, alpha=6, rslora=True, head=True),
    ]


def run(tmp_path, pair, *words):
    out = tmp_path / "out"
    assert main(["merge", "--out", str(out), *words, *map(str, pair)]) == 0
    return out


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_linear_methods_are_exact_in_the_product(how, pair, tmp_path):
    words = ["--method", "task_arithmetic", "--alpha", "0.3,0.8", "--factors", how]
    out = run(tmp_path, pair, *words)
    a, b, found = deltas(pair[0]), deltas(pair[1]), deltas(out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (5, 5, False)
    for n in LAYERS:
        np.testing.assert_allclose(found[n], 0.3 * a[n] + 0.8 * b[n], atol=1e-5)
    report = json.loads((out / "merge.json").read_text())["report"]
    assert report["factors"] == how
    # sums of factors, PEFT's "linear", are something else
    held = [load_file(f / "adapter_model.safetensors") for f in pair]
    assert held[0].keys() == held[1].keys()


def test_average_is_that_of_the_products(pair, tmp_path):
    found = deltas(run(tmp_path, pair, "--method", "average"))
    a, b = deltas(pair[0]), deltas(pair[1])
    for n in LAYERS:
        np.testing.assert_allclose(found[n], (a[n] + b[n]) / 2, atol=1e-5)


def test_truncation_is_the_best_of_its_rank(pair, tmp_path):
    words = ["--method", "average", "--factors", "svd", "--rank", "2"]
    out = run(tmp_path, pair, *words)
    found, a, b = deltas(out), deltas(pair[0]), deltas(pair[1])
    worst = 0.0
    for n in LAYERS:
        dense = (a[n] + b[n]) / 2
        singular = np.linalg.svd(dense, compute_uv=False)
        best = np.sqrt((singular[2:] ** 2).sum())
        np.testing.assert_allclose(np.linalg.norm(found[n] - dense), best, rtol=1e-4)
        worst = max(worst, best / np.linalg.norm(dense))
    report = json.loads((out / "merge.json").read_text())["report"]
    assert report["relative_error"] == pytest.approx(worst, rel=1e-4)


@pytest.mark.parametrize("method", ["ties", "dare", "slerp"])
def test_other_methods_act_on_the_dense_product(method, pair, tmp_path):
    found = deltas(run(tmp_path, pair, "--method", method, "--rank", "4"))
    stem = "base_model.model."  # DARE's masks go by name
    models = [{stem + n: torch.from_numpy(d) for n, d in deltas(f).items()} for f in pair]
    zero = {stem + n: torch.zeros(4, 5).double() for n in LAYERS}
    base = {} if method == "slerp" else {"base": zero}
    expected = merge(method, models, options=MergeOptions(), **base)[0]
    for n in LAYERS:  # rank 4 is full for 4 x 5
        np.testing.assert_allclose(found[n], expected[stem + n].numpy(), atol=1e-5)


def test_whole_tensors_beside_are_averaged(pair, tmp_path):
    out = run(tmp_path, pair, "--method", "weighted", "--weights", "1,3")
    name = "base_model.model.classifier.weight"
    a, b, found = (load_file(f / "adapter_model.safetensors")[name] for f in (*pair, out))
    torch.testing.assert_close(found, 0.25 * a + 0.75 * b)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "fisher"], "no curvature|weighs by a curvature"),
        (["--method", "ties", "--factors", "cat"], "not linear"),
        (["--method", "average", "--factors", "cat", "--rank", "2"], "--rank is for"),
        (["--method", "average", "--base", "A"], "leave the base model out"),
    ],
)
def test_refusals(words, message, pair, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["merge", "--out", "out", *words, *map(str, pair)]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_layers_must_be_the_same(pair, tmp_path, capsys):
    other = write_adapter(tmp_path / "C", 2, layers=("q",), head=True)
    words = ["--method", "average", "--out", str(tmp_path / "o"), str(pair[0]), str(other)]
    assert main(["merge", *words]) == 2
    assert "base_model.model.v is adapted in one only" in capsys.readouterr().err


def test_peft_loads_the_merged_adapter(tmp_path):
    """Its product is PEFT's own merged weight of both, to single precision."""
    peft = pytest.importorskip("peft")
    folders, merged = [], []
    for k in range(2):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        config = peft.LoraConfig(r=2 + k, lora_alpha=3, target_modules=["0", "2"])
        torch.manual_seed(k + 1)
        adapted = peft.get_peft_model(net, config)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p)
        folders.append(tmp_path / str(k))
        adapted.save_pretrained(folders[k])
        merged.append(adapted.merge_and_unload().state_dict())
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    plain = {name: t.clone() for name, t in net.state_dict().items()}
    out = run(tmp_path, folders, "--method", "task_arithmetic", "--alpha", "0.4,0.9")
    found = peft.PeftModel.from_pretrained(net, out).merge_and_unload().state_dict()
    for name, t in found.items():
        both = 0.4 * (merged[0][name] - plain[name]) + 0.9 * (merged[1][name] - plain[name])
        torch.testing.assert_close(t, plain[name] + both, rtol=1e-5, atol=1e-5)
