"""Every table of the report, once: cells for people (HTML, Markdown) and plain records for machines (CSV)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.budget import Account
from harness.compare import SEEDS_CAP, Comparison
from harness.report import numbers
from harness.report.analysis import FACTS, Analysis, Arm
from harness.report.axis import Scale, scale_of
from harness.report.source import Json, mapping, number
from harness.units import Unit

# The resolved DeepSpeed configuration: long, and rarely what a reader wants first.
ENGINE = "ds_config.resolved."
REFERENCE_NAMES = {"teacher": "Teacher", "untrained": "Untrained student", "bag_of_words": "Bag of words"}
ACCOUNT_NAMES = {
    Account.STUDENT_STEP: "Student step",
    Account.TEACHER_FORWARD: "Teacher forward",
    Account.OBJECTIVE: "Objective",
    Account.TEACHER_TRAINING: "Teacher training",
    Account.TEACHER_CACHE: "Teacher cache",
    Account.EVALUATION: "Evaluation",
    Account.CHECKPOINT: "Checkpoints",
    Account.STARTUP: "Start-up",
    Account.TUNING: "Tuning",
    Account.LOST: "Lost in crashes",
}


@dataclass(frozen=True)
class Cell:
    """Text with an optional second line, a tooltip and a role ("best", "muted", "flag" or none)."""

    text: str
    detail: str = ""
    tip: str = ""
    role: str = ""
    arm: int | None = None
    """The colour of the arm that this cell names."""


@dataclass(frozen=True)
class Table:
    """`name` is the CSV's file name; the first column names the row, the others hold figures."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    records: list[Json]
    notes: list[str] = field(default_factory=list)
    words: bool = False
    """True when the columns hold words, not figures: they are then aligned to the left."""


def account_name(account: str) -> str:
    """An account as a reader would say it; one unknown to this version keeps its own name."""
    return ACCOUNT_NAMES[Account(account)] if account in Account.__members__ else account


def arm_cell(arm: Arm, *, bare: bool = False) -> Cell:
    """The arm's name in its colour, with its objective beneath unless `bare`."""
    if bare:
        return Cell(arm.name, arm=arm.index)
    detail = arm.objective if arm.objective != arm.name else ""
    return Cell(arm.name, detail=f"{detail}, baseline".strip(", ") if arm.baseline else detail, arm=arm.index)


def scores(analysis: Analysis) -> Table:
    """Mean ± spread per arm and score, the interval in the tooltip; references below."""
    metrics: list[str] = [analysis.main] if analysis.arms else []
    metrics += [m for m in analysis.metrics if m not in metrics]
    others = dict.fromkeys(m for row in analysis.references.values() for m in row)
    metrics += [m for m in others if m not in metrics and not m.startswith("probe.") and not m.endswith(FACTS)]
    rows = [[arm_cell(arm), *(_score(analysis, arm, m) for m in metrics)] for arm in analysis.arms]
    for name, row in analysis.references.items():
        cells = [Cell(numbers.score(row.get(m), m), role="muted") for m in metrics]
        rows.append([Cell(REFERENCE_NAMES.get(name, name), role="muted"), *cells])
    records: list[Json] = []
    for arm in analysis.arms:
        for metric in metrics:
            mean = analysis.score(arm.name, metric)
            if mean is not None:
                records.append(
                    {
                        "arm": arm.name,
                        "metric": metric,
                        "n": len(mean.values),
                        "mean": mean.mean,
                        "sd": mean.sd,
                        "low_95": mean.low,
                        "high_95": mean.high,
                        "comparable": arm.name not in analysis.meaningless(metric),
                    }
                )
    records += [
        {"arm": name, "metric": m, "mean": v} for name, row in analysis.references.items() for m, v in row.items()
    ]
    columns = ["Arm", *(_heading(analysis, m) for m in metrics)]
    return Table("scores", "Scores", columns, rows, records, notes=_score_notes(analysis, metrics))


