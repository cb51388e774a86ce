"""The plan for a person: small tables that fit the terminal and never cut a name."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from harness.budget import Account
from harness.units import Unit, format_amount

GAP = "  "
NARROWEST = 40


def show(table: dict[str, Any], *, width: int | None = None) -> None:
    """Print the plan, no wider than the terminal (or `width` columns) wherever names allow it."""
    print(text(table, width=width or shutil.get_terminal_size((80, 24)).columns))


def text(table: dict[str, Any], *, width: int) -> str:
    """The whole plan as lines of at most `width` columns; only a name longer than that makes a line longer."""
    unit = Unit(table["budget"]["unit"])
    budget = format_amount(table["budget"]["limit"], unit)
    blocks = [
        wrapped(f"{table['study']}: {budget} for every arm, {_count(len(table['seeds']), 'seed')}, on {table['machine']['name']}", width),
        *(grid(title, headings, rows, width) for title, headings, rows in tables(table)),
        pairs("The whole study", whole(table), width),
    ]  # fmt: skip
    for title, lines in (("How the times were found", _speed(table)), ("Notes", table["notes"])):
        if lines:
            blocks.append("\n".join([title, *(wrapped(f"- {line}", width, indent="  ") for line in lines)]))
    return "\n\n".join(blocks)


def tables(table: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows) of every table; the first column is the arm's name."""
    arms = table["arms"]
    price = table["price_per_gpu_hour"]
    found = [
        (
            "What the budget buys, per seed",
            ["arm", "steps", "tokens", "epochs", "training", "evaluation"],
            [
                [
                    arm["name"], f"{arm['steps']:,}", _tokens(arm["tokens"]),
                    "unknown" if arm["epochs"] is None else f"{arm['epochs']:.2f}",
                    _flop(arm["training_flop"]), _flop(arm["flop"][Account.EVALUATION.value]),
                ]
                for arm in arms
            ],
        ),
        (
            "One step",
            ["arm", "student", "teacher", "objective", "charged", "time"],
            [
                [
                    arm["name"],
                    *(_flop(arm["step_cost"].get(account.value, {}).get("flop")) for account in
                      (Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE)),
                    _charge(arm["charged_per_step"], Unit(table["budget"]["unit"])),
                    "unknown" if arm["step_s"] is None else duration(arm["step_s"]["total_s"]),
                ]
                for arm in arms
            ],
        ),
    ]  # fmt: skip
    if table["speed"] is not None:
        found.append(
            (
                "Time, per seed",
                ["arm", "training", "validation", "checkpoints", "start-up", "evaluation", "together"],
                [
                    [
                        arm["name"], duration(arm["time"]["training_s"]),
                        duration(arm["time"]["validation_s"] + arm["time"]["vouching_s"]),
                        duration(arm["time"]["checkpoints_s"]), duration(arm["time"]["startup_s"]),
                        duration(arm["time"]["after_s"]), duration(arm["seconds"]),
                    ]
                    for arm in arms
                ],
            )
        )  # fmt: skip
        found.append(
            (
                "Bill, per seed with evaluation",
                [
                    "arm",
                    "device time",
                    "held",
                    "energy",
                    *(["money"] if price is not None else []),
                    *_carbon_heading(table),
                ],
                [[arm["name"], *_bill(arm["bill"], table)] for arm in arms],
            )
        )
    found.append(
        (
            "Memory, per device",
            ["arm", "states", "buckets", "activations", "teacher", "together", "of"],
            [
                [
                    arm["name"],
                    size(sum(arm["memory"][key] for key in ("weights_bytes", "gradients_bytes", "optimizer_bytes"))),
                    size(arm["memory"]["buckets_bytes"]), size(arm["memory"]["activations_bytes"]),
                    size(arm["memory"]["teacher_bytes"] + arm["memory"]["signals_bytes"]),
                    size(arm["memory"]["total_bytes"]), size(table["machine"]["memory_bytes"]),
                ]
                for arm in arms
            ],
        )
    )  # fmt: skip
    remembered = [arm for arm in arms if arm["teacher_cache"] is not None]
    if remembered:
        found.append(
            (
                "The teacher's cache, per seed; it pays in use …",
                [
                    "arm",
                    "samples",
                    "on disk",
                    "cost",
                    "this arm's share",
                    "charged",
                    "uses",
                    "in FLOPs",
                    "in device time",
                ],
                [[arm["name"], *_cache(arm["teacher_cache"])] for arm in remembered],
            )
        )
    taught = [arm for arm in arms if arm["teacher_training"] is not None]
    if taught:
        found.append(
            (
                "The teacher's training",
                ["arm", "accounting", "cost", "this arm's share", "charged"],
                [
                    [
                        arm["name"], arm["teacher_training"]["policy"], _or_unknown(arm["teacher_training"]["full"]),
                        _or_unknown(arm["teacher_training"]["share"]), "yes" if arm["teacher_training"]["charged"] else "no",
                    ]
                    for arm in taught
                ],
            )
        )  # fmt: skip
    return found


