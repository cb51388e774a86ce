"""Trackio, Hugging Face's local dashboard: one run per trial; needs the package trackio (an extra)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NEEDS: str | None = "trackio"


class _ByThread:
    """Standard output for every thread but one, whose words go to the error stream."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return (sys.stderr if threading.get_ident() == self._thread else self._own).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


@contextmanager
def _quietly() -> Iterator[None]:
    """Redirect what this thread prints; `contextlib.redirect_stdout` would take the run's own output with it."""
    before = sys.stdout
    sys.stdout = _ByThread(before)
    try:
        yield
    finally:
        sys.stdout = before


class TrackioRuns:
    """Opens a trial's run with its first row and ends the one before: trackio has one run at a time.

    What trackio prints goes to the error stream: standard output may be a command's JSON.
    """

    def __init__(self, api: Any, project: str) -> None:
        self._api = api
        self._project = project
        self._name: str | None = None

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        name = "-".join(value for key, value in labels.items() if key != "study") or "run"
        if name != self._name:
            self.close()
            project = self._project or labels.get("study", "isobudget")
            with _quietly():
                self._api.init(project=project, name=name, config=dict(labels), embed=False)
            self._name = name
        self._api.log(dict(scalars), step=step)

    def close(self) -> None:
        if self._name is not None:
            self._name = None
            with _quietly():
                self._api.finish()


def open(target: str, directory: Path) -> TrackioRuns:
    """`target` is a project; without one, the study's name. Trackio keeps its files in its own cache."""
    import trackio

    return TrackioRuns(trackio, target)
