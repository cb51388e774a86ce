"""A rank that is slow in every step: named on the screen and in the record, and nothing else changes."""

from __future__ import annotations

import re
from pathlib import Path

from harness.chaos.faults import Fault, slow_steps
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, differences, launch, record, uninterrupted

NUMBER = 12
FAULT = "a straggler, +300 ms a step"
PASSES_WHEN = "flagged within 20 steps; the mathematics unchanged"

SLOWER_S = 0.3
WITHIN_STEPS = 20
SLOW_RANK = 1


def run(seed: int, short: bool, folder: Path) -> Outcome:
    file = brief_study(folder, **({} if short else {"budget": "4 Gflop"}))
    reference, out = uninterrupted(file, folder / "uninterrupted"), folder / "slow"
    started = launch(file, out, faults=[Fault(slow_steps, (SLOW_RANK, SLOWER_S))])
    codes = started.wait()
    if codes != [0, 0]:
        return Outcome(False, f"the ranks left with {codes}")
    rows = record(out)["stragglers"]
    flagged = re.search(
        r"rank (\d+) \(host .*\) is slower .* by (\d+) ms a step \(steps \d+ to (\d+)\)", started.output(0)
    )
    differ = differences(out, reference)
    if not flagged or not rows:
        return Outcome(False, f"not flagged in {record(out)['steps']} steps; recorded: {rows}")
    rank, excess, step = (int(text) for text in flagged.groups())
    right = rank == rows[0]["rank"] == SLOW_RANK and step <= WITHIN_STEPS and 0.5 < excess / (1e3 * SLOWER_S) < 2
    others = sum(row["rank"] != SLOW_RANK for row in rows)
    saw = f"rank {rank} flagged at step {step} with +{excess} ms, {others} others flagged"
    saw += f"; {', '.join(differ)} differ" if differ else "; ledger and weights bit-identical"
    return Outcome(right and not differ, saw)
