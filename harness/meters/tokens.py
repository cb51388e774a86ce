"""Tokens: real tokens of the global batch, counted once however many models read them."""

from __future__ import annotations

from harness.budget import Account, Charge
from harness.objectives.base import StepSize
from harness.units import Unit


class TokenMeter:
    """Packed blocks hold no pads, so every step is the same number of tokens."""

    unit = Unit.TOKEN
    source = "analytic"

    def __init__(self, size: StepSize) -> None:
        self._charges = (Charge(Account.STUDENT_STEP, size.tokens, Unit.TOKEN),)

    def next_step(self, phase: int) -> tuple[Charge, ...]:
        return self._charges

    def drain(self, phase: int) -> tuple[Charge, ...]:
        return self._charges
