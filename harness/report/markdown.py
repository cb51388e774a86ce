"""The report as Markdown: the same sentences and tables, safe to paste into an issue."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.report import numbers
from harness.report.analysis import Analysis, describe_unit
from harness.report.cells import Table
from harness.report.fact_tables import beside_verdict
from harness.report.reproduce import conditions

_SPECIAL = re.compile(r"([\\`*\[\]|#~])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape(text: object) -> str:
    """Text that Markdown and the HTML inside Markdown show as it is, on one line."""
    plain = " ".join(str(text).split())
    plain = "".join(_ENTITIES.get(c, c) for c in plain)
    return _SPECIAL.sub(r"\\\1", plain)


def markdown(analysis: Analysis, tables: Iterable[Table], *, reproduce: str) -> str:
    """The whole report as one Markdown text."""
    source, verdict = analysis.source, analysis.verdict
    budget = str(analysis.budget) if analysis.budget else "unknown"
    lines = [f"# {escape(verdict.sentence)}", "", f"{escape(verdict.reason)}.", ""]
    lines += [*(f"- {escape(text)}" for text in beside_verdict(analysis)), ""]
    for currency in analysis.currencies:
        text = escape(currency.sentence)
        lines += [f"**{text}**" if currency in analysis.flips else text, ""] if text else []
    lines += [f"- {escape(v.sentence)} ({escape(v.reason)})" for v in analysis.by_arm] + [""]
    if source.study.get("question"):
        lines += [f"**Question.** {escape(source.study['question'])}", ""]
    lines += [
        f"Study `{escape(analysis.name).replace('`', '')}`; budget {escape(budget)} of {describe_unit(analysis.unit)} per arm; "
        f"decided by {escape(numbers.label(analysis.main))}; state {escape(source.status.get('state', 'unknown'))}.",
        "",
    ]
    if analysis.alarms:
        lines += ["## Alarms", "", *(f"- {escape(alarm.text)}" for alarm in analysis.alarms), ""]
    if analysis.missing:
        lines += ["## Not finished", "", *(f"- {escape(text)}" for text in analysis.missing), ""]
    for table in tables:
        # The resolved engine configuration is long; it is in the page and in tables/engine.csv.
        if table.rows and table.name != "engine":
            lines += [f"## {escape(table.title)}", "", *table_lines(table), ""]
            lines += [f"{escape(note)}  " for note in table.notes] + [""]
    if analysis.warnings:
        lines += ["## Warnings", "", *(f"- {escape(text)}" for text in analysis.warnings), ""]
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", reproduce)), default=2))
    lines += ["## Reproduce", "", f"{fence}sh", reproduce.replace("\n", " "), fence, "", escape(conditions(source)), ""]
    return "\n".join(lines)


def table_lines(table: Table) -> Iterable[str]:
    """A table in Markdown, line by line."""
    yield "| " + " | ".join(escape(column) for column in table.columns) + " |"
    yield "|" + "|".join(" --- " if i == 0 or table.words else " ---: " for i in range(len(table.columns))) + "|"
    for row in table.rows:
        cells = []
        for cell in row:
            text = escape(cell.text)
            text = f"**{text}**" if cell.role == "best" else text
            cells.append(f"{text} {escape(cell.detail)}".strip())
        yield "| " + " | ".join(cells) + " |"
