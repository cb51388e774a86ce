"""What a run had spent in every unit by the time it had spent so much of its budget, read from its ledger.

A ledger of a long run has a line per step; kept here are at most a few hundred points per unit, at the postings
that carried the unit: device time is posted every few steps, and between two postings it is a straight line.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

Json = dict[str, Any]
# Thinned to this many points per unit: a curve has some hundred rows.
POINTS = 400


@dataclass(frozen=True)
class LedgerPath:
    """`units`: {unit: [(budget spent, amount of charged accounts in that unit)]}, both rising."""

    units: dict[str, list[tuple[float, float]]] = field(default_factory=dict[str, list[tuple[float, float]]])
    last: Json | None = None
    broken: int = 0

    def amount(self, unit: str, spent: float) -> float | None:
        """The amount in `unit` when `spent` of the budget was spent, linear in between; None where none was posted."""
        points = self.units.get(unit)
        if not points:
            return None
        right = bisect_left(points, (spent, float("-inf")))
        if right == len(points):
            return points[-1][1]
        (x1, y1), (x0, y0) = points[right], points[right - 1] if right else (0.0, 0.0)
        return y1 if x1 <= x0 else y0 + (y1 - y0) * (spent - x0) / (x1 - x0)

    def total(self, unit: str) -> float | None:
        """Everything that charged accounts took in `unit`; None where none was posted."""
        points = self.units.get(unit)
        return points[-1][1] if points else None


def read_path(file: Path, charged: Collection[str]) -> LedgerPath:
    """The path of one ledger file; lines that cannot be read are counted and left out, a missing file is empty."""
    units: dict[str, list[tuple[float, float]]] = {}
    sums: dict[str, float] = {}
    last: Json | None = None
    broken = 0
    for row in _rows(file):
        if row is None:
            broken += 1
            continue
        last = row
        spent = row.get("spent")
        if not _is_number(spent):
            continue
        seen: set[str] = set()
        for charge in row.get("charges") or []:
            if not (isinstance(charge, list) and len(charge) >= 3 and _is_number(charge[1])):
                continue
            account, amount, unit = charge[:3]
            if account in charged:
                sums[str(unit)] = sums.get(str(unit), 0.0) + float(amount)
                seen.add(str(unit))
        for unit in seen:
            points = units.setdefault(unit, [])
            if points and points[-1][0] >= spent:
                points.pop()
            points.append((float(spent), sums[unit]))
    return LedgerPath({unit: _thinned(points) for unit, points in units.items()}, last, broken)


def _rows(file: Path) -> Iterator[Json | None]:
    """Every line as an object, None for a line that is none; a kept record's ledger is gzipped."""
    packed = file.with_name(f"{file.name}.gz")
    try:
        with (
            gzip.open(packed, "rt", encoding="utf-8", errors="replace")
            if packed.exists() and not file.exists()
            else file.open(encoding="utf-8", errors="replace")
        ) as lines:
            for line in lines:
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError:
                        row = None
                    yield row if isinstance(row, dict) else None
    except (OSError, EOFError):  # absent, unreadable, or a torn archive
        return


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Evenly chosen points, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    step = (len(points) - 1) / (POINTS - 1)
    return [points[round(i * step)] for i in range(POINTS)]
