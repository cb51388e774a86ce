"""Is one rank slower than the others? Ranks compare how long each worked alone in a step.

In a step all ranks wait for the slowest, so every rank's whole step takes equally long. What differs is the time
before the first exchange of gradients: fetching data, the teacher's and the student's forward. That is what is
compared here, every few steps, in one small sum over ranks. Nothing of it enters the ledger or the mathematics.

Under ZeRO-3 the student's forward gathers weights, so its waiting is shared: there a rank stands out only by what it
does before the first gather, its data and its teacher.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from harness.ranks import Ranks

EVERY = 8
# Slower than the others' median by this share of a whole step, and by no less than the floor: below it lie
# the hiccups of a shared machine.
MARGIN = 0.2
FLOOR_S = 0.010
# This many exchanges in a row must agree, so that one hiccup is no straggler: flagged by step 2 × 8 = 16.
AGREEING = 2


@dataclass
class Straggler:
    """One rank that was slower than the others' median, by `excess_s` seconds a step, from one step to another."""

    rank: int
    host: str
    from_step: int
    to_step: int
    excess_s: float

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}) is slower than the others by {1e3 * self.excess_s:.0f} ms a step"


class Pace:
    """Times what this rank does alone, and compares ranks every `EVERY` steps."""

    def __init__(self, ranks: Ranks, *, cuda: bool) -> None:
        self._ranks = ranks
        self._cuda = cuda
        self._started: Any = None
        self._events: list[tuple[Any, Any]] = []
        self._alone_s = 0.0
        self._steps = 0
        self._begun = time.monotonic()
        self._suspect: tuple[int, int] = (-1, 0)  # rank, exchanges in a row
        self._hosts: list[str] = []

    def start(self) -> None:
        """Working alone from here; calling it again before `stop` changes nothing."""
        if self._ranks.world > 1 and self._started is None:
            self._started = self._now()

    def stop(self) -> None:
        """About to wait for others."""
        if self._started is None:
            return
        if self._cuda:
            self._events.append((self._started, self._now()))
        else:
            self._alone_s += self._now() - self._started
        self._started = None

    def _now(self) -> Any:
        if not self._cuda:
            return time.monotonic()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def end_step(self, step: int) -> Straggler | None:
        """The straggler of the last steps, if two exchanges agree on one; all ranks call this and get the same."""
        if self._ranks.world == 1:
            return None
        self._steps += 1
        if self._steps < EVERY:
            return None
        for begin, end in self._events:
            end.synchronize()
            self._alone_s += begin.elapsed_time(end) * 1e-3
        self._events.clear()
        mine = [0.0] * self._ranks.world
        mine[self._ranks.rank] = self._alone_s / self._steps
        now = time.monotonic()
        *alone_s, walls_s = self._ranks.add([*mine, (now - self._begun) / self._steps])
        self._alone_s, self._steps, self._begun = 0.0, 0, now
        return self._judge(alone_s, walls_s / self._ranks.world, step)

    def _judge(self, alone_s: list[float], step_s: float, step: int) -> Straggler | None:
        slowest = max(range(len(alone_s)), key=alone_s.__getitem__)
        excess = alone_s[slowest] - statistics.median(s for rank, s in enumerate(alone_s) if rank != slowest)
        if excess < max(FLOOR_S, MARGIN * step_s):
            self._suspect = (-1, 0)
            return None
        again = self._suspect[1] + 1 if self._suspect[0] == slowest else 1
        self._suspect = (slowest, again)
        if again < AGREEING:
            return None
        return Straggler(slowest, self._host(slowest), max(0, step - AGREEING * EVERY), step, excess)

    def _host(self, rank: int) -> str:
        """Names of hosts are exchanged once, when there is first something to name."""
        if not self._hosts:
            import socket

            self._hosts = self._ranks.gather(socket.gethostname())
        return self._hosts[rank]


def extend(known: list[dict[str, Any]], found: Straggler) -> bool:
    """Add a finding to a run's list, joining it to the one it continues; True when it is new."""
    for row in reversed(known):
        if row["rank"] == found.rank and row["to_step"] >= found.from_step:
            total = row["excess_s"] * (row["to_step"] - row["from_step"]) + found.excess_s * (
                found.to_step - row["to_step"]
            )
            row["to_step"] = found.to_step
            row["excess_s"] = total / (row["to_step"] - row["from_step"])
            return False
    known.append(vars(found).copy())
    return True
