"""`bayesrule evaluate RUN`: a stored posterior on other data or metrics; trains nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bayesrule.config import runs_dir
from bayesrule.errors import ConfigError
from bayesrule.runs import RunStore, write_atomic
from bayesrule.runs.files import jsonable

__all__ = ["main"]

_KINDS = ("ggn", "sampled", "observed", "posterior", "gram")

_EPILOG = """\
examples:
  bayesrule evaluate 3f2a                            the record's metrics, computed again
  bayesrule evaluate 3f2a metrics.mc_samples=256 metrics.ece_bins=[10,15,50]
  bayesrule evaluate 3f2a data.label_noise=0 --json clean.json
  bayesrule evaluate 3f2a data=mnist                 a set with inputs and classes of this shape
  bayesrule evaluate 3f2a --curvature ggn --out A    the mean and its curvature, for `merge`

RUN is a run's id or its first digits (`bayesrule runs ls`). Data and metrics may be changed, as
words of `bayesrule train`; the posterior, the model and the seed are the run's. Nothing is written
but the file of --json, and the folder of --out: model.safetensors with curvature.safetensors (sums
over the training data), which `bayesrule merge` takes. Kinds: ggn (exact over labels), sampled
(squared gradients at drawn labels), observed (at the data's), posterior (what the optimiser
learnt), gram (inputs of linear layers, for regmean).
"""


def main(words: Sequence[str]) -> int:
    """Evaluate a stored posterior; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="bayesrule evaluate",
        description="Evaluate the posterior of a finished run on other data or metrics.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a finished run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all metrics here as well")
    parser.add_argument("--curvature", choices=_KINDS, help="compute it, and write it to --out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the model folder goes")
    parser.add_argument("--items", type=int, metavar="N", help="items for it (default: all)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="data and metrics")
    args = parser.parse_intermixed_args(words)
    if (args.curvature is None) != (args.out is None):
        raise ConfigError("--curvature KIND and --out DIR go together")
    folder = RunStore(runs_dir()).get(args.run)
    if args.curvature is not None:
        from bayesrule.tasks.reevaluate import export_curvature

        for path in export_curvature(folder, args.out, args.curvature, args.items, args.overrides):
            print(path)
        return 0
    from bayesrule.report import metrics_table
    from bayesrule.tasks.reevaluate import reevaluate

    found = reevaluate(folder, args.overrides)
    if args.json is not None:
        content = {
            "run": folder.id,
            "overrides": args.overrides,
            "data": found.data,
            "notes": found.notes,
            "metrics": dict(sorted(found.metrics.items())),
            "curves": found.curves,
        }
        write_atomic(args.json, json.dumps(jsonable(content), indent=1, ensure_ascii=False) + "\n")
    print(metrics_table(found.metrics))
    changes = f" with {' '.join(args.overrides)}" if args.overrides else ""
    print(f"\nrun {folder.id} on {found.data['name']}{changes}")
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0
