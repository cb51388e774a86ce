"""Tables about the equality itself: both currencies side by side, what the budget really took, the equal-tokens control."""

from __future__ import annotations

from harness.compare import Comparison
from harness.report import numbers
from harness.report.analysis import Analysis, describe_unit
from harness.report.axis import scale_of
from harness.report.cells import MARKED, Cell, Table, arm_cell
from harness.report.currency import Currency
from harness.report.noise import UNEQUAL, hardware_of
from harness.report.source import Json


def currencies(analysis: Analysis) -> Table:
    """Each arm's score and difference to the baseline at equal cost, in the budget's unit and in every other."""
    shown = [c for c in analysis.currencies if c.metric]
    columns = ["Arm", f"At equal {describe_unit(analysis.unit)}, {numbers.label(analysis.main)}", "Difference"]
    for currency in shown:
        columns += [f"At equal {currency.words}, {numbers.label(currency.metric or '')}", "Difference", "Used"]
    rows: list[list[Cell]] = []
    records: list[Json] = []
    main = {c.a: c for c in analysis.compared(analysis.main, "baseline")}
    for arm in analysis.arms:
        mean = analysis.score(arm.name, analysis.main)
        cells = [Cell(numbers.score(mean.mean, analysis.main, spread=analysis.spread(analysis.main)) if mean else "–")]
        cells.append(_difference(main.get(arm.name), arm.baseline))
        for currency in shown:
            cells += _in(currency, arm.name, baseline=arm.baseline)
            records += _records(currency, arm.name)
        rows.append([arm_cell(arm, bare=True), *cells])
    notes = [
        f"At equal {c.words}: every arm is read where it had cost what the cheapest arm cost in all; {c.basis}. "
        "A dearer arm is read before its rate had decayed, to its disadvantage."
        for c in shown
    ]
    if notes and any(c.family_size > 1 for c in (*main.values(), *(c for each in shown for c in each.comparisons))):
        notes.append("Differences: ± half the 95 % interval, for all arms of a column together.")
    if notes:
        notes.append(MARKED)
    return Table("currencies", "In both currencies", columns, rows if shown else [], records, notes=notes)


def _difference(c: Comparison | None, baseline: bool) -> Cell:
    if baseline or c is None or c.mean_difference is None:
        return Cell("baseline" if baseline else "–", role="muted")
    if not c.meaningful:
        return Cell("–", tip=c.note, role="muted")
    text = numbers.signed(c.mean_difference, c.metric, spread=c.half_width)
    error = "" if c.half_width is None else f"± {numbers.amount_of(c.half_width, c.metric, spread=c.half_width)}"
    return Cell(text, error, c.note, "best" if c.significant else "")


def _in(currency: Currency, arm: str, *, baseline: bool) -> list[Cell]:
    values = list(currency.scores.get(arm, {}).values())
    metric = currency.metric or ""
    used = currency.used.get(arm)
    scale = scale_of(min(currency.used.values(), default=1.0), currency.unit)
    score = numbers.score(sum(values) / len(values), metric) if values else "–"
    found = next((c for c in currency.comparisons if c.a == arm), None)
    return [
        Cell(score, tip="" if values else "its curve cannot be read there"),
        _difference(found, baseline),
        Cell("–" if used is None else f"{scale.write(used)} {scale.name}", role="muted"),
    ]


def _records(currency: Currency, arm: str) -> list[Json]:
    return [
        {"arm": arm, "seed": seed, "unit": currency.unit, "at": currency.at, "metric": currency.metric, "score": score}
        for seed, score in currency.scores.get(arm, {}).items()
    ]


def spent(analysis: Analysis) -> Table:
    """The realised cost of every arm: how equal equal cost was."""
    unit = analysis.unit
    scale = scale_of(min((s.mean for s in analysis.spreads), default=1.0), unit)
    arms = {arm.name: arm for arm in analysis.arms}
    rows = [
        [
            arm_cell(arms[s.arm], bare=True),
            Cell(str(s.runs)),
            Cell(scale.write(s.mean, digits=5)),
            Cell(f"{scale.write(s.smallest, digits=5)} to {scale.write(s.largest, digits=5)}"),
            Cell(_share(s.within), role=_flag(s.within, analysis)),
            Cell(_share(s.apart), role=_flag(s.apart, analysis)),
            Cell(_machines(analysis, s.arm)),
        ]
        for s in analysis.spreads
    ]
    columns = [
        "Arm",
        "Runs",
        f"Mean spent, {scale.name}",
        "Smallest to largest",
        "Within the arm",
        "Above the cheapest",
    ]
    measured = analysis.budget is not None and not analysis.budget.unit.deterministic
    notes = [
        f"A measured unit: differences above {UNEQUAL:.1%} are flagged.".replace("%", "\u202f%")
        if measured
        else "A counted unit: every run stops less than one of its steps below the limit, the same on any machine."
    ]
    records = [{**vars(s), "unit": unit} for s in analysis.spreads]
    return Table("spent", "How equal the cost was", [*columns, "Hardware"], rows, records, notes=notes if rows else [])


def _share(value: float) -> str:
    return f"{value:.3%}".replace("%", "\u202f%")


def _flag(value: float, analysis: Analysis) -> str:
    measured = analysis.budget is not None and not analysis.budget.unit.deterministic
    return "flag" if measured and value > UNEQUAL else ""


def _machines(analysis: Analysis, name: str) -> str:
    runs = [run for arm in analysis.arms if arm.name == name for run in arm.done]
    return "; ".join(dict.fromkeys(text for run in runs if (text := hardware_of(run)))) or "–"


def control(analysis: Analysis) -> Table:
    """A teacher's gain per token, told apart from the price of its tokens."""
    index = {arm.name: arm.index for arm in analysis.arms}
    rows = [
        [
            Cell(split.arm, arm=index.get(split.arm)),
            Cell(split.control),
            Cell(numbers.short(split.tokens)),
            *(_difference(c, False) for c in (split.net, split.gain, split.price)),
            Cell(str(split.net.n)),
        ]
        for split in analysis.splits
    ]
    records = [
        {
            "arm": split.arm, "baseline": split.baseline, "control": split.control, "tokens": split.tokens, "part": part,
            "difference": c.mean_difference, "low_95": c.low, "high_95": c.high, "n": c.n, "comparable": c.meaningful,
        }
        for split in analysis.splits
        for part, c in (("net", split.net), ("gain_per_token", split.gain), ("price_per_token", split.price))
    ]  # fmt: skip
    unit = numbers.unit(analysis.main)
    columns = [
        "Arm",
        "Control",
        "Tokens",
        f"At equal cost, {unit}",
        f"Gain per token, {unit}",
        f"Price per token, {unit}",
    ]
    notes = [
        "Gain: against the baseline after equally many tokens. Price: what the dearer tokens took away. They add up to the "
        "difference at equal cost. Controls are no contestants and enter no verdict. Paired by seed; 95 % intervals, for an arm's three differences together."
    ]
    return Table(
        "control", "Gain per token, price per token", [*columns, "Seeds"], rows, records, notes=notes if rows else []
    )
