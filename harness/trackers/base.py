"""What a tracker is, how one is chosen, and why a failing one never stops a run.

A tracker is a file in this folder: `open(target, directory)` makes it, `NEEDS` names the package it wants (None
for none). A new one needs no change elsewhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import harness.trackers
from harness.errors import ConfigError

RETRIES = 2  # after the first attempt, at once: a run waits for nobody's network
GIVE_UP_AFTER = 3  # rows in a row that failed; the tracker is then left alone


class Tracker(Protocol):
    """Receives scalars of one study on rank 0."""

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of the trial that `labels` names (study, arm, seed), after this optimizer step."""
        ...

    def close(self) -> None:
        """Everything is out."""
        ...


def known() -> list[str]:
    """The names that `--track` takes."""
    found = (module.name for module in pkgutil.iter_modules(harness.trackers.__path__))
    return sorted(name for name in found if name != "base")


def check(requests: Sequence[str]) -> None:
    """Raise ConfigError for an unknown tracker, or one whose package is not installed; opens nothing."""
    for request in requests:
        name = request.partition("=")[0]
        if name not in known():
            raise ConfigError(
                f"--track {request}", rule=f"unknown tracker {name!r}", remedy=f"use {', '.join(known())}"
            )
        package = importlib.import_module(f"harness.trackers.{name}").NEEDS
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--track {name}", rule=f"{package} is not installed", remedy=f"pip install isobudget[{name}]"
            )


def open_trackers(requests: Sequence[str], directory: Path) -> list[tuple[str, Tracker]]:
    """The trackers of "name" or "name=target" requests; without a target each writes below `directory`.

    Raises:
        ConfigError: as `check`; or a target that cannot be written, or a package that is there and cannot be imported.
    """
    check(requests)
    opened: list[tuple[str, Tracker]] = []
    for request in requests:
        name, _, target = request.partition("=")
        try:
            tracker = importlib.import_module(f"harness.trackers.{name}").open(target, directory)
        except OSError as error:
            raise ConfigError(
                f"--track {request}", rule=str(error), remedy="give a place that can be written"
            ) from None
        except (
            Exception,
            SystemExit,
        ) as error:  # a half-installed package may raise anything, and nothing has been spent yet
            raise ConfigError(
                f"--track {request}", rule=f"{type(error).__name__}: {error}",
                remedy=f"install isobudget[{name}] anew, or leave it out",
            ) from error  # fmt: skip
        opened.append((name, tracker))
    return opened


class Follower:
    """Passes a trial's rows on to trackers: numbers only, failures counted, never raised.

    A row is tried `1 + RETRIES` times; after `GIVE_UP_AFTER` rows in a row that failed a tracker is dropped.
    `problems` says which and why, for the log and the record. `seconds` is what following took.
    """

    def __init__(self, trackers: Sequence[tuple[str, Tracker]], *, tell: Callable[[str], None]) -> None:
        self._trackers = list(trackers)
        self._failed = dict.fromkeys((name for name, _ in trackers), 0)
        self._tell = tell
        self.problems: list[str] = []
        self.seconds = 0.0

    def __call__(self, labels: Mapping[str, str], row: Mapping[str, Any]) -> None:
        begun = time.perf_counter()
        scalars = dict(_scalars(row))
        for name, tracker in list(self._trackers):
            error = self._attempt(lambda each=tracker: each.log(labels, int(row["step"]), scalars))
            self._failed[name] = 0 if error is None else self._failed[name] + 1
            if error is not None and self._failed[name] >= GIVE_UP_AFTER:
                self._trackers.remove((name, tracker))
                self._complain(f"tracker {name} failed {GIVE_UP_AFTER} times and was dropped: {error}")
        self.seconds += time.perf_counter() - begun

    def close(self) -> None:
        for name, tracker in self._trackers:
            error = self._attempt(tracker.close)
            if error is not None:
                self._complain(f"tracker {name} could not be closed: {error}")

    def _attempt(self, action: Callable[[], None]) -> BaseException | None:
        failure: BaseException | None = None
        for _ in range(1 + RETRIES):
            try:
                action()
            except (
                Exception,
                SystemExit,
            ) as error:  # whatever a tracker's package throws: the run is worth more than its plot
                failure = error
            else:
                return None
        return failure

    def _complain(self, text: str) -> None:
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
