"""Energy from polled power, where no counter can be read: a fallback, and labelled as one everywhere.

Polling sees what the sensor shows at the moments of polling. On A100 and H100 the sensor itself looks at the
load only about a quarter of the time (Yang, Adamek and Armour 2024, "Accurate and convenient energy
measurements for GPUs"), so a load that repeats in step with it is misjudged however often one polls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from harness.meters.energy_reading import EnergyReading
from harness.meters.ticker import Ticker

PERIOD_S = 0.1
_AVERAGED_S = 1.0  # newer boards show the mean of the last second: an edge of the load appears that much later
_SENSOR = 0.05  # NVML states ±5 % for the boards where it states anything


class PowerSensor(Protocol):
    """A device that tells its power; None where it cannot just now."""

    @property
    def name(self) -> str: ...
    def power_w(self) -> float | None: ...
    def reason(self) -> str: ...


class _Trace:
    """One sensor through time, integrated by trapezoids between polls that are close enough."""

    def __init__(self, sensor: PowerSensor, now: float, longest_gap_s: float) -> None:
        self.sensor = sensor
        self._longest_gap_s = longest_gap_s
        self._at = now
        self._watts: float | None = None
        self.open()

    def open(self) -> None:
        self.joules = self.covered_s = self._zigzag_j = 0.0
        self._low = self._high = self._watts
        self.notes: list[str] = []

    def poll(self, now: float) -> None:
        watts, before, gap = self.sensor.power_w(), self._watts, now - self._at
        self._watts, self._at = watts, now
        if watts is None:
            self._note(self.sensor.reason())
            return
        self._low = watts if self._low is None else min(self._low, watts)
        self._high = watts if self._high is None else max(self._high, watts)
        if before is None:
            return
        if gap > self._longest_gap_s:
            self._note(f"{self.sensor.name}: {gap:.3g} s between two polls, which is too long to interpolate")
            return
        self.joules += gap * (before + watts) / 2
        self._zigzag_j += gap * abs(watts - before) / 2  # the most a trapezoid misses of a monotone change
        self.covered_s += gap

    @property
    def inside_j(self) -> float:
        """Uncertainty of the sensor and of the straight lines between polls."""
        return _SENSOR * self.joules + self._zigzag_j

    @property
    def ends_j(self) -> float:
        """Uncertainty of the two ends: the mean of the last second lags half a second behind the load."""
        return _AVERAGED_S / 2 * (self._high - self._low) if self._high is not None and self._low is not None else 0.0

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class PowerMeter:
    """An EnergyMeter that polls power and integrates it. Thread-safe.

    With a period it polls from a thread of its own between `start` and `close`; with None the caller polls.
    """

    def __init__(
        self,
        sensors: Sequence[PowerSensor],
        *,
        source: str,
        period_s: float | None = PERIOD_S,
        longest_gap_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.source = source
        self._sensors = sensors
        self._longest_gap_s = longest_gap_s
        self._clock = clock
        self._on_close = on_close
        self._lock = threading.Lock()
        self._traces: list[_Trace] = []
        self._opened_at = 0.0
        self._ticker = None if period_s is None else Ticker(self.poll, period_s=period_s, name="power polling")

    def start(self) -> None:
        with self._lock:
            self._opened_at = self._clock()
            self._traces = [_Trace(sensor, self._opened_at, self._longest_gap_s) for sensor in self._sensors]
            self._look(self._opened_at)
        if self._ticker is not None:
            self._ticker.start()

    def poll(self) -> None:
        with self._lock:
            self._look(self._clock())

    def _look(self, now: float) -> None:
        for trace in self._traces:
            trace.poll(now)

    def read(self, *, force: bool = False) -> EnergyReading:
        with self._lock:
            now = self._clock()
            if now <= self._opened_at or (now - self._opened_at < PERIOD_S and not force):
                return EnergyReading(None, self.source, 0.0, notes=("too soon to learn anything new",), pending=True)
            self._look(now)
            covered = sum(trace.covered_s for trace in self._traces)
            length = (now - self._opened_at) * len(self._traces)
            ends = sum(trace.ends_j for trace in self._traces) if covered > 0 else 0.0
            reading = EnergyReading(
                joules=sum(trace.joules for trace in self._traces) if covered > 0 else None,
                source=self.source,
                coverage=min(1.0, covered / length),
                uncertainty_j=sum(trace.inside_j for trace in self._traces) + ends if covered > 0 else None,
                notes=tuple(note for trace in self._traces for note in trace.notes),
                device_s=length,
                ends_j=ends,
            )
            for trace in self._traces:
                trace.open()
            self._opened_at = now
            return reading

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
        if self._on_close is not None:
            self._on_close()
