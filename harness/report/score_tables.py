"""Tables of scores: means with their spread, seed by seed, references below, and probes that can be believed."""

from __future__ import annotations

from harness.compare import higher_is_better
from harness.report import numbers
from harness.report.analysis import FACTS, Analysis
from harness.report.arms import Arm
from harness.report.cells import Cell, Table, arm_cell
from harness.report.domains import PREFIX as DOMAIN
from harness.report.nesting import GLUE, GLUE_MEAN
from harness.report.source import Json

REFERENCE_NAMES = {"teacher": "Teacher", "untrained": "Untrained student", "bag_of_words": "Bag of words"}


def scores(analysis: Analysis) -> Table:
    """Mean ± spread per arm and score, the interval in the tooltip; references below."""
    metrics: list[str] = [analysis.main] if analysis.arms else []
    metrics += [m for m in analysis.metrics if m not in metrics]
    others = dict.fromkeys(m for row in analysis.references.values() for m in row)
    metrics += [m for m in others if m not in metrics and not m.startswith("probe.") and not m.endswith(FACTS)]
    # GLUE's tasks and domains have tables of their own; here they would push the others out of sight.
    shown = [m for m in metrics if not m.startswith((GLUE, DOMAIN)) or m in (GLUE_MEAN, analysis.main)]
    rows = [[arm_cell(arm), *(_score(analysis, arm, m) for m in shown)] for arm in analysis.arms]
    for name, row in analysis.references.items():
        cells = [Cell(numbers.score(row.get(m), m), role="muted") for m in shown]
        rows.append([Cell(REFERENCE_NAMES.get(name, name), role="muted"), *cells])
    records: list[Json] = []
    for arm in analysis.arms:
        for metric in metrics:
            mean = analysis.score(arm.name, metric)
            if mean is not None:
                records.append(
                    {
                        "arm": arm.name,
                        "metric": metric,
                        "n": len(mean.values),
                        "mean": mean.mean,
                        "sd": mean.sd,
                        "low_95": mean.low,
                        "high_95": mean.high,
                        "comparable": arm.name not in analysis.meaningless(metric),
                    }
                )
    records += [
        {"arm": name, "metric": m, "mean": v} for name, row in analysis.references.items() for m, v in row.items()
    ]
    columns = ["Arm", *(_heading(analysis, m) for m in shown)]
    return Table("scores", "Scores", columns, rows, records, notes=_score_notes(analysis, shown))


def _heading(analysis: Analysis, metric: str) -> str:
    arrow = "↑" if higher_is_better(metric) else "↓"
    return f"{numbers.label(metric)}\u00a0{arrow}"


def _score(analysis: Analysis, arm: Arm, metric: str) -> Cell:
    mean = analysis.score(arm.name, metric)
    if mean is None:
        return Cell("–", role="muted")
    digits = analysis.spread(metric)
    text = numbers.score(mean.mean, metric, spread=digits)
    each = ", ".join(f"seed {s}: {numbers.score(v, metric, spread=digits)}" for s, v in mean.values.items())
    spread = "one seed" if mean.sd is None else f"± {numbers.amount_of(mean.sd, metric, spread=digits)}"
    reason = analysis.meaningless(metric).get(arm.name)
    if reason:
        return Cell(f"{text} †", spread, f"{reason}: this figure is not comparable; {each}", "muted")
    span = "" if mean.low is None else f"95 % interval {numbers.interval(mean.low, mean.high, metric)}; "
    return Cell(text, spread, f"{span}{each}", "best" if analysis.best(metric) == arm.name else "")


def _score_notes(analysis: Analysis, metrics: list[str]) -> list[str]:
    notes = ["Mean over seeds, ± one standard deviation between seeds. ↓ lower is better, ↑ higher is better."]
    if any(analysis.best(m) for m in metrics):
        notes.append("A marked score beats every other arm significantly (paired t, 5 %, corrected for all pairs).")
    elif len(analysis.arms) > 1:
        notes.append("No score is marked: none beats every other arm significantly.")
    reasons = analysis.flags(metrics)
    if reasons:
        notes.append(f"† Meaningless as a comparison, and part of no average: {'; '.join(reasons)}.")
    return notes


def intervals(analysis: Analysis) -> Table:
    """The deciding score with its interval and every seed's value."""
    metric = analysis.main
    seeds = sorted({seed for arm in analysis.arms for seed in analysis.scores.get(metric, {}).get(arm.name, {})})
    rows: list[list[Cell]] = []
    records: list[Json] = []
    for arm in analysis.arms:
        mean = analysis.score(arm.name, metric)
        values = mean.values if mean else {}
        spread = analysis.spread(metric)
        rows.append(
            [
                arm_cell(arm, bare=True),
                Cell(numbers.score(mean.mean, metric, spread=spread) if mean else "–"),
                Cell(numbers.interval(mean.low, mean.high, metric) if mean else "–"),
                *(Cell(numbers.score(values.get(seed), metric, spread=spread)) for seed in seeds),
            ]
        )
        records += [{"arm": arm.name, "metric": metric, "seed": seed, "score": v} for seed, v in values.items()]
    columns = ["Arm", "Mean", "95 % interval", *(f"Seed {seed}" for seed in seeds)]
    return Table("seeds", f"{numbers.label(metric)}, seed by seed", columns, rows, records)


def probes(analysis: Analysis) -> Table:
    """Which probes can be believed."""
    rows = [
        [
            Cell(numbers.label(p.metric), detail=p.description),
            Cell(numbers.score(p.teacher, p.metric)),
            Cell(numbers.score(p.untrained, p.metric)),
            Cell(numbers.count(p.examples)),
            Cell(numbers.p_value(p.p)),
            Cell({True: "yes", False: "no", None: "not checked"}[p.informative], role="" if p.informative else "muted"),
        ]
        for p in analysis.probes
    ]
    records = [vars(p) for p in analysis.probes]
    columns = ["Probe", "Teacher", "Untrained", "Test examples", "p", "Informative"]
    notes = ["One-sided two-proportion test at 1 %: can the probe tell the teacher from an untrained student?"]
    return Table("probes", "Can the probes be believed?", columns, rows, records, notes=notes if rows else [])
