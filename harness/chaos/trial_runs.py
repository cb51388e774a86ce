"""Runs of the tiny study by forked ranks, and what two runs must have in common."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.budget import Account
from harness.chaos import workers
from harness.chaos.tiny import TinyStudy

# A study of one arm that trains in a second: what is broken is the run, not the science.
BRIEF: dict[str, Any] = {
    "arms": [{"name": "no_kd", "objective": "mlm"}],
    "budget": "1 Gflop",
    "evaluation": {"curve_points": 1, "mlm_blocks": 8},
    "checkpoints": 3,
}


def enter(arguments: list[str], fault: Callable[..., None] | None = None, given: tuple[Any, ...] = ()) -> None:
    """What every launcher starts, in this process; `fault(*given)` is put in place first. Exits with the run's code."""
    if fault is not None:
        fault(*given)
    sys.argv = ["launch.py", *arguments]
    runpy.run_module("harness", run_name="__main__")


def launch(
    file: Path,
    out: Path,
    *flags: str,
    fault: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
    ranks: int = 2,
    environment: dict[str, str] | None = None,
) -> workers.Launch:
    """Start `run --study file --out out` on forked ranks; their output is kept beside `out`."""
    arguments = ["run", "--study", str(file), "--out", str(out), *flags]
    logs = out.parent / f"{out.name}-logs"
    return workers.start(enter, arguments, fault, given, folder=logs, ranks=ranks, environment=environment)


def brief_study(folder: Path, **changes: Any) -> tuple[TinyStudy, Path]:
    """The tiny study's parts below `folder`, and a file of one short arm."""
    tiny = TinyStudy.make(folder)
    return tiny, tiny.write(folder / "brief.yaml", **{**BRIEF, **changes})


def record(out: Path, arm: str = "no_kd", seed: int = 1) -> dict[str, Any]:
    return json.loads((out / "arms" / arm / f"seed-{seed}" / "record.json").read_text(encoding="utf-8"))


def status(out: Path) -> dict[str, Any]:
    return json.loads((out / "status.json").read_text(encoding="utf-8"))


def charged_steps(out: Path, arm: str = "no_kd", seed: int = 1) -> list[Any]:
    """The deterministic part of a ledger as it stands after its last line: (step, analytic charges, spent).

    Work posted as LOST was posted twice, once in vain; of every step the last posting counts.
    """
    steps: dict[int, Any] = {}
    lines = (out / "arms" / arm / f"seed-{seed}" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        charges = [c for c in row["charges"] if c[3] == "analytic" and c[0] != Account.LOST.name]
        if charges:
            steps[row["step"]] = [row["step"], charges, row["spent"]]
    return [steps[step] for step in sorted(steps)]


def weights_of(out: Path, arm: str = "no_kd", seed: int = 1) -> bytes:
    """The exported student, byte for byte."""
    return (out / "arms" / arm / f"seed-{seed}" / "student" / "model.safetensors").read_bytes()


def differences(mine: Path, theirs: Path) -> list[str]:
    """In what a run differs from the uninterrupted one, LOST and measured seconds apart; empty when in nothing."""
    found = []
    if weights_of(mine) != weights_of(theirs):
        found.append("weights")
    if charged_steps(mine) != charged_steps(theirs):
        found.append("ledger")
    a, b = record(mine), record(theirs)
    found += [key for key in ("steps", "skipped_steps", "tokens", "charged", "scores") if a[key] != b[key]]
    for account in sorted({*a["accounts"], *b["accounts"]} - {Account.LOST.name}):
        for unit in ("flop", "token"):
            if a["accounts"].get(account, {}).get(unit) != b["accounts"].get(account, {}).get(unit):
                found.append(f"{account} in {unit}")
    return found
