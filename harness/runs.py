"""How every run of a study stands, read from its files while jobs write them; nothing is locked or changed.

Step and budget come from the ledger, which gets a line at every step: its last line says how far a run is,
its date when it last moved. Speed comes from the metrics, the end of an attempt from its job's record. A file that
cannot be read is named; what the others say is shown all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import controls, kept
from harness.errors import ConfigError
from harness.jobs import JOBS, WHOLE, Work
from harness.recorded import attempts_of, last_word, unless_unreadable
from harness.rundir import CACHE_SHARDS, STUDY, load_study
from harness.standing import GRAPH, is_dead, standing, teacher_of, trains_a_teacher
from harness.watchdog import SIGNS

# A run that trains and has not moved for this long, or for this many of its own steps, is called silent.
SILENT_S = 300.0
SILENT_STEPS = 20

# Files beside the jobs' records: what was submitted and its engine, and the count of turns that brought nothing.
NO_JOBS = (GRAPH, "submitted", "ds_config", "turns")

# Where trials and controls lie.
TRIALS = ("arms/*/seed-*", "controls/*/*/seed-*")

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
    teacher: RunStatus | None
    """The run that trains the study's teacher, where `submit` made one."""
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
        return [*([self.teacher] if self.teacher else []), *self.runs, *self.controls]

    @property
    def verdict(self) -> int:
        """0 when all is done and reported, 1 when something needs a person, 75 when it only needs time."""
        if any(run.state in TROUBLE or run.unreadable for run in self.all_runs):
            return 1
        if self.state in TROUBLE or self.unreadable:
            return 1
        # A finished study needs its teacher's run no longer.
        return 0 if self.state == "done" and all(run.state == "done" for run in (*self.runs, *self.controls)) else 75


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
    wanted = unless_unreadable(lambda: controls.wanted(study, root), unreadable) or []
    ages = [_heartbeat(file.parent, now) for trials in TRIALS for file in root.glob(f"{trials}/*.json*")]
    look = partial(
        _look, root, _Whole(status, whole, min((a for a in ages if a is not None), default=None)), now, silent_s
    )
    found = [
        look(
            arm=arm.name, seed=seed, folder=root / "arms" / arm.name / f"seed-{seed}", job=Work("train", arm.name, seed).name,
            limit=study.limit.limit, done=kept.finished,
        )
        for arm in study.arms
        for seed in study.seeds
    ] + [
        look(
            arm=each.label, seed=each.seed, folder=each.folder(root), job=Work("control", each.of, each.seed).name,
            limit=each.tokens, done=each.made,
        )
        for each in wanted
    ]  # fmt: skip
    runs = _one_at_a_time(found)
    names = [file.stem for file in sorted(root.glob(f"{JOBS}/*.json")) if file.stem not in NO_JOBS]
    jobs = [{"job": name, "attempts": attempts_of(root, name, unreadable)} for name in names]
    word = standing(status, jobs, dead=status.get("state") == "running" and bool(whole) and is_dead(whole[-1]))
    state = word.get("state") or ("unreadable" if unreadable else "waiting")
    if not word and all(run.state == "done" for run in runs) and trains_a_teacher(root):
        state = "done"
    teacher = teacher_of(root, unreadable)
    trained = None if teacher is None else _teacher(*teacher, now, silent_s)
    # A job that trains a trial is named with its trial.
    theirs = {text for run in (*runs, *([trained] if trained else [])) for text in run.unreadable}
    whose = [text for text in dict.fromkeys(unreadable) if text not in theirs]
    own = len(found) - len(wanted)
    return StudyStatus(
        study.name, state, word.get("exit_code") or 0, word.get("message", ""), trained, runs[:own], runs[own:], jobs, whose
    )  # fmt: skip


@dataclass(frozen=True)
class _Whole:
    """The run of a whole study, which takes one trial after another."""

    word: dict[str, Any]
    attempts: list[dict[str, Any]]
    moved_s: float | None
    """Since anything moved in any trial."""

    def is_later(self, attempt: dict[str, Any]) -> bool:
        """Whether it began behind this attempt of a job; one that was refused never began."""
        return max((each["started"] for each in self.attempts if "ranks" in each), default=0.0) > attempt["started"]


