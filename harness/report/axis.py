"""Round axis ticks, and the one scale in which several amounts of a unit are printed alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from harness.errors import ConfigError
from harness.report import numbers
from harness.units import Unit, format_amount, parse_quantity


@dataclass(frozen=True)
class Tick:
    """A place along an axis in per cent of its length, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """A readable multiple of a base unit: "TFLOP" is worth 1e12."""

    worth: float
    name: str

    def write(self, value: float | None, *, digits: int = 3) -> str:
        """An amount in this scale to so many significant digits, without the scale's name."""
        if value is None:
            return "–"
        shown = value / self.worth
        decimals = 0 if shown == 0 else max(0, min(6, digits - 1 - math.floor(math.log10(abs(shown)))))
        return numbers.fixed(shown, decimals)


def scale_of(amount: float, unit: str | None) -> Scale:
    """The scale a person would choose for this amount: 9.9e12 flop is told in TFLOP."""
    try:
        known = Unit(unit or "")
        name = format_amount(amount, known).split(" ", 1)[1]
    except (ValueError, IndexError):
        return Scale(1.0, unit or "")
    for spelling in (name.replace(" ", ""), name.replace(" ", "-")):
        try:
            return Scale(float(parse_quantity(f"1 {spelling}").amount), name)
        except ConfigError:
            continue
    return Scale(1.0, known.value)


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Between two and about `count` multiples of 1, 2, 2.5 or 5 × 10ᵏ inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def labels(values: Iterable[float]) -> list[str]:
    """The ticks' labels, all with as many decimals as their step needs."""
    values = list(values)
    step = min((b - a for a, b in pairwise(values)), default=abs(values[0]) if values else 1) or 1
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < step * 1e-6), 6)
    return [numbers.fixed(value, decimals) for value in values]


def axis(low: float, high: float, *, worth: float = 1.0, count: int = 5) -> list[Tick]:
    """Ticks of an axis from `low` to `high` in base units, labelled in multiples of `worth`."""
    places = ticks(low / worth, high / worth, count=count)
    span = (high - low) / worth or 1.0
    return [Tick(100 * (value - low / worth) / span, text) for value, text in zip(places, labels(places), strict=True)]
