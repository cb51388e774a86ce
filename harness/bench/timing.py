"""Timing by one rule: a warm-up is dropped, contenders take turns, percentiles over what is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

WARM_UP = 3


def percentiles(times_s: list[float]) -> dict[str, float]:
    """20th, 50th and 80th percentile of seconds, in milliseconds."""
    ordered = sorted(times_s)
    return {f"p{p}_ms": 1e3 * ordered[min(len(ordered) - 1, round(p / 100 * (len(ordered) - 1)))] for p in (20, 50, 80)}


def wait(device: torch.device) -> None:
    """Let the device finish what was queued, so that a clock read now means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Stopwatch:
    """Seconds by name; the device is waited for at both ends, so spans cannot overlap and must not nest."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        wait(self.device)
        begun = time.perf_counter()
        try:
            yield
        finally:
            wait(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def take(self) -> dict[str, float]:
        """What was measured since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken
