"""Rebuilding a report and printing its verdict."""

from __future__ import annotations

from pathlib import Path

from harness.commands._study import print_json


def show_report(directory: Path, *, as_json: bool) -> None:
    """Rebuild the report and print its verdict."""
    from harness.report import build_report, summary_lines
    from harness.report.model_card import write_cards

    table = build_report(directory)
    write_cards(directory)
    if as_json:
        print_json(table)
        return
    for line in summary_lines(table):
        print(line)
    print(f"\nreport: {directory / 'report.html'}")
