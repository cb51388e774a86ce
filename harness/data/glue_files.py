"""GLUE as it lies on disk: parquet in the layout of the Hub's `nyu-mll/glue`, from the Hub, a clone or a folder.

Everything a task needs is checked here: its splits, its columns, and that every label is one of the task's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.files import is_local
from harness.data.glue_tasks import TASKS, Task
from harness.errors import DataError

_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Split:
    """One split as written: one or two texts per example, and the labels as float64."""

    texts: tuple[list[str], ...]
    labels: npt.NDArray[np.float64]


def locate(path: str, tasks: list[str]) -> Path:
    """The folder that holds the tasks: a local one, or a download of just these tasks from the Hub.

    Raises:
        DataError: no such folder, or the Hub does not give it.
    """
    if is_local(path):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"GLUE folder {path!r}", rule="no such folder",
                remedy="give a folder in the layout of nyu-mll/glue, or a Hub name",
            )  # fmt: skip
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(path, repo_type="dataset", allow_patterns=[f"{task}/*.parquet" for task in tasks])
        )
    except Exception as error:  # the client raises a dozen unrelated types for one question: can it be had?
        raise DataError(
            f"GLUE from {path!r}", rule=f"neither a local folder nor a dataset the Hub would give: {type(error).__name__}",
            remedy="check the name and the network, or `git clone` the dataset and give its folder",
        ) from error  # fmt: skip


def at_hand(path: str, tasks: list[str]) -> Path | None:
    """The folder that holds the tasks without a download: a local one, or the newest one of the Hub's cache.

    Raises:
        DataError: a local folder that is none.
    """
    if is_local(path):
        return locate(path, tasks)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(path, repo_type="dataset", local_files_only=True))
        for task in tasks:
            files(folder, TASKS[task])
    except (LocalEntryNotFoundError, HFValidationError, DataError):
        return None  # not fetched, or only other tasks
    return folder


def files(folder: Path, task: Task) -> dict[str, list[Path]]:
    """{split: its files} of train and of every split the task is judged on.

    Raises:
        DataError: the task has no folder, a split is missing, or a file is a pointer that git-lfs left.
    """
    home = folder / task.name
    if not home.is_dir():
        there = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        raise DataError(
            f"GLUE task {task.name}", rule=f"{folder} has no folder of that name; it has {', '.join(there) or 'none'}",
            remedy="fetch the task, or leave it out of the tasks",
        )  # fmt: skip
    found: dict[str, list[Path]] = {}
    for split in ("train", *task.judged):
        paths = sorted({*home.glob(f"{split}-*.parquet"), *home.glob(f"{split}.parquet")})
        if not paths:
            present = sorted({p.name.split("-")[0].removesuffix(".parquet") for p in home.glob("*.parquet")})
            raise DataError(
                f"GLUE task {task.name} has no {split} split", rule=f"{home} holds {', '.join(present) or 'no parquet'}",
                remedy=f"fetch {split}-00000-of-00001.parquet",
            )  # fmt: skip
        _complete(task.name, split, paths)
        for path in paths:
            with path.open("rb") as stream:
                if stream.read(len(_POINTER)) == _POINTER:
                    raise DataError(
                        f"{path}", rule="git left a pointer in place of the file", remedy="run `git lfs pull`"
                    )
        found[split] = paths
    return found


def _complete(task: str, split: str, paths: list[Path]) -> None:
    """Refuse a split of which the Hub's names say that a part is missing.

    Raises:
        DataError: part of "-00000-of-00002" is not there.
    """
    parts = [match for path in paths if (match := re.search(r"-(\d{5})-of-(\d{5})\.parquet$", path.name))]
    missing = sorted({f"{n:05}" for n in range(max((int(m[2]) for m in parts), default=0))} - {m[1] for m in parts})
    if missing:
        raise DataError(
            f"GLUE task {task}: {split} lacks part {missing[0]}", rule=f"its files are {len(parts)} of {int(parts[0][2])}",
            remedy="fetch the others",
        )  # fmt: skip


def digest(paths: list[Path]) -> str:
    """SHA-256 over the files' bytes, in order (16 hex digits): wherever they lie, the same data is the same."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def check(folder: Path, tasks: list[str]) -> None:
    """Find everything that `read` would refuse but the texts' types, without reading a text: moments for all of GLUE.

    Raises:
        DataError: as `files` and `read`.
    """
    for task in (TASKS[name] for name in tasks):
        for split, paths in files(folder, task).items():
            tables = [_columns(path, task, ("label",)) for path in paths]
            _checked([label for table in tables for label in table.column("label").to_pylist()], task, split)


def sample(paths: list[Path], task: Task, *, most: int) -> tuple[int, tuple[list[str], ...]]:
    """(examples of a split, the texts of at most so many of them, evenly spaced).

    Raises:
        DataError: as `read`.
    """
    import numpy as np
    import pyarrow as pa

    table = pa.concat_tables([_columns(path, task, task.columns) for path in paths])
    rows = np.linspace(0, table.num_rows - 1, min(most, table.num_rows)).round().astype(np.int64)
    return table.num_rows, _texts(table.take(rows), task, paths[0])


def read(paths: list[Path], task: Task, split: str) -> Split:
    """One split, every label checked.

    Raises:
        DataError: unreadable parquet, a missing column, a hidden label, or one outside the task's range.
    """
    texts: tuple[list[str], ...] = tuple([] for _ in task.columns)
    labels: list[Any] = []
    for path in paths:
        table = _columns(path, task, (*task.columns, "label"))
        for rows, more in zip(texts, _texts(table, task, path), strict=True):
            rows += more
        labels += table.column("label").to_pylist()
    return Split(texts, _checked(labels, task, split))


def _texts(table: Any, task: Task, path: Path) -> tuple[list[str], ...]:
    texts = []
    for column in task.columns:
        values = table.column(column).to_pylist()
        if any(value is not None and not isinstance(value, str) for value in values):
            raise DataError(
                f"{path}", rule=f"column {column!r} does not hold text", remedy="give the columns of nyu-mll/glue"
            )
        texts.append(["" if value is None else value for value in values])
    return tuple(texts)


def _columns(path: Path, task: Task, wanted: Sequence[str]) -> Any:
    """These columns of a file that has all of its task's, as an Arrow table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        there = file.schema_arrow.names
        for column in (*task.columns, "label"):
            if column not in there:
                raise DataError(
                    f"{path}", rule=f"no column {column!r}, which {task.name} needs; it has {', '.join(there)}",
                    remedy="give the task in the columns of nyu-mll/glue",
                )  # fmt: skip
        return file.read(list(wanted))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}", rule=f"not a readable parquet file: {error}", remedy="fetch the file again"
        ) from error


def _checked(labels: list[Any], task: Task, split: str) -> npt.NDArray[np.float64]:
    low, high = task.range
    allowed = f"{low:g} to {high:g}" if not task.classes else ", ".join(map(str, range(len(task.classes))))
    for row, label in enumerate(labels):
        usable = isinstance(label, int | float) and low <= label <= high and (not task.classes or label == int(label))
        if usable:
            continue
        hidden = label == -1
        raise DataError(
            f"GLUE task {task.name}, {split} row {row}: label {label!r}",
            rule="the labels of this split are hidden" if hidden else f"its labels are {allowed}",
            remedy="use a split with labels: nothing can be scored on this one" if hidden else "correct the data",
        )
    if not labels:
        raise DataError(f"GLUE task {task.name}", rule=f"its {split} split is empty", remedy="fetch it again")
    return np.asarray(labels, dtype=np.float64)
