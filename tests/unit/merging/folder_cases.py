"""Small model folders on disk, written by the safetensors package."""

import json

import torch
from safetensors.torch import save_file

SHAPES = {
    "embed.weight": (11, 4),
    "layer.weight": (4, 4),
    "layer.bias": (4,),
    "norm.running_var": (4,),
    "head.weight": (11, 4),
}


def tensors(seed, dtype=torch.float32, tied=True):
    g = torch.Generator().manual_seed(seed)
    out = {name: torch.randn(s, generator=g).to(dtype) for name, s in SHAPES.items()}
    out["norm.running_var"] = out["norm.running_var"].abs()
    if tied:
        out["head.weight"] = out["embed.weight"].clone()
    out["positions"] = torch.arange(5)
    return out


def write_folder(path, model, shards=1, config=None):
    path.mkdir(parents=True)
    names = list(model)
    if shards == 1:
        save_file(model, path / "model.safetensors", {"format": "pt"})
    else:
        weight_map = {}
        for k in range(shards):
            file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: model[name] for name in names[k::shards]}
            save_file(part, path / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        total = sum(t.numel() * t.element_size() for t in model.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(config or {"model_type": "tiny", "dtype": "x"}))
    (path / "tokenizer.json").write_text("{}")
    (path / "vocab.txt").write_text("a\nb\n")
    (path / "modeling_tiny.py").write_text("raise SystemExit\n")
    return path


def write_adapter(path, seed, rank=2, alpha=8, rslora=False, layers=("q", "v"), head=False):
    g = torch.Generator().manual_seed(seed)
    path.mkdir(parents=True)
    model = {}
    for name in layers:
        stem = f"base_model.model.{name}"
        model[f"{stem}.lora_A.weight"] = torch.randn(rank, 5, generator=g)
        model[f"{stem}.lora_B.weight"] = torch.randn(4, rank, generator=g)
    if head:
        model["base_model.model.classifier.weight"] = torch.randn(2, 4, generator=g)
    save_file(model, path / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rslora}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path
