"""A tracker in a thread of its own: it may be slow, fail or hang, and the run waits for none of that.

Rows wait in a queue of bounded length; what finds it full is dropped and counted. Opening, logging and closing all
happen in the thread, which dies with the process if it never comes back.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.trackers.base import Tracker

WAITING = 1000  # rows that a slow tracker may fall behind
RETRIES = 2  # after the first attempt, at once
GIVE_UP_AFTER = 3  # rows in a row that failed; the tracker is then left alone

Row = tuple[Mapping[str, str], int, Mapping[str, float]]


class Aside(threading.Thread):
    """Feeds one tracker. `dropped` counts the rows that never reached it; `problem` says what went wrong, once."""

    def __init__(self, name: str, opening: Callable[[], Tracker]) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self._opening = opening
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._offered = self._written = 0
        self.problem = ""
        self.start()

    @property
    def dropped(self) -> int:
        return self._offered - self._written

    def offer(self, row: Row) -> None:
        """Take a row if there is room for it; never waits."""
        self._offered += 1
        if self._rows.qsize() < WAITING:
            self._rows.put(row)
        else:
            self.problem = self.problem or f"fell {WAITING:,} rows behind"

    def finish(self) -> None:
        """Tell it that no row follows: it is to write what it has and to close."""
        self._rows.put(None)

    def wait(self, *, until: float) -> None:
        """Wait for its end, until this time (monotonic seconds) at the latest."""
        self.join(max(0.0, until - time.monotonic()))
        if self.is_alive():
            self.problem = "did not answer and was left alone"

    def run(self) -> None:
        try:
            tracker = self._opening()
        except (Exception, SystemExit) as error:  # a half-installed package may raise anything
            self.problem = f"could not be opened: {type(error).__name__}: {error}"
            return
        failed = 0
        while (row := self._rows.get()) is not None:
            error = _attempt(lambda each=row: tracker.log(*each))
            failed = 0 if error is None else failed + 1
            self._written += error is None
            if failed >= GIVE_UP_AFTER:
                self.problem = f"failed {GIVE_UP_AFTER} times and was dropped: {error}"
                return
        error = _attempt(tracker.close)
        if error is not None:
            self.problem = f"could not be closed: {error}"


def _attempt(action: Callable[[], None]) -> BaseException | None:
    failure: BaseException | None = None
    for _ in range(1 + RETRIES):
        try:
            action()
        except (Exception, SystemExit) as error:  # whatever a tracker's package throws: the run is worth more
            failure = error
        else:
            return None
    return failure
