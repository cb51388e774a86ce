"""A decision as the report tells it: what to choose first, then every arm's outlook and what knowing better would cost.

`decide` keeps its answer as decision.json beside the pilot's report; every rebuilding of that report tells it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.ladder.words import Words, percent
from harness.report.cells import Cell, Table
from harness.report.source import Json, mapping
from harness.rundir import read_json

FILE = "decision.json"


@dataclass(frozen=True)
class Told:
    """`headline` and `reason` are the sentence in two parts; `words` what else was said, `tables` the figures."""

    headline: str
    reason: str
    words: list[str]
    tables: list[Table]


def read(root: Path, *, arms: dict[str, int]) -> Told | None:
    """The decision that lies in `root`; None where there is none. `arms`: {name: its colour}."""
    answer = read_json(root / FILE)
    found = mapping(mapping(answer).get("decision"))
    if not found:
        return None
    words = Words(**found["words"])
    headline, _, reason = str(found["sentence"]).partition(": ")
    told = [] if found["contradicted"] else [_wrong(found, words)]
    missed = [each["sentence"] for each in mapping(answer).get("validation") or [] if not each["inside"]]
    return Told(
        _begin(headline),
        _begin(reason),
        told + [f"Do not take it for certain: {text}." for text in missed],
        [
            _outlooks(found, words, arms, paid=mapping(answer).get("taken") or []),
            _further(found, words),
        ],
    )


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]


def _wrong(found: Json, words: Words) -> str:
    if found["regret_if_wrong"] == 0:
        return "In none of the possibilities that the pilot leaves is another arm better."
    return f"If another arm is better, then by {words.size(found['regret_if_wrong'])} on average."


def _outlooks(found: Json, words: Words, arms: dict[str, int], *, paid: list[str]) -> Table:
    """Every arm at the full budget."""
    chosen = found["recommendation"]
    rows = [
        [
            Cell(o["arm"], detail="recommended" if o["arm"] == chosen else "", arm=arms.get(o["arm"])),
            Cell(words.rung(o["budget"])),
            Cell(words.score(o["score"], spread=(o["high"] - o["low"]) / 2), detail=words.between(o["low"], o["high"])),
            Cell(words.between(*o["one_run"])),
            Cell(percent(o["probability_best"]), role="best" if o["arm"] == chosen else ""),
        ]
        for o in found["outlooks"]
    ]
    records = [
        {
            **{key: value for key, value in o.items() if key != "one_run"}, "one_run_low": o["one_run"][0],
            "one_run_high": o["one_run"][1], "recommended": o["arm"] == chosen,
        }
        for o in found["outlooks"]
    ]  # fmt: skip
    unit = f", {words.score_unit}" if words.score_unit else ""
    columns = ["Arm", "Budget left for it", f"Expected score{unit}", "A single run, 95 %", "Best with probability"]
    far = found["beyond"]
    notes = [
        f"Decided from {found['n']} seeds at {len(found['x'])} budgets, from {words.rung(found['x'][0])} to {words.rung(found['x'][-1])}"
        f"{f'; extrapolated {far:,.3g} times beyond' if far > 1 else ''}. Below the expected score: 95 % of what is possible for the arm's mean "
        "over all seeds. Every figure takes the curve's form for granted."
    ]
    if paid:
        notes.append(f"Paid before the first step: {'; '.join(paid)}.")
    if found["contradicted"]:
        notes.append(
            f"The form is contradicted by {', '.join(found['contradicted'])}: these figures recommend nothing."
        )
    return Table("decision", "Every arm at the full budget", columns, rows, records, notes=notes)


def _further(found: Json, words: Words) -> Table:
    """What more pilot would buy, and what it would cost; empty where the figures mean nothing."""
    rows: list[list[Cell]] = []
    regret = found["expected_regret"]
    for each in [] if found["contradicted"] else found["further"]:
        price = each["price"]
        rows.append(
            [
                Cell(_begin(each["what"])),
                Cell(words.rung(each["cost"])),
                Cell(f"{words.size(regret, spread=regret)} → {words.size(each['regret_after'], spread=regret)}"),
                Cell("more than there is" if price is None else words.size(price)),
                Cell("yes" if each["worth"] else "no", role="best" if each["worth"] else ""),
            ]
        )
    columns = ["Knowing better", "Costs", "Expected regret", "Taken from the result", "Worth it"]
    notes = ["Worth it: the expected regret falls by more than the recommended arm loses with the budget that is left."]
    records: list[dict[str, Any]] = [{**each, "regret_before": regret} for each in found["further"]]
    return Table(
        "knowing_better",
        "The cost of knowing better",
        columns,
        rows,
        records if rows else [],
        notes=notes if rows else [],
    )
