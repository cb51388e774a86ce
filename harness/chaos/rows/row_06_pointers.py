"""No pointer file is believed: the newest complete checkpoint is found by manifest, and none at all is an error."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.chaos.interrupted import STOPPED_AT, checkpoints_of, copy_of, stopped
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, differences, last_words, launch, uninterrupted

NUMBER = 6
FAULT = "`--resume` with any pointer missing or empty"
PASSES_WHEN = "the newest complete checkpoint is found by manifest; with none, an error; never step 0"

# What other programs keep beside checkpoints: nothing, an empty file, names of what is not there.
POINTERS: tuple[str | None, ...] = (None, "", "global_step999", "step-00000001", "../../elsewhere")


def run(seed: int, short: bool, folder: Path) -> Outcome:
    file = brief_study(folder)
    reference = uninterrupted(file, folder / "uninterrupted")
    out = stopped(file, folder / "run")
    wrong = []
    pointers = POINTERS[1:3] if short else POINTERS
    for number, pointer in enumerate(pointers):
        copy = copy_of(out, f"pointer-{number}")
        root = checkpoints_of(copy)
        for place in (root, *root.glob("step-*/..")):
            if pointer is not None:
                (place / "latest").write_text(pointer, encoding="utf-8")
        codes = launch(file, copy, "--resume").wait()
        steps = [int(line.split('"step":')[1].split(",")[0]) for line in ledger_after(copy, out)]
        if codes != [0, 0] or differences(copy, reference) or min(steps) < STOPPED_AT:
            wrong.append(
                f"latest = {pointer!r}: {codes}, went on at {min(steps)}, {differences(copy, reference)} differ"
            )
    empty = copy_of(out, "none")
    shutil.rmtree(checkpoints_of(empty))
    none = launch(file, empty, "--resume")
    codes, said = none.wait(), last_words(none.output(0))
    if codes != [4, 4] or "none is left" not in said:
        wrong.append(f"with no checkpoint left: {codes}, {said!r}")
    saw = f"{len(pointers)} kinds of pointers: went on at step {STOPPED_AT + 1} each time; with none left, exit 4"
    return Outcome(not wrong, "; ".join(wrong) or saw)


def ledger_after(resumed: Path, before: Path) -> list[str]:
    """The lines a resumed run added to its ledger."""
    mine, theirs = (next(out.glob("arms/*/*/ledger.jsonl")).read_text().splitlines() for out in (resumed, before))
    return mine[len(theirs) :]
