"""Clocks that disagree: every rank times its steps by its own offset, rate and jitter, under a budget in device time."""

from __future__ import annotations

from pathlib import Path

from harness.chaos import workers
from harness.chaos.faults import Fault, each_rank_notes_its_end, only_train, skewed_clocks
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, enter_each, logs, run_arguments

NUMBER = 10
FAULT = "ranks' clocks disagree at the end of the budget"
PASSES_WHEN = "all stop at the same step, no hang, 50/50"

RUNS, RUNS_SHORT = 50, 3
# About ten steps of the tiny study, so that where each stops is decided by the clocks.
BUDGET = "0.3 gpu-second"


def run(seed: int, short: bool, folder: Path) -> Outcome:
    count = RUNS_SHORT if short else RUNS
    file = brief_study(folder, budget=BUDGET, checkpoints=0)
    outs = [folder / f"run-{number}" for number in range(count)]
    several = [run_arguments(file, out, "--seeds", str(seed + n)) for n, out in enumerate(outs)]
    faults = [Fault(only_train), Fault(each_rank_notes_its_end), Fault(skewed_clocks, (seed,))]
    codes = workers.start(enter_each, several, faults, folder=logs(folder / "all")).wait(timeout_s=120.0 + 30.0 * count)
    ends = [sorted(int(p.read_text()) for p in out.glob("arms/*/*/ended-rank-*")) for out in outs]
    agree = sum(len(end) == 2 and end[0] == end[1] > 0 for end in ends)
    lengths = sorted({end[0] for end in ends if end})
    saw = f"{agree}/{count} stopped at one step on both ranks, ranks left with {codes}"
    if lengths:
        saw += f"; runs of {lengths[0]} to {lengths[-1]} steps"
    return Outcome(agree == count and codes == [0, 0], saw)
