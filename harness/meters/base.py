"""The protocol every meter follows, and how a measured unit predicts its next step."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Protocol

from harness.budget import Charge
from harness.units import Unit


class Meter(Protocol):
    """Predicts the next step before it runs and tells what it cost after it ran.

    `source` is "analytic" when both are the same number by construction, else "measured".
    """

    unit: Unit
    source: str

    def next_step(self, phase: int) -> tuple[Charge, ...]:
        """The charges expected of one optimizer step in this phase of the objective."""
        ...

    def drain(self, phase: int) -> tuple[Charge, ...]:
        """The charges of the step that just ran, identical on all ranks."""
        ...


class Predictor:
    """The median of the last steps: one slow step neither ends a run early nor lets it overrun."""

    def __init__(self, window: int = 9) -> None:
        self._recent: deque[float] = deque(maxlen=window)

    def observe(self, amount: float) -> None:
        self._recent.append(amount)

    def predict(self) -> float:
        """0 before anything was observed: the first step is always affordable."""
        return median(self._recent) if self._recent else 0.0
