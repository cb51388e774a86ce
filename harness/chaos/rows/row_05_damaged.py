"""A checkpoint damaged anywhere is never read: the one before it is."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from harness import checkpoint, manifest
from harness.chaos.interrupted import checkpoints_of, copy_of, damage, stopped
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, differences, launch, record, uninterrupted

NUMBER = 5
FAULT = "any file of a checkpoint truncated or one byte flipped, 50×"
PASSES_WHEN = "detected before anything is unpickled; falls back to the last good one; 0 silent"

TIMES = 50


def run(seed: int, short: bool, folder: Path) -> Outcome:
    draw = random.Random(seed)
    file = brief_study(folder)
    out = stopped(file, folder / "run")
    root = checkpoints_of(out)
    newest, older = checkpoint.candidates(root)
    kept = Path(shutil.copytree(newest, folder / "kept"))
    files = [*manifest.files_of(newest), manifest.MANIFEST]
    silent, hurt = [], set()
    for _ in range(TIMES):
        name = draw.choice(files)
        what = damage(newest / name, draw)
        hurt.add(name)
        # Finding one only hashes: nothing can have been unpickled.
        found = checkpoint.newest(root)
        if found is None or found[0] != older:
            silent.append(what)
        shutil.copy2(kept / name, newest / name)
    found = checkpoint.newest(root)
    if found is None or found[0] != newest:
        return Outcome(False, f"the undamaged checkpoint was refused: {found}")
    wrong = [f"silent: {what}" for what in silent]
    if not short:
        reference = uninterrupted(file, folder / "uninterrupted")
        hurt_run = copy_of(out, "hurt")
        damage(checkpoint.candidates(checkpoints_of(hurt_run))[0] / draw.choice(files), draw)
        codes = launch(file, hurt_run, "--resume").wait()
        if codes != [0, 0] or differences(hurt_run, reference):
            wrong.append(f"resumed from the older one: {codes}, {differences(hurt_run, reference)} differ")
        elif not any(f"resumed from {older.name}" in warning for warning in record(hurt_run)["warnings"]):
            wrong.append("the record does not say that a checkpoint was passed over")
    saw = (
        f"{TIMES - len(silent)}/{TIMES} found by hash ({len(hurt)} of {len(files)} files hurt), each time the older one"
    )
    return Outcome(not wrong, "; ".join(wrong) or saw + " taken")
