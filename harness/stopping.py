"""A polite request to stop: SIGTERM from a scheduler, SIGUSR1 before a time limit.

One rank may get the signal and the others none. While training, ranks agree at every step; in evaluation, where
each works alone, the one that was asked leaves word for the others.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from typing import Any

from harness import watchdog
from harness.errors import Preempted
from harness.ranks import Ranks

# How often a rank that works alone asks whether another was told to stop.
ASK_EVERY_S = 2.0
# Ranks make their flags in the same order, so the n-th flag of each speaks of the same study.
_numbers = itertools.count()
_active: list[StopFlag] = []


class StopFlag:
    """Set by SIGTERM or SIGUSR1 on any rank; calling it says whether to save and leave.

    Python runs signal handlers in the main thread, whichever thread the system interrupted, so no worker thread can
    swallow a signal. A second signal while the first is obeyed changes nothing.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.raised = False
        self._ranks = ranks or Ranks()
        self._word = f"stop-{next(_numbers)}"
        self._told = False
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        _active.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._raise)
        return self

    def _raise(self, number: int, frame: Any) -> None:
        self.raised = True

    def __exit__(self, *_: object) -> None:
        _active.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        if self.raised and not self._told:
            # Not in the handler: it may have interrupted the very store it would write to.
            self._ranks.tell_all(self._word)
            self._told = True
        now = time.monotonic()
        if not self.raised and now - self._asked_at >= ASK_EVERY_S:
            self._asked_at = now
            self.raised = self._told = self._ranks.was_told(self._word)
        return self.raised


def poll(where: str) -> None:
    """A place where evaluation may be left: says that this rank moved on.

    Only where ranks work alone: a rank that leaves a collective early would hang the others.

    Raises:
        Preempted: this rank or another was asked to stop.
    """
    watchdog.beat(where)
    if any(flag() for flag in _active):
        raise Preempted(f"stopped by a signal at {where}", remedy="run again with --resume to continue")
