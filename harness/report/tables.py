"""Every table of the report, once: cells for people (HTML, Markdown) and plain records for machines (CSV)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.budget import Account
from harness.compare import SEEDS_CAP, Comparison
from harness.report import numbers
from harness.report.analysis import Analysis, Arm
from harness.report.source import Json, mapping, number
from harness.units import Unit

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


def arm_cell(arm: Arm) -> Cell:
    detail = arm.objective if arm.objective != arm.name else ""
    return Cell(arm.name, detail=f"{detail}, baseline".strip(", ") if arm.baseline else detail, arm=arm.index)


def scores(analysis: Analysis) -> Table:
    """Mean ± spread per arm and score, the interval in the tooltip; references below."""
    metrics = list(dict.fromkeys([*([analysis.main] if analysis.arms else []), *analysis.metrics]))
    reference_metrics = (m for row in analysis.references.values() for m in row)
    metrics += [m for m in dict.fromkeys(reference_metrics) if m not in metrics and not m.startswith("probe.")]
    uninformative = {probe.metric for probe in analysis.probes if not probe.informative}
    rows = [[arm_cell(arm), *(_score(analysis, arm, m, m in uninformative) for m in metrics)] for arm in analysis.arms]
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
                        "comparable": arm.name not in analysis.meaningless(metric) and metric not in uninformative,
                    }
                )
    records += [
        {"arm": name, "metric": m, "mean": v} for name, row in analysis.references.items() for m, v in row.items()
    ]
    columns = ["Arm", *(_heading(analysis, m) for m in metrics)]
    return Table("scores", "Scores", columns, rows, records, notes=_score_notes(analysis, metrics, uninformative))


def _heading(analysis: Analysis, metric: str) -> str:
    arrow = "↓" if metric.endswith("loss") else "↑"
    return f"{numbers.label(metric)} {arrow}"


def _score(analysis: Analysis, arm: Arm, metric: str, uninformative: bool) -> Cell:
    mean = analysis.score(arm.name, metric)
    if mean is None:
        return Cell("–", role="muted")
    reason = analysis.meaningless(metric).get(arm.name, "")
    each = ", ".join(f"seed {s}: {numbers.score(v, metric, spread=mean.sd)}" for s, v in mean.values.items())
    span = "" if mean.low is None else f"95 % interval {numbers.interval(mean.low, mean.high, metric)}; "
    text = numbers.score(mean.mean, metric, spread=mean.sd)
    spread = "one seed" if mean.sd is None else f"± {numbers.amount_of(mean.sd, metric, spread=mean.sd)}"
    if reason:
        return Cell(f"{text} †", spread, f"{reason}: this figure is not comparable; {each}", "muted")
    best = analysis.best(metric) == arm.name and not uninformative
    return Cell(text, spread, f"{span}{each}", "muted" if uninformative else "best" if best else "")


def _score_notes(analysis: Analysis, metrics: list[str], uninformative: set[str]) -> list[str]:
    notes = ["Mean over seeds, ± one standard deviation between seeds. ↓ lower is better, ↑ higher is better."]
    if any(analysis.best(m) for m in metrics):
        notes.append("A marked score beats every other arm significantly (paired t, Holm-corrected, 5 %).")
    elif len(analysis.arms) > 1:
        notes.append("No score is marked: none beats every other arm significantly.")
    reasons = dict.fromkeys(r for m in metrics for r in analysis.meaningless(m).values())
    if reasons:
        notes.append(f"† Meaningless as a comparison: {'; '.join(reasons)}. Read the read-out instead.")
    if uninformative & set(metrics):
        names = ", ".join(numbers.label(m) for m in metrics if m in uninformative)
        notes.append(f"Greyed: {names} does not tell a teacher from an untrained student, and enters no average.")
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
        spread = mean.sd if mean else None
        rows.append(
            [
                arm_cell(arm),
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
        half = c.half_width
        flagged = "" if c.meaningful else "†"
        rows.append(
            [
                Cell(f"{c.a} − {c.b}".replace("−", "over"), arm=index.get(c.a)),
                *([Cell(numbers.label(c.metric))] if metric else []),
                Cell(
                    f"{numbers.signed(c.mean_difference, c.metric, spread=half)}{flagged}",
                    tip=c.note,
                    role="muted" if flagged else "best" if c.significant else "",
                ),
                Cell(numbers.interval(c.low, c.high, c.metric, signs=True), tip=c.note),
                Cell(str(c.n)),
                Cell(numbers.p_value(c.p)),
                Cell(numbers.p_value(c.p_holm)),
                Cell(_plain(c.minimal_detectable, c.metric)),
                Cell(seeds_text(c)),
            ]
        )
    notes = [
        "Positive: the first arm is better. Paired by seed; Student's t; p corrected by Holm over this table"
        + (" score by score." if metric else "."),
        "Detectable: the true difference that this many seeds would find with 80 % power. "
        "Needed: seeds to find a true difference as large as the observed one.",
    ]
    notes += [f"† {reason}." for reason in dict.fromkeys(c.note for c in shown if not c.meaningful)]
    notes += [f"{c.a} over {c.b}: {c.note}." for c in shown if c.meaningful and c.note and not metric]
    unit = "" if metric else f" ({numbers.unit(analysis.main)})"
    columns = ["Pair", *(["Score"] if metric else []), f"Difference{unit}", "95 % interval", "Seeds", "p"]
    columns += ["p, Holm", "Detectable", "Needed"]
    return Table(name, title, columns, rows, [_flat_comparison(c) for c in shown], notes=notes if shown else [])


def seeds_text(c: Comparison) -> str:
    if c.seeds_needed is None:
        return "–"
    return f"more than {SEEDS_CAP}" if c.seeds_needed > SEEDS_CAP else str(c.seeds_needed)


def _plain(value: float | None, metric: str) -> str:
    return "–" if value is None else numbers.amount_of(value, metric, spread=value)


def _flat_comparison(c: Comparison) -> Json:
    return {**c.as_json(), "seeds": " ".join(map(str, c.seeds)), "seeds_needed": seeds_text(c)}


def data_seen(analysis: Analysis) -> Table:
    """Steps, tokens, repetition and the books of the budget, as means over seeds."""
    rows: list[list[Cell]] = []
    records: list[Json] = []
    unit = analysis.unit
    for arm in analysis.arms:
        epochs, seconds, parameters = arm.mean("epochs"), arm.mean("seconds"), arm.mean("parameters")
        rows.append(
            [
                arm_cell(arm),
                Cell(numbers.count(arm.mean("steps"))),
                Cell(_tokens(arm.mean("tokens"))),
                Cell(_tokens(arm.mean("unique_tokens"))),
                Cell("–" if epochs is None else f"{epochs:.2f}"),
                Cell(numbers.cost(arm.mean("charged"), unit)),
                Cell(numbers.cost(arm.mean("unspent"), unit)),
                Cell(numbers.cost(arm.mean("step_price"), unit)),
                Cell(numbers.cost(seconds, Unit.GPU_SECOND)),
                Cell(_tokens(parameters)),
            ]
        )
    fields = (
        "steps tokens unique_tokens epochs charged unspent step_price seconds wall_seconds parameters state".split()
    )
    for arm in analysis.arms:
        records += [{"arm": arm.name, "seed": r.seed, **{k: r.record.get(k) for k in fields}} for r in arm.runs]
    columns = ["Arm", "Steps", "Tokens", "Unique tokens", "Epochs", "Charged", "Unspent", "One step", "Device time"]
    notes = ["Means over seeds. Unspent is less than one step wherever the cost of a step is known beforehand."]
    return Table("data", "Data seen and budget spent", [*columns, "Parameters"], rows, records, notes=notes)


def _tokens(value: float | None) -> str:
    if value is None:
        return "–"
    scale, name = next(((s, n) for s, n in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= s), (1, ""))
    return f"{value / scale:.3g}\u202f{name}".strip()


def accounts(analysis: Analysis) -> Table:
    """Every account of every arm, charged or not, in FLOPs and in device time."""
    seen = [name for name in _accounts_seen(analysis.arms)]
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
            units = dict.fromkeys(u for r in arm.done for u in mapping(mapping(r.record.get("accounts")).get(account)))
            records += [
                {"arm": arm.name, "account": account, "charged": charged, "unit": u, "mean": arm.account(account, u)}
                for u in units
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
            Cell(numbers.label(p.metric)),
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
    flat = list(_flatten(analysis.source.environment))
    rows = [[Cell(key), Cell(_word(value))] for key, value in flat]
    return Table(
        "environment", "Environment", ["Key", "Value"], rows, [{"key": k, "value": v} for k, v in flat], words=True
    )


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
    ]
