"""Another number of ranks, and back: the same work, the same loss."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from harness.chaos.faults import PLACES, Fault, signal_at
from harness.chaos.interrupted import engine_config, stopped
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, charged_steps, launch, losses, record, uninterrupted

NUMBER = 21
FAULT = "world size 2 → 1 → 2 (universal checkpoint)"
PASSES_WHEN = "ledger identical; loss within 1e-5 relative"

# The steps among which the two changes are drawn: one arm of the study trains for 18.
FIRST, SECOND, APART = 2, 15, 2
TOLERANCE = 1e-5


def run(seed: int, short: bool, folder: Path) -> Outcome:
    # Everything is trained: what is compared is the end, and the read of every part of the optimizer's state.
    file = brief_study(folder)
    draw, wrong, worst = random.Random(seed), [], 0.0
    stages = [1] if short else [0, 1, 2, 3]
    for stage in stages:
        flags = ("--ds_config", engine_config(folder, stage=stage))
        first, second = sorted(draw.sample(range(FIRST, SECOND, APART), 2))
        reference = uninterrupted(file, folder / f"uninterrupted-{stage}", *flags)
        out = stopped(file, folder / f"run-{stage}", *flags, step=first)
        again = (*flags, "--resume", "--allow", "world_size")
        alone = launch(file, out, *again, faults=[Fault(signal_at, (0, second, PLACES[0], "SIGTERM"))], ranks=1)
        codes = [alone.wait(), launch(file, out, *again).wait()]
        if codes != [[75], [0, 0]]:
            wrong.append(f"stage {stage}: left with {codes}: {alone.outputs()[-300:]!r}")
            continue
        mine, theirs = losses(out), losses(reference)
        if another := difference(charged_steps(out), charged_steps(reference)):
            wrong.append(f"stage {stage}, stopped at {first} and {second}: another ledger: {another}")
            continue
        if another := difference(list(mine), list(theirs)):
            wrong.append(f"stage {stage}, stopped at {first} and {second}: losses of other steps: {another}")
            continue
        worst = max(worst, *(abs(mine[step] - theirs[step]) / theirs[step] for step in theirs))
        changes = [(o["was"], o["now"]) for o in record(out)["overrides"]]
        if changes != [(2, 1), (1, 2)]:
            wrong.append(f"stage {stage}: recorded {changes}")
    saw = f"ZeRO {stages}: ledger identical, loss within {worst:.1e} relative over all steps, both changes recorded"
    return Outcome(not wrong and worst <= TOLERANCE, "; ".join(wrong) or saw)


def difference(mine: list[Any], theirs: list[Any]) -> str:
    """The first entry in which two lists differ; empty when none does."""
    for one, other in zip(mine, theirs, strict=False):
        if one != other:
            return f"{one} instead of {other}"
    return "" if len(mine) == len(theirs) else f"{len(mine)} entries instead of {len(theirs)}"
