"""All that is measured of a trial — device time, wall time, energy — behind one meter.

Postings of every instrument travel in one sum over ranks, so all ranks post the same charges. The budget's own
unit is posted after every step; the others once in a while, because agreeing costs something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from harness.budget import Account, Charge
from harness.meters.device_time import DeviceClock
from harness.meters.energy_run import RunEnergy
from harness.meters.wall_time import WallClock
from harness.ranks import Ranks
from harness.units import Unit

# Measured amounts are summed over this many steps before ranks exchange them, unless the budget is in their unit.
POSTING_STEPS = 16

T = TypeVar("T")
Instrument = DeviceClock | WallClock | RunEnergy


class Measured:
    """One meter over all instruments.

    `started` is when the trial began on `clock`; `settle` waits for the device, so that a span's end is one.
    """

    source = "measured"

    def __init__(
        self,
        ranks: Ranks,
        *,
        unit: Unit,
        device: DeviceClock,
        wall: WallClock,
        energy: RunEnergy,
        started: float,
        settle: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unit = unit
        self.device = device
        self.wall = wall
        self.energy = energy
        self._ranks = ranks
        self._started = started
        self._settle = settle
        self._clock = clock
        self._instruments: tuple[Instrument, ...] = (device, wall, energy)
        self._deciding = next((i for i in self._instruments if unit in i.units), None)
        self._steps = dict.fromkeys(self._instruments, 0)
        self._count = 0
        self.own_s = 0.0  # spent in this meter's calls
        self.waited_s = 0.0  # of those, for other ranks and for the device

    # -- what belongs to whom --------------------------------------------------------------------------
    def span(self, account: Account) -> AbstractContextManager[None]:
        """A part of an optimizer step."""
        return self.device.span(account)

    @contextmanager
    def stage(self, account: Account) -> Iterator[None]:
        """Something other than steps: all time and energy until it ends belong to `account`."""
        self._settle()
        before, begun = self.wall.switch(account), self._clock()
        self.energy.switch(account)
        try:
            yield
        finally:
            self._settle()
            self.device.add(account, self._clock() - begun)
            self.energy.switch(before)
            self.wall.switch(before)

    def starting(self) -> None:
        """Count the start-up until now."""
        self._settle()
        now = self._clock()
        self.device.add(Account.STARTUP, now - self._started)
        self._started = now

    def begin(self) -> None:
        """Start-up is over; steps follow."""
        self.starting()
        self.energy.switch(Account.STUDENT_STEP)
        self.wall.switch(Account.STUDENT_STEP)

    # -- the meter ---------------------------------------------------------------------------------------
    def next_step(self, phase: int) -> tuple[Charge, ...]:
        """The next step in the budget's unit; nothing when the budget is counted, not measured."""
        if self._deciding is None:
            return ()
        return tuple(charge for charge in self._deciding.predict() if charge.unit is self.unit)

    def drain(self, phase: int) -> tuple[Charge, ...]:
        """After a step: the budget's own unit, and every `POSTING_STEPS` steps all others."""
        begun = time.perf_counter()
        self._count += 1
        for instrument in self._instruments:
            self._steps[instrument] += 1
        everything = self._count % POSTING_STEPS == 0
        due = self._instruments if everything else () if self._deciding is None else (self._deciding,)
        charges = self._post(due)
        self.own_s += time.perf_counter() - begun
        return tuple(charges)

    def flush(self) -> list[Charge]:
        """Whatever was measured and not yet posted."""
        begun = time.perf_counter()
        charges = self._post(self._instruments)
        self.own_s += time.perf_counter() - begun
        return charges

    def _wait(self, action: Callable[[], T]) -> T:
        begun = time.perf_counter()
        try:
            return action()
        finally:
            self.waited_s += time.perf_counter() - begun

    def _post(self, due: tuple[Instrument, ...]) -> list[Charge]:
        if not due:
            return []
        if self._deciding in due and self.unit is not Unit.GPU_SECOND:
            self._wait(self._settle)  # device time has its own events; the others must not run ahead of the device
        mine = [value for instrument in due for value in instrument.local()]
        sums = self._wait(lambda: self._ranks.add(mine))
        charges: list[Charge] = []
        for instrument in due:
            part, sums = sums[: instrument.width], sums[instrument.width :]
            charges += instrument.charges(part, self._steps[instrument])
            self._steps[instrument] = 0
        return charges