def _cache(cache: dict[str, Any]) -> list[str]:
    """What is written, what it costs, how often it is read and from which reading of a sample on it pays."""
    device = cache["pays_from_uses_device"]
    pays = "unknown" if cache["writing_s"] is None else "never" if device is None else f"after {device:.1f}"
    return [
        f"{cache['samples']:,}", size(cache["bytes"]), _flop(cache["flop"]), _flop(cache["share_flop"]),
        "yes" if cache["charged"] else "no", f"{cache['uses']:.2f}", f"after {cache['pays_from_uses_flop']}", pays,
    ]  # fmt: skip


def whole(table: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) of the study's totals."""
    total = table["total"]
    lines = [
        ("trials", f"{total['trials']} ({len(table['arms'])} arms × {_count(len(table['seeds']), 'seed')})"),
        ("training", f"{_flop(total['training_flop'])}, {_tokens(total['tokens'])}"),
        ("evaluation", f"{_flop(total['evaluation_flop'])}, and {_flop(total['reference_flop'])} of references"),
    ]
    controls = total["controls"]
    if controls is not None:
        count = _count(controls["trials"], "run")
        lines.append(
            (
                "controls",
                f"{count} of {controls['arm']} at the others' tokens: {_flop(controls['training_flop'])}, and "
                f"{_flop(controls['evaluation_flop'])} of evaluation; their time is in the wall time",
            )
        )
    if total["bill"] is not None:
        billed = total["bill"]
        lines += [
            (
                "wall time",
                f"{duration(total['wall_s'])}: training {duration(total['training_s'])}, evaluation "
                f"{duration(total['evaluation_s'])}, checkpoints {duration(total['checkpoints_s'])}, start-up "
                f"{duration(total['startup_s'])}",
            ),
            (
                "devices",
                f"{device_hours(billed['busy_s'])} busy, {device_hours(billed['held_s'])} held ({_count(table['world'], 'device')})",
            ),
            ("energy", _energy(billed["energy_j"])),
        ]
        if billed["money"] is not None:
            lines.append(
                ("money", f"{_money(billed['money'], table)} at {table['price_per_gpu_hour']:g} per device-hour held")
            )
        if billed["carbon_g"] is not None:
            lines.append(("carbon", f"{billed['carbon_g'] / 1e3:.3g} kg CO2e at {table['grid_g_per_kwh']:g} g/kWh"))
    lines.append(("disk", f"{size(total['disk_peak_bytes'])} at most, {size(total['disk_left_bytes'])} stay"))
    return lines


