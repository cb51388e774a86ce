"""Write a sweep's report.json, report.md, report.html and tables/*.csv beside its points, finished or not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import harness.report
from harness.report import fact_tables, numbers
from harness.report.analysis import describe_unit
from harness.report.cells import Table
from harness.report.files import finite, write_csv, write_text
from harness.report.markdown import escape, table_lines
from harness.report.reproduce import recorded
from harness.report.source import Json
from harness.sweep import currency, decided, figures, tables
from harness.sweep.answer import Answer, answer
from harness.sweep.decided import Told
from harness.sweep.gather import Found, gather

FORMAT = 1
_HERE = Path(__file__).parent
_REPORT = Path(harness.report.__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader([_HERE, _REPORT]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


def build(root: Path) -> Json:
    """Rebuild every file of the report from what lies in `root`, and return the JSON object.

    Raises:
        ConfigError: `root` holds no sweep.
    """
    root = Path(root)
    found = gather(root)
    said, shown = replace(answer(found), currencies=currency.lines(found)), tables.every(found)
    told = None if found.withheld else decided.read(root, arms={arm.name: arm.index for arm in found.arms})
    report = document(found, said)
    for table in [*(told.tables if told else []), *shown]:
        write_csv(root / "tables" / f"{table.name}.csv", table.records)
    write_text(root / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(root / "report.md", _markdown(found, said, told, shown, report))
    write_text(root / "report.html", _page(found, said, told, shown, report))
    return report


def document(found: Found, said: Answer) -> Json:
    """The report as plain JSON: numbers in base units, nothing rounded, null where nothing is known."""
    return finite(
        {
            "format": FORMAT,
            "sweep": found.sweep.name,
            "kind": found.sweep.spec.kind,
            "question": found.sweep.question,
            "state": found.status or {"state": "unknown"},
            "axis": {"name": found.kind.axis, "unit": found.unit, "log": found.kind.log},
            "metric": found.metric,
            "baseline": found.baseline.name if found.baseline else None,
            "answer": said.as_json(),
            "points": [
                {
                    "label": each.point.label, "x": each.x, "folder": each.point.folder,
                    "verdict": asdict(each.analysis.verdict), "scores": {a: dict(s) for a, s in each.scores.items()},
                    "alarms": [alarm.text for alarm in each.analysis.alarms],
                }
                for each in found.at
            ],
            "tables": {table.name: table.records for table in tables.every(found)},
            "missing": found.missing,
            "environment": found.at[0].analysis.source.environment if found.at else {},
            "resolved_sweep": found.sweep.tree,
            "reproduce": (recorded(found.at[0].analysis.source) if found.at else "") or "python launch.py run --study sweep.yaml",
        }
    )  # fmt: skip


def summary_lines(report: Json) -> list[str]:
    """A few plain lines for a terminal."""
    said = report["answer"]
    lines = [f"{said['headline']}.", f"({said['reason']})", ""]
    lines += [f"- {line['sentence']}" for line in [*said["currencies"], *said["lines"], *said["asides"]]]
    if report["missing"]:
        lines.append(f"{len(report['missing'])} missing: see the report")
    return [" ".join(line.split()) for line in lines]


def _alarms(found: Found) -> list[str]:
    """Alarms of the points, each once, with the points it rang at."""
    heard: dict[str, list[str]] = {}
    for each in found.at:
        for alarm in each.analysis.alarms:
            heard.setdefault(alarm.text, []).append(each.point.label)
    return [f"{text} (at {', '.join(labels)})" for text, labels in heard.items()]


def _facts(found: Found) -> list[tuple[str, str]]:
    first = found.at[0].analysis if found.at else None
    seeds = sorted({seed for arm in found.arms for seed in arm.seeds})
    spent = [value for each in found.at for arm in each.analysis.arms for run in arm.runs
             if not run.record.get("shared_with") and (value := run.record.get("seconds"))]  # fmt: skip
    return [
        ("Points", f"{len(found.at)} of {len(found.sweep.points)}"),
        ("Arms × seeds", f"{len(found.arms)} × {len(seeds)}"),
        ("Deciding score", numbers.label(found.metric)),
        ("Equal", describe_unit(first.unit) if first else "–"),
        ("Device time in all", numbers.cost(sum(spent), "gpu-second") if spent else "–"),
    ]


def _cards(found: Found, said: Answer) -> list[tuple[str, str]]:
    """(title, sentence) in every currency that the budget is not in; an arm's name is never capitalised."""
    names = tuple(arm.name for arm in found.arms)
    pieces = [line.sentence.split(": ", 1) for line in said.currencies]
    return [(title, text if text.startswith(names) else text[:1].upper() + text[1:]) for title, text in pieces]


def _page(found: Found, said: Answer, told: Told | None, shown: list[Table], report: Json) -> str:
    """Everything that a study wrote passes through autoescape."""
    index = {arm.name: arm.index for arm in found.arms}
    return _TEMPLATES.get_template("sweep.html").render(
        name=found.sweep.name, said=said, told=told, state=str(found.status.get("state", "unknown")), facts=_facts(found),
        cards=_cards(found, said), question=found.sweep.question, missing=found.missing, alarms=_alarms(found), charts=figures.charts(found),
        shown=shown, arms=found.arms, index=index, reproduce=report["reproduce"],
        points=[(each.point.label, f"{each.point.folder}/report.html", each.analysis.verdict.sentence) for each in found.at],
        environment=fact_tables.environment(found.at[0].analysis) if found.at else None,
        style=Markup((_REPORT / "style.css").read_text(encoding="utf-8")),
    )  # fmt: skip


def _decision(told: Told) -> list[str]:
    """The decision in Markdown; what the pilot found follows under a heading of its own."""
    lines = [
        f"# {escape(told.headline)}",
        "",
        f"{escape(told.reason)}.",
        "",
        *(f"- {escape(text)}" for text in told.words),
        "",
    ]
    for table in told.tables:
        if table.rows:
            lines += [f"## {escape(table.title)}", "", *table_lines(table), ""]
            lines += [f"{escape(note)}  " for note in table.notes] + [""]
    return lines


def _markdown(found: Found, said: Answer, told: Told | None, shown: list[Table], report: Json) -> str:
    lines = _decision(told) if told else []
    lines += [
        f"## The pilot: {escape(said.headline)}" if told else f"# {escape(said.headline)}",
        "",
        f"{escape(said.reason)}.",
        "",
    ]
    lines += [text for line in said.currencies for text in (f"{escape(line.sentence)}.", "")]
    if found.sweep.question:
        lines += [f"**Question.** {escape(found.sweep.question)}", ""]
    lines += [f"- {escape(line.sentence)}" for line in [*said.lines, *said.asides]] + [""]
    for title, texts in (("Alarms", _alarms(found)), ("Not finished", found.missing)):
        if texts:
            lines += [f"## {title}", "", *(f"- {escape(text)}" for text in texts), ""]
    for table in shown:
        lines += [f"## {escape(table.title)}", "", *table_lines(table), ""]
        lines += [f"{escape(note)}  " for note in table.notes] + [""]
    fence = "`" * 4
    lines += ["## Reproduce", "", f"{fence}sh", str(report["reproduce"]).replace("\n", " "), fence, ""]
    return "\n".join(lines)
