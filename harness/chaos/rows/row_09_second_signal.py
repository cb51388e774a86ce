"""A scheduler that loses patience: a second SIGTERM while the first one's save is going on."""

from __future__ import annotations

from pathlib import Path

from harness import checkpoint
from harness.chaos.faults import PLACES, Fault, signal_at
from harness.chaos.interrupted import STOPPED_AT, checkpoints_of
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, differences, launch, uninterrupted

NUMBER = 9
FAULT = "a second SIGTERM during that save"
PASSES_WHEN = "the old or the new checkpoint is valid"


def run(seed: int, short: bool, folder: Path) -> Outcome:
    file = brief_study(folder)
    wrong, steps = [], []
    cases = (
        [(0, 0, "SIGTERM")] if short else [(a, b, s) for a in (0, 1) for b in (0, 1) for s in ("SIGTERM", "SIGUSR1")]
    )
    reference = None if short else uninterrupted(file, folder / "uninterrupted")
    for number, (first, second, name) in enumerate(cases):
        out = folder / f"run-{number}"
        faults = [
            Fault(signal_at, (first, STOPPED_AT, PLACES[0], "SIGTERM")),
            Fault(signal_at, (second, STOPPED_AT, PLACES[3], name)),
        ]
        codes = launch(file, out, faults=faults).wait()
        found = checkpoint.newest(checkpoints_of(out))
        if found is None or codes != [75, 75]:
            wrong.append(f"ranks {first} and {second}: {codes}, found {found}")
            continue
        steps.append(found[1]["progress"]["step"])
        if reference is not None:
            codes = launch(file, out, "--resume").wait()
            if codes != [0, 0] or differences(out, reference):
                wrong.append(f"ranks {first} and {second}, resumed: {codes}, {differences(out, reference)} differ")
    saw = f"{len(cases)} doubled signals: exit 75 and a valid checkpoint of step {sorted(set(steps))} each time"
    return Outcome(not wrong, "; ".join(wrong) or saw)
