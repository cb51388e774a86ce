"""A wall clock that jumps by an hour at every look: nothing that is charged may have looked at it."""

from __future__ import annotations

import time
from pathlib import Path

from harness.chaos.faults import Fault, jumping_wall_clock
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, differences, launch, record, uninterrupted

NUMBER = 17
FAULT = "wall clock jumps ±1 h"
PASSES_WHEN = "the budget does not notice (monotonic)"

JUMP_S = 3600.0
BUDGET_S = 2.0


def run(seed: int, short: bool, folder: Path) -> Outcome:
    file = brief_study(folder)
    fault = Fault(jumping_wall_clock, (seed, JUMP_S))
    reference, out = uninterrupted(file, folder / "uninterrupted"), folder / "jumping"
    codes = launch(file, out, faults=[fault]).wait()
    if codes != [0, 0]:
        return Outcome(False, f"the ranks left with {codes}")
    differ = differences(out, reference)

    timed = folder / "timed"
    timed.mkdir()
    in_seconds = brief_study(timed, budget=f"{BUDGET_S:g} gpu-second", checkpoints=2)
    begun = time.monotonic()
    codes = launch(in_seconds, timed / "run", faults=[fault]).wait()
    elapsed = time.monotonic() - begun
    if codes != [0, 0]:
        return Outcome(False, f"under a budget in seconds the ranks left with {codes}")
    row = record(timed / "run")
    seconds = {name: units["gpu-second"] for name, units in row["accounts"].items() if "gpu-second" in units}
    within = all(0 <= amount <= 2 * elapsed for amount in seconds.values()) and 0 < row["wall_seconds"] <= elapsed
    spent = 0 < row["charged"] <= BUDGET_S + row["step_price"] and row["unspent"] < 2 * row["step_price"]
    saw = f"{row['charged']:.2f} of {BUDGET_S:g} device seconds charged in {row['steps']} steps; no account beyond the "
    saw += f"{elapsed:.0f} s that passed: {within}; under FLOPs " + (", ".join(differ) or "nothing") + " differs"
    return Outcome(not differ and within and spent, saw)
