"""Tables of facts: declared differences between arms, the environment, the engine's configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from harness.report.analysis import Analysis
from harness.report.cells import Cell, Table
from harness.report.source import Json, arms_of, mapping, number
from harness.study.glue import departure

# What a study declares under `teacher.trained_on`, as a sentence's end.
TRAINED_ON = {
    "same": "was trained on the text that the students learn from",
    "superset": "was trained on the text that the students learn from, and on more",
    "subset": "was trained on a part of the text that the students learn from",
    "disjoint": "was trained on none of the text that the students learn from",
    "unknown": "was trained on text that nobody has declared",
}

# The resolved DeepSpeed configuration: long, and rarely what a reader wants first.
ENGINE = "ds_config.resolved."


def differences(analysis: Analysis) -> Table:
    """What an arm does otherwise than the shared recipe, besides its objective."""
    found = declared(analysis)
    rows = [[Cell(d["arm"]), Cell(d["key"]), Cell(_word(d["shared"])), Cell(_word(d["here"]))] for d in found]
    return Table("differences", "Declared differences", ["Arm", "Key", "Shared", "This arm"], rows, found, words=True)


def declared(analysis: Analysis) -> list[Json]:
    """[{arm, key, shared, here}] of every declared departure."""
    return [
        {"arm": arm.name, "key": str(key), "shared": _lookup(analysis.source.study, str(key)), "here": value}
        for arm in analysis.arms
        for key, value in arm.differs.items()
    ]


def beside_verdict(analysis: Analysis) -> list[str]:
    """What a reader must know with the verdict: declared departures, arms' and GLUE's, and what teachers were trained on."""
    arms = {str(arm["name"]): arm for arm in arms_of(analysis.source.study)}
    found = []
    for d in declared(analysis):
        trials = mapping(arms.get(d["arm"], {}).get("tuning")).get("trials")
        searched = d["key"].startswith("optimizer.") and trials
        found.append(
            f"{d['arm']} also differs in {d['key']}: {_word(d['here'])} where the others have {_word(d['shared'])}"
            + (
                f", found in {trials} {'trial' if trials == 1 else 'trials'}, as many as every arm had."
                if searched
                else "."
            )
        )
    taught: dict[tuple[str, str], dict[str, None]] = {}
    for arm in analysis.arms:
        for run in arm.runs:
            teacher = mapping(run.record.get("teacher"))
            if teacher:
                key = (_word(teacher.get("path")), str(teacher.get("trained_on") or "unknown"))
                taught.setdefault(key, {})[arm.name] = None
    for (path, on), names in taught.items():
        whose = "" if len({p for p, _ in taught}) == 1 else f" of {', '.join(names)}"
        found.append(f"The teacher{whose} ({path}) {TRAINED_ON.get(on, TRAINED_ON['unknown'])}.")
    glue = mapping(mapping(analysis.source.study.get("evaluation")).get("glue"))
    said = departure(glue.get("grid"), glue.get("select_on")) if glue else None
    return found + ([said] if said else [])


def _lookup(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def overrides(analysis: Analysis) -> Table:
    """What a resumed run was allowed to change, and did: a reader must know of every one."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    records: list[Json] = []
    runs = [(arm.name, run) for arm in analysis.arms for run in arm.runs]
    runs += [(f"{run.arm} at {mapping(run.control).get('of')}'s tokens", run) for run in analysis.source.controls]
    for name, run in runs:
        listed = run.record.get("overrides")
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, dict):
                kind, key, was, now = (_word(item.get(part)) for part in ("kind", "key", "was", "now"))
                found.setdefault((key, kind, was, now), []).append(f"{name}, seed {run.seed}")
                records.append({"arm": name, "seed": run.seed, **item})
    rows = [
        [Cell(key), Cell(kind), Cell(was), Cell(now), Cell("; ".join(of))]
        for (key, kind, was, now), of in found.items()
    ]
    columns = ["Fact", "Kind", "Was", "Became", "Runs"]
    notes = ["These differences were accepted with --allow when a run was resumed: it is not the uninterrupted run."]
    return Table("overrides", "Overrides", columns, rows, records, notes=notes if rows else [], words=True)


def environment(analysis: Analysis) -> Table:
    """Versions, hardware, fingerprints: nested keys become dotted ones."""
    flat = [(key, value) for key, value in _flatten(analysis.source.environment) if not key.startswith(ENGINE)]
    return _facts("environment", "Environment", flat)


def engine(analysis: Analysis) -> Table:
    """The engine's configuration as DeepSpeed resolved it."""
    found = _flatten(analysis.source.environment)
    return _facts(
        "engine", "Engine configuration", [(k.removeprefix(ENGINE), v) for k, v in found if k.startswith(ENGINE)]
    )


def _facts(name: str, title: str, flat: list[tuple[str, Any]]) -> Table:
    rows = [[Cell(key), Cell(_word(value))] for key, value in flat]
    return Table(name, title, ["Key", "Value"], rows, [{"key": k, "value": v} for k, v in flat], words=True)


def _flatten(tree: Json, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _word(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, float) and number(value) is not None:
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False, default=str)
