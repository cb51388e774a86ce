"""Branching: a run at a larger budget goes on from where a smaller one's learning rate began to fall.

Under `schedule.decay: cooldown` the rate is constant between warm-up and cooldown, so runs of one arm and seed at
several budgets share everything up to the first cooldown (Hägele et al. 2024, arXiv 2405.18392). A run that keeps its
trunk saves a checkpoint there; a branch begins with a copy of it, its ledger and its metrics, and is charged for the
whole trunk: its record is that of a run of its own.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from harness import checkpoint
from harness.rundir import read_json

TRUNK = "trunk"
MARKER = "branched.json"
# What a branch may differ in from its trunk: how far it goes, and with it what share of that the warm-up is.
OWN = ("budget", "schedule.warmup")


def begin(donor: Path, place: Path, *, name: str) -> bool:
    """Let a trial in `place` begin from the trunk that `donor` kept; False where there is none. Rank 0 only."""
    found = checkpoint.newest(donor / TRUNK) if (donor / TRUNK).is_dir() else None
    if found is None or place.exists():
        return False
    aside = place.with_name(f".{place.name}.branching")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "checkpoints").mkdir(parents=True)
    shutil.copytree(found.folder, aside / "checkpoints" / found.folder.name)
    progress = found.state["progress"]
    for file, rows in (("ledger.jsonl", found.state["ledger"]["postings"]), ("metrics.jsonl", progress["metric_rows"])):
        lines = (donor / file).read_text(encoding="utf-8").splitlines(keepends=True)
        (aside / file).write_text("".join(lines[:rows]), encoding="utf-8")
    facts = {"from": name, "step": progress["step"], "spent": found.state["ledger"]["spent"]}
    (aside / MARKER).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    aside.rename(place)
    return True


def is_branch(trial: Path) -> bool:
    """True for a trial that began from another's trunk."""
    return (trial / MARKER).is_file()


def facts(trial: Path) -> dict[str, Any] | None:
    """From which trial, at which step and after what was spent; None for a run of its own."""
    return read_json(trial / MARKER)


def as_own(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A trunk's identity with this branch's budget and warm-up in place of the trunk's: all else must be equal."""
    adopted = copy.deepcopy(then)
    for key in OWN:
        *parents, last = key.split(".")
        there, here = adopted.get("study"), now["study"]
        for part in parents:
            there, here = there.get(part) if isinstance(there, dict) else None, here[part]
        if isinstance(there, dict):  # else it is no trunk of ours, and the comparison says so
            there[last] = here[last]
    return adopted


def forget_trunks(root: Path) -> None:
    """Remove every trunk below a directory: nobody will branch from there any more."""
    for folder in root.rglob(TRUNK):
        if folder.is_dir() and folder.parent.name.startswith("seed-"):
            shutil.rmtree(folder, ignore_errors=True)
