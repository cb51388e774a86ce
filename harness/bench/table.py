"""The measurements for a person, and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.bench.breakdown import PARTS


def show(table: dict[str, Any]) -> None:
    """Print the measurements."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    view = Table(
        title=f"{table['study']}: {table['precision']}, ZeRO-{table['zero_stage']}, {table['world_size']} ranks",
        title_justify="left",
    )
    view.add_column("", no_wrap=True)
    right = timed(table)
    for row in right:
        view.add_column(row["name"], justify="right", overflow="fold")
    for label, cell in _LINES:
        view.add_row(label, *(cell(row) for row in right))
    view.add_section()
    for part in PARTS:
        view.add_row(part, *(f"{row['breakdown_ms'][part]:.1f} ms" for row in right))
    console.print(view)
    peak, memory = table["peak"], table["memory"]
    lines = [
        *(f"{row['name']}: no figures, {row['why']}" for row in table["arms"] if "why" in row),
        *_against(table),
        table["rule"],
        f"MFU over {peak['flop_per_s'] / 1e9:,.0f} GFLOP/s: {peak['of']}",
        *(f"teachers over {each['flop_per_s'] / 1e9:,.0f} GFLOP/s: {each['of']}" for each in table["teacher_peaks"]),
        *dict.fromkeys(
            f"no engine / bare: {row['engine_over_bare_why']}" for row in right if "engine_over_bare_why" in row
        ),
        f"memory {memory['bytes'] / 2**20:,.0f} MiB: {memory['of']}",
        "parts: run one after the other with the device waited for, so their sum may exceed a step",
        *(f"{op}: {choice}" for op, choice in table["kernels"].items()),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def timed(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms that have figures: those whose first step was the definition's."""
    return [row for row in table["arms"] if "step" in row]


def write_csv(table: dict[str, Any], path: Path) -> None:
    """One line per arm that has figures; times in milliseconds."""
    rows = []
    for row in timed(table):
        over = row.get("over_scratch", {})
        rows.append(
            {
                "arm": row["name"],
                **{f"step_{name}": value for name, value in row["step"].items()},
                **{f"{part.replace(' ', '_')}_ms": row["breakdown_ms"][part] for part in PARTS},
                **{key: row[key] for key in ("tokens_per_s", "flop_per_step", "flop_per_s", "mfu", "teacher_mfu", "student_mfu", "teacher_backend", "input_stall", "bookkeeping")},
                "engine_over_bare": row["engine_over_bare"],
                "time_over_scratch": over.get("time"),
                "flop_over_scratch": over.get("flop"),
            }
        )  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["arm"])
        writer.writeheader()
        writer.writerows(rows)


def _against(table: dict[str, Any]) -> list[str]:
    if "against" not in table:
        return []
    earlier, ranks = table["against"], table["world_size"]
    return [
        f"{name}: {share:.1%} of the tokens/s per rank on {earlier['ranks']} ranks, now {ranks}"
        for name, share in earlier["efficiency"].items()
    ]


def _over(row: dict[str, Any], unit: str) -> str:
    return f"{row['over_scratch'][unit]:.2f}×" if "over_scratch" in row else "–"


_LINES: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("step, p50", lambda row: f"{row['step']['p50_ms']:.1f} ms"),
    ("p20–p80", lambda row: f"{row['step']['p20_ms']:.1f}–{row['step']['p80_ms']:.1f}"),
    ("over scratch, time", lambda row: _over(row, "time")),
    ("over scratch, FLOPs", lambda row: _over(row, "flop")),
    ("tokens/s", lambda row: f"{row['tokens_per_s']:,.0f}"),
    ("GFLOP/s", lambda row: f"{row['flop_per_s'] / 1e9:,.1f}"),
    ("MFU", lambda row: f"{row['mfu']:.1%}"),
    ("teacher's, its forward alone", lambda row: f"{row['teacher_mfu']:.1%}" if row["teacher_mfu"] else "–"),
    ("student's, its parts alone", lambda row: f"{row['student_mfu']:.1%}"),
    ("teacher's backend", lambda row: row["teacher_backend"] or "–"),
    ("engine / bare", lambda row: f"{row['engine_over_bare']:.2f}×" if row["engine_over_bare"] else "–"),
    ("input stall", lambda row: f"{row['input_stall']:.2%}"),
    ("meters and ledger", lambda row: f"{row['bookkeeping']:.2%}"),
    ("off the definition: loss", lambda row: f"{row['check']['loss']:.0e}"),
    ("off the definition: gradient", lambda row: f"{row['check']['gradient']:.0e}"),
)
