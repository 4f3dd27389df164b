"""report: tables, figures and the scoreboard, from records only; nothing here trains."""

from bayesrule.report.calibration import ood_entropy, reliability
from bayesrule.report.efficiency import sample_efficiency
from bayesrule.report.federated import label_mix, round_curves
from bayesrule.report.figures import comparison, samples, training
from bayesrule.report.paper_figures import draw_figures
from bayesrule.report.records import Records
from bayesrule.report.results import read_table, results_table, verdict_counts, verdict_table
from bayesrule.report.streams import (
    boundaries,
    chosen_memory,
    memory_curve,
    stream_curves,
    stream_matrix,
)
from bayesrule.report.tables import metrics_table, sweep_table

__all__ = [
    "Records",
    "boundaries",
    "chosen_memory",
    "comparison",
    "draw_figures",
    "label_mix",
    "memory_curve",
    "metrics_table",
    "ood_entropy",
    "read_table",
    "reliability",
    "results_table",
    "round_curves",
    "sample_efficiency",
    "samples",
    "stream_curves",
    "stream_matrix",
    "sweep_table",
    "training",
    "verdict_counts",
    "verdict_table",
]
