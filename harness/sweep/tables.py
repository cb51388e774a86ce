"""The tables of a sweep's report: every arm at every point, and the teachers that were trained on the way."""

from __future__ import annotations

from harness.compare import against_baseline, higher_is_better
from harness.report import numbers
from harness.report.arms import Arm
from harness.report.cells import Cell, Table, arm_cell
from harness.report.source import Json, Run, mapping, number
from harness.sweep import currency
from harness.sweep.answer import at
from harness.sweep.gather import Found
from harness.units import Unit


def every(found: Found) -> list[Table]:
    """All tables that hold something."""
    return [table for table in (currency.points(found), points(found), teachers(found)) if table.rows]


def points(found: Found) -> Table:
    """One row per point and arm: its score, its effect against the baseline at that point, what it saw and paid."""
    rows: list[list[Cell]] = []
    records: list[Json] = []
    metric = found.metric
    told: dict[str, None] = {}
    for each in found.at:
        analysis = each.analysis
        flagged = analysis.meaningless(metric)
        told |= dict.fromkeys(flagged.values())
        effects = (
            {}
            if found.baseline is None
            else {
                c.a: c
                for c in against_baseline(each.scores, found.baseline.name, metric=metric, meaningless=flagged)
                if c.meaningful
            }
        )
        for number_, arm in enumerate(analysis.arms):
            mean, effect = analysis.score(arm.name, metric), effects.get(arm.name)
            place, label = at(found, each.x), each.point.spec.label or ""
            first = Cell(place, detail=label if label != place else "") if number_ == 0 else Cell("")
            if lost := each.diverged(arm.name):
                rows.append([first, *_diverged(arm, lost, analysis.unit)])
                records.append(
                    {
                        "x": each.x, "label": each.point.label, "arm": arm.name, "metric": metric, "n": 0,
                        "diverged": len(lost), "unit": analysis.unit,
                    }
                )  # fmt: skip
                continue
            if mean is None:
                continue
            spread = analysis.spread(metric)
            half = effect.half_width if effect else None
            shown = "–" if effect is None else numbers.signed(effect.mean_difference, metric, spread=half)
            run = arm.done[0].record
            shared = any(r.record.get("shared_with") for r in arm.done)
            rows.append(
                [
                    first,
                    arm_cell(arm, bare=True),
                    Cell(
                        numbers.score(mean.mean, metric, spread=spread) + " †" * (arm.name in flagged),
                        detail="" if mean.sd is None else f"± {numbers.amount_of(mean.sd, metric, spread=spread)}",
                        role="muted" if arm.name in flagged else "",
                    ),
                    Cell(shown, detail="" if half is None else f"± {numbers.amount_of(half, metric, spread=half)}"),
                    Cell(str(len(mean.values))),
                    Cell(numbers.count(number(run.get("steps")))),
                    Cell(numbers.short(number(run.get("tokens")))),
                    Cell("–" if run.get("epochs") is None else f"{run['epochs']:.3g}"),
                    Cell(numbers.cost(arm.mean("charged"), analysis.unit), detail="shared" if shared else ""),
                    Cell(numbers.cost(arm.mean("seconds"), Unit.GPU_SECOND)),
                ]
            )
            records.append(
                {
                    "x": each.x, "label": each.point.label, "arm": arm.name, "metric": metric, "n": len(mean.values),
                    "comparable": arm.name not in flagged,
                    "mean": mean.mean, "sd": mean.sd, "effect": effect.mean_difference if effect else None,
                    "effect_low_95": effect.low if effect else None, "effect_high_95": effect.high if effect else None,
                    "steps": run.get("steps"), "tokens": run.get("tokens"), "epochs": run.get("epochs"),
                    "charged": arm.mean("charged"), "unit": analysis.unit, "device_seconds": arm.mean("seconds"),
                    "shared_with_another_point": shared,
                }
            )  # fmt: skip
    arrow = "↑" if higher_is_better(metric) else "↓"
    columns = [
        found.kind.axis.capitalize(), "Arm", f"{numbers.label(metric)} {arrow}", "To the baseline", "Seeds", "Steps", "Tokens",
        "Epochs", "Charged", "Device time",
    ]  # fmt: skip
    notes = ["Scores: mean ± one standard deviation over seeds. To the baseline: mean of paired differences ± half its "
             "95 % interval, for all arms of that point together; positive is better."]  # fmt: skip
    notes += [f"† Meaningless as a comparison: {'; '.join(told)}."] if told else []
    if any(record.get("diverged") for record in records):
        notes.append(
            "Diverged: a trial was given up after many steps in a row without a finite gradient; it ranks last."
        )
    if any(record.get("shared_with_another_point") for record in records):
        notes.append("Shared: this point would have trained the arm exactly as another did, so it was trained once.")
    return Table("points", "Every point", columns, rows, records, notes=notes)


def _diverged(arm: Arm, lost: list[Run], unit: str | None) -> list[Cell]:
    """What is told of an arm at a value at which it diverged: how far that trial came, and no score."""
    record = lost[0].record
    of = f"{len(lost)} of {len(arm.runs)} seeds" if len(arm.runs) > 1 else ""
    return [
        arm_cell(arm, bare=True), Cell("diverged", detail=of), Cell("–"), Cell("–"), Cell(numbers.count(number(record.get("steps")))),
        Cell(numbers.short(number(record.get("tokens")))), Cell("–"), Cell(numbers.cost(number(record.get("charged")), unit)),
        Cell(numbers.cost(number(record.get("seconds")), Unit.GPU_SECOND)),
    ]  # fmt: skip


def teachers(found: Found) -> Table:
    """What was trained to teach."""
    rows: list[list[Cell]] = []
    records: list[Json] = []
    for run, record in found.teachers:
        unit = run.study.limit.unit
        scores = {name: number(value) for name, value in mapping(record.get("scores")).items()}
        loss = next((name for name in scores if name.endswith("loss")), "mlm.loss")
        used = [
            point.label for point in found.sweep.points if run.folder in {t.folder for t in point.teachers.values()}
        ]
        everywhere = len(used) == len(found.sweep.points)
        rows.append(
            [
                Cell(run.name, detail="at every point" if everywhere else f"at {', '.join(used)}"),
                Cell(numbers.short(number(record.get("parameters")))),
                Cell(numbers.cost(number(record.get("charged")), unit.value)),
                Cell(numbers.short(number(record.get("tokens")))),
                Cell("–" if record.get("epochs") is None else f"{record['epochs']:.3g}"),
                Cell(numbers.score(scores.get(loss), loss)),
            ]
        )
        records.append(
            {
                "teacher": run.name, "points": "; ".join(used), "parameters": record.get("parameters"),
                "charged": record.get("charged"), "unit": unit.value, "tokens": record.get("tokens"),
                "epochs": record.get("epochs"), **scores,
            }
        )  # fmt: skip
    columns = ["Teacher", "Parameters", "Training", "Tokens", "Epochs", "Own loss ↓"]
    notes = ["Own loss: of the teacher's own head, as it was trained. A student's read-out has a fresh head and is another score; "
             "every point's report has the teacher's read-out beside the students'."]  # fmt: skip
    return Table("teachers", "Teachers trained on the way", columns, rows, records, notes=notes if rows else [])
