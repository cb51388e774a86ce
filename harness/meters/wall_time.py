"""Wall time: every second between the start and the end of a trial, each in exactly one account.

Two units come from the one clock: seconds as a person waits them, and device seconds as a cluster bills
them — devices held × wall time, whether they worked or waited.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from harness.budget import Account, Charge
from harness.meters.base import Predictor
from harness.units import Unit

ACCOUNTS: tuple[Account, ...] = (Account.STUDENT_STEP, Account.STARTUP, Account.EVALUATION, Account.CHECKPOINT)


class WallClock:
    """Runs from `started` on; at any time one account is running.

    Rank 0's clock counts for all, because clocks differ across nodes; the other ranks contribute zeros to the
    sum. STUDENT_STEP is all that happens between two steps too: waiting for data, logging, agreeing.
    """

    units = (Unit.SECOND, Unit.ALLOCATED_GPU_SECOND)
    width = len(ACCOUNTS)

    def __init__(
        self, *, counts: bool, held: int, started: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`counts`: this rank's clock is the one that counts; `held`: devices of the whole run."""
        self._counts = counts
        self._held = held
        self._clock = clock
        self._since = clock() if started is None else started
        self.counted_to = self._since
        """The time up to which `local` has handed out what it knew."""
        self._account = Account.STARTUP
        self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
        self._predictor = Predictor()

    def switch(self, account: Account) -> Account:
        """From now on time belongs to `account`; returns whose it was."""
        now, before = self._clock(), self._account
        self._seconds[before] += now - self._since
        self._since, self._account = now, account
        return before

    def predict(self) -> tuple[Charge, ...]:
        return tuple(self._both(Account.STUDENT_STEP, self._predictor.predict()))

    def local(self) -> list[float]:
        """Seconds by account since the last call; zeros on every rank whose clock does not count."""
        self.switch(self._account)
        self.counted_to = self._since
        seconds = [self._seconds[account] if self._counts else 0.0 for account in ACCOUNTS]
        self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
        return seconds

    def charges(self, sums: Sequence[float], steps: int) -> list[Charge]:
        if steps:
            self._predictor.observe(sums[0] / steps)
        return [
            charge
            for account, seconds in zip(ACCOUNTS, sums, strict=True)
            if seconds > 0
            for charge in self._both(account, seconds)
        ]

    def _both(self, account: Account, seconds: float) -> list[Charge]:
        return [
            Charge(account, seconds, Unit.SECOND, "measured"),
            Charge(account, seconds * self._held, Unit.ALLOCATED_GPU_SECOND, "measured"),
        ]
