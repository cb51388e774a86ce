"""Writing a report's files: JSON that every parser reads, CSV, and no file that is ever seen half written."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from harness.report.source import Json
from harness.rundir import write_file


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
    """See `write_text`."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(records)
    write_text(path, table.getvalue())


def write_text(path: Path, text: str) -> None:
    """Replace a file; see `write_file`."""
    write_file(path, text.encode())
