"""A sweep's answer in the other currency: along a ladder of budgets from its whole runs, elsewhere point by point.

Runs at several budgets are a curve of scores over what they took in any unit, and every point of it is a run whose
learning rate had fallen to its end: nothing has to be read half-way. Each seed's scores are joined by straight lines over
the logarithm of its own mean cost at every rung, and the differences between two arms at equal cost go through the same
crossover as those at equal budgets. Between the places where one arm has a rung both lines are straight, so nothing is
lost by asking there alone.

A sweep over anything else has one budget at every point: what its points' own reports say there is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from harness.compare import Array, higher_is_better
from harness.errors import DataError, IsoBudgetError
from harness.ladder.crossover import crossover
from harness.ladder.rungs import scores_of
from harness.report.cells import Cell, Table
from harness.report.currency import WORDS, Flip, unpriced
from harness.report.on_curve import total_cost
from harness.sweep.answer import Line, at, words_of
from harness.sweep.gather import Found
from harness.units import Unit, format_amount

# What each means for the verdict, those that ask for another look first.
FLIPS: dict[Flip, str] = {"yes": "flips", "possible": "may flip", "no": "holds", "unknown": "cannot be told"}
# Places of the axis nearer to each other than this share are one.
SAME_PLACE = 0.02


@dataclass(frozen=True)
class Costs:
    """An arm along a ladder: mean cost at every rung (K,), rising, and scores (K, n)."""

    cost: Array
    scores: Array

    def read(self, places: Array) -> Array:
        """Every seed's score at these costs (P, n), linear over the logarithm of the cost."""
        columns = [np.interp(np.log(places), np.log(self.cost), each) for each in self.scores.T]
        return np.stack(columns, axis=-1)


def lines(found: Found) -> list[Line]:
    """One sentence per challenger and currency that the budget is not in."""
    if found.baseline is None or len(found.at) < 2 or found.sweep.spec.kind == "tune":
        return []
    units = [unit for unit in WORDS if unit.value != found.at[0].analysis.unit]
    if found.sweep.spec.kind == "crossover":
        return [_along(found, arm.name, unit) for unit in units for arm in found.challengers]
    return [_point_by_point(found, unit) for unit in units]


def _point_by_point(found: Found, unit: Unit) -> Line:
    """At which points the verdict is the same in `unit`."""
    places: dict[Flip, list[str]] = {}
    for each in found.at:
        known: list[Flip] = [c.flip for c in each.analysis.currencies if c.unit == unit.value]
        places.setdefault(known[0] if known else "unknown", []).append(at(found, each.x))
    said = [f"{words} at {', '.join(places[flip])}" for flip, words in FLIPS.items() if flip in places]
    return Line("", f"In {WORDS[unit]}: the verdict {'; '.join(said)}", {"unit": unit.value, "points": places})


def _along(found: Found, challenger: str, unit: Unit) -> Line:
    """Where the two arms change places when each is charged in `unit`."""
    assert found.baseline is not None
    baseline, words = found.baseline.name, WORDS[unit]
    start = f"In {words}: "

    def untold(why: str) -> Line:
        return Line(challenger, f"{start}{challenger} or {baseline}: cannot tell, {why}")

    if unit is Unit.GPU_SECOND and (why := found.unlike_hardware):
        return untold(why)
    if why := next((why for a in found.at if (why := unpriced(a.analysis, unit))), ""):
        return untold(why)
    if why := found.meaningless.get(challenger) or found.meaningless.get(baseline):
        return untold(why)
    try:
        curves = {name: _costs(found, name, (challenger, baseline), unit) for name in (challenger, baseline)}
        low = max(float(each.cost[0]) for each in curves.values())
        high = min(float(each.cost[-1]) for each in curves.values())
        places = _places([float(x) for each in curves.values() for x in each.cost], low, high)
        if len(places) < 2:
            return untold(f"what the arms took in {words} does not overlap")
        sign = 1.0 if higher_is_better(found.metric) else -1.0
        table = sign * (curves[challenger].read(places) - curves[baseline].read(places))
        along = crossover(
            [float(x) for x in places], table, challenger=challenger, baseline=baseline,
            words=replace(words_of(found), axis_unit=unit.value), family=len(found.judged),
        )  # fmt: skip
    except IsoBudgetError as error:
        return untold(str(error))
    return Line(challenger, f"{start}{along.sentence()}", {"unit": unit.value, **along.as_json()}, along)


def _costs(found: Found, arm: str, pair: tuple[str, str], unit: Unit) -> Costs:
    """An arm's mean cost and scores at every rung, over the seeds that both arms have everywhere."""
    scores, seeds = scores_of(found.ladder, pair)
    rows: list[float] = []
    for each in found.at:
        runs = {run.seed: run for a in each.analysis.arms if a.name == arm for run in a.done}
        costs = [total_cost(runs[seed], unit) for seed in seeds]
        known = [cost for cost in costs if cost]
        if len(known) < len(costs):
            raise DataError(f"{arm} at {each.point.label}", rule=f"its cost in {WORDS[unit]} is not known")
        rows.append(sum(known) / len(known))
    cost = np.array(rows)
    if not (np.diff(cost) > 0).all():
        raise DataError(f"{arm}", rule=f"a larger budget took no more {WORDS[unit]}: costs were disturbed")
    return Costs(cost, scores[arm])


def _places(costs: list[float], low: float, high: float) -> Array:
    """Every rung's cost inside the common range and its two ends, those almost equal once."""
    if not low < high:
        return np.empty(0)
    kept = [low]
    for cost in sorted(cost for cost in costs if low < cost < high):
        if cost > kept[-1] * (1 + SAME_PLACE) and cost * (1 + SAME_PLACE) < high:
            kept.append(cost)
    return np.array([*kept, high] if high > low * (1 + SAME_PLACE) else kept)


def points(found: Found) -> Table:
    """What every point's own report says in the other currencies; nothing of a ladder, whose lines say more."""
    rows: list[list[Cell]] = []
    records = []
    if found.sweep.spec.kind not in ("crossover", "tune"):
        for each in found.at:
            for currency in each.analysis.currencies:
                told = currency.verdict.sentence if currency.verdict else "not told by scores"
                equal = "" if currency.at is None else f"at {format_amount(currency.at, Unit(currency.unit))} each"
                rows.append(
                    [
                        Cell(at(found, each.x), detail=each.point.spec.label or ""),
                        Cell(each.analysis.verdict.sentence),
                        Cell(told, detail=equal),
                        Cell(FLIPS[currency.flip], role="flag" if currency.flip in ("yes", "possible") else ""),
                    ]
                )  # fmt: skip
                records.append(
                    {
                        "x": each.x, "label": each.point.label, "unit": currency.unit, "at": currency.at,
                        "metric": currency.metric, "verdict": each.analysis.verdict.sentence,
                        "in_this_currency": told, "flip": currency.flip, "note": currency.note,
                    }
                )  # fmt: skip
    unit = found.at[0].analysis.unit if found.at else None
    words = " and ".join(text for each, text in WORDS.items() if each.value != unit)
    notes = list(dict.fromkeys(f"{c.basis}." for each in found.at for c in each.analysis.currencies if c.basis))
    notes += list(dict.fromkeys(c.note for each in found.at for c in each.analysis.currencies if not c.basis))
    columns = [found.kind.axis.capitalize(), "At the equal budget", f"At equal {words}", "The verdict"]
    return Table("currencies", f"In {words}", columns, rows, records, notes=notes if rows else [], words=True)
