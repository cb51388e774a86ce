"""What the next step will cost in joules, and what a partly measured span is charged.

Deterministic: the same observations in the same order give the same numbers, on any machine.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from harness.meters.energy_reading import EnergyReading

WINDOW = 32  # observations remembered; old ones describe a colder chip or another phase
_SPREADS = 3.0  # observations are clipped to median ± 3 robust standard deviations
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


class StepEnergy:
    """The robust mean joules per optimizer step, from what spans of steps were measured to cost."""

    def __init__(self, window: int = WINDOW) -> None:
        self._recent: deque[tuple[float, int]] = deque(maxlen=window)  # (joules per step, steps)
        self.pending_steps = 0

    def observe(self, joules: float, steps: int) -> None:
        """`steps` steps together cost `joules`; negative amounts and empty spans are refused.

        Raises:
            ValueError: joules below zero or no steps.
        """
        if not joules >= 0 or steps < 1:
            raise ValueError(f"{joules} J over {steps} steps is not a cost")
        self._recent.append((joules / steps, steps))

    def predict_step(self) -> float | None:
        """Joules of the next step; None before anything was observed.

        The mean per step with outliers pulled in to median ± 3 robust standard deviations: a span that
        caught a reset or another job's burst moves the prediction little, a lasting change moves it fully.
        """
        if not self._recent:
            return None
        middle = median(each for each, _ in self._recent)
        reach = _SPREADS * _MAD_TO_SIGMA * median(abs(each - middle) for each, _ in self._recent)
        clipped = [(min(max(each, middle - reach), middle + reach), steps) for each, steps in self._recent]
        return sum(each * steps for each, steps in clipped) / sum(steps for _, steps in clipped)

    # -- a budget in joules ----------------------------------------------------------------------------
    def charge(self, reading: EnergyReading, steps: int) -> float | None:
        """What to take from the budget for `steps` more steps that ended with this reading.

        Measured joules where the span is complete; where it is partial, the missing share is filled up
        with the prediction, so that a dying instrument never makes steps free; None when that is impossible
        because nothing was ever measured: the run must then stop. 0 while pending: the steps are charged
        with the reading that follows, and `pending_j` keeps them in mind until then.
        """
        if reading.pending:
            self.pending_steps += steps
            return 0.0
        steps, self.pending_steps = steps + self.pending_steps, 0
        if reading.joules is not None and reading.complete:
            if steps:
                self.observe(reading.joules, steps)
            return reading.joules
        each = self.predict_step()
        if each is None:
            return None
        return (reading.joules or 0.0) + (1.0 - reading.coverage) * each * steps

    @property
    def pending_j(self) -> float:
        """Predicted joules of steps that ran and are not yet charged: ask the budget for these as well."""
        return (self.predict_step() or 0.0) * self.pending_steps

    # -- resuming --------------------------------------------------------------------------------------
    def state(self) -> list[list[float]]:
        return [[each, steps] for each, steps in self._recent]

    def restore(self, state: list[list[float]]) -> None:
        self._recent.clear()
        self._recent.extend((float(each), int(steps)) for each, steps in state)
