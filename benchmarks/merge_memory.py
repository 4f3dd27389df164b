"""Peak memory and speed of `bayesrule merge` on large sharded checkpoints, made for it and removed.

Two models (and a base model with curvatures, for the Bayesian rule) of random numbers in shards of
256 MB. Each method runs in a process of its own; the peak is the kernel's (ru_maxrss), Python and
torch included.

    python benchmarks/merge_memory.py [--gigabytes 0.5] [--methods average,gradient_matching]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from bayesrule.merging import save_curvature

ROWS, COLUMNS = 2048, 4096  # 32 MB of float32
PER_SHARD = 8

MEASURED = """
import resource, sys
from bayesrule.cli.main import main
assert main(["merge", *sys.argv[1:]]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make(folder, seed, n_tensors):
    """Write a sharded model of random numbers."""
    folder.mkdir()
    g = torch.Generator().manual_seed(seed)
    weight_map, n_shards = {}, -(-n_tensors // PER_SHARD)
    for shard in range(n_shards):
        file = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        names = [f"layer.{k}.weight" for k in range(n_tensors)][shard::n_shards]
        save_file({n: torch.randn(ROWS, COLUMNS, generator=g) for n in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": n_tensors * ROWS * COLUMNS * 4}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def add_curvature(folder, n_tensors):
    """Write a curvature of one number an entry beside a model."""
    H = torch.rand(ROWS, COLUMNS)
    tensors = {f"layer.{k}.weight": H for k in range(n_tensors)}
    save_curvature(tensors, folder, kind="ggn", n_used=1, n_data=1, data={})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=0.5, help="of one model")
    parser.add_argument("--methods", default="average,ties,gradient_matching")
    args = parser.parse_args()
    n_tensors = max(1, round(args.gigabytes * 2**30 / (ROWS * COLUMNS * 4)))
    size = n_tensors * ROWS * COLUMNS * 4
    print(f"two models of {size / 1e9:.2f} GB, {n_tensors} tensors each")
    print(f"{'method':20}{'peak GB':>9}{'peak / model':>14}{'seconds':>9}{'MB/s read':>11}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        pair = [make(root / name, k, n_tensors) for k, name in enumerate("AB")]
        methods = args.methods.split(",")
        if any(m not in ("average", "weighted", "slerp") for m in methods):
            make(root / "base", 2, n_tensors)
        if any(m in ("fisher", "fisher_base", "gradient_matching") for m in methods):
            for folder in (root / "base", *pair):
                add_curvature(folder, n_tensors)
        for method in methods:
            words = ["--method", method, "--out", str(root / "out"), *map(str, pair)]
            if (root / "base").is_dir() and method not in ("average", "weighted", "slerp"):
                words += ["--base", str(root / "base")]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True
            )
            seconds = time.perf_counter() - start
            peak = int(done.stdout.splitlines()[-1])
            read = 2 * size / seconds / 1e6
            print(f"{method:20}{peak / 1e9:9.2f}{peak / size:14.2f}{seconds:9.1f}{read:11.0f}")
            subprocess.run(["rm", "-r", str(root / "out")], check=True)


if __name__ == "__main__":
    main()
