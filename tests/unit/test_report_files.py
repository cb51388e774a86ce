"""Laws of a report's files: whole or as they were, and what keeps them from being written is said as an error of ours."""

from __future__ import annotations

import csv
import errno
from pathlib import Path
from typing import Any

import pytest

from harness.errors import CheckpointError
from harness.report.files import write_csv, write_text


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_csv(tmp_path / "tables" / "t.csv", [{"a": "x, y", "b": 1}, {"a": "two\nlines", "c": 2}])
    with (tmp_path / "tables" / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"a": "x, y", "b": "1", "c": ""}, {"a": "two\nlines", "b": "", "c": "2"},
        ]  # fmt: skip


def test_on_a_full_disk_the_old_report_stays_and_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "report.md", "old")
    monkeypatch.setattr("harness.rundir.os.replace", full)
    for write in (lambda p: write_text(p, "new"), lambda p: write_csv(p, [{"a": 1}])):
        with pytest.raises(CheckpointError, match="report.md: the system refused it"):
            write(tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text() == "old"
    assert [place.name for place in tmp_path.iterdir()] == ["report.md"]


def test_a_folder_that_cannot_be_made_is_the_same_error(tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("a file")
    with pytest.raises(CheckpointError, match="tables"):
        write_csv(tmp_path / "tables" / "t.csv", [{"a": 1}])
