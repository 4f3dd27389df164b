"""`bayesrule plan KEY`: what a paper's runs need, before anything is run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bayesrule.config import experiments_dir
from bayesrule.errors import BayesruleError
from bayesrule.report.text import columns_text, one_line
from bayesrule.runs import SCALES, load_paper

if TYPE_CHECKING:
    from bayesrule.tasks.plan import ArmPlan

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule plan ivon                            the paper's own runs: steps, memory, data
  bayesrule plan ivon --scale cpu
  bayesrule plan ivon --study imagenet-resnet50 --dry-run
  bayesrule plan ivon trainer=fsdp

Every run is composed and every model built without memory. --dry-run also takes one real step of
every arm, with a tiny batch of random data in the shape of the arm's own, on the CPU and in
float32, and predicts once.

memory is an estimate per device: P numbers times (parameters 1 + gradients 1 + optimiser state +
what a step holds besides + what the method keeps, such as SWAG's weights). State and what a step
holds are measured on a small network. Not counted: activations, low-precision copies of autocast,
curvature factors, data, buffers of collectives.
"""


def main(words: Sequence[str]) -> int:
    """Print the plan; with --dry-run also step; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="bayesrule plan",
        description="What a paper's runs would need: runs, steps, parameters, memory, data.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("key", help="the paper's key, see `bayesrule papers`")
    parser.add_argument("--scale", default="paper", choices=SCALES)
    parser.add_argument("--study", action="append", help="only this study (may be repeated)")
    parser.add_argument("--dry-run", action="store_true", help="take one real step of every arm")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    args = parser.parse_intermixed_args(words)
    paper = load_paper(experiments_dir() / args.key)
    from bayesrule.tasks.plan import plan_paper

    arms = plan_paper(paper, args.scale, args.study, args.overrides)
    print(f"{paper.key} at scale {args.scale}\n\n{_arms_table(arms)}\n\n{_data_table(arms)}\n")
    print(_totals(arms))
    return _dry_runs(arms) if args.dry_run else 0


def _arms_table(arms: Sequence[ArmPlan]) -> str:
    header = ["study", "arm", "runs", "steps per run", "parameters", "memory", "vectors", "place"]
    rows = []
    for place, plan in enumerate(arms):
        first = place == 0 or arms[place - 1].study != plan.study
        parts = [1, 1, plan.vectors.state, plan.vectors.held, plan.kept]
        rows.append(
            [
                plan.study if first else "",
                plan.arm,
                str(plan.runs),
                f"{plan.steps:,}",
                f"{plan.parameters:,}" + (f" + {plan.frozen:,}" if plan.frozen else ""),
                _bytes(plan.memory),
                "+".join(f"{part:g}" for part in parts),
                plan.place,
            ]
        )
    note = (
        "memory: per device, P numbers times the vectors: parameters + gradients + state + held in "
        "a step + kept\n(frozen parameters once); activations, autocast copies, curvature factors "
        "and data are not counted"
    )
    return f"{columns_text(header, rows, left=(0, 1, 7))}\n{note}"


def _data_table(arms: Sequence[ArmPlan]) -> str:
    from bayesrule.tasks.plan import needed

    rows = [
        [name, "here" if found.here else "not here", found.text]
        for name, found in needed(arms).items()
    ]
    if not rows:
        return "needs nothing from outside"
    return columns_text(["needs", "", "from"], rows, left=(0, 1, 2))


def _totals(arms: Sequence[ArmPlan]) -> str:
    from bayesrule.tasks.plan import needed

    found = needed(arms).values()
    largest = max(arms, key=lambda plan: plan.memory)
    runs = sum(plan.runs for plan in arms)
    steps = sum(plan.runs * plan.steps for plan in arms)
    studies = len({plan.study for plan in arms})
    return (
        f"total: {_count(studies, 'study', 'studies')}, {_count(len(arms), 'arm', 'arms')}, "
        f"{_count(runs, 'run', 'runs')}, {steps:,} steps; largest {largest.parameters:,} "
        f"parameters with {_bytes(largest.memory)}; from outside: {len(found)}, "
        f"{sum(each.here for each in found)} here"
    )


def _dry_runs(arms: Sequence[ArmPlan]) -> int:
    from bayesrule.tasks.dry_run import dry_run

    print("\ndry run: one real step and one prediction per arm, random data, CPU, float32")
    failed = []
    begin = time.monotonic()
    for plan in arms:
        start = time.monotonic()
        try:
            notes = dry_run(plan)
            outcome = "ok"
        except Exception as error:  # whatever one arm does, the others are tried
            notes = [one_line(str(error) if isinstance(error, BayesruleError) else repr(error))]
            outcome = "failed"
            failed.append(f"{plan.study}/{plan.arm}")
        text = f"; {'; '.join(notes)}" if notes else ""
        seconds = time.monotonic() - start
        print(f"{outcome:6} {seconds:5.1f} s  {plan.study}/{plan.arm}{text}", flush=True)
    took = f"{time.monotonic() - begin:.0f} s"
    if failed:
        print(
            f"{len(failed)} of {len(arms)} arms failed ({took}): {', '.join(failed)}",
            file=sys.stderr,
        )
        return 1
    print(f"all {len(arms)} arms ok ({took})")
    return 0


def _bytes(count: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
