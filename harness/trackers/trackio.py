"""Trackio, Hugging Face's local dashboard: one run per trial; needs the package trackio (an extra)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

NEEDS: str | None = "trackio"


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
            with redirect_stdout(sys.stderr):
                self._api.init(project=project, name=name, config=dict(labels), embed=False)
            self._name = name
        self._api.log(dict(scalars), step=step)

    def close(self) -> None:
        if self._name is not None:
            self._name = None
            with redirect_stdout(sys.stderr):
                self._api.finish()


def open(target: str, directory: Path) -> TrackioRuns:
    """`target` is a project; without one, the study's name. Trackio keeps its files in its own cache."""
    import trackio

    return TrackioRuns(trackio, target)
