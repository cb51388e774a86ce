"""What a person sees while a study runs: a bar on a terminal, plain lines elsewhere, rank 0 only."""

from __future__ import annotations

import sys
import time
from typing import Any

from harness.units import Unit, format_amount


class Silent:
    """Ranks other than 0, and --json."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, label: str, limit: float, unit: Unit) -> None:
        """Nothing."""

    def step(self, *, fraction: float, loss: float, tokens_per_s: float) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines(Silent):
    """One line per tenth of the budget, for logs."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stdout
        self._label = ""
        self._next = 0.0
        self._started = 0.0

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def begin(self, label: str, limit: float, unit: Unit) -> None:
        self._label, self._next, self._started = label, 0.0, time.monotonic()
        self.say(f"{label}: budget {format_amount(limit, unit)}")

    def step(self, *, fraction: float, loss: float, tokens_per_s: float) -> None:
        if fraction >= self._next:
            self._next = fraction + 0.1
            left = (time.monotonic() - self._started) * (1 - fraction) / max(fraction, 1e-9)
            self.say(
                f"{self._label}: {fraction:4.0%} of the budget, loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s, {left:.0f} s left"
            )


class Bars(Silent):
    """A rich bar of budget spent, with loss, speed and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f}% of {task.fields[budget]}"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: Any = None

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def begin(self, label: str, limit: float, unit: Unit) -> None:
        self.end()
        self._progress.start()
        self._task = self._progress.add_task(
            label.replace("[", "\\["), total=1.0, budget=format_amount(limit, unit), loss="–", speed="–"
        )

    def step(self, *, fraction: float, loss: float, tokens_per_s: float) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=fraction, loss=f"{loss:.3f}", speed=f"{tokens_per_s:,.0f}")

    def end(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=1.0)
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


def reporter(*, is_main: bool, json: bool) -> Silent:
    """The right one for this rank and this output; with --json only errors reach the terminal."""
    if not is_main:
        return Silent()
    if json:
        return Lines(sys.stderr)
    return Bars() if sys.stdout.isatty() else Lines()
