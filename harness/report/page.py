"""The report as one offline HTML file: no script, no request, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.report import bars, curves, domain_tables, numbers, pretraining_tables
from harness.report.analysis import Analysis, describe_unit
from harness.report.cells import Table
from harness.report.fact_tables import beside_verdict
from harness.report.reproduce import conditions
from harness.report.score_tables import REFERENCE_NAMES
from harness.report.source import mapping, number
from harness.report.verdict import Verdict
from harness.units import Unit

_HERE = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def page(analysis: Analysis, tables: Sequence[Table], *, reproduce: str) -> str:
    """Render the page; everything that a study wrote passes through autoescape."""
    verdict, study = analysis.verdict, analysis.source.study
    return _TEMPLATES.get_template("template.html").render(
        analysis=analysis,
        verdict=verdict,
        headline=_headline(verdict, analysis),
        reason=_reason(analysis),
        beside=beside_verdict(analysis),
        cards=_cards(analysis),
        state=str(analysis.source.status.get("state", "unknown")),
        unfinished=_unfinished(analysis),
        facts=_facts(analysis),
        question=str(study.get("question") or ""),
        label=numbers.label(analysis.main),
        margin=numbers.amount_of(analysis.margin, analysis.main, spread=analysis.margin),
        effects=bars.effects(analysis),
        costs=bars.costs(analysis),
        teacher_cost=teacher_cost(analysis),
        yardsticks=curves.yardsticks(analysis),
        objectives=curves.objectives(analysis),
        pretraining=pretraining_tables.figures(analysis),
        domain_effects=domain_tables.forest(analysis),
        references=_references(analysis),
        tables={table.name: table for table in tables},
        reproduce=reproduce,
        conditions=conditions(analysis.source),
        # Ours, not a study's: the only text that is not escaped.
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
    )


def _headline(verdict: Verdict, analysis: Analysis) -> list[tuple[str, int | None]]:
    """The sentence in pieces, the arms' names with their colours."""
    index = {arm.name: arm.index for arm in analysis.arms}
    forms = ((verdict.better, " beats ", verdict.worse), *((verdict.a, word, verdict.b) for word in (" and ", " or ")))
    for first, word, second in forms:
        start = f"{first}{word}{second}"
        if first in index and second in index and verdict.sentence.startswith(start):
            # A figure and its error stay on one line.
            rest = verdict.sentence.removeprefix(start).replace(" ± ", "\u00a0±\u00a0")
            return [(first, index[first]), (word, None), (second, index[second]), (rest, None)]
    return [(verdict.sentence[:1].upper() + verdict.sentence[1:], None)]


def _cards(analysis: Analysis) -> list[dict[str, Any]]:
    """The verdict once per currency: the budget's own first, then what curves say of the others."""
    if analysis.verdict.a is None:
        return []
    own = {
        "title": f"In {describe_unit(analysis.unit)}, the budget",
        "pieces": _headline(analysis.verdict, analysis),
        "note": f"{analysis.budget} each; {numbers.label(analysis.main)}." if analysis.budget else "",
        "flip": "no",
    }
    others = [
        {
            "title": f"In {currency.words}",
            "pieces": _headline(currency.verdict, analysis) if currency.verdict else [("Not told by scores", None)],
            # An arm's name is never capitalised.
            "note": currency.note
            if currency.note.startswith(tuple(arm.name for arm in analysis.arms))
            else currency.note[:1].upper() + currency.note[1:],
            "flip": currency.flip,
        }
        for currency in analysis.currencies
        if currency.note
    ]
    return [own, *others] if others else []


def _reason(analysis: Analysis) -> str:
    budget = f"at equal {describe_unit(analysis.unit)}, {analysis.budget} each" if analysis.budget else "budget unknown"
    return f"{numbers.label(analysis.main)} {budget}; {analysis.verdict.reason}."


def _unfinished(analysis: Analysis) -> str:
    status = analysis.source.status
    done = sum(len(arm.done) for arm in analysis.arms)
    message = " ".join(str(status.get("message") or "").split()).rstrip(".")
    state = str(status.get("state", "unknown"))
    return (
        f"This study's state is “{state}”{f': {message}' if message else ''}. "
        f"{done} of {done + len(analysis.missing)} runs are finished, and only those count."
    )


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    seeds = sorted({seed for arm in analysis.arms for seed in arm.seeds})
    seconds = [value for arm in analysis.arms for run in arm.done if (value := number(run.record.get("seconds")))]
    return [
        ("Budget per arm", str(analysis.budget) if analysis.budget else "unknown"),
        ("Arms × seeds", f"{len(analysis.arms)} × {len(seeds)}"),
        ("Deciding score", numbers.label(analysis.main)),
        ("Baseline", analysis.baseline.name if analysis.baseline else "–"),
        ("Device time in all", numbers.cost(sum(seconds), Unit.GPU_SECOND) if seconds else "–"),
    ]


def teacher_cost(analysis: Analysis) -> str:
    """What the teacher cost to train, against the budget; empty where it is not known."""
    training = mapping(analysis.source.references.get("teacher_training"))
    flop = number(training.get("flop"))
    if not flop:
        return ""
    text = f"Training the teacher took {numbers.cost(flop, Unit.FLOP)}"
    if analysis.unit == Unit.FLOP and analysis.budget:
        text += f", {numbers.ratio(flop / analysis.budget.limit)} the budget of an arm"
    charged = "TEACHER_TRAINING" in analysis.charged
    return f"{text}; it is {'charged' if charged else 'not charged: the teacher is taken as given'}."


def _references(analysis: Analysis) -> str:
    training: dict[str, Any] = mapping(analysis.source.references.get("teacher_training"))
    names = [REFERENCE_NAMES[name].lower() for name in analysis.references]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
    verb = "stand" if len(names) > 1 else "stands"
    parts = [f"{listed.capitalize()} {verb} below the arms in the table of scores."] if names else []
    parts += [teacher_cost(analysis)] if teacher_cost(analysis) else []
    if training.get("note"):
        parts.append(f"Teacher: {training['note']}.")
    return " ".join(parts)
