"""Gauges in Prometheus' text format, for the textfile collector of its node exporter.

The collector reads whole files at any moment, so the file is replaced by a rename, never rewritten in place.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

PREFIX = "isobudget"
_HELP = {
    "step": "Optimizer steps done",
    "fraction": "Share of the budget spent",
    "spent": "Charged so far, in the unit of the budget",
    "flop": "Algorithmic FLOPs charged so far",
    "device_seconds": "Device seconds charged so far",
    "seconds": "Wall seconds of training so far",
    "loss": "Training loss",
    "lr": "Learning rate",
    "tokens": "Tokens seen",
    "mlm_loss": "Held-out loss of the student's own head",
    "mlm_accuracy": "Held-out accuracy of the student's own head",
}

NEEDS: str | None = None


class TextFile:
    """The newest value of every gauge of every trial; `path` ends in .prom, which the collector asks for."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._values: dict[str, dict[str, float]] = {}

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        text = ",".join(f'{_name(key)}="{_escaped(value)}"' for key, value in labels.items())
        for name, value in {"step": float(step), **scalars}.items():
            self._values.setdefault(name, {})[text] = value
        self._write()

    def _write(self) -> None:
        lines: list[str] = []
        for name, by_labels in self._values.items():
            metric = f"{PREFIX}_{_name(name)}"
            lines.append(f"# HELP {metric} {_HELP.get(name, f'Scalar {name}')}".replace("\n", " "))
            lines.append(f"# TYPE {metric} gauge")
            lines += [f"{metric}{{{labels}}} {_number(value)}" for labels, value in by_labels.items()]
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.chmod(0o644)  # the exporter runs as a user of its own
        os.replace(temporary, self._path)

    def close(self) -> None:
        """The last values stay, as a finished run's do."""


def _name(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", text)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value) if math.isfinite(value) else "+Inf" if value > 0 else "-Inf"


def open(target: str, directory: Path) -> TextFile:
    """`target` is a .prom file in the collector's folder; without one, isobudget.prom in the study's directory."""
    return TextFile(Path(target) if target else directory / "isobudget.prom")
