"""Rebuilding a report and printing its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.commands._study import print_json


def write_report(directory: Path) -> dict[str, Any]:
    """Rebuild the report and its students' model cards; returns the report as JSON."""
    from harness.report import build_report
    from harness.report.model_card import write_cards

    table = build_report(directory)
    write_cards(directory)
    return table


def show_report(directory: Path, *, as_json: bool) -> None:
    """Rebuild the report and print its verdict."""
    from harness.report import summary_lines

    table = write_report(directory)
    _show(table, directory, summary_lines(table), as_json=as_json)


def show_joined(directories: list[Path], out: Path, *, as_json: bool) -> None:
    """Build the report of several runs of one study and print its verdict."""
    from harness.report import build_joined, summary_lines

    table = build_joined(directories, out)
    _show(table, out, summary_lines(table), as_json=as_json)


def _show(table: dict[str, Any], directory: Path, lines: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(table)
        return
    for line in lines:
        print(line)
    print(f"\nreport: {directory / 'report.html'}")
