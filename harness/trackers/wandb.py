"""Weights & Biases: one run per trial, grouped by study; needs the package wandb (an extra) and the user's own login."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEEDS: str | None = "wandb"


class WandbRuns:
    """Opens a trial's run with its first row, so that a login or a network that fails costs a row and no start."""

    def __init__(self, api: Any, project: str, folder: Path) -> None:
        self._api = api
        self._project = project
        self._folder = folder
        self._open: dict[str, Any] = {}

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        name = "-".join(value for key, value in labels.items() if key != "study") or "run"
        if name not in self._open:
            # Runs beside each other: a second init would otherwise hand back the first one's run.
            self._open[name] = self._api.init(
                project=self._project or labels.get("study", "isobudget"), group=labels.get("study"), name=name,
                config=dict(labels), dir=str(self._folder), reinit="create_new",
            )  # fmt: skip
        self._open[name].log(dict(scalars), step=step)

    def close(self) -> None:
        for run in self._open.values():
            run.finish()


def open(target: str, directory: Path) -> WandbRuns:
    """`target` is a project; without one, the study's name."""
    import wandb

    return WandbRuns(wandb, target, directory)
