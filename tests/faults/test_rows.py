"""Every row of the fault table, in its short form."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.chaos.table import PASSED, SKIPPED, Row, discover, play


@pytest.mark.parametrize("row", discover(), ids=lambda row: f"row-{row.number:02d}")
def test_row(row: Row, tmp_path: Path) -> None:
    result = play(row, seed=1, short=True, folder=tmp_path)
    if result.verdict == SKIPPED:
        pytest.skip(result.saw)
    assert result.verdict == PASSED, result.as_line()