def _heading(analysis: Analysis, metric: str) -> str:
    arrow = "↓" if metric.endswith("loss") else "↑"
    return f"{numbers.label(metric)}\u00a0{arrow}"


def _score(analysis: Analysis, arm: Arm, metric: str) -> Cell:
    mean = analysis.score(arm.name, metric)
    if mean is None:
        return Cell("–", role="muted")
    digits = analysis.spread(metric)
    text = numbers.score(mean.mean, metric, spread=digits)
    each = ", ".join(f"seed {s}: {numbers.score(v, metric, spread=digits)}" for s, v in mean.values.items())
    spread = "one seed" if mean.sd is None else f"± {numbers.amount_of(mean.sd, metric, spread=digits)}"
    reason = analysis.meaningless(metric).get(arm.name)
    if reason:
        return Cell(f"{text} †", spread, f"{reason}: this figure is not comparable; {each}", "muted")
    span = "" if mean.low is None else f"95 % interval {numbers.interval(mean.low, mean.high, metric)}; "
    return Cell(text, spread, f"{span}{each}", "best" if analysis.best(metric) == arm.name else "")


def _score_notes(analysis: Analysis, metrics: list[str]) -> list[str]:
    notes = ["Mean over seeds, ± one standard deviation between seeds. ↓ lower is better, ↑ higher is better."]
    if any(analysis.best(m) for m in metrics):
        notes.append("A marked score beats every other arm significantly (paired t, Holm-corrected, 5 %).")
    elif len(analysis.arms) > 1:
        notes.append("No score is marked: none beats every other arm significantly.")
    reasons = analysis.flags(metrics)
    if reasons:
        notes.append(f"† Meaningless as a comparison, and part of no average: {'; '.join(reasons)}.")
    return notes


def intervals(analysis: Analysis) -> Table:
    """The deciding score with its interval and every seed's value."""
    metric = analysis.main
    seeds = sorted({seed for arm in analysis.arms for seed in analysis.scores.get(metric, {}).get(arm.name, {})})
    rows: list[list[Cell]] = []
    records: list[Json] = []
    for arm in analysis.arms:
        mean = analysis.score(arm.name, metric)
        values = mean.values if mean else {}
        spread = analysis.spread(metric)
        rows.append(
            [
                arm_cell(arm, bare=True),
                Cell(numbers.score(mean.mean, metric, spread=spread) if mean else "–"),
                Cell(numbers.interval(mean.low, mean.high, metric) if mean else "–"),
                *(Cell(numbers.score(values.get(seed), metric, spread=spread)) for seed in seeds),
            ]
        )
        records += [{"arm": arm.name, "metric": metric, "seed": seed, "score": v} for seed, v in values.items()]
    columns = ["Arm", "Mean", "95 % interval", *(f"Seed {seed}" for seed in seeds)]
    return Table("seeds", f"{numbers.label(metric)}, seed by seed", columns, rows, records)


def comparisons(analysis: Analysis, family: str) -> Table:
    """Paired differences on the deciding score: against the baseline, or all pairs."""
    shown = analysis.compared(analysis.main, family)
    title = "Against the baseline" if family == "baseline" else "All pairs"
    return _comparison_table(analysis, shown, f"comparisons_{family}", title)


def other_comparisons(analysis: Analysis) -> Table:
    """Paired differences against the baseline on every score that does not decide."""
    shown = [c for c in analysis.comparisons if c.family == "baseline" and c.metric != analysis.main and c.n]
    return _comparison_table(analysis, shown, "comparisons_other", "Other scores, against the baseline", metric=True)