# -- layout ------------------------------------------------------------------------------------------------
def grid(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """A table: numbers right-aligned under their headings. Where it is too wide, names get lines of their own, and
    where it still is, columns go into several tables. Nothing is cut."""
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    if sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        lines = [_line([cells[0], *cells[1:]], widths) for cells in (headings, *rows)]
        return "\n".join([title, lines[0], "─" * min(width, len(lines[0])), *lines[1:]])
    indented = sum(widths[1:]) + len(GAP) * len(widths[1:])
    if indented <= width:
        body = [GAP + _line(["", *headings[1:]], [0, *widths[1:]]).lstrip().rjust(indented - len(GAP))]
        for row in rows:
            body += [row[0], GAP + _line(["", *row[1:]], [0, *widths[1:]])[len(GAP) :]]
        return "\n".join([title, body[0], "─" * min(width, len(body[0])), *body[1:]])
    fits = _columns_that_fit(widths, width)
    if fits >= len(headings) - 1:
        return "\n".join([title, *(_listing(headings, row) for row in rows)])
    first = grid(title, headings[: fits + 1], [row[: fits + 1] for row in rows], width)
    rest = grid(
        f"{title} (continued)", [headings[0], *headings[fits + 1 :]], [[r[0], *r[fits + 1 :]] for r in rows], width
    )
    return f"{first}\n\n{rest}"


def pairs(title: str, lines: Sequence[tuple[str, str]], width: int) -> str:
    """Label and value, values aligned and wrapped under themselves."""
    indent = max(len(label) for label, _ in lines) + len(GAP)
    return "\n".join(
        [title, *(wrapped(f"{label:<{indent}}{value}", width, indent=" " * indent) for label, value in lines)]
    )


def wrapped(line: str, width: int, *, indent: str = "") -> str:
    """The line broken between words; a word longer than the width stays whole."""
    import textwrap

    return "\n".join(
        textwrap.wrap(
            line, max(width, NARROWEST), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
            drop_whitespace=True, replace_whitespace=False,
        )
    )  # fmt: skip


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(w) if place == 0 else cell.rjust(w)
        for place, (cell, w) in enumerate(zip(cells, widths, strict=True))
    )
    return GAP.join([first, *rest]).rstrip()


def _columns_that_fit(widths: Sequence[int], width: int) -> int:
    """How many columns after the first fit beside an indent; at least one."""
    used, count = 0, 0
    for column in widths[1:]:
        used += len(GAP) + column
        if used > width:
            break
        count += 1
    return max(1, count)


def _listing(headings: Sequence[str], row: Sequence[str]) -> str:
    return "\n".join(
        [row[0], *(f"{GAP}{heading}: {cell}" for heading, cell in zip(headings[1:], row[1:], strict=True))]
    )


# -- amounts -----------------------------------------------------------------------------------------------
def duration(seconds: float) -> str:
    """Three significant digits in the scale a person would choose, from milliseconds to days."""
    for scale, name in ((86400 * 3, "days"), (7200, "h"), (120, "min"), (1, "s")):
        if seconds >= scale:
            unit = {"days": 86400, "h": 3600, "min": 60, "s": 1}[name]
            return f"{seconds / unit:,.0f} {name}" if seconds >= 999.5 * unit else f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e3:.3g} ms" if seconds > 0 else "0 s"


def device_hours(seconds: float) -> str:
    return f"{seconds / 3600:,.3g} device-h" if seconds >= 360 else f"{seconds:,.3g} device-s"


def size(count: float | None) -> str:
    if count is None:
        return "unknown"
    for scale, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.3g} {name}"
    return f"{count:.0f} B" if count else "–"


def _flop(amount: float | None) -> str:
    return format_amount(amount, Unit.FLOP) if amount else "–"


def _charge(amount: float, unit: Unit) -> str:
    return duration(amount) if unit is Unit.SECOND else format_amount(amount, unit)


def _or_unknown(amount: float | None) -> str:
    return "unknown" if amount is None else _flop(amount)


def _tokens(amount: float) -> str:
    return format_amount(amount, Unit.TOKEN)


def _energy(joules: float | None) -> str:
    return "unknown" if joules is None else format_amount(joules, Unit.JOULE)


def _money(amount: float, table: dict[str, Any]) -> str:
    return f"{amount:,.2f} {table['currency']}".rstrip()


def _carbon_heading(table: dict[str, Any]) -> list[str]:
    return ["carbon"] if table["grid_g_per_kwh"] is not None else []


def _bill(billed: dict[str, Any], table: dict[str, Any]) -> list[str]:
    cells = [device_hours(billed["busy_s"]), device_hours(billed["held_s"]), _energy(billed["energy_j"])]
    if table["price_per_gpu_hour"] is not None:
        cells.append(_money(billed["money"], table))
    if table["grid_g_per_kwh"] is not None:
        cells.append("unknown" if billed["carbon_g"] is None else f"{billed['carbon_g'] / 1e3:.3g} kg")
    return cells


def _speed(table: dict[str, Any]) -> list[str]:
    return [table["speed"]["source"], *table["speed"]["assumptions"]] if table["speed"] else []


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
