"""Tables of paired differences: against the baseline, all pairs, and every score that does not decide."""

from __future__ import annotations

from harness.compare import ALPHA, SEEDS_CAP, Comparison
from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.cells import MARKED, Cell, Table
from harness.report.domains import PREFIX as DOMAIN
from harness.report.source import Json


def comparisons(analysis: Analysis, family: str) -> Table:
    """Paired differences on the deciding score: against the baseline, or all pairs."""
    shown = analysis.compared(analysis.main, family)
    title = "Against the baseline" if family == "baseline" else "All pairs"
    return _comparison_table(analysis, shown, f"comparisons_{family}", title)


def other_comparisons(analysis: Analysis) -> Table:
    """Paired differences against the baseline on every score that does not decide; domains have a table of their own."""
    shown = [
        c
        for c in analysis.comparisons
        if c.family == "baseline" and c.metric != analysis.main and c.n and not c.metric.startswith(DOMAIN)
    ]
    return _comparison_table(analysis, shown, "comparisons_other", "Other scores, against the baseline", metric=True)


def _comparison_table(
    analysis: Analysis, shown: list[Comparison], name: str, title: str, *, metric: bool = False
) -> Table:
    index = {arm.name: arm.index for arm in analysis.arms}
    rows: list[list[Cell]] = []
    for c in shown:
        half = _widest(c, shown)
        flag, role = ("", "best" if c.significant else "") if c.meaningful else (" †", "muted")
        tests = [
            numbers.p_value(c.p),
            numbers.p_value(c.p_corrected),
            _plain(c.minimal_detectable, c.metric),
            seeds_text(c),
        ]
        rows.append(
            [
                Cell(f"{c.a} vs {c.b}", arm=index.get(c.a)),
                *([Cell(f"{numbers.label(c.metric)}, {numbers.unit(c.metric)}")] if metric else []),
                Cell(f"{numbers.signed(c.mean_difference, c.metric, spread=half)}{flag}", tip=c.note, role=role),
                Cell(_interval(c, half), tip=c.note, role="" if c.meaningful else "muted"),
                Cell(str(c.n)),
                *(Cell(text if c.meaningful else "–", role="" if c.meaningful else "muted") for text in tests),
            ]
        )
    tested = max((c.family_size for c in shown), default=1)
    notes = [
        f"Positive: the first arm is better. Paired by seed, Student's t. {_joint(tested, score_by_score=metric)}"
        "Detectable: the true difference that as many seeds find with 80 % power. "
        "Needed: the seeds that find a true difference as large as the observed one. " + MARKED,
    ]
    reasons = analysis.flags(dict.fromkeys(c.metric for c in shown if not c.meaningful))
    notes += [f"† Meaningless: {'; '.join(reasons)}."] if reasons else []
    notes += [f"{c.a} vs {c.b}: {c.note}." for c in shown if c.meaningful and c.note and not metric]
    unit = "" if metric else f", {numbers.unit(analysis.main)}"
    columns = ["Pair", *(["Score"] if metric else []), f"Difference{unit}", "95 % interval", "Seeds", "p"]
    columns += ["p, corrected", "Detectable", "Needed"]
    return Table(name, title, columns, rows, [_flat_comparison(c) for c in shown], notes=notes if shown else [])


def _joint(tested: int, *, score_by_score: bool) -> str:
    """What the intervals of a table with so many comparisons of one score are corrected for."""
    if tested == 1:
        return ""
    whose = "on each score" if score_by_score else "here"
    return (
        f"The {tested} intervals {whose} hold together with 95 %: each is of the level {100 * (1 - ALPHA / tested):.2f} %, and p is "
        f"multiplied by {tested} (Bonferroni), so an interval excludes zero exactly where the corrected p is below 5 %; "
        "detectable and needed are at that level too. "
    )


def _widest(c: Comparison, shown: list[Comparison]) -> float | None:
    """The largest half-width of the comparisons on the same score: they are all given in the same digits."""
    return max((h for other in shown if other.metric == c.metric and (h := other.half_width)), default=None)


def _interval(c: Comparison, spread: float | None) -> str:
    ends = [numbers.signed(end, c.metric, spread=spread) for end in (c.low, c.high)]
    return "–" if c.low is None else " to ".join(ends)


def seeds_text(c: Comparison) -> str:
    """The seeds needed, or that they are more than the cap."""
    if c.seeds_needed is None:
        return "–"
    return f"> {SEEDS_CAP}" if c.seeds_needed > SEEDS_CAP else str(c.seeds_needed)


def _plain(value: float | None, metric: str) -> str:
    return "–" if value is None else numbers.amount_of(value, metric, spread=value)


def _flat_comparison(c: Comparison) -> Json:
    return {**c.as_json(), "seeds": " ".join(map(str, c.seeds)), "seeds_needed": seeds_text(c)}
