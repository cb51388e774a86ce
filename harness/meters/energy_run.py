"""Energy of one trial: one reader per node, joules by account, summed over nodes, the next step predicted.

An instrument updates every 20 to 100 ms and a step may be shorter: what was measured between two updates is
split over the accounts of that time in proportion to it, and steps that are not settled yet are kept in mind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from harness.budget import Account, Charge
from harness.meters.energy_reading import EnergyMeter, EnergyReading
from harness.meters.energy_tally import ACCOUNTS, EnergyTally, share
from harness.meters.step_energy import StepEnergy
from harness.units import Unit

# Layout of `local`: joules of each account, then these.
_READERS, _READY, _KNOWN, _DEVICE_S, _COVERED_S, _INSIDE_J, _ENDS_J, _SPREADLESS = range(
    len(ACCOUNTS), len(ACCOUNTS) + 8
)
_SETTLE_TRIES, _SETTLE_S = 12, 0.02  # at the end: at most one slow update of the instrument


class RunEnergy:
    """The energy of one trial; only a node's reader has a `meter`, every rank calls every method.

    A budget in joules is charged measured joules where the span is complete; where the instrument died, the
    missing share of the steps is charged at the predicted price (source "predicted"); where it never
    measured anything the next step has an infinite price, so that the run stops rather than runs on unpaid.
    """

    units = (Unit.JOULE,)
    width = len(ACCOUNTS) + 8

    def __init__(
        self,
        meter: EnergyMeter | None,
        *,
        budgeted: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._meter = meter
        self._budgeted = budgeted
        self._clock = clock
        self._sleep = sleep
        self._account = Account.STARTUP
        self._since = clock()
        self._unsettled = dict.fromkeys(ACCOUNTS, 0.0)  # seconds since the last reading, by account
        self._ready: list[float] = []  # this node's readings not yet posted, in the layout of `local`
        self._steps = StepEnergy()
        self._blind = False
        self.tally = EnergyTally()
        self.notes: list[str] = []

    @property
    def source(self) -> str | None:
        """The instrument in words; None on a rank that reads none."""
        return None if self._meter is None else self._meter.source

    def start(self) -> None:
        """Begin to count; from here on every joule of the trial is somebody's."""
        if self._meter is not None:
            self._meter.start()
        self._since = self._clock()

    def close(self) -> None:
        if self._meter is not None:
            self._meter.close()

    # -- on every node ---------------------------------------------------------------------------------
    def switch(self, account: Account) -> Account:
        """From now on energy belongs to `account`; returns whose it was."""
        before = self._account
        if account is not before:
            self._read(force=True)
            self._account = account
        return before

    def settle(self) -> None:
        """At the end: wait for the instrument's next update, so that nothing measured is left out."""
        for _ in range(_SETTLE_TRIES if self._meter is not None else 0):
            self._read(force=True)
            if not any(self._unsettled.values()):
                return
            self._sleep(_SETTLE_S)

    def _read(self, *, force: bool) -> None:
        now = self._clock()
        self._unsettled[self._account] += now - self._since
        self._since = now
        if self._meter is None:
            return
        reading = self._meter.read(force=force)
        if not reading.pending:
            self._keep(reading)

    def _keep(self, reading: EnergyReading) -> None:
        """Split a reading over the accounts of its time and hold it until all nodes have one."""
        total = sum(self._unsettled.values())
        fresh = [0.0] * self.width
        if reading.joules is not None:
            for place, account in enumerate(ACCOUNTS):
                part = self._unsettled[account] / total if total > 0 else float(account is self._account)
                fresh[place] = reading.joules * part
            fresh[_KNOWN] = 1.0
            fresh[_SPREADLESS] = float(reading.uncertainty_j is None)
            fresh[_INSIDE_J] = (reading.uncertainty_j or reading.ends_j) - reading.ends_j
            fresh[_ENDS_J] = reading.ends_j
        # Without an instrument a reading covers no device time; the share it leaves unknown is all of it.
        length = reading.device_s or total
        fresh[_DEVICE_S], fresh[_COVERED_S] = length, length * reading.coverage
        ends = max(fresh[_ENDS_J], self._ready[_ENDS_J]) if self._ready else fresh[_ENDS_J]
        self._ready = [a + b for a, b in zip(self._ready, fresh, strict=True)] if self._ready else fresh
        self._ready[_ENDS_J] = ends
        self._unsettled = dict.fromkeys(ACCOUNTS, 0.0)
        self.notes += [note for note in reading.notes if note not in self.notes]

    # -- over all nodes --------------------------------------------------------------------------------
    def local(self) -> list[float]:
        """What this node measured and not yet posted; it stays held until `charges` has posted it."""
        self._read(force=False)
        mine = list(self._ready) if self._ready else [0.0] * self.width
        mine[_READERS], mine[_READY] = float(self._meter is not None), float(bool(self._ready))
        return mine

    def charges(self, sums: Sequence[float], steps: int) -> list[Charge]:
        """The posting for sums over nodes; empty, and the steps kept in mind, while any node has no reading."""
        if sums[_READERS] == 0:
            return self._unreadable(steps)
        if sums[_READY] < sums[_READERS]:
            self._steps.charge(EnergyReading(None, "", 0.0, pending=True), steps)
            return []
        self._ready = []
        device_s, covered_s, known = sums[_DEVICE_S], sums[_COVERED_S], sums[_KNOWN] > 0
        joules = {a: sums[i] for i, a in enumerate(ACCOUNTS) if known and sums[i] > 0}
        self.tally.add(
            joules if known else {}, device_s=device_s, covered_s=covered_s, inside_j=sums[_INSIDE_J],
            ends_j=sums[_ENDS_J], spreadless=round(sums[_SPREADLESS]),
        )  # fmt: skip
        return [
            *(Charge(a, j, Unit.JOULE, "measured") for a, j in joules.items() if a is not Account.STUDENT_STEP),
            *self._step_charges(joules.get(Account.STUDENT_STEP), share(covered_s, device_s), steps),
        ]

    def _step_charges(self, joules: float | None, coverage: float, steps: int) -> list[Charge]:
        reading = EnergyReading(joules, "", coverage)
        if not self._budgeted:
            self._steps.charge(reading, steps)
            return [] if joules is None else [Charge(Account.STUDENT_STEP, joules, Unit.JOULE, "measured")]
        if not steps and not self._steps.pending_steps:
            return [] if joules is None else [Charge(Account.STUDENT_STEP, joules, Unit.JOULE, "measured")]
        amount = self._steps.charge(reading, steps)
        if amount is None:
            return self._unreadable(steps)
        source = "measured" if reading.complete else "predicted"
        return [Charge(Account.STUDENT_STEP, amount, Unit.JOULE, source)] if amount > 0 else []

    def _unreadable(self, steps: int) -> list[Charge]:
        self._blind = self._blind or (self._budgeted and steps > 0)
        return []

    @property
    def blind(self) -> bool:
        """A budget in joules could not be followed: nothing was ever measured."""
        return self._blind

    def predict(self) -> tuple[Charge, ...]:
        """The next step, and the steps that ran but are not settled: both must fit."""
        if self._blind:
            return (Charge(Account.STUDENT_STEP, float("inf"), Unit.JOULE, "predicted"),)
        amount = (self._steps.predict_step() or 0.0) + self._steps.pending_j
        return (Charge(Account.STUDENT_STEP, amount, Unit.JOULE, "predicted"),)