def _comparison_table(
    analysis: Analysis, shown: list[Comparison], name: str, title: str, *, metric: bool = False
) -> Table:
    index = {arm.name: arm.index for arm in analysis.arms}
    rows: list[list[Cell]] = []
    for c in shown:
        half = _widest(c, shown)
        flag, role = ("", "best" if c.significant else "") if c.meaningful else (" †", "muted")
        tests = [numbers.p_value(c.p), numbers.p_value(c.p_holm), _plain(c.minimal_detectable, c.metric), seeds_text(c)]
        rows.append(
            [
                Cell(f"{c.a} vs {c.b}", arm=index.get(c.a)),
                *([Cell(f"{numbers.label(c.metric)}, {numbers.unit(c.metric)}")] if metric else []),
                Cell(f"{numbers.signed(c.mean_difference, c.metric, spread=half)}{flag}", tip=c.note, role=role),
                Cell(_interval(c, half), tip=c.note, role="" if c.meaningful else "muted"),
                Cell(str(c.n)),
                *(Cell(text if c.meaningful else "–", role="" if c.meaningful else "muted") for text in tests),
            ]
        )
    scope = (
        "the arms, score by score" if metric else f"these {len(shown)} pairs" if len(shown) > 1 else "one pair: nothing"
    )
    notes = [
        f"Positive: the first arm is better. Paired by seed, Student's t; Holm's correction covers {scope}. "
        "Detectable: the true difference that as many seeds find with 80 % power. "
        "Needed: the seeds that find a true difference as large as the observed one.",
    ]
    reasons = analysis.flags(dict.fromkeys(c.metric for c in shown if not c.meaningful))
    notes += [f"† Meaningless: {'; '.join(reasons)}."] if reasons else []
    notes += [f"{c.a} vs {c.b}: {c.note}." for c in shown if c.meaningful and c.note and not metric]
    unit = "" if metric else f", {numbers.unit(analysis.main)}"
    columns = ["Pair", *(["Score"] if metric else []), f"Difference{unit}", "95 % interval", "Seeds", "p"]
    columns += ["p, Holm", "Detectable", "Needed"]
    return Table(name, title, columns, rows, [_flat_comparison(c) for c in shown], notes=notes if shown else [])


def _widest(c: Comparison, shown: list[Comparison]) -> float | None:
    """The largest half-width of the comparisons on the same score: they are all given in the same digits."""
    return max((h for other in shown if other.metric == c.metric and (h := other.half_width)), default=None)


def _interval(c: Comparison, spread: float | None) -> str:
    ends = [numbers.signed(end, c.metric, spread=spread) for end in (c.low, c.high)]
    return "–" if c.low is None else " to ".join(ends)


def seeds_text(c: Comparison) -> str:
    """The seeds needed, or that they are more than the cap."""
    if c.seeds_needed is None:
        return "–"
    return f"> {SEEDS_CAP}" if c.seeds_needed > SEEDS_CAP else str(c.seeds_needed)


def _plain(value: float | None, metric: str) -> str:
    return "–" if value is None else numbers.amount_of(value, metric, spread=value)


def _flat_comparison(c: Comparison) -> Json:
    return {**c.as_json(), "seeds": " ".join(map(str, c.seeds)), "seeds_needed": seeds_text(c)}


def data_seen(analysis: Analysis) -> Table:
    """Steps, tokens, repetition and the books of the budget, as means over seeds."""
    costs = [("charged", "Charged"), ("unspent", "Unspent"), ("step_price", "One step"), ("seconds", "Device time")]
    scales: dict[str, Scale] = {}
    for key, _ in costs:
        seen = [value for arm in analysis.arms if (value := arm.mean(key))]
        unit = Unit.GPU_SECOND.value if key == "seconds" else analysis.unit
        # What is left over varies from nothing to a step: it is told in the scale of its largest.
        scales[key] = scale_of((max if key == "unspent" else min)(seen, default=1.0), unit)
    rows: list[list[Cell]] = []
    for arm in analysis.arms:
        epochs = arm.mean("epochs")
        rows.append(
            [
                arm_cell(arm, bare=True),
                Cell(numbers.count(arm.mean("steps"))),
                Cell(numbers.short(arm.mean("tokens"))),
                Cell(numbers.short(arm.mean("unique_tokens"))),
                Cell("–" if epochs is None else f"{epochs:.2f}"),
                *(Cell(scales[key].write(arm.mean(key))) for key, _ in costs),
                Cell(numbers.short(arm.mean("parameters"))),
            ]
        )
    fields = [
        "steps",
        "tokens",
        "unique_tokens",
        "epochs",
        "charged",
        "unspent",
        "step_price",
        "seconds",
        "wall_seconds",
        "parameters",
        "state",
    ]
    records = [
        {"arm": arm.name, "seed": run.seed, **{key: run.record.get(key) for key in fields}}
        for arm in analysis.arms
        for run in arm.runs
    ]
    columns = ["Arm", "Steps", "Tokens", "Unique tokens", "Epochs"]
    columns += [f"{title}, {scales[key].name}".rstrip(", ") for key, title in costs]
    notes = ["Means over seeds. Unspent is less than one step wherever the cost of a step is known beforehand."]
    return Table("data", "Data seen and budget spent", [*columns, "Parameters"], rows, records, notes=notes)


