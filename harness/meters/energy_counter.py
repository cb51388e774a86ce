"""Energy from counters that only ever rise: NVML's per GPU, RAPL's per CPU package.

A counter integrates in hardware, so the difference between two reads is the energy between them however
long that is. What can go wrong is dated and leaves a hole in the coverage: a reset, a stall, a lost device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from harness.meters.energy_reading import EnergyReading

STALL_S = 2.0  # twenty of NVML's slowest updates: a counter still for longer is stuck, not slow
MIN_WINDOW_S = 0.1  # NVML's slowest update: a read that comes sooner could learn nothing new
MAX_SHARE = 0.005  # of the training thread's time may be spent reading


class Counter(Protocol):
    """A rising counter. `lag_s` is the longest time between its updates, `wrap_j` where it starts over."""

    @property
    def name(self) -> str: ...
    @property
    def lag_s(self) -> float: ...
    @property
    def wrap_j(self) -> float | None: ...

    def read_j(self) -> float | None:
        """Joules since some fixed moment; None when it cannot be read now."""
        ...

    def reason(self) -> str:
        """Why the last read failed."""
        ...

    def power_w(self) -> float | None:
        """Watts now, by another sensor; None where there is none."""
        ...


class _Track:
    """One counter through time: joules of the open span, and the parts of it that nobody saw."""

    def __init__(self, counter: Counter, now: float) -> None:
        self.counter = counter
        self.notes: list[str] = []
        self._value: float | None = None
        self._changed_at = now  # the counter speaks for everything before this
        self._seen_at = now  # it was last read, though perhaps unchanged, here
        self._stalled = False
        self._failing = False
        self._life_j = self._life_s = 0.0
        self.open(now)

    def open(self, now: float) -> None:
        self._opened_at = now
        self._joules = 0.0
        self._lost_s = 0.0
        self._moved = False
        self.notes = []

    # -- watching ------------------------------------------------------------------------------------
    def poll(self, now: float) -> None:
        value = self.counter.read_j()
        if value is None:
            self._failing = True
            self._note(self.counter.reason())
            return
        if self._value is None:
            # Nothing is known of the time before the first good read.
            self._lose(self._changed_at, now)
            self._restart(value, now)
        elif value > self._value:
            self._rise(value, now)
        elif value < self._value:
            self._fall(value, now)
        else:
            self._stand(now)
        self._failing = False

    def _restart(self, value: float, now: float) -> None:
        self._value, self._changed_at, self._seen_at, self._stalled = value, now, now, False

    def _rise(self, value: float, now: float) -> None:
        assert self._value is not None
        delta, since = value - self._value, self._changed_at
        if self._stalled:
            # Whether it caught up or dropped what it slept through cannot be told: every joule of the rise
            # was spent, so it counts, and the stall stays uncovered.
            self._lose(since, self._seen_at)
            since = self._seen_at
        elif self._may_have_wrapped(now):
            self._note(f"{self.counter.name}: read too rarely, it may have started over more than once")
            self._lose(since, now)
            self._restart(value, now)
            return
        self._count(delta, now - since)
        self._restart(value, now)

    def _fall(self, value: float, now: float) -> None:
        assert self._value is not None
        wrap, since = self.counter.wrap_j, self._changed_at
        if wrap is not None and not self._may_have_wrapped(now):
            self._count(wrap - self._value + value, now - since)
        else:
            # It restarted from zero at an unknown moment. Its value is what was spent since then; how long
            # that took follows from the power, and only if that fits is the value believed at all.
            power = self.counter.power_w() or self._typical_w
            lasted = value / power if power else None
            believed = lasted is not None and lasted <= 1.5 * (now - since) + self.counter.lag_s
            counted_s = min(lasted, now - since) if lasted is not None and believed else 0.0
            self._note(
                f"{self.counter.name}: the counter was reset; {now - since - counted_s:.3g} s before it are unknown"
            )
            self._lose(since, now - counted_s)
            if believed:
                self._joules += value
        self._moved = True
        self._restart(value, now)

    def _stand(self, now: float) -> None:
        self._seen_at = now
        if now - self._changed_at > STALL_S:
            self._stalled = True
            self._note(f"{self.counter.name}: the counter stands still")

    def _count(self, joules: float, seconds: float) -> None:
        self._joules += joules
        self._life_j += joules
        self._life_s += seconds
        self._moved = True

    @property
    def _typical_w(self) -> float:
        """Mean power so far; over the whole life, since one short look sees a whole update or none."""
        return self._life_j / self._life_s if self._life_s > 0 else 0.0

    def _lose(self, start: float, end: float) -> None:
        self._lost_s += max(0.0, end - max(start, self._opened_at))

    def _may_have_wrapped(self, now: float) -> bool:
        """True when, at twice the known power, the counter could have gone round a whole time unseen."""
        wrap = self.counter.wrap_j
        return wrap is not None and 2 * self._typical_w * (now - self._changed_at) > wrap

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # -- telling -------------------------------------------------------------------------------------
    @property
    def unresolved(self) -> bool:
        """Healthy, but not updated within the open span."""
        return not (self._moved or self._failing or self._stalled)

    def close_span(self, now: float) -> tuple[float, float, float]:
        """(joules, covered seconds, uncertainty in joules) of the span that ends here."""
        length = now - self._opened_at
        lost = self._lost_s
        if self._failing or self._stalled:
            lost += max(0.0, now - max(self._changed_at, self._opened_at))
        covered = max(0.0, length - lost)
        # At each end the counter is up to one update old; at like power the two ends nearly cancel, at worst
        # one whole update's energy lies on the wrong side.
        lag = self.counter.lag_s
        power = max(self._joules / covered if covered > lag else 0.0, self._typical_w)
        return self._joules, covered, lag * power


class CounterMeter:
    """An EnergyMeter over counters of one kind. Thread-safe; a lost counter only lowers the coverage."""

    def __init__(
        self,
        counters: Sequence[Counter],
        *,
        source: str,
        clock: Callable[[], float] = time.monotonic,
        min_window_s: float = MIN_WINDOW_S,
        max_share: float = MAX_SHARE,
        on_close: Callable[[], None] | None = None,
        standing_notes: Sequence[str] = (),
    ) -> None:
        self.source = source
        self._counters = counters
        self._clock = clock
        self._min_window_s = min_window_s
        self._max_share = max_share
        self._on_close = on_close
        self._standing_notes = tuple(standing_notes)
        self._lock = threading.Lock()
        self._tracks: list[_Track] = []
        self._opened_at = 0.0
        self._not_before = 0.0
        self.last_read_s = 0.0  # what the last look at all counters took

    def start(self) -> None:
        with self._lock:
            self._opened_at = self._clock()
            self._tracks = [_Track(counter, self._opened_at) for counter in self._counters]
            self._look(self._opened_at)

    def poll(self) -> None:
        with self._lock:
            self._look(self._clock())

    def _look(self, now: float) -> None:
        began = time.perf_counter()
        for track in self._tracks:
            track.poll(now)
        self.last_read_s = time.perf_counter() - began

    def read(self, *, force: bool = False) -> EnergyReading:
        now = self._clock()
        early = now - self._opened_at < self._min_window_s or now < self._not_before
        if early and not force:
            return self._pending("too soon to learn anything new")
        with self._lock:
            now = self._clock()  # a poll of the sampler's may have held the lock meanwhile
            self._look(now)
            self._not_before = now + self.last_read_s / self._max_share
            length = now - self._opened_at
            if length <= 0 or (length < STALL_S and any(track.unresolved for track in self._tracks)):
                return self._pending("the counter has not been updated yet")
            return self._close_span(now)

    def _pending(self, why: str) -> EnergyReading:
        return EnergyReading(None, self.source, 0.0, notes=(why,), pending=True)

    def _close_span(self, now: float) -> EnergyReading:
        length = (now - self._opened_at) * len(self._tracks)
        notes = tuple(note for track in self._tracks for note in track.notes)
        joules, covered, spread = map(sum, zip(*(track.close_span(now) for track in self._tracks), strict=True))
        for track in self._tracks:
            track.open(now)
        self._opened_at = now
        known = covered > 0
        return EnergyReading(
            joules=joules if known else None,
            source=self.source,
            coverage=min(1.0, covered / length),
            uncertainty_j=spread if known else None,
            notes=self._standing_notes + notes,
            device_s=length,
            ends_j=spread if known else 0.0,
        )

    def close(self) -> None:
        if self._on_close is not None:
            self._on_close()
