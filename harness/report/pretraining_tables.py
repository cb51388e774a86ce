"""Table and figure of `pretraining_first`: score against the fraction of the budget that is pretrained first."""

from __future__ import annotations

from collections.abc import Callable

from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.axis import Tick, axis
from harness.report.cells import Cell, Table, arm_cell
from harness.report.curves import Chart, Dot, Line, spread_labels
from harness.report.pretraining_first import Place, PretrainingFirst, percent, sentences
from harness.report.source import Json

HEIGHT = 300


def table(analysis: Analysis) -> Table:
    """Every arm by its fraction: score, effect against the baseline, and whether it can be told from the best."""
    rows: list[list[Cell]] = []
    records: list[Json] = []
    notes: list[str] = []
    metric = analysis.main
    spread = analysis.spread(metric)
    for found in analysis.pretraining_first:
        shown = [p.effect for p in found.places if p.effect is not None]
        half = max((h for c in shown if (h := c.half_width)), default=None)
        for place in found.places:
            rows.append(_row(found, place, spread=spread, half=half))
            records.append(_record(found, place))
        many = len(analysis.pretraining_first) > 1
        notes += [f"{found.method}: {text}" if many else text for text in sentences(found)]
    base = analysis.baseline.name if analysis.baseline else "the baseline"
    columns = ["Arm", "Pretrained first", numbers.label(metric), "95 % interval"]
    columns += [
        f"Against {base}, {numbers.unit(metric)}",
        "95 % interval",
        "p, corrected",
        "p against the best, corrected",
    ]
    return Table("pretraining_first", "How much to pretrain first", columns, rows, records, notes=notes)


def _row(found: PretrainingFirst, place: Place, *, spread: float | None, half: float | None) -> list[Cell]:
    metric, score, effect = found.metric, place.score, place.effect
    taken = place.course
    order = f"distils first, {percent(taken.plain)} after" if taken.other_order else ""
    role = "best" if place.arm.name == found.best else ""
    against = found.against_best(place.arm.name)
    cells = [
        arm_cell(place.arm, bare=True),
        Cell(percent(taken.first), order or ("never distils" if not taken.method else "")),
        Cell(numbers.score(score.mean, metric, spread=spread) if score else "–", role=role),
        Cell(numbers.interval(score.low, score.high, metric) if score else "–"),
    ]
    if effect is None:
        cells += [Cell("–", role="muted")] * 3
    else:
        ends = [numbers.signed(end, metric, spread=half) for end in (effect.low, effect.high)]
        cells += [
            Cell(numbers.signed(effect.mean_difference, metric, spread=half)),
            Cell("–" if effect.low is None else " to ".join(ends)),
            Cell(numbers.p_value(effect.p_corrected), role="best" if effect.significant else ""),
        ]
    return [*cells, Cell("the best" if role else numbers.p_value(against.p_corrected) if against else "–")]


def _record(found: PretrainingFirst, place: Place) -> Json:
    score, effect, against = place.score, place.effect, found.against_best(place.arm.name)
    return {
        "method": found.method,
        "arm": place.arm.name,
        "pretrained_first": place.course.first,
        "pretrained_in_all": place.course.plain,
        "metric": found.metric,
        "n": len(score.values) if score else 0,
        "mean": score.mean if score else None,
        "low_95": score.low if score else None,
        "high_95": score.high if score else None,
        "difference": effect.mean_difference if effect else None,
        "difference_low_95": effect.low if effect else None,
        "difference_high_95": effect.high if effect else None,
        "p_corrected": effect.p_corrected if effect else None,
        "best": place.arm.name == found.best,
        "p_corrected_against_best": against.p_corrected if against else None,
    }


def figures(analysis: Analysis) -> list[Chart]:
    """One panel per method with two scored fractions or more."""
    return [
        _figure(found) for found in analysis.pretraining_first if sum(p.score is not None for p in found.fractions) > 1
    ]


def _figure(found: PretrainingFirst) -> Chart:
    worth = 100.0 if numbers.unit(found.metric) == "points" else 1.0
    places = [p for p in found.places if p.score is not None]
    seen = [v for p in places if p.score for v in (*p.score.values.values(), p.score.low, p.score.high)]
    values = [worth * v for v in seen if v is not None]
    pad = 0.06 * (max(values) - min(values)) or 0.01
    low, high = min(values) - pad, max(values) + pad

    def y(value: float) -> float:
        return round(100 * (high - worth * value) / (high - low), 2)

    lines: list[Line] = []
    fractions = [p for p in places if not p.course.other_order]
    seeds = sorted({seed for p in fractions if p.score for seed in p.score.values})
    ink = next((p.arm.index for p in fractions if p.course.method), 0)
    for seed in seeds:
        points = [
            (100 * p.course.first, y(p.score.values[seed])) for p in fractions if p.score and seed in p.score.values
        ]
        lines.append(Line(_path(points), ink, False, []))
    lines.append(Line(_path([(100 * p.course.first, y(p.score.mean)) for p in fractions if p.score]), ink, True, []))
    for place in places:
        lines += _point(found, place, y)
    # An arm of the other order is led to its label by a line of its own; so is the end of the fractions' line.
    ends = [(p.arm.name, p.arm.index, HEIGHT * y(p.score.mean) / 100) for p in places if p.score and _labelled(p)]
    told = "; ".join(
        f"{percent(p.course.first)} {numbers.score(p.score.mean, found.metric)}" for p in fractions if p.score
    )
    unit = numbers.unit(found.metric)
    return Chart(
        title=f"{numbers.label(found.metric)} of {found.method} after plain pretraining",
        detail=f"{unit}; thin lines: seeds, bars: 95 % interval of each mean; at the right end nothing is distilled",
        height=HEIGHT,
        lines=lines,
        x_ticks=[Tick(100 * p.course.first, f"{100 * p.course.first:g}") for p in fractions],
        y_ticks=[Tick(100 - t.at, t.text) for t in axis(low, high)],
        x_title="% of the budget pretrained before distillation starts",
        ends=spread_labels(ends, HEIGHT),
        alt=f"{numbers.label(found.metric)} by the fraction pretrained first: {told}",
    )


def _labelled(place: Place) -> bool:
    return place.course.other_order or place.course.first == 1.0


def _point(found: PretrainingFirst, place: Place, y: Callable[[float], float]) -> list[Line]:
    """An arm's interval and mean, and a dot for every seed."""
    score = place.score
    assert score is not None
    x = round(100 * (place.course.plain if place.course.other_order else place.course.first), 2)
    index, metric = place.arm.index, found.metric
    where = "distils first" if place.course.other_order else f"{percent(place.course.first)} pretrained first"
    tip = f"{place.arm.name}, {where}: {numbers.score(score.mean, metric, spread=score.sd)}"
    span = "" if score.low is None else f" ({numbers.interval(score.low, score.high, metric)})"
    dots = [
        Dot(x, y(v), f"{place.arm.name}, seed {seed}: {numbers.score(v, metric, spread=score.sd)}")
        for seed, v in score.values.items()
    ]
    drawn = (
        [Line(_path([(x, y(score.mean)), (100.0, y(score.mean))]), index, False, [])]
        if place.course.other_order
        else []
    )
    drawn.append(Line("", index, False, dots))
    if score.low is not None and score.high is not None:
        drawn.append(Line(_path([(x, y(score.low)), (x, y(score.high))]), index, False, [], role="interval"))
    return [*drawn, Line("", index, True, [Dot(x, y(score.mean), f"{tip}{span}")])]


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
