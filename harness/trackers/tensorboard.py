"""TensorBoard event files, one folder per arm and seed; needs the package tensorboard (an extra)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEEDS: str | None = "tensorboard"


class EventFiles:
    """One writer per trial, because TensorBoard calls a folder a run."""

    def __init__(self, folder: Path, writer: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._writer = writer
        self._open: dict[str, Any] = {}

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        run = "/".join(value.replace("/", "_") for key, value in labels.items() if key != "study") or "run"
        if run not in self._open:
            self._open[run] = self._writer(log_dir=str(self._folder / run))
        for name, value in scalars.items():
            self._open[run].add_scalar(name, value, global_step=step)
        self._open[run].flush()

    def close(self) -> None:
        for writer in self._open.values():
            writer.close()


def open(target: str, directory: Path) -> EventFiles:
    """`target` is a folder; without one, tensorboard/ in the study's directory."""
    from torch.utils.tensorboard import SummaryWriter

    return EventFiles(Path(target) if target else directory / "tensorboard", SummaryWriter)
