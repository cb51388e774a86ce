"""Every table of the report, in its order; the page, the Markdown and the CSV files all show these."""

from __future__ import annotations

from harness.report import (
    comparison_tables,
    cost_tables,
    domain_tables,
    equality_tables,
    fact_tables,
    nested_tables,
    pretraining_tables,
    score_tables,
    size_tables,
    step_tables,
)
from harness.report.analysis import Analysis
from harness.report.cells import Table


def every(analysis: Analysis) -> list[Table]:
    """All tables, in the report's order."""
    pairs = [comparison_tables.comparisons(analysis, "pairs")] if len(analysis.arms) > 2 else []
    return [
        score_tables.scores(analysis),
        score_tables.intervals(analysis),
        equality_tables.currencies(analysis),
        equality_tables.control(analysis),
        nested_tables.glue(analysis),
        pretraining_tables.table(analysis),
        domain_tables.losses(analysis),
        domain_tables.effects(analysis),
        cost_tables.data_seen(analysis),
        domain_tables.sources(analysis),
        equality_tables.spent(analysis),
        cost_tables.accounts(analysis),
        step_tables.steps(analysis),
        step_tables.energy(analysis),
        size_tables.size(analysis),
        cost_tables.efficiency(analysis),
        cost_tables.owed(analysis),
        comparison_tables.comparisons(analysis, "baseline"),
        *pairs,
        comparison_tables.other_comparisons(analysis),
        nested_tables.components(analysis),
        nested_tables.mixed(analysis),
        fact_tables.differences(analysis),
        fact_tables.overrides(analysis),
        score_tables.probes(analysis),
        fact_tables.environment(analysis),
        fact_tables.engine(analysis),
    ]
