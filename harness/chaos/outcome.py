"""What came of a row: passed or not, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A row's verdict; `saw` holds the figures, in one line."""

    passed: bool
    saw: str


class CannotRun(Exception):
    """Raised by a row that this machine cannot play (no compiler, no root); its text says why. It has not passed."""
