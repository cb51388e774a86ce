"""How every run of a study stands, read from its files while jobs write them; nothing is locked or changed.

Step and budget come from the ledger, which gets a line at every step: its last line says how far a run is,
its date when it last moved. Speed comes from the metrics, the end of an attempt from its job's record.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.jobs import JOBS, WHOLE, JobRecord, Work
from harness.rundir import STATUS, STUDY, load_study, read_json
from harness.study import StudySpec

# A run that trains and has not moved for this long, or for this many of its own steps, is called silent.
SILENT_S = 300.0
SILENT_STEPS = 20
TAIL_BYTES = 1 << 16

# What a run may be; the last three are trouble.
STATES = ("done", "running", "waiting", "interrupted", "silent", "died", "failed")
TROUBLE = frozenset({"silent", "died", "failed"})


@dataclass(frozen=True)
class RunStatus:
    """One trial. Amounts in base units; None where nothing is known yet."""

    arm: str
    seed: int
    state: str
    fraction: float
    step: int
    tokens_per_s: float | None
    eta_s: float | None
    heartbeat_age_s: float | None
    host: str | None
    exit_codes: list[int | None]
    message: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StudyStatus:
    """A study across all jobs that work on it."""

    name: str
    state: str
    exit_code: int
    message: str
    runs: list[RunStatus]
    jobs: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "runs": [run.as_json() for run in self.runs]}

    @property
    def verdict(self) -> int:
        """0 when all is done and reported, 1 when something needs a person, 75 when it only needs time."""
        if any(run.state in TROUBLE for run in self.runs) or self.state in TROUBLE:
            return 1
        return 0 if self.state == "done" and all(run.state == "done" for run in self.runs) else 75


def read(root: Path, *, now: float | None = None, silent_s: float = SILENT_S) -> StudyStatus:
    """Look at a study's directory.

    Raises:
        ConfigError: there is none, or it holds no study.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"{root}", rule="no such directory", remedy="give a directory written by run or submit")
    now = time.time() if now is None else now
    status = _last_word(root)
    if not (root / STUDY).exists() and status:
        raise ConfigError(
            f"{root}", rule=f"its run ended with exit code {status.get('exit_code')} before it began: {status.get('message')}",
            remedy="correct that, and start it again",
        )  # fmt: skip
    study = load_study(root)
    whole = JobRecord(root, WHOLE).attempts()
    runs = [
        _trial(root, study, arm.name, seed, status=status, now=now, silent_s=silent_s)
        for arm in study.arms
        for seed in study.seeds
    ]
    state = str(status.get("state") or "waiting")
    if state == "running" and _is_dead(whole[-1] if whole else {}):
        state = "died"
    jobs = [
        {"job": file.stem, "attempts": JobRecord(root, file.stem).attempts()} for file in sorted(root.glob("jobs/*.json"))
        if file.stem not in ("graph", "submitted")
    ]  # fmt: skip
    return StudyStatus(
        study.name, state, int(status.get("exit_code") or 0), str(status.get("message") or ""), runs, jobs
    )


# Clocks of nodes and file servers may differ by so much.
SKEW_S = 30.0


def recorded_exit_code(root: Path, *, job: str | None = None, since: float | None = None) -> int:
    """The exit code that the last run in a directory recorded, or one of its jobs; 1 when none was, as after kill -9.

    With `since` (seconds since 1970), what was recorded before is an earlier attempt's and counts as none: an attempt that fails
    before it can record anything must not be taken for the one that was preempted.
    """
    root = Path(root)
    if job is not None:
        file = root / JOBS / f"{job}.json"
        found = (JobRecord(root, job).attempts() or [{}])[-1]
        recorded = file.stat().st_mtime if file.exists() else 0.0
    else:
        found = _last_word(root, finished=False)
        recorded = _when(found)
    if since is not None and recorded < since - SKEW_S:
        return 1
    return 0 if found.get("state") == "done" else int(found.get("exit_code") or 1)


def _last_word(root: Path, *, finished: bool = True) -> dict[str, Any]:
    """What was recorded last about a study as a whole: its status, or the end of an attempt that was refused.

    With `finished`, a finished study stays finished whoever was refused behind it.
    """
    status = read_json(root / STATUS) or {}
    attempt = (JobRecord(root, WHOLE).attempts() or [{}])[-1]
    if finished and status.get("state") == "done":
        return status
    return attempt if float(attempt.get("ended") or 0.0) > _when(status) else status


def _when(found: dict[str, Any]) -> float:
    """When this was recorded, in seconds since 1970. Not the file's date: a refused run puts the status back as it was."""
    return float(found.get("ended") or found.get("time") or 0.0)


def _trial(
    root: Path, study: StudySpec, arm: str, seed: int, *, status: dict[str, Any], now: float, silent_s: float
) -> RunStatus:
    folder = root / "arms" / arm / f"seed-{seed}"
    attempts = JobRecord(root, Work("train", arm, seed).name).attempts()
    record = read_json(folder / "record.json") or {}
    posted = _last(folder / "ledger.jsonl")
    limit = study.limit.limit
    spent = float(record.get("charged") or posted.get("spent") or 0.0)
    step = int(record.get("steps") or posted.get("step") or 0)
    fraction = min(1.0, spent / limit)
    speed, rate = _speed(folder / "metrics.jsonl")
    age = _age(folder / "ledger.jsonl", now)
    last = attempts[-1] if attempts else {}
    eta = (1 - fraction) / rate if rate and fraction < 1 else None
    if record.get("state") == "done":
        state, eta = "done", None
    elif last:
        state = str(last.get("state"))
    elif age is None:
        state = "waiting"
    else:
        # No job of its own: the run of the whole study is at it, or was.
        state = str(status.get("state") or "interrupted")
        last = (JobRecord(root, WHOLE).attempts() or [{}])[-1]
        state = "interrupted" if state == "done" else state
    if state == "running" and _is_dead(last):
        state = "died"
    elif state == "running":
        since = min(a for a in (age, now - float(last.get("started") or now)) if a is not None)
        step_s = 1 / (speed[1]) if speed and speed[1] else 0.0
        if since > max(silent_s, SILENT_STEPS * step_s):
            state = "silent"
    return RunStatus(
        arm, seed, state, 1.0 if state == "done" else fraction, step, speed[0] if speed else None,
        eta if state == "running" else None, age, last.get("host"), [a.get("exit_code") for a in attempts],
        str(last.get("message") or ""),
    )  # fmt: skip


def _speed(path: Path) -> tuple[tuple[float, float] | None, float | None]:
    """((tokens/s, steps/s), fraction of the budget per second) over the last rows of training; None without two."""
    rows = [row for row in _rows(path) if "tokens" in row]
    for first in rows[-9:-1]:
        last = rows[-1]
        seconds = last["seconds"] - first["seconds"]
        if seconds > 0:
            pace = ((last["tokens"] - first["tokens"]) / seconds, (last["step"] - first["step"]) / seconds)
            return pace, (last["fraction"] - first["fraction"]) / seconds
    return None, None


def _is_dead(attempt: dict[str, Any]) -> bool:
    """True when the attempt ran on this machine and its process is gone; other machines cannot be asked."""
    if attempt.get("host") != socket.gethostname() or not isinstance(attempt.get("pid"), int):
        return False
    try:
        os.kill(attempt["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _age(path: Path, now: float) -> float | None:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return None


def _last(path: Path) -> dict[str, Any]:
    return (list(_rows(path)) or [{}])[-1]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines among the last 64 KiB; a torn one is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in lines[1 if size > TAIL_BYTES else 0 :]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
