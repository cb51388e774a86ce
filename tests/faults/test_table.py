"""The table itself: complete, and no row that raises, cannot run or is unknown counts as passed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import cli
from harness.chaos import table
from harness.chaos.outcome import CannotRun, Outcome
from harness.chaos.table import FAILED, PASSED, SKIPPED, Row, chosen, discover, play


def row(number: int, outcome: Outcome | Exception) -> Row:
    def run(seed: int, short: bool, folder: Path) -> Outcome:
        assert folder.is_dir()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return Row(number, "a fault", "it is survived", run)


def test_every_row_of_the_contract_is_there_once() -> None:
    rows = discover()
    assert [row.number for row in rows] == list(range(1, 26))
    assert all(row.fault and row.passes_when for row in rows)


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome(True, "30/30"), PASSED),
        (Outcome(False, "29/30"), FAILED),
        (RuntimeError("no rank came back"), FAILED),
        (CannotRun("no compiler"), SKIPPED),
    ],
)
def test_only_what_passed_has_passed(outcome: Outcome | Exception, verdict: str, tmp_path: Path) -> None:
    assert play(row(1, outcome), seed=0, short=True, folder=tmp_path).verdict == verdict


def test_the_exit_code_tells_of_one_failure_among_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(1, Outcome(True, "fine")), row(2, CannotRun("no root")), row(3, Outcome(False, "a | pipe\nand a line"))]
    monkeypatch.setattr(table, "discover", lambda: rows)
    assert cli.main(["chaos", "--short", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [r["verdict"] for r in told["rows"]] == [PASSED, SKIPPED, FAILED]
    assert cli.main(["chaos", "--short", "--rows", "1,2"]) == 0
    assert "no root" in capsys.readouterr().out
    assert cli.main(["chaos", "--short", "--rows", "3"]) == 1
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3, "a row is one line of the table"
    assert lines[-1].replace("\\|", "").count("|") == 7


@pytest.mark.parametrize("rows", ["99", "one", "", "1,,2"])
def test_rows_that_are_none_are_refused(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chaos", "--rows", rows]) == 2
    assert "--rows" in capsys.readouterr().err


def test_chosen_rows_keep_the_order_asked_for() -> None:
    assert [row.number for row in chosen("8,1")] == [8, 1]
