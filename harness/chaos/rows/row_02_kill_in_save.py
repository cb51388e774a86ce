"""kill -9 at each stage of a save: what a reader sees is whole, whatever was going on."""

from __future__ import annotations

from pathlib import Path

from harness import checkpoint, manifest
from harness.chaos import workers
from harness.chaos.outcome import Outcome
from harness.chaos.save_faults import STAGES, saves

NUMBER = 2
FAULT = "kill -9 at each stage of a save (shard, manifest, rename, pointer, clean-up), 5× each"
PASSES_WHEN = "newest complete checkpoint loads; no partial one is ever visible"

# Three complete saves, so that the fourth has something to clean up.
STEPS = [1, 2, 3, 4]


def run(seed: int, short: bool, folder: Path) -> Outcome:
    wrong: list[str] = []
    times = 1 if short else 5
    for stage in STAGES:
        for time in range(times):
            victim = (seed + time) % 2 if stage == "shard" else 0
            root = folder / f"{stage}-{time}"
            killed = workers.start(saves, str(root), STEPS, stage, victim, 0.0, folder=folder / "logs")
            codes = killed.wait()
            if codes[victim] != -9:
                wrong.append(f"{stage}: the ranks left with {codes}")
                continue
            partial = [f"{c.name}: {why}" for c in checkpoint.candidates(root) if (why := manifest.fault(c))]
            found = checkpoint.newest(root)
            expected = 4 if stage in ("pointer", "clean-up") else 3
            if partial or found is None or found[1]["step"] != expected:
                wrong.append(f"{stage}: found {found and found[1]}, visible and partial: {partial}")
            again = workers.start(saves, str(root), [5], "", 0, 0.0, folder=folder / "logs", ranks=1).wait()
            left = sorted(p.name for p in root.iterdir())
            if again != [0] or left != [f"step-{expected:08d}", "step-00000005"]:
                wrong.append(f"{stage}: the next save left {left}")
    saw = f"{times * len(STAGES)} kills in {len(STAGES)} stages, the newest complete one found each time, none partial"
    return Outcome(not wrong, "; ".join(wrong) or saw)
