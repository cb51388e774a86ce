"""Device time: seconds a device was busy with charged spans, summed over ranks.

On CUDA, events around each span, so nothing waits for the GPU until a drain. Without a GPU the rank's
process is the device and a monotonic clock measures it; a jump of the wall clock changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.budget import Account, Charge
from harness.meters.base import Predictor
from harness.ranks import Ranks
from harness.units import Unit

_ACCOUNTS = (Account.STUDENT_STEP, Account.TEACHER_FORWARD)


class DeviceClock:
    """Measures spans by account; `drain` adds them up over ranks, so all ranks post the same charge.

    The objective's forward and backward run inside the student's, so its time is in STUDENT_STEP.
    `every` steps are summed and posted together; a budget in device time drains after each.
    """

    unit = Unit.GPU_SECOND
    source = "measured"

    def __init__(self, ranks: Ranks, *, cuda: bool, every: int) -> None:
        self._ranks = ranks
        self._cuda = cuda
        self._every = every
        self._seconds = dict.fromkeys(_ACCOUNTS, 0.0)
        self._events: list[tuple[Account, Any, Any]] = []
        self._steps = 0
        self._predictor = Predictor()

    @contextmanager
    def span(self, account: Account) -> Iterator[None]:
        if self._cuda:
            import torch

            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((account, begin, end))
            return
        started = time.monotonic_ns()
        yield
        self._seconds[account] += (time.monotonic_ns() - started) * 1e-9

    def next_step(self, phase: int) -> tuple[Charge, ...]:
        return (Charge(Account.STUDENT_STEP, self._predictor.predict(), self.unit, self.source),)

    def drain(self, phase: int) -> tuple[Charge, ...]:
        """Charges of all steps since the last non-empty drain; empty between."""
        self._steps += 1
        return self.flush() if self._steps >= self._every else ()

    def flush(self) -> tuple[Charge, ...]:
        """Charges of whatever was measured and not yet posted."""
        if not self._steps:
            return ()
        for account, begin, end in self._events:
            end.synchronize()
            self._seconds[account] += begin.elapsed_time(end) * 1e-3
        self._events.clear()
        sums = self._ranks.add([self._seconds[account] for account in _ACCOUNTS])
        self._predictor.observe(sum(sums) / self._steps)
        self._seconds = dict.fromkeys(_ACCOUNTS, 0.0)
        self._steps = 0
        return tuple(
            Charge(account, amount, self.unit, self.source)
            for account, amount in zip(_ACCOUNTS, sums, strict=True)
            if amount
        )
