"""report: tables, figures and the scoreboard, from records only; nothing here trains."""

from bayesrule.report.tables import metrics_table, sweep_table

__all__ = ["metrics_table", "sweep_table"]
