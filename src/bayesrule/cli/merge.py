"""`bayesrule merge`: model folders of one architecture become one folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bayesrule.merging.folders import find_folder
from bayesrule.merging.merge_folders import MergePlan, merge_folders
from bayesrule.merging.methods import METHODS, find_method

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule merge --method average --out merged A B
  bayesrule merge --method task_arithmetic --base BASE --alpha 0.3 --out merged A B C
  bayesrule merge --method gradient_matching --base BASE --out merged A B
  bayesrule merge --method gradient_matching --base ALL --alpha=-1 --out without BAD      remove
  bayesrule merge --method ties --base BASE --density 0.2 --dtype bfloat16 --out merged A B
  bayesrule merge --method task_arithmetic --alpha 0.5 --out adapter LORA_A LORA_B        adapters

A, B, BASE are folders (or hub ids) with model.safetensors, its shards, or
adapter_model.safetensors. The result has tensors, types, shards, configuration and tokeniser of
the first one, with a card (MERGE.md, merge.json) that says what was merged how. Weights are
streamed: memory does not grow with the models. Curvature files (curvature.safetensors, made by
`bayesrule evaluate RUN --curvature`) are looked for in the models' folders. Adapters are merged in
the product B A: exactly (--factors cat, rank = sum of ranks) or by the best approximation of a rank
(--factors svd).

methods:
"""


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(words: Sequence[str]) -> int:
    """Check, merge, and say what was done; return the exit code."""
    methods = "\n".join(f"  {name:18}{each.summary}" for name, each in METHODS.items())
    parser = argparse.ArgumentParser(
        prog="bayesrule merge",
        description="Merge models of one architecture.",
        epilog=f"{_EPILOG}{methods}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="folders or hub ids")
    add("--method", required=True, metavar="M", help="one of those below")
    add("--out", required=True, metavar="DIR", help="the folder to make")
    add("--base", metavar="DIR", help="the base model, theta_0")
    add(
        "--alpha", "--weights", dest="alpha", type=_numbers, metavar="A[,A...]",
        help="scaling factor of all models, or one each; negative (--alpha=-1) removes",
    )  # fmt: skip
    add(
        "--curvature", action="append", metavar="FILE",
        help="H_t of a model; give it once a model, in their order (default: in their folders)",
    )  # fmt: skip
    add("--base-curvature", metavar="FILE", help="H_0 (default: in the base model's folder)")
    add("--delta0", type=float, default=1e-12, help="prior precision added to H_0")
    add("--floor", type=float, default=0.1, help="least precision, as a share of H_0")
    add("--normalize", action="store_true", help="fisher: divide each curvature by its norm")
    add("--density", type=float, default=0.2, help="ties, dare: share of differences that stay")
    add("--reduce", choices=("mean", "sum"), default="mean", help="ties: of agreeing entries")
    add("--off-diagonal", type=float, default=0.9, help="regmean: factor of off-diagonal entries")
    add("--seed", type=int, default=0, help="dare: of the random masks")
    add("--dtype", metavar="T", help="float32, float16, bfloat16 (default: the first model's)")
    add("--factors", choices=("cat", "svd"), help="adapters: how Delta W is factorised")
    add("--rank", type=int, metavar="R", help="adapters, svd: rank of the result")
    args = parser.parse_intermixed_args(words)
    method = find_method(args.method)
    base = None if args.base is None else find_folder(args.base)
    plan = MergePlan.of(
        method,
        args.out,
        [find_folder(name) for name in args.models],
        base=base,
        curvatures=args.curvature,
        base_curvature=args.base_curvature,
        alphas=args.alpha,
        dtype=args.dtype,
        factors=args.factors,
        rank=args.rank,
    )
    from bayesrule.merging.engine import MergeOptions

    options = MergeOptions(
        alphas=plan.alphas,
        delta0=args.delta0,
        floor=args.floor,
        normalize=args.normalize,
        density=args.density,
        reduce=args.reduce,
        off_diagonal=args.off_diagonal,
        seed=args.seed,
    )
    about = merge_folders(plan, options)
    _tell(plan, about)
    return 0


def _tell(plan: MergePlan, about: dict[str, Any]) -> None:
    count = sum(spec.numel for spec in plan.layout.specs.values())
    alphas = ", ".join(f"{a:g}" for a in about["alphas"])
    print(
        f"{plan.out}: {len(plan.models)} models of {count:,} numbers, {plan.method.name} with "
        f"{alphas}, {about['seconds']} s"
    )
    for name, value in about["report"].items():
        print(f"{name}: {value}")
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
