"""What a run had cost in a unit, and what it scored there: read from its own learning curve."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from harness.budget import Account
from harness.report.source import Run, mapping, number
from harness.units import Unit

if TYPE_CHECKING:
    from harness.report.analysis import Analysis

Points = list[tuple[float, float]]
# Runs whose costs differ by less than this cost the same.
SAME_COST = 0.005
# What is owed before the first step; it may be known in one unit and not in another.
OWED = (Account.TEACHER_TRAINING, Account.TEACHER_CACHE, Account.TUNING)


def total_cost(run: Run, unit: Unit) -> float | None:
    """What a run's charged accounts took in a unit: from its ledger, else from its record."""
    found = run.path.total(unit.value)
    if found is None:
        found = number(mapping(run.record.get("charged_in")).get(unit.value))
    if found is None and unit is Unit.GPU_SECOND:
        found = number(run.record.get("seconds"))
    return found


def score_at(analysis: Analysis, run: Run, metric: str, unit: Unit, cost: float) -> float | None:
    """A run's score when it had cost so much; None where its curve does not reach down that far."""
    total, final = total_cost(run, unit), run.scores.get(metric)
    if total is None or total <= 0 or final is None:
        return None
    if cost >= total * (1 - SAME_COST):
        return final
    points = curve(analysis, run, metric, unit)
    if not points or points[0][0] > cost:
        return None  # its first evaluation came later, and nobody knows what an untrained student scores
    return at_cost([*points, (total, final)], cost)


def curve(analysis: Analysis, run: Run, metric: str, unit: Unit) -> Points:
    """(cost in `unit`, score) of every evaluation along the way, from the untrained student's at no cost on."""
    key = metric.replace(".", "_")
    points: dict[float, float] = {}
    for row in run.evaluations:
        value, spent = number(row.get(key)), number(row.get("spent"))
        cost = None if spent is None else _cost_at(analysis, run, unit, spent)
        if value is not None and cost is not None:
            points[cost] = value
    start = analysis.references.get("untrained", {}).get(metric)
    if points and start is not None:
        # What is owed before the first step buys no learning: until it is paid the student is untrained.
        points.setdefault(0.0, start)
        points.setdefault(_owed(analysis, run, unit), start)
    return sorted(points.items())


def _owed(analysis: Analysis, run: Run, unit: Unit) -> float:
    """What a run's charged accounts took in `unit` before its first step."""
    accounts = mapping(run.record.get("accounts"))
    paid = (mapping(accounts.get(a.value)).get(unit.value) for a in OWED if a.value in analysis.charged)
    return sum(number(amount) or 0.0 for amount in paid)


def _cost_at(analysis: Analysis, run: Run, unit: Unit, spent: float) -> float | None:
    """Cost in `unit` when so much of the budget was spent; in proportion where the ledger holds no such unit."""
    amount = run.path.amount(unit.value, spent)
    if amount is not None:
        return amount
    total, charged = total_cost(run, unit), number(run.record.get("charged"))
    return total * spent / charged if total and charged else None


def at_cost(points: Points, cost: float) -> float:
    """Linear between points of rising cost; the last one's beyond them."""
    right = bisect_left(points, (cost, float("-inf")))
    if right == len(points):
        return points[-1][1]
    if right == 0:
        return points[0][1]
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y1 if x1 == x0 else y0 + (y1 - y0) * (cost - x0) / (x1 - x0)
