"""The disk fills up during a save: the run says so and leaves; what was saved before is as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness import manifest
from harness.chaos.faults import Fault
from harness.chaos.interrupted import checkpoints_of
from harness.chaos.outcome import Outcome
from harness.chaos.save_faults import fill_disk_before_save
from harness.chaos.trial_runs import brief_study, differences, last_words, launch, status, uninterrupted

NUMBER = 4
FAULT = "disk full during a save"
PASSES_WHEN = "the previous checkpoint intact; clear error, exit 4; temporary files gone"

SIZE = "64m"
SECOND_SAVE = 2


def run(seed: int, short: bool, folder: Path) -> Outcome:
    disk = folder / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)], capture_output=True)
    mounted = mount.returncode == 0
    try:
        return _play(folder, disk / "run", mounted=mounted, short=short)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def _play(folder: Path, out: Path, *, mounted: bool, short: bool) -> Outcome:
    file = brief_study(folder)
    filler = out.parent / "filler" if mounted else None
    full = launch(file, out, faults=[Fault(fill_disk_before_save, (0, SECOND_SAVE, str(filler or "")))])
    codes = full.wait()
    root = checkpoints_of(out)
    left = sorted(p.name for p in root.iterdir())
    bad = [why for p in root.iterdir() if (why := manifest.fault(p))]
    said = last_words(full.output(0))
    wrong = []
    if codes != [4, 4] or status(out)["exit_code"] != 4:
        wrong.append(f"left with {codes}, status {status(out)}")
    if len(left) != 1 or bad or not left[0].startswith("step-"):
        wrong.append(f"left behind {left}, bad: {bad}")
    if "could not be written" not in said or "previous checkpoint is intact" not in said:
        wrong.append(f"said {said!r}")
    if not short:
        if filler is not None:
            filler.unlink()
        reference = uninterrupted(file, folder / "uninterrupted")
        resumed = launch(file, out, "--resume").wait()
        if resumed != [0, 0] or differences(out, reference):
            wrong.append(f"with room again: {resumed}, {differences(out, reference)} differ")
    how = f"a tmpfs of {SIZE}" if mounted else "a limit on file size (no right to mount)"
    return Outcome(
        not wrong, "; ".join(wrong) or f"{how}: exit 4, {left[0]} intact, nothing half written; {said[-160:]}"
    )
