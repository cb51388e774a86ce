"""Tables of a step and of energy: where a step's time and FLOPs go, and what the meters say of joules."""

from __future__ import annotations

import statistics

from harness.budget import Account
from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.arms import Arm
from harness.report.axis import scale_of
from harness.report.cells import Cell, Table, account_name, arm_cell
from harness.report.source import Json, mapping, number
from harness.units import Unit

# What a step consists of; other accounts are paid between steps.
PARTS = (Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE)


def steps(analysis: Analysis) -> Table:
    """A step of every arm, in milliseconds of its devices and in FLOPs, by account."""
    rows: list[list[Cell]] = []
    records: list[Json] = []
    scale = scale_of(
        min((f for arm in analysis.arms if (f := _per_step(arm, Unit.FLOP))), default=1.0), Unit.FLOP.value
    )
    for arm in analysis.arms:
        times = {part: _per_step(arm, Unit.GPU_SECOND, part) for part in PARTS}
        flops = {part: _per_step(arm, Unit.FLOP, part) for part in PARTS}
        time, flop = _sum(times), _sum(flops)
        speed = _rate(arm)
        rows.append(
            [
                arm_cell(arm, bare=True),
                Cell("–" if time is None else numbers.fixed(1e3 * time, 1)),
                *(_part(times[part], flops[part], time, flop) for part in PARTS),
                Cell("–" if flop is None else scale.write(flop)),
                Cell("–" if not time or flop is None else f"{flop / time / 1e9:,.1f}".replace(",", "\u202f")),
                Cell(numbers.short(speed)),
            ]
        )
        records += [
            {"arm": arm.name, "account": part.value, "device_seconds": times[part], "flop": flops[part]}
            for part in PARTS
        ]
    measured = any(row[1].text != "–" for row in rows)
    columns = ["Arm", "Step, device ms", *(account_name(part) for part in PARTS), f"Step, {scale.name}"]
    columns += ["Speed, GFLOP/s", "Tokens/s"]
    notes = [
        "Device time of one step, summed over ranks; below each part its share of the step's time and of its FLOPs. "
        "The objective's own products run inside the student's step, and their time is in it. Speed is algorithmic FLOPs "
        "over device time."
    ]
    return Table(
        "steps", "Where a step goes", columns, rows if measured else [], records, notes=notes if measured else []
    )


def _per_step(arm: Arm, unit: Unit, part: Account | None = None) -> float | None:
    """Mean amount per step over finished runs; all parts together without one."""
    found: list[float] = []
    for run in arm.done:
        taken = number(run.record.get("steps"))
        accounts = mapping(run.record.get("accounts"))
        amounts = [number(mapping(accounts.get(p.value)).get(unit.value)) for p in ([part] if part else PARTS)]
        known = [amount for amount in amounts if amount is not None]
        if taken and known:
            found.append(sum(known) / taken)
    return statistics.fmean(found) if found else None


def _sum(parts: dict[Account, float | None]) -> float | None:
    known = [value for value in parts.values() if value is not None]
    return sum(known) if known else None


def _part(time: float | None, flop: float | None, whole_time: float | None, whole_flop: float | None) -> Cell:
    shares = [
        f"{value / whole:.0%} of {what}".replace("%", "\u202f%")
        for value, whole, what in ((time, whole_time, "time"), (flop, whole_flop, "FLOPs"))
        if value is not None and whole
    ]
    text = "–" if time is None else f"{numbers.fixed(1e3 * time, 1)} ms"
    return Cell(text, ", ".join(shares), role="" if time is not None else "muted")


def _rate(arm: Arm) -> float | None:
    pairs = [(number(run.record.get("tokens")), number(run.record.get("seconds"))) for run in arm.done]
    known = [tokens / seconds for tokens, seconds in pairs if tokens and seconds]
    return statistics.fmean(known) if known else None


def energy(analysis: Analysis) -> Table:
    """Joules of every run with their source, coverage and uncertainty; nothing where no meter was there."""
    rows: list[list[Cell]] = []
    records: list[Json] = []
    for arm in analysis.arms:
        for run in arm.done:
            told = mapping(run.record.get("energy"))
            if not told:
                continue
            joules, error = number(told.get("joule")), number(told.get("uncertainty_j"))
            coverage = number(told.get("coverage"))
            carbon = number(told.get("carbon_g"))
            # An amount and its uncertainty are told in one scale.
            scale = scale_of(joules or 1.0, Unit.JOULE.value)
            rows.append(
                [
                    arm_cell(arm, bare=True),
                    Cell(str(run.seed)),
                    # Unknown is never printed as 0.
                    Cell("not measured" if joules is None else f"{scale.write(joules)} {scale.name}"),
                    Cell("–" if error is None else f"± {scale.write(error, digits=2)} {scale.name}"),
                    Cell("–" if coverage is None else f"{coverage:.0%}".replace("%", "\u202f%")),
                    Cell("–" if carbon is None else f"{carbon:.3g} g"),
                    Cell(str(told.get("source") or "no meter")),
                ]
            )
            kept = {k: v for k, v in told.items() if not isinstance(v, dict | list)}
            records.append({"arm": arm.name, "seed": run.seed, **kept})
    if rows and not any(number(record.get("joule")) for record in records):
        # Eight rows of nothing say no more than one.
        sources = dict.fromkeys(str(record.get("source") or "no meter") for record in records)
        rows = [[Cell("every run"), Cell("–"), Cell("not measured"), *[Cell("–")] * 3, Cell(", ".join(sources))]]
    columns = ["Arm", "Seed", "Energy", "Uncertainty", "Coverage", "CO₂ equivalent", "Source"]
    notes = [
        "Coverage: the share of metered device time that the source speaks for. Carbon: the study's grid intensity."
    ]
    return Table("energy", "Energy", columns, rows, records, notes=notes if rows else [])
