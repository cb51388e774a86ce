"""What the files of a run directory hold: one shape per kind of file, checked before anything in it is believed.

A file is absent, or of its shape, or unreadable. The last is an error that names the file and the place in it: hands, full
disks and other versions of the program leave such files, and no content may end in a traceback or be taken for another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from harness.errors import CheckpointError

TAIL_BYTES = 1 << 16

T = TypeVar("T")

# Beyond these no arithmetic of ours, nor of the system's, stays in range.
Amount = Annotated[int | float, Field(ge=0, lt=1e60, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Moment = Annotated[int | float, Field(ge=0, lt=1e11, allow_inf_nan=False)]
ProcessNumber = Annotated[int, Field(gt=0, lt=1 << 31)]
ExitCode = Annotated[int, Field(ge=-255, le=255)]


class Shape(BaseModel):
    """Strict about what is named, silent about the rest: the program that writes a file knows more than its readers ask."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Status(Shape):
    """status.json of a study or a sweep."""

    state: str
    exit_code: ExitCode = 0
    message: str = ""
    time: Moment = 0


class Attempt(Shape):
    """One attempt of a job."""

    state: str
    started: Moment
    host: str
    pid: ProcessNumber
    ended: Moment = 0
    exit_code: ExitCode | None = None
    message: str = ""


class Attempts(Shape):
    """jobs/NAME.json."""

    attempts: list[Attempt]


class Stage(Shape):
    """A stage in jobs/graph.json."""

    name: str
    works: list[str]


class Graph(Shape):
    """jobs/graph.json: what `submit` made of a study."""

    stages: list[Stage]


class TrialRecord(Shape):
    """record.json of a trial: what decides whether it is done, and with what it may be compared."""

    state: str
    steps: Count = 0
    tokens: Count = 0
    charged: Amount = 0
    engine: dict[str, Any] | None = None
    control: dict[str, Any] | None = None


# The state of a trial of a search that was given up: it counts, is charged, and is not trained again.
DIVERGED = "diverged"


def finished(record: Mapping[str, Any] | None) -> bool:
    """Whether a trial will not be trained again: its budget is spent, or it was one of a search and diverged."""
    return (record or {}).get("state") in ("done", DIVERGED)


class Override(Shape):
    """A difference that was allowed."""

    kind: str
    key: str


class Identity(Shape):
    """identity.json: who made what is in the directory; without an identity before anything was trained."""

    identity: dict[str, dict[str, Any]] | None = None
    overrides: list[Override]


class Holder(Shape):
    """.holder.json: who has the directory's lock."""

    host: str
    pid: ProcessNumber
    since: Moment


class LedgerState(Shape):
    """What `Ledger.state` gives."""

    limit: Amount
    unit: str
    charged: list[str]
    postings: Count
    spent: Amount
    sums: list[Annotated[tuple[str, str, Amount], Field(strict=False)]]


class CheckpointState(Shape):
    """state.json of a checkpoint."""

    ledger: LedgerState
    progress: dict[str, Any]
    identity: dict[str, dict[str, Any]]
    overrides: list[Override]


class LastPosting(Shape):
    """A line of ledger.jsonl, as far as it tells how far a run is."""

    step: Count
    spent: Amount


class CacheShards(Shape):
    """teacher-cache.json of a trial: how many shards of its teacher's cache were there when one was last written."""

    shards: Count


class MetricsRow(Shape):
    """A line of metrics.jsonl, as far as it tells how fast a run is; only rows of training have tokens."""

    step: Count
    fraction: Annotated[float, Field(ge=0, le=1)]
    seconds: Amount
    tokens: Count | None = None


def read(path: Path, shape: type[Shape]) -> dict[str, Any] | None:
    """The whole object of a file that has this shape, or None where there is no file.

    Raises:
        CheckpointError: there is one, and it cannot be read, is no JSON, or has another shape.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, type(error).__name__) from None
    found, reason = _parse(text, shape)
    if found is None:
        raise unreadable(path, reason)
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file that can be made again; None where it is missing, torn or something else."""
    try:
        return _parse(path.read_text(encoding="utf-8"), Shape)[0]
    except (OSError, ValueError):
        return None


def last_rows(path: Path, shape: type[Shape]) -> list[dict[str, Any]]:
    """The whole lines among the last 64 KiB of a file of lines, in order; none where there is no file.

    A line without its end is still being written, and left out.

    Raises:
        CheckpointError: a whole line is no JSON or has another shape.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(path, type(error).__name__) from None
    rows: list[dict[str, Any]] = []
    if size > TAIL_BYTES:
        lines = lines[1:]  # its beginning was cut off
        if len(lines) < 2:
            raise unreadable(path, f"no whole line in its last {TAIL_BYTES >> 10} KiB")
    for number, line in enumerate(lines[:-1]):
        row, reason = _parse(line.decode("utf-8", errors="replace"), shape)
        if row is None:
            place = f"line {number + 1}" if size <= TAIL_BYTES else f"{len(lines) - 2 - number} lines before its end"
            raise unreadable(path, f"{place}: {reason}")
        rows.append(row)
    return rows


def whole_objects(path: Path) -> list[dict[str, Any]]:
    """Every line of a file that is a JSON object; what else it holds is left out, and told by whoever shows the file."""
    found: list[dict[str, Any]] = []
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        row, _ = _parse(line, Shape)
        if row is not None:
            found.append(row)
    return found


def check(value: Any, shape: type[Shape], *, of: Path) -> None:
    """Nothing, for a value of this shape, read from `of`.

    Raises:
        CheckpointError: it has another.
    """
    if reason := _departure(value, shape):
        raise unreadable(of, reason)


def build(kind: type[T], values: dict[str, Any], *, of: Path) -> T:
    """A dataclass from its fields, as they were read from `of`.

    Raises:
        CheckpointError: a field is unknown or of another type.
    """
    if unknown := values.keys() - {field.name for field in fields(kind)}:  # pyright: ignore[reportArgumentType]
        raise unreadable(of, f"{min(unknown)}: no such field")
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise unreadable(of, _first(error)) from None


def unreadable(path: Path, reason: str) -> CheckpointError:
    """The error for a file whose content is not what it should be."""
    return CheckpointError(
        str(path), rule=f"its content is unreadable ({reason})", remedy="restore the file, or move it away"
    )


def _parse(text: str, shape: type[Shape]) -> tuple[dict[str, Any] | None, str]:
    """The object, or None and why not."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None, "it is no JSON"
    if not isinstance(value, dict):
        return None, f"it holds {type(value).__name__}, not an object"
    reason = _departure(value, shape)
    return (None, reason) if reason else (value, "")


def _departure(value: Any, shape: type[Shape]) -> str:
    try:
        shape.model_validate(value)
    except ValidationError as error:
        return _first(error)
    return ""


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
