"""A rank that hangs: its process stopped, or its main thread never coming back."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from harness.chaos.faults import PLACES, Fault, hang_in_step, signal_at
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, differences, launch, status, uninterrupted

NUMBER = 11
FAULT = "a rank hangs (SIGSTOP)"
PASSES_WHEN = "the others exit within the timeout + 10 s and name the rank"

TIMEOUT_S = 5.0
STEP = 4
STOPPED, WAITING = "stopped", "waiting for ever"


def run(seed: int, short: bool, folder: Path) -> Outcome:
    file = brief_study(folder)
    cases = [(STOPPED, 1)] if short else [(STOPPED, 0), (STOPPED, 1), (WAITING, 0), (WAITING, 1)]
    slowest, wrong = 0.0, []
    for number, (how, rank) in enumerate(cases):
        out, stamp = folder / f"run-{number}", folder / f"stamp-{number}"
        fault = (
            Fault(signal_at, (rank, STEP, PLACES[0], signal.SIGSTOP.name, str(stamp)))
            if how == STOPPED
            else Fault(hang_in_step, (rank, STEP, str(stamp)))
        )
        started = launch(file, out, "--hang-timeout", str(TIMEOUT_S), faults=[fault])
        code = started.wait_for(1 - rank)
        took = time.monotonic() - float(stamp.read_text(encoding="utf-8")) if stamp.exists() else float("inf")
        started.close()
        slowest = max(slowest, took)
        said, message = started.output(1 - rank), status(out)["message"]
        named = f"rank {rank} (host" in said and f"rank {rank} (host" in message
        if how == WAITING:
            named = named and "waiting_for_ever" in said  # the stack, down to the function
        if code != 75 or took > TIMEOUT_S + 10 or not named:
            wrong.append(f"rank {rank} {how}: the other left with {code} after {took:.1f} s, status: {message}")
    saw = f"{len(cases) - len(wrong)}/{len(cases)} named, left after {slowest:.1f} s with a time-out of {TIMEOUT_S:g} s"
    if not short and not wrong:
        reference = uninterrupted(file, folder / "uninterrupted")
        codes = launch(file, folder / "run-0", "--resume").wait()
        differ = differences(folder / "run-0", reference) if codes == [0, 0] else [f"it left with {codes}"]
        wrong += [f"resumed: {', '.join(differ)}"] if differ else []
        saw += "; resumed bit-identical" if not differ else ""
    return Outcome(not wrong, "; ".join([saw, *wrong]))
