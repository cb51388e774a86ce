"""Device time: seconds a device was busy with charged spans, summed over ranks.

On CUDA, events around each span, so nothing waits for the GPU until a posting. Without a GPU the rank's
process is the device and a monotonic clock measures it; a jump of the wall clock changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.budget import Account, Charge
from harness.meters.base import Predictor
from harness.units import Unit

ACCOUNTS: tuple[Account, ...] = (
    Account.STUDENT_STEP,
    Account.TEACHER_FORWARD,
    Account.STARTUP,
    Account.EVALUATION,
    Account.CHECKPOINT,
)
_STEP = slice(0, 2)  # of ACCOUNTS: what one optimizer step is made of


class DeviceClock:
    """Measures spans by account on this rank; `charges` turns the sums over ranks into one posting.

    The objective's forward and backward run inside the student's, so its time is in STUDENT_STEP. Outside
    steps (start-up, evaluation, checkpoints) a device counts as used for as long as its rank is.
    """

    units = (Unit.GPU_SECOND,)
    width = len(ACCOUNTS)

    def __init__(self, *, cuda: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._cuda = cuda
        self._clock = clock
        self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
        self._events: list[tuple[Account, Any, Any]] = []
        self._predictor = Predictor()

    @contextmanager
    def span(self, account: Account) -> Iterator[None]:
        """A part of a step."""
        if self._cuda:
            import torch

            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((account, begin, end))
            return
        started = self._clock()
        yield
        self._seconds[account] += self._clock() - started

    def add(self, account: Account, seconds: float) -> None:
        """Time outside steps."""
        self._seconds[account] += seconds

    def predict(self) -> tuple[Charge, ...]:
        return (Charge(Account.STUDENT_STEP, self._predictor.predict(), Unit.GPU_SECOND, "measured"),)

    def local(self) -> list[float]:
        """This rank's seconds by account since the last call."""
        for account, begin, end in self._events:
            end.synchronize()
            self._seconds[account] += begin.elapsed_time(end) * 1e-3
        self._events.clear()
        seconds = [self._seconds[account] for account in ACCOUNTS]
        self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
        return seconds

    def charges(self, sums: Sequence[float], steps: int) -> list[Charge]:
        """The posting for sums over ranks that cover `steps` optimizer steps."""
        if steps:
            self._predictor.observe(sum(sums[_STEP]) / steps)
        return [
            Charge(account, amount, Unit.GPU_SECOND, "measured")
            for account, amount in zip(ACCOUNTS, sums, strict=True)
            if amount
        ]
