"""The teacher's work behind remembered signals: paid when a sample is read for the first time, and never again."""

from __future__ import annotations

from collections.abc import Callable

from harness.budget import Account, Charge
from harness.units import Unit


class CacheMeter:
    """Charges the new samples of every step, as if the cache were written while it is read.

    So a single pass over the data costs what a teacher that is asked costs, step by step; what is saved is what is
    read again. Exact in FLOPs; the device seconds are those that writing a sample took, on average.
    """

    unit = Unit.FLOP
    source = "analytic"

    def __init__(
        self, *, flop: int, fresh: Callable[[], int], shared_by: int = 1, seconds: float | None = None
    ) -> None:
        """`flop` and `seconds` of one sample; `fresh` counts the new samples of the step at hand."""
        self._flop = flop
        self._fresh = fresh
        self._shared_by = shared_by
        self._seconds = seconds

    def next_step(self, phase: int) -> tuple[Charge, ...]:
        samples = self._fresh()
        if not samples:
            return ()
        flop = Charge(Account.TEACHER_CACHE, self._flop * samples // self._shared_by, Unit.FLOP)
        if self._seconds is None:
            return (flop,)
        seconds = self._seconds * samples / self._shared_by
        return flop, Charge(Account.TEACHER_CACHE, seconds, Unit.GPU_SECOND, "measured")

    def drain(self, phase: int) -> tuple[Charge, ...]:
        return self.next_step(phase)
