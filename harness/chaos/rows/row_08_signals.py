"""A scheduler's signal to one rank only: all ranks save one step and leave as resumable."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from harness.chaos.faults import PLACES, Fault, signal_at, to_worker_thread, while_evaluating
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import BRIEF, brief_study, differences, launch, saved_steps, status, uninterrupted

NUMBER = 8
FAULT = "SIGTERM or SIGUSR1 to one rank: while training, evaluating, saving"
PASSES_WHEN = "all ranks save the same step within 20 s, exit 75; the resumed end state is bit-identical"

WITHIN_S = 20.0
STEP = 3
# The rank that got no signal would evaluate for a minute: so many blocks, each for this long.
BLOCKS, BLOCK_S = 30, 2.0
TRAINING, EVALUATING, SAVING, WORKER = "training", "evaluating", "saving", "a worker thread gets it"


def cases(short: bool) -> Iterator[tuple[str, str, int]]:
    """(when, signal, rank)."""
    if short:
        yield from [(TRAINING, "SIGTERM", 1), (EVALUATING, "SIGUSR1", 0)]
    else:
        yield from itertools.product((TRAINING, EVALUATING, SAVING, WORKER), ("SIGTERM", "SIGUSR1"), (0, 1))


def run(seed: int, short: bool, folder: Path) -> Outcome:
    file = brief_study(folder, evaluation={**BRIEF["evaluation"], "mlm_blocks": BLOCKS})
    reference = uninterrupted(file, folder / "uninterrupted", evaluate=True)
    slowest, wrong = 0.0, []
    played = list(cases(short))
    for number, (when, name, rank) in enumerate(played):
        out, stamp = folder / f"run-{number}", folder / f"stamp-{number}"
        fault = {
            TRAINING: Fault(signal_at, (rank, STEP, PLACES[1], name, str(stamp))),
            SAVING: Fault(signal_at, (rank, 0, PLACES[3], name, str(stamp))),
            WORKER: Fault(to_worker_thread, (rank, STEP, name, str(stamp))),
            EVALUATING: Fault(while_evaluating, (rank, name, str(stamp), BLOCK_S)),
        }[when]
        codes = launch(file, out, faults=[fault], evaluate=True).wait()
        took = time.monotonic() - float(stamp.read_text(encoding="utf-8"))
        slowest = max(slowest, took)
        said = f"{name} to rank {rank} while {when}"
        steps = saved_steps(out)
        if codes != [75, 75] or status(out)["state"] != "interrupted" or took > WITHIN_S:
            wrong.append(f"{said}: codes {codes}, {status(out)['state']}, {took:.1f} s")
        elif when in (TRAINING, WORKER) and (not steps or max(steps) != STEP + 1):
            wrong.append(f"{said}: saved {steps}")
        elif (resumed := launch(file, out, "--resume", evaluate=True).wait()) != [0, 0]:
            wrong.append(f"{said}: the resumed run left with {resumed}")
        elif what := differences(out, reference):
            wrong.append(f"{said}: {', '.join(what)} differ after the resume")
    saw = f"{len(played) - len(wrong)}/{len(played)} signals obeyed, the slowest in {slowest:.1f} s with its save"
    return Outcome(not wrong, f"{saw}; {'; '.join(wrong)}" if wrong else f"{saw}; resumed bit-identical")