def _teacher(folder: Path, work: Work, now: float, silent_s: float) -> RunStatus:
    """The run that trains a teacher; its budget is unknown until it has entered its directory."""
    unreadable: list[str] = []
    whole = _Whole(last_word(folder, unreadable), attempts_of(folder, WHOLE, unreadable), _heartbeat(folder, now))
    try:
        limit = load_study(folder).limit.limit if (folder / STUDY).exists() else float("inf")
    except ConfigError as error:
        limit = float("inf")
        unreadable.append(str(error))
    run, _ = _look(
        folder, whole, now, silent_s, arm=work.arm, seed=work.seed, folder=folder / "arms" / work.arm / f"seed-{work.seed}",
        job=work.name, limit=limit, done=kept.finished,
    )  # fmt: skip
    return replace(run, arm=f"teacher: {run.arm}", unreadable=[*unreadable, *run.unreadable])


def _look(
    root: Path, whole: _Whole, now: float, silent_s: float, *, arm: str, seed: int, folder: Path, job: str, limit: float,
    done: Callable[[dict[str, Any]], bool],
) -> tuple[RunStatus, bool]:  # fmt: skip
    """One run, and whether it is said to be at work by the run of the whole study.

    `limit` is its budget in its ledger's unit, and `done` says whether its record is the one that is wanted.
    """
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
    age = _heartbeat(folder, now)
    last = attempts[-1] if attempts else {}
    of_whole = not last or whole.is_later(last)
    eta = (1 - fraction) / rate if rate and fraction < 1 else None
    if done(record):
        state, eta = "done", None
    elif unsure:
        state = "unreadable"
    elif not of_whole:
        # A job that found nothing to do yet, or whose work is another now, is done; its run is not.
        state = "waiting" if last["state"] == "done" else last["state"]
    elif age is None:
        state = "waiting"
    else:
        state = whole.word.get("state") or "interrupted"
        last = (whole.attempts or [{}])[-1]
        state = "interrupted" if state == "done" else state
    if state == "running" and is_dead(last):
        state = "died"
    elif state == "running":
        moved = [whole.moved_s if of_whole else age, now - last.get("started", now)]
        since = min(a for a in moved if a is not None)
        stepped = _age(folder / "ledger.jsonl", now)
        if stepped is None or stepped > since:
            # It reads data and models, which may take long and moves no file; its watch lives, and ends it when it hangs.
            sign = _age((root if of_whole else root / JOBS / job) / SIGNS / "rank-0.json", now)
            since = since if sign is None else min(since, sign)
        step_s = 1 / (speed[1]) if speed and speed[1] else 0.0
        if since > max(silent_s, SILENT_STEPS * step_s):
            state = "silent"
    return RunStatus(
        arm, seed, state, 1.0 if state == "done" else fraction, step, speed[0] if speed else None,
        eta if state == "running" else None, age, last.get("host"), [a.get("exit_code") for a in attempts],
        last.get("message", ""), unreadable,
    ), of_whole  # fmt: skip


def _one_at_a_time(found: list[tuple[RunStatus, bool]]) -> list[RunStatus]:
    """Of the begun trials of a run of the whole study, it is at the one that moved last; its others wait."""
    begun = [run for run, of_whole in found if of_whole and run.state in ("running", "silent")]
    now = min(begun, key=lambda run: run.heartbeat_age_s or 0.0, default=None)
    return [
        replace(run, state="waiting", eta_s=None) if any(run is each for each in begun) and run is not now else run
        for run, _ in found
    ]


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


def _heartbeat(folder: Path, now: float) -> float | None:
    """Seconds since a trial last moved. Before its first step it may fill its teacher's cache, which has a file of its own."""
    ages = [_age(folder / name, now) for name in ("ledger.jsonl", CACHE_SHARDS)]
    return min((age for age in ages if age is not None), default=None)


def _age(path: Path, now: float) -> float | None:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return None
