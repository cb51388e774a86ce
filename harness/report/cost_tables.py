"""Tables of cost: what each arm saw and spent, and every account, charged or not."""

from __future__ import annotations

from collections.abc import Iterable

from harness.budget import Account
from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.arms import Arm
from harness.report.axis import Scale, scale_of
from harness.report.cells import Cell, Table, account_name, arm_cell
from harness.report.source import Json, Run, mapping, number
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


def efficiency(analysis: Analysis) -> Table:
    """MFU and HFU of every arm with their denominator, and what measuring cost."""
    rows: list[list[Cell]] = []
    records: list[Json] = []
    denominators: dict[str, None] = {}
    for arm in analysis.arms:
        seen = [mapping(run.record.get("efficiency")) for run in arm.done]
        if not any(seen):
            continue
        denominators |= {str(text): None for found in seen if (text := found.get("denominator"))}
        row = {
            "arm": arm.name,
            "mfu": _mean(number(found.get("mfu")) for found in seen),
            "hfu": _mean(number(found.get("hfu")) for found in seen),
            "algorithmic_flop": arm.mean("algorithmic_flop"),
            "executed_flop": arm.mean("executed_flop"),
            "tensor_estimate_flop": _mean(_inside(run, "utilisation", "tensor_estimate_flop") for run in arm.done),
            "meter_share": _mean(_inside(run, "overhead", "share") for run in arm.done),
        }
        records.append(row)
        rows.append(
            [
                arm_cell(arm, bare=True),
                Cell(_percent(row["mfu"])),
                Cell(_percent(row["hfu"])),
                *(
                    Cell("unknown" if row[key] is None else numbers.cost(row[key], Unit.FLOP))
                    for key in ("algorithmic_flop", "executed_flop", "tensor_estimate_flop")
                ),
                Cell(_percent(row["meter_share"], digits=2)),
            ]
        )
    columns = ["Arm", "MFU", "HFU", "Algorithmic", "Executed", "Tensor-pipe estimate", "Meters' own time"]
    notes = [
        "MFU: algorithmic FLOPs over what the devices could have done in the device time of the steps; HFU: executed "
        f"FLOPs. Denominator: {'; '.join(denominators) or 'unknown'}. Executed FLOPs are counted on one sequence: "
        "recomputation is in them. The tensor-pipe estimate is utilisation × peak at the clock of the moment, never a cost."
    ]
    return Table("efficiency", "Use of the hardware", columns, rows, records, notes=notes if rows else [])


def owed(analysis: Analysis) -> Table:
    """What every arm's teacher cost to train, what of it the arm was told to pay, and how that compares with the budget."""
    rows: list[list[Cell]] = []
    records: list[Json] = []
    for arm in analysis.arms:
        run = next(iter(arm.done), None)
        for told in (run.record.get("teacher_training") or []) if run is not None else []:
            row = {"arm": arm.name, **mapping(told)}
            low, high, share = (number(row.get(key)) for key in ("low", "high", "share"))
            unit = str(row.get("unit"))
            limit = float(analysis.budget.limit) if analysis.budget is not None and unit == analysis.unit else None
            whole = "unknown" if low is None else numbers.cost(low, unit)
            if low is not None and high is not None and high > low:
                whole = f"{numbers.cost(low, unit)} to {numbers.cost(high, unit)}"
            records.append({**row, "of_budget": None if limit is None or share is None else share / limit})
            rows.append(
                [
                    arm_cell(arm, bare=True),
                    Cell(str(row.get("policy"))),
                    Cell(whole),
                    Cell("unknown" if share is None else numbers.cost(share, unit)),
                    Cell("–" if limit is None or share is None else _percent(share / limit)),
                ]
            )
    charged = Account.TEACHER_TRAINING.value in analysis.charged
    notes = [
        f"The posted share is {'charged to the budget before the first step' if charged else 'reported, not charged'}. "
        "Of a range the lower end is posted: that much is certain."
    ]
    columns = ["Arm", "Policy", "Teacher's training", "Posted", "Posted, of the budget"]
    return Table("owed", "What the teachers cost", columns, rows, records, notes=notes if rows else [])


def _inside(run: Run, block: str, key: str) -> float | None:
    return number(mapping(run.record.get(block)).get(key))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(share: float | None, *, digits: int = 1) -> str:
    """Unknown is a word, never 0."""
    return "unknown" if share is None else f"{100 * share:.{digits}f}\u202f%"
