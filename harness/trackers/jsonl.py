"""One line of JSON per row in one file for the whole study, for whatever reads logs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

NEEDS: str | None = None


class JsonLines:
    """Appends and flushes every row; a number that JSON has no word for becomes null."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        numbers = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._file.write(json.dumps({**labels, "step": step, **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def open(target: str, directory: Path) -> JsonLines:
    """`target` is a file; without one, tracked.jsonl in the study's directory."""
    return JsonLines(Path(target) if target else directory / "tracked.jsonl")
