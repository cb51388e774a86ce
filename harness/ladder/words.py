"""How a ladder's results are written: a score with its unit, a rung in its own, as many digits as the spread supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.units import Unit, decimal, format_amount

MINUS = "\N{MINUS SIGN}"
_LARGE = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_UNITS = frozenset(unit.value for unit in Unit)


@dataclass(frozen=True)
class Words:
    """The names that a sentence uses.

    score_unit: of a difference, "nats" or "points"; score_scale: what a score is multiplied with before it is
    printed, 100 for points. axis_unit: of a rung; the name of a budget's unit is printed in a human scale.
    """

    score_unit: str = ""
    score_scale: float = 1.0
    axis_unit: str = ""

    def rung(self, value: float) -> str:
        """ "3.2 PFLOP", or the number with its unit."""
        if self.axis_unit in _UNITS:
            return format_amount(value, Unit(self.axis_unit))
        scale, name = next(((s, n) for s, n in _LARGE if abs(value) >= s), (1.0, ""))
        return " ".join(part for part in (f"{value / scale:.3g}", name, self.axis_unit) if part)

    def size(self, value: float, *, spread: float | None = None) -> str:
        """An unsigned difference with its unit, in two significant digits of the spread or of itself."""
        return f"{self._fixed(abs(value), spread)} {self.score_unit}".strip()

    def score(self, value: float, *, spread: float | None = None) -> str:
        """A score without its unit."""
        text = self._fixed(value, spread)
        return text.replace("-", MINUS) if float(text) else text.lstrip("-")

    def between(self, low: float, high: float) -> str:
        """ "4.10 to 4.33"."""
        spread = (high - low) / 2
        return f"{self.score(low, spread=spread)} to {self.score(high, spread=spread)}"

    def estimate(self, value: float, low: float | None, high: float | None) -> str:
        """ "4.21 (95 % interval 4.10 to 4.33)", or the value alone."""
        if low is None or high is None:
            return self.score(value)
        return f"{self.score(value, spread=(high - low) / 2)} (95 % interval {self.between(low, high)})"

    def plus_minus(self, value: float, half_width: float) -> str:
        """ "0.31 ± 0.04 nats"."""
        size, error = (self._fixed(abs(v), half_width) for v in (value, half_width))
        return f"{size} ± {error} {self.score_unit}".strip()

    def _fixed(self, value: float, spread: float | None) -> str:
        guide = abs((spread if spread else value) * self.score_scale)
        decimals = 3 if not guide or not math.isfinite(guide) else min(6, max(0, 1 - math.floor(math.log10(guide))))
        return decimal(value * self.score_scale, decimals)


def percent(share: float) -> str:
    """A probability or a share; never 0 % or 100 % unless it is."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def more(seeds: int, *, at_least: bool = False) -> str:
    """ "run 3 more seeds"."""
    return f"run {'at least ' if at_least else ''}{seeds} more seed{'s' if seeds != 1 else ''}"
