"""Seconds of a trial that its ledger does not hold yet, noted on disk: what a kill would otherwise keep secret.

The ledger gets measured time at the ends of spans: after the start-up, every few steps, after a save. A process killed
inside a span leaves its last note, written every second, and whoever continues the trial posts it as LOST.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from harness import kept
from harness.budget import Account, Charge, Ledger
from harness.meters.ticker import Ticker
from harness.meters.wall_time import WallClock
from harness.units import Unit

FILE = "open-time.json"
PERIOD_S = 1.0
_UNITS = (Unit.SECOND, Unit.ALLOCATED_GPU_SECOND)


class OpenTime:
    """One attempt's note, kept by the rank that writes the ledger; other ranks have one without a folder.

    A note names the last line of the ledger with seconds in it: once there is a later one, the note's are posted, and
    it counts for nothing. So it never matters which of the two was written last before a kill.
    """

    def __init__(
        self, folder: Path | None, *, ledger: Ledger, wall: WallClock, held: int, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        """`held`: devices of the run."""
        self._file = None if folder is None else folder / FILE
        self._ledger, self._wall, self._held, self._clock = ledger, wall, held, clock
        self._after = ledger.clocked
        self._counted_to = wall.counted_to
        self._before = self._read()
        self._ticker = Ticker(self.note, period_s=PERIOD_S, name="open time")

    def _read(self) -> tuple[float, ...]:
        """Of an attempt that was killed; zeros where its note is missing, torn, or older than the ledger's last seconds."""
        found = (kept.read_json(self._file) if self._file is not None else None) or {}
        amounts = [found.get(unit) for unit in _UNITS]
        right = [float(amount) for amount in amounts if isinstance(amount, int | float) and 0 <= amount < 1e18]
        return tuple(right) if len(right) == len(amounts) and found.get("after") == self._after else (0.0, 0.0)

    def left_behind(self) -> list[Charge]:
        """What killed attempts had spent since the ledger's last seconds, by their last notes."""
        return [
            Charge(Account.LOST, amount, unit, "measured")
            for unit, amount in zip(_UNITS, self._before, strict=True)
            if amount > 0
        ]

    def note(self) -> None:
        """Write down what is open now; what was left behind stays in it until the ledger has it.

        A disk that is full keeps the note of before: that the run cannot go on is the checkpoint's to tell.
        """
        if self._file is None:
            return
        if self._ledger.clocked != self._after:
            self._after, self._before, self._counted_to = self._ledger.clocked, (0.0, 0.0), self._wall.counted_to
        mine = self._clock() - self._counted_to
        amounts = (self._before[0] + mine, self._before[1] + mine * self._held)
        temporary = self._file.with_suffix(".tmp")
        try:
            temporary.write_text(
                json.dumps({**dict(zip(_UNITS, amounts, strict=True)), "after": self._after}), encoding="utf-8"
            )
            os.replace(temporary, self._file)
        except OSError:
            temporary.unlink(missing_ok=True)

    def __enter__(self) -> OpenTime:
        if self._file is not None:
            self.note()
            self._ticker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """An attempt that ended well leaves no note, any other its last one."""
        if self._file is None:
            return
        self._ticker.stop()
        if kind is None:
            self._file.unlink(missing_ok=True)
        else:
            self.note()
