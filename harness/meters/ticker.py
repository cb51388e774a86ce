"""Calls something at a period from a thread of its own, within a stated share of the time, until stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_JOIN_S = 5.0  # a driver call that hangs longer than this is abandoned: the thread is a daemon


class Ticker:
    """Calls `work` every `period_s`, or less often where it would take more than `max_share` of a core.

    An exception in `work` ends the ticking and is kept in `error`; it never reaches the training.
    """

    def __init__(
        self, work: Callable[[], None], *, period_s: float, max_share: float = 0.005, name: str = "ticker"
    ) -> None:
        if not period_s > 0:
            raise ValueError(f"a period of {period_s} s; give a positive one")
        self._work = work
        self.period_s = period_s
        self._max_share = max_share
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._started_s = 0.0
        self._ended_s: float | None = None
        self.ticks = 0
        self.wall_s = 0.0  # in the work, waiting for the driver (without the interpreter lock) included
        self.cpu_s = 0.0  # of the thread: what training can feel
        self.error: str | None = None

    def start(self) -> None:
        self._started_s = time.monotonic()
        self._thread.start()

    def stop(self) -> bool:
        """Ask the thread to end and wait for it; False when it hangs in the driver and was abandoned."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        if self._ended_s is None:
            self._ended_s = time.monotonic()
        return not self._thread.is_alive()

    def fail(self, error: Exception) -> None:
        """Keep the first error."""
        self.error = self.error or f"{type(error).__name__}: {error}"

    @property
    def overhead(self) -> float:
        """CPU time of the work over the time it ran beside, 0..1."""
        lasted = (self._ended_s if self._ended_s is not None else time.monotonic()) - self._started_s
        return self.cpu_s / lasted if lasted > 0 else 0.0

    def _loop(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            began, began_cpu = time.monotonic(), time.thread_time()
            try:
                self._work()
            except Exception as error:  # a full disk or a driver fault must not kill the run
                self.fail(error)
                return
            cpu = time.thread_time() - began_cpu
            self.ticks += 1
            self.wall_s += time.monotonic() - began
            self.cpu_s += cpu
            # Missed ticks are skipped, not made up for: a burst of late samples would measure nothing new.
            due = max(due + self.period_s, began + cpu / self._max_share)
