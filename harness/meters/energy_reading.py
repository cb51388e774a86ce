"""What an energy meter says: joules with their source, coverage and uncertainty — or unknown, never zero.

Energy of a span is measured at its two boundaries. `coverage` tells which share of the devices' time in
the span the joules speak for; the rest is unknown and is not extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from harness.units import Unit, format_amount


@dataclass(frozen=True)
class EnergyReading:
    """The energy of one span, over all devices of a meter.

    joules: measured in the covered part; None when nothing was. Never negative.
    source: which instrument measured it, in words.
    coverage: covered device-seconds over all device-seconds of the span, 0..1.
    uncertainty_j: half-width within which the truth of the covered part lies as far as timing and sampling
        go; None when unknown. The instrument's own calibration is not in it (see docs/energy.md).
    ends_j: the part of the uncertainty that belongs to the span's two ends; where spans adjoin it cancels.
    notes: what happened to the instrument in this span: resets, stalls, losses, refusals.
    device_s: devices × length of the span; the weight with which coverage is averaged.
    pending: the counter has not moved yet, so the span stays open and the next reading includes it.
    """

    joules: float | None
    source: str
    coverage: float
    uncertainty_j: float | None = None
    notes: tuple[str, ...] = ()
    device_s: float = 0.0
    ends_j: float = 0.0
    pending: bool = False

    @property
    def complete(self) -> bool:
        """Nothing of the span is missing."""
        return self.joules is not None and self.coverage >= 1.0

    def __str__(self) -> str:
        if self.joules is None:
            return f"unknown ({self.notes[-1] if self.notes else self.source})"
        spread = " ± ?"
        if self.uncertainty_j is not None and self.joules > 0:
            spread = f" ± {100 * self.uncertainty_j / self.joules:.2g} %"
        return f"{format_amount(self.joules, Unit.JOULE)}{spread}, {_percent(self.coverage)} covered, {self.source}"


def _percent(share: float) -> str:
    """100 % only when nothing is missing."""
    return "100 %" if share >= 1 else f"{min(100 * share, 99.9):.1f} %"


class EnergyMeter(Protocol):
    """Measures the energy of consecutive spans on one node; exactly one process per node reads it.

    Spans share their boundaries, so they add up: nothing is counted twice or lost between them.
    """

    @property
    def source(self) -> str: ...

    def start(self) -> None:
        """Open the first span now."""
        ...

    def poll(self) -> None:
        """Look at the instrument without ending the span; any thread may. Dates resets, stalls and losses."""
        ...

    def read(self, *, force: bool = False) -> EnergyReading:
        """End the span here and open the next one; a pending reading leaves it open.

        Without `force` a read that comes sooner than the instrument can answer usefully, or so soon that
        reading would cost more than the meter's share of the time, is pending at no cost.
        """
        ...

    def close(self) -> None:
        """Release the instrument."""
        ...


class NullMeter:
    """No instrument: every span is unknown, and says why."""

    def __init__(self, reason: str) -> None:
        self.source = "none"
        self._reason = reason

    def start(self) -> None:
        """Nothing to open."""

    def poll(self) -> None:
        """Nothing to look at."""

    def read(self, *, force: bool = False) -> EnergyReading:
        return EnergyReading(None, self.source, 0.0, notes=(self._reason,))

    def close(self) -> None:
        """Nothing to release."""


class JointMeter:
    """Several instruments that share their spans: what one cannot see, another can."""

    def __init__(self, meters: list[EnergyMeter]) -> None:
        self._meters = meters
        self._held: list[list[EnergyReading]] = [[] for _ in meters]

    @property
    def source(self) -> str:
        return " and ".join(dict.fromkeys(m.source for m in self._meters))

    def start(self) -> None:
        for meter in self._meters:
            meter.start()

    def poll(self) -> None:
        for meter in self._meters:
            meter.poll()

    def read(self, *, force: bool = False) -> EnergyReading:
        """Pending while any instrument is; what the others measured meanwhile is held back and added."""
        latest = [meter.read(force=force) for meter in self._meters]
        for held, reading in zip(self._held, latest, strict=True):
            if not reading.pending:
                held.append(reading)
        if any(reading.pending for reading in latest):
            return EnergyReading(None, self.source, 0.0, notes=("waits for the slowest instrument",), pending=True)
        each = [combine(held, consecutive=True) for held in self._held]
        for held in self._held:
            held.clear()
        return combine(each)

    def close(self) -> None:
        for meter in self._meters:
            meter.close()


def combine(readings: Iterable[EnergyReading], *, consecutive: bool = False) -> EnergyReading:
    """The sum over nodes, devices or spans.

    Coverage is averaged by device-seconds (equally where all are zero). Uncertainties add, because the parts
    may err alike; only for consecutive spans of one meter, where one span's late end is the next one's late
    beginning, do the ends cancel but for the outermost. Pending readings are left out: their energy is in
    the reading that follows.
    """
    parts = [r for r in readings if not r.pending]
    if not parts:
        return EnergyReading(None, "none", 0.0, notes=("nothing was read",))
    known = [r for r in parts if r.joules is not None]
    weights = [r.device_s for r in parts] if any(r.device_s > 0 for r in parts) else [1.0] * len(parts)
    covered = sum(weight * r.coverage for weight, r in zip(weights, parts, strict=True))
    spreads = [r.uncertainty_j for r in known if r.uncertainty_j is not None]
    all_ends = [r.ends_j for r in known]
    ends = max(all_ends, default=0.0) if consecutive else sum(all_ends)
    return EnergyReading(
        joules=sum(r.joules or 0.0 for r in known) if known else None,
        source=" and ".join(dict.fromkeys(r.source for r in known or parts)),
        coverage=min(1.0, covered / sum(weights)),
        uncertainty_j=sum(spreads) - sum(all_ends) + ends if known and len(spreads) == len(known) else None,
        notes=tuple(dict.fromkeys(note for r in parts for note in r.notes)),
        device_s=sum(r.device_s for r in parts),
        ends_j=ends,
    )
