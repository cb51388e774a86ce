"""Tables of cost: what each arm saw and spent, and every account, charged or not."""

from __future__ import annotations

from collections.abc import Iterable

from harness.budget import Account
from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.arms import Arm
from harness.report.axis import Scale, scale_of
from harness.report.cells import Cell, Table, account_name, arm_cell
from harness.report.source import Json, mapping
from harness.units import Unit


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
