"""Every checkpoint bad: the run refuses and says of each one why."""

from __future__ import annotations

import random
from pathlib import Path

from harness import checkpoint, manifest
from harness.chaos.interrupted import checkpoints_of, damage, stopped
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, launch

NUMBER = 7
FAULT = "all checkpoints bad"
PASSES_WHEN = "exit 4, each one's reason named"


def run(seed: int, short: bool, folder: Path) -> Outcome:
    draw = random.Random(seed)
    file = brief_study(folder)
    out = stopped(file, folder / "run", ranks=1)
    root = checkpoints_of(out)
    hurt = []
    for candidate in checkpoint.candidates(root):
        name = draw.choice(manifest.files_of(candidate))
        damage(candidate / name, draw)
        hurt.append((candidate.name, name))
    refused = launch(file, out, "--resume", ranks=1)
    codes, said = refused.wait(), refused.output(0)
    named = all(f"{folder_name}: {name}" in said for folder_name, name in hurt)
    saw = f"{len(hurt)} bad checkpoints: exit {codes[0]}, " + (
        "each reason named" if named else f"said {said[-300:]!r}"
    )
    return Outcome(codes == [4] and named and len(hurt) >= 2, saw)
