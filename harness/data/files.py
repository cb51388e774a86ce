"""Local text: which files a path means, which split each belongs to, and the texts inside.

A folder's kind is the first of parquet, jsonl and text that it has, so that a dataset's clone is read
without its README. A file's split is in its name or in a folder's (`train-00000-of-00012.parquet`,
`test/part.jsonl`); files without one are training data. In a text file a blank line ends a document,
as in BERT's own pretraining format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import DataError

_KINDS = ({".parquet"}, {".jsonl", ".ndjson", ".json"}, {".txt", ".text", ".raw"})
_SPLIT_NAME = re.compile(r"(train|training|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)
_CANONICAL = {"train": "train", "training": "train", "test": "test"}


def is_local(path: str) -> bool:
    """True for what exists, and for what can only be meant as a path (so that a typo is not sent to the Hub)."""
    return (
        Path(path).expanduser().exists()
        or path.startswith((".", "/", "~"))
        or Path(path).suffix in set().union(*_KINDS)
    )


def find(path: str) -> dict[str, list[Path]]:
    """{split: files in order}; a split may be empty.

    Raises:
        DataError: no such path, or nothing in it that is read as text.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(
            f"data source {path!r}", rule="no such file or folder", remedy="correct data.sources or create it"
        )
    candidates = [root] if root.is_file() else sorted(p for p in root.rglob("*") if _visible(p, root))
    for kind in _KINDS:
        chosen = [p for p in candidates if p.suffix.lower() in kind]
        if chosen:
            return {
                split: [p for p in chosen if split_of(p.relative_to(root if root.is_dir() else root.parent)) == split]
                for split in ("train", "validation", "test")
            }
    raise DataError(
        f"data source {path!r}",
        rule="no .parquet, .jsonl, .json or .txt file in it",
        remedy="convert the texts, or point data.sources at the folder that has them",
    )


def split_of(relative: Path) -> str:
    """The split a file's name says, else the nearest folder's, else train."""
    for part in (relative.stem, *reversed(relative.parent.parts)):
        match = _SPLIT_NAME.match(part)
        if match:
            return _CANONICAL.get(match.group(1).lower(), "validation")
    return "train"


def identity(path: str, found: dict[str, list[Path]]) -> dict[str, Any]:
    """Names, sizes and modification times: enough to notice any ordinary change without reading."""
    root = Path(path).expanduser()
    rows = []
    for split, paths in found.items():
        for p in paths:
            # Names as found, not resolved: a Hub snapshot is a folder of links to somewhere else.
            name = str(p.relative_to(root)) if root.is_dir() else p.name
            rows.append([split, name, p.stat().st_size, p.stat().st_mtime_ns])
    return {"files": rows}


def texts(paths: list[Path], column: str) -> Iterator[str]:
    """Every text in order, "" where a row has none.

    Raises:
        DataError: a file that cannot be read or parsed, or a missing column; both are named.
    """
    for path in paths:
        suffix = path.suffix.lower()
        read = _parquet if suffix == ".parquet" else _json_lines if suffix in _KINDS[1] else _plain
        try:
            yield from read(path, column)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}", rule=f"cannot be read: {error}", remedy="fetch or write the file again"
            ) from error


def _visible(path: Path, root: Path) -> bool:
    return path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            if column not in table.schema_arrow.names:
                raise _no_column(path, column, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=512, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield _text(value, path, column)
    except pa.ArrowException as error:
        raise DataError(
            f"{path}", rule=f"not a readable parquet file: {error}", remedy="fetch or write the file again"
        ) from error


def _json_lines(path: Path, column: str) -> Iterator[str]:
    """One JSON object per line; a .json file may also hold one list of objects."""
    with path.open(encoding="utf-8-sig") as lines:
        if path.suffix.lower() == ".json":
            head = lines.read(1)
            lines.seek(0)
            if head == "[":
                for row in _parse(lines.read(), path, 1):
                    yield _field(row, path, column)
                return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _field(_parse(line, path, number), path, column)


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{line}", rule=f"not JSON: {error.msg}", remedy="write one JSON object per line"
        ) from error


def _field(row: Any, path: Path, column: str) -> str:
    if not isinstance(row, dict) or column not in row:
        raise _no_column(path, column, list(row) if isinstance(row, dict) else [])
    return _text(row[column], path, column)


def _text(value: Any, path: Path, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{path}", rule=f"column {column!r} holds {type(value).__name__}, not text", remedy="name a text column"
        )
    return value


def _no_column(path: Path, column: str, present: list[str]) -> DataError:
    return DataError(
        f"{path}",
        rule=f"no column {column!r}; it has {', '.join(map(str, present[:12])) or 'none'}",
        remedy="set data.sources.0.text_column",
    )


def _plain(path: Path, column: str) -> Iterator[str]:
    """Documents of a text file: runs of lines between blank lines. `column` has no meaning here."""
    current: list[str] = []
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if line.strip():
                current.append(line.rstrip())
            elif current:
                yield "\n".join(current)
                current = []
    if current:
        yield "\n".join(current)
