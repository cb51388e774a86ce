"""Writing a report's files: JSON that every parser reads, CSV, and no file that is ever seen half written."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

from harness.report.source import Json


def finite(value: Any) -> Any:
    """JSON without NaN and infinity: null says as much and every parser reads it."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def write_csv(path: Path, records: list[Json]) -> None:
    path.parent.mkdir(exist_ok=True)
    columns = list(dict.fromkeys(key for record in records for key in record))
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(f"{path.suffix}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
