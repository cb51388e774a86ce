"""What a tracker is, how one is chosen, and why a failing one never stops a run.

A tracker is a file in this folder: `open(target, directory)` makes it, `NEEDS` names the package it wants (None
for none). A new one needs no change elsewhere. It is opened and used in a thread of its own, so it may also hang.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import harness.trackers
from harness.errors import ConfigError
from harness.hosts import conceal
from harness.trackers.aside import Aside

PATIENCE_S = 10.0  # at a run's end, for all trackers together


class Tracker(Protocol):
    """Receives scalars of one study on rank 0."""

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of the trial that `labels` names (study, arm, seed), after this optimizer step."""
        ...

    def close(self) -> None:
        """Everything is out."""
        ...


Opener = Callable[[], Tracker]


def known() -> list[str]:
    """The names that `--track` takes."""
    found = (module.name for module in pkgutil.iter_modules(harness.trackers.__path__))
    return sorted(name for name in found if name not in ("base", "aside"))


def check(requests: Sequence[str]) -> None:
    """Raise ConfigError for an unknown tracker, or one whose package is not installed; opens nothing."""
    for request in requests:
        name = request.partition("=")[0]
        if name not in known():
            raise ConfigError("--track", rule=f"unknown tracker {conceal(name)!r}", remedy=f"use {', '.join(known())}")
        package = importlib.import_module(f"harness.trackers.{name}").NEEDS
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--track {name}", rule=f"{package} is not installed", remedy=f"pip install isobudget[{name}]"
            )


def openers(requests: Sequence[str], directory: Path) -> list[tuple[str, Opener]]:
    """What opens the trackers of "name" or "name=target" requests; without a target each writes below `directory`.

    Raises:
        ConfigError: as `check`. Nothing is opened: what fails then costs a run its plot and no more.
    """
    check(requests)
    found: list[tuple[str, Opener]] = []
    for request in requests:
        name, _, target = request.partition("=")
        module = importlib.import_module(f"harness.trackers.{name}")
        found.append((name, partial(module.open, target, directory)))
    return found


class Follower:
    """Passes a trial's rows on to trackers, numbers only; whatever a tracker does, a call returns at once.

    Each tracker has a thread of its own (`harness.trackers.aside`). `problems` says which failed and why and how many
    rows it dropped, for the log and the record; `close` gives all of them together `patience_s` to end.
    """

    def __init__(
        self, trackers: Sequence[tuple[str, Opener]], *, tell: Callable[[str], None], patience_s: float = PATIENCE_S
    ) -> None:
        self._asides = {name: Aside(name, opening) for name, opening in trackers}
        self._told: set[str] = set()
        self._tell = tell
        self._patience_s = patience_s
        self.problems: list[str] = []

    def __call__(self, labels: Mapping[str, str], row: Mapping[str, Any]) -> None:
        scalars = dict(_scalars(row))
        for name, aside in self._asides.items():
            aside.offer((dict(labels), int(row["step"]), scalars))
            if aside.problem and name not in self._told:
                self._complain(name, f"tracker {name} {aside.problem}")

    def close(self) -> None:
        """Wait for what is still to be written, no longer than `patience_s` in all."""
        until = time.monotonic() + self._patience_s
        for aside in self._asides.values():
            aside.finish()
        for name, aside in self._asides.items():
            aside.wait(until=until)
            lost = f"; {aside.dropped} row{'s' if aside.dropped != 1 else ''} dropped" if aside.dropped else ""
            if name not in self._told and (aside.problem or lost):
                self._complain(name, f"tracker {name} {aside.problem or 'missed rows'}{lost}")
            elif lost:
                self._complain(name, f"tracker {name}{lost.replace(';', ':', 1)}")
        self._asides = {}

    def _complain(self, name: str, text: str) -> None:
        self._told.add(name)
        self.problems.append(text)
        self._tell(text)


def _scalars(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The row's numbers, nested names joined by "/"; NaN and infinities included, text and switches not."""
    found: list[tuple[str, float]] = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            found.append((f"{prefix}{key}", float(value)))
    return found
