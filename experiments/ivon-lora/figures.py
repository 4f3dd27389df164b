"""The figures of the paper on IVON-LoRA that the studies allow, drawn from records."""

from __future__ import annotations

from pathlib import Path

from bayesrule.report import Records, comparison, reliability, samples

__all__ = ["figures"]

_SIX = ("winogrande-s", "winogrande-m", "arc-challenge", "arc-easy", "openbookqa", "boolq")


def figures(records: Records, out: Path) -> None:
    """Draw reliability diagrams, the effect of the number of draws, and comparisons of all arms.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    for study in ("sentences", "smollm2", *_SIX):
        if study in studies:
            reliability(records, study, out, rules=("mean", "mc", "lin"))
            samples(records, study, out, arms=["ivon"])
            comparison(records, study, out)