def accounts(analysis: Analysis) -> Table:
    """Every account of every arm, charged or not, in FLOPs and in device time."""
    seen = _accounts_seen(analysis.arms)
    columns = ["Account", "Charged", *(arm.name for arm in analysis.arms)]
    rows: list[list[Cell]] = []
    records: list[Json] = []
    for account in seen:
        charged = account in analysis.charged
        cells: list[Cell] = []
        for arm in analysis.arms:
            flop, seconds = arm.account(account, Unit.FLOP), arm.account(account, Unit.GPU_SECOND)
            first = numbers.cost(flop, Unit.FLOP)
            second = "" if seconds is None else numbers.cost(seconds, Unit.GPU_SECOND)
            cells.append(Cell(first, second, role="" if charged else "muted"))
            records += [
                {"arm": arm.name, "account": account, "charged": charged, "unit": unit.value, "mean": mean}
                for unit in Unit
                if (mean := arm.account(account, unit)) is not None
            ]
        rows.append([Cell(account_name(account)), Cell("yes" if charged else "no"), *cells])
    notes = ["Means over seeds, in FLOPs and device time. Accounts that are not charged are reported all the same."]
    return Table("accounts", "Every account", columns, rows, records, notes=notes if rows else [])


def _accounts_seen(arms: Iterable[Arm]) -> list[str]:
    order = list(Account.__members__)
    names = {str(a) for arm in arms for run in arm.done for a in mapping(run.record.get("accounts"))}
    return sorted(names, key=lambda a: (order.index(a) if a in order else len(order), a))


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


def _lookup(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def probes(analysis: Analysis) -> Table:
    """Which probes can be believed."""
    rows = [
        [
            Cell(numbers.label(p.metric), detail=p.description),
            Cell(numbers.score(p.teacher, p.metric)),
            Cell(numbers.score(p.untrained, p.metric)),
            Cell(numbers.count(p.examples)),
            Cell(numbers.p_value(p.p)),
            Cell({True: "yes", False: "no", None: "not checked"}[p.informative], role="" if p.informative else "muted"),
        ]
        for p in analysis.probes
    ]
    records = [vars(p) for p in analysis.probes]
    columns = ["Probe", "Teacher", "Untrained", "Test examples", "p", "Informative"]
    notes = ["One-sided two-proportion test at 1 %: can the probe tell the teacher from an untrained student?"]
    return Table("probes", "Can the probes be believed?", columns, rows, records, notes=notes if rows else [])


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


def every(analysis: Analysis) -> list[Table]:
    """All tables, in the report's order."""
    pairs = [comparisons(analysis, "pairs")] if len(analysis.arms) > 2 else []
    return [
        scores(analysis),
        intervals(analysis),
        data_seen(analysis),
        accounts(analysis),
        comparisons(analysis, "baseline"),
        *pairs,
        other_comparisons(analysis),
        differences(analysis),
        probes(analysis),
        environment(analysis),
        engine(analysis),
    ]
