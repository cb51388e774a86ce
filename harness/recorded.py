"""How a run ended, as it recorded it, and whether it got anywhere: what the scripts of launchers and schedulers ask.

No clock decides: of two files the later is known by what it saw of the other, and what was there before an attempt by a mark.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from harness import checkpoint, kept
from harness.controls import EQUAL_TOKENS, FOLDER
from harness.errors import CheckpointError
from harness.jobs import JOBS, WHOLE, JobRecord, status_digest
from harness.rundir import CACHE_SHARDS, CURVE_SCORE, EVALUATIONS, SNAPSHOTS, STATUS

T = TypeVar("T")

# `recorded_exit_code` where nothing was recorded behind a mark; no run ends with it.
NOTHING_RECORDED = 66


def mark(root: Path, *, job: str | None = None) -> str:
    """What the files that say how a run ended, or one of its jobs, hold now; scripts make it by `mark_of`, before they start one."""
    files = [root / JOBS / f"{job}.json"] if job is not None else [root / STATUS, root / JOBS / f"{WHOLE}.json"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()


def recorded_exit_code(root: Path, *, job: str | None = None, after: str | None = None) -> int:
    """The exit code that the last run in a directory recorded, or one of its jobs; 1 when none was, as after kill -9.

    With `after`, a `mark` taken before the attempt: NOTHING_RECORDED when this attempt recorded no end. An attempt that fails before
    it can record anything must not be taken for the one before it, which was preempted; and clocks, which jump, are not asked.
    """
    root, unreadable = Path(root), list[str]()
    if job is not None:
        attempts = attempts_of(root, job, unreadable)
        found = attempts[-1] if attempts else {}
    else:
        found = last_word(root, unreadable, finished=False)
    if unreadable:
        return 1  # only a word that can be read asks a scheduler for another turn
    if after is not None and (mark(root, job=job) == after or found.get("state") in (None, "running")):
        return NOTHING_RECORDED
    return 0 if found.get("state") == "done" else found.get("exit_code") or 1


def last_word(root: Path, unreadable: list[str], *, finished: bool = True) -> dict[str, Any]:
    """What was recorded last about a study or sweep as a whole: its status, or the end of an attempt that was refused.

    The attempt has it while the status is still the one that the attempt saw at its end. With `finished`, a finished study stays
    finished whoever was refused behind it.
    """
    said, whole = status(root, unreadable), attempts_of(root, WHOLE, unreadable)
    if whole and not (finished and said.get("state") == "done") and whole[-1].get("status") == status_digest(root):
        return whole[-1]
    return said


# Files beside a trial that come and go without anything having been done.
_PASSING = frozenset({"checkpoints", SNAPSHOTS, JOBS})
_JOB = re.compile(r"(train|evaluation|control)-(.+)-(seed-[0-9]+)", re.ASCII)


def progress(root: Path, *, job: str | None = None) -> int:
    """A number that grows with every step and every result that is kept; a turn that leaves it no higher brought nothing.

    A step is kept once a checkpoint or a finished trial holds it: what the ledger says beyond is done again by the next turn. A
    shard of a teacher's cache is a result of the trial that it is written for, and of its evaluation every item is, every point
    of the curve that was read and, a file each, every fine-tuning.
    With `job` (the name of its record), of that job's trial alone; a job that is no trial's works on all of them.
    """
    root = Path(root)
    place = root
    if named := _JOB.fullmatch(job or ""):
        kind, arm, seed = named.groups()
        place = root.joinpath(*((FOLDER, EQUAL_TOKENS) if kind == "control" else ("arms",)), arm, seed)
    done = 0
    for file in place.rglob("*.json*"):
        parts = file.relative_to(root).parts
        if _PASSING.intersection(parts) or any(part.startswith(".") for part in parts):
            continue
        done += 1
        if file.name == "ledger.jsonl":
            done += _kept_steps(file)
        if file.name == EVALUATIONS:
            done += len(kept.read_json(file) or {})
        if file.name == "metrics.jsonl":
            done += sum(CURVE_SCORE in row for row in kept.whole_objects(file))
        if file.name == CACHE_SHARDS:
            done += (unless_unreadable(partial(kept.read, file, kept.CacheShards), []) or {"shards": 0})["shards"]
    return done


def _kept_steps(ledger: Path) -> int:
    """Of the trial that this ledger is of; 0 where it cannot be read."""
    if not (ledger.parent / "record.json").exists():
        return checkpoint.newest_step(ledger.parent / "checkpoints")
    rows = unless_unreadable(partial(kept.last_rows, ledger, kept.LastPosting), [])
    return rows[-1]["step"] if rows else 0


def status(root: Path, unreadable: list[str]) -> dict[str, Any]:
    return unless_unreadable(lambda: kept.read(root / STATUS, kept.Status), unreadable) or {}


def attempts_of(root: Path, name: str, unreadable: list[str]) -> list[dict[str, Any]]:
    return unless_unreadable(JobRecord(root, name).attempts, unreadable) or []


def unless_unreadable(look: Callable[[], T], unreadable: list[str]) -> T | None:
    """What was found, or None where the file cannot be read; then it goes onto the list."""
    try:
        return look()
    except CheckpointError as error:
        unreadable.append(f"{error.value}: {error.rule}")
        return None
