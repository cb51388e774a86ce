"""How every run of a study stands, read from its files while jobs write them; nothing is locked or changed.

Step and budget come from the ledger, which gets a line at every step: its last line says how far a run is,
its date when it last moved. Speed comes from the metrics, the end of an attempt from its job's record. A file that
cannot be read is named; what the others say is shown all the same.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import controls, kept
from harness.errors import ConfigError
from harness.jobs import JOBS, WHOLE, Work
from harness.recorded import attempts_of, last_word, unless_unreadable
from harness.rundir import CACHE_SHARDS, STUDY, load_study

# A run that trains and has not moved for this long, or for this many of its own steps, is called silent.
SILENT_S = 300.0
SILENT_STEPS = 20

# Files beside the jobs' records: what was submitted and its engine, and the count of turns that brought nothing.
NO_JOBS = ("graph", "submitted", "ds_config", "turns")

# What a run may be; the last four are trouble. Unreadable: the file that would say how it stands.
STATES = ("done", "running", "waiting", "interrupted", "silent", "died", "failed", "unreadable")
TROUBLE = frozenset({"silent", "died", "failed", "unreadable"})


@dataclass(frozen=True)
class RunStatus:
    """One trial, or the control of one, which stands under its label. Amounts in base units; None where nothing is known yet."""

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
    unreadable: list[str]
    """Files of this run, each with what is wrong with it."""

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
    controls: list[RunStatus]
    """Those that finished trials ask for."""
    jobs: list[dict[str, Any]]
    unreadable: list[str]
    """Files of the whole study and of jobs, each with what is wrong with it."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def all_runs(self) -> list[RunStatus]:
        return [*self.runs, *self.controls]

    @property
    def verdict(self) -> int:
        """0 when all is done and reported, 1 when something needs a person, 75 when it only needs time."""
        if any(run.state in TROUBLE or run.unreadable for run in self.all_runs):
            return 1
        if self.state in TROUBLE or self.unreadable:
            return 1
        return 0 if self.state == "done" and all(run.state == "done" for run in self.all_runs) else 75


def read(root: Path, *, now: float | None = None, silent_s: float = SILENT_S) -> StudyStatus:
    """Look at a study's directory.

    Raises:
        ConfigError: there is none, or it holds no study, or one that cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"{root}", rule="no such directory", remedy="give a directory written by run or submit")
    now = time.time() if now is None else now
    unreadable: list[str] = []
    whole = attempts_of(root, WHOLE, unreadable)
    status = last_word(root, unreadable)
    if not (root / STUDY).exists() and status:
        raise ConfigError(
            f"{root}", rule=f"its run ended with exit code {status.get('exit_code')} before it began: {status.get('message')}",
            remedy="correct that, and start it again",
        )  # fmt: skip
    study = load_study(root)
    look = partial(_look, root, status, whole, now, silent_s)
    runs = [
        look(
            arm=arm.name, seed=seed, folder=root / "arms" / arm.name / f"seed-{seed}", job=Work("train", arm.name, seed).name,
            limit=study.limit.limit, done=lambda record: record.get("state") == "done",
        )
        for arm in study.arms
        for seed in study.seeds
    ]  # fmt: skip
    beside = [
        look(
            arm=each.label, seed=each.seed, folder=each.folder(root), job=Work("control", each.of, each.seed).name,
            limit=each.tokens, done=each.made,
        )
        for each in unless_unreadable(lambda: controls.wanted(study, root), unreadable) or []
    ]  # fmt: skip
    state = status.get("state") or ("unreadable" if unreadable else "waiting")
    if state == "running" and whole and _is_dead(whole[-1]):
        state = "died"
    names = [file.stem for file in sorted(root.glob(f"{JOBS}/*.json")) if file.stem not in NO_JOBS]
    jobs = [{"job": name, "attempts": attempts_of(root, name, unreadable)} for name in names]
    # A job that trains a trial is named with its trial.
    theirs = {text for run in (*runs, *beside) for text in run.unreadable}
    whose = [text for text in dict.fromkeys(unreadable) if text not in theirs]
    return StudyStatus(
        study.name, state, status.get("exit_code") or 0, status.get("message", ""), runs, beside, jobs, whose
    )


def _look(
    root: Path, status: dict[str, Any], whole: list[dict[str, Any]], now: float, silent_s: float, *, arm: str, seed: int,
    folder: Path, job: str, limit: float, done: Callable[[dict[str, Any]], bool],
) -> RunStatus:  # fmt: skip
    """One run; `limit` is its budget in its ledger's unit, and `done` says whether its record is the one that is wanted."""
    unreadable: list[str] = []
    attempts = attempts_of(root, job, unreadable)
    record = unless_unreadable(lambda: kept.read(folder / "record.json", kept.TrialRecord), unreadable) or {}
    unsure = bool(unreadable)
    postings = unless_unreadable(lambda: kept.last_rows(folder / "ledger.jsonl", kept.LastPosting), unreadable)
    rows = unless_unreadable(lambda: kept.last_rows(folder / "metrics.jsonl", kept.MetricsRow), unreadable)
    posted = postings[-1] if postings else {}
    spent = record.get("charged") or posted.get("spent") or 0
    step = record.get("steps") or posted.get("step") or 0
    fraction = min(1.0, spent / limit)
    speed, rate = _speed(rows or [])
    # Before its first step a run may fill its teacher's cache, which has a file of its own.
    ages = [a for name in ("ledger.jsonl", CACHE_SHARDS) if (a := _age(folder / name, now)) is not None]
    age = min(ages, default=None)
    last = attempts[-1] if attempts else {}
    eta = (1 - fraction) / rate if rate and fraction < 1 else None
    if done(record):
        state, eta = "done", None
    elif unsure:
        state = "unreadable"
    elif last:
        # A job that found nothing to do yet, or whose work is another now, is done; its run is not.
        state = "waiting" if last["state"] == "done" else last["state"]
    elif age is None:
        state = "waiting"
    else:
        # No job of its own: the run of the whole study is at it, or was.
        state = status.get("state") or "interrupted"
        last = (whole or [{}])[-1]
        state = "interrupted" if state == "done" else state
    if state == "running" and _is_dead(last):
        state = "died"
    elif state == "running":
        since = min(a for a in (age, now - last.get("started", now)) if a is not None)
        step_s = 1 / (speed[1]) if speed and speed[1] else 0.0
        if since > max(silent_s, SILENT_STEPS * step_s):
            state = "silent"
    return RunStatus(
        arm, seed, state, 1.0 if state == "done" else fraction, step, speed[0] if speed else None,
        eta if state == "running" else None, age, last.get("host"), [a.get("exit_code") for a in attempts],
        last.get("message", ""), unreadable,
    )  # fmt: skip


def _speed(rows: list[dict[str, Any]]) -> tuple[tuple[float, float] | None, float | None]:
    """((tokens/s, steps/s), fraction of the budget per second) over the last rows of training; None without two."""
    trained = [row for row in rows if row.get("tokens") is not None]
    for first in trained[-9:-1]:
        last = trained[-1]
        seconds = last["seconds"] - first["seconds"]
        if seconds > 0:
            pace = ((last["tokens"] - first["tokens"]) / seconds, (last["step"] - first["step"]) / seconds)
            return pace, (last["fraction"] - first["fraction"]) / seconds
    return None, None


def _is_dead(attempt: dict[str, Any]) -> bool:
    """True when the attempt ran on this machine and its process is gone; other machines cannot be asked."""
    if attempt.get("host") != socket.gethostname():
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
