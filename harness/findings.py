"""What doctor reports: one fact, how it stands, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Finding:
    """One fact about this machine. `remedy` is empty when there is nothing to do."""

    topic: str
    status: Status
    found: str
    remedy: str = ""


def to_json(findings: Sequence[Finding]) -> str:
    """One JSON object: {"findings": [{"topic", "status", "found", "remedy"}, …]}."""
    return json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """A table on a terminal, plain lines elsewhere; nothing in a finding is read as markup."""
    if not console.is_terminal:
        for finding in findings:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            line = f"{finding.status:7} {finding.topic}: {finding.found}{remedy}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "missing": "bright_black"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "what", "found", "to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        status = Text(finding.status, style=colours[finding.status])
        table.add_row(status, Text(finding.topic), Text(finding.found), Text(finding.remedy))
    console.print(table)
