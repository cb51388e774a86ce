"""Several jobs in one study directory: each works on its own trials, none on another's.

A job takes the study's lock only while it enters, and the locks of its trials for as long as it lives. A
run of the whole study keeps the study's lock and refuses to begin while any job holds a trial. Locks are
advisory locks of the file system, which lets go of them when their holder dies, on whatever machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness import kept
from harness.errors import ConfigError
from harness.manifest import make_folder
from harness.rundir import JOBS, STATUS, STUDY, RunDirectory, write_json
from harness.study import StudySpec

# Entering takes milliseconds; a thousand jobs of an array that start at once queue for a minute or two.
ENTER_S = 300.0
WHOLE = "study"
# What a scheduler calls this job, in its own variables.
_SCHEDULER = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "JOB_COMPLETION_INDEX",
)
_WORK = re.compile(
    r"(?:(?P<kind>control|evaluation):)?(?P<arm>[A-Za-z0-9][A-Za-z0-9_.-]{0,63}):(?P<seed>[0-9]{1,10})", re.ASCII
)


@dataclass(frozen=True)
class Work:
    """What one job does: train a trial or its control, evaluate a trial, or gather everything into the report."""

    kind: str
    arm: str = ""
    seed: int = 0

    @classmethod
    def parse(cls, text: str, study: StudySpec) -> Work:
        """Read ARM:SEED, control:ARM:SEED, evaluation:ARM:SEED or report.

        Raises:
            ConfigError: anything else, or an arm or seed that the study does not have.
        """
        work = cls.read(text)
        if work is None:
            raise ConfigError(
                f"work {text!r}", rule="it is ARM:SEED, control:ARM:SEED, evaluation:ARM:SEED or report",
                remedy=f"for example {study.arms[0].name}:{study.seeds[0]}",
            )  # fmt: skip
        if work.kind != "report" and (work.arm not in {a.name for a in study.arms} or work.seed not in study.seeds):
            raise ConfigError(
                f"work {text!r}", rule=f"{study.name} has the arms {', '.join(a.name for a in study.arms)} "
                f"and the seeds {', '.join(map(str, study.seeds))}",
                remedy="pick from those",
            )  # fmt: skip
        return work

    @classmethod
    def read(cls, text: str) -> Work | None:
        """The work that these words name in whatever study; None where they name none."""
        if text == "report":
            return cls("report")
        match = _WORK.fullmatch(text)
        return cls(match["kind"] or "train", match["arm"], int(match["seed"])) if match else None

    @property
    def name(self) -> str:
        """The job's name in jobs/, its files' stem."""
        return self.kind if self.kind in ("report", WHOLE) else f"{self.kind}-{self.arm}-seed-{self.seed}"

    @property
    def lock(self) -> str:
        """Training and evaluating one trial exclude each other; a control has a folder of its own."""
        return f"{'control-' if self.kind == 'control' else ''}{self.arm}-seed-{self.seed}.lock"


# When this process recorded an end in a file: a process of the same number may have, before the machine was started anew.
_ended: dict[Path, float] = {}


class JobRecord:
    """Every attempt of one job: when, where, under which scheduler's number, and how it ended."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.file = root / JOBS / f"{name}.json"

    def attempts(self) -> list[dict[str, Any]]:
        """Oldest first; none where there is no file.

        Raises:
            CheckpointError: there is one, and it cannot be read.
        """
        return (kept.read(self.file, kept.Attempts) or {"attempts": []})["attempts"]

    def begin(self, *, world: int) -> None:
        """Record an attempt as running."""
        self._write([*self.attempts(), _attempt() | {"ranks": world}])

    def end(self, state: str, *, exit_code: int = 0, message: str = "") -> None:
        """Record how the last attempt ended; where none is on record, this process's."""
        _ended[self.file.resolve()] = time.monotonic()
        *before, last = self.attempts() or [_attempt()]
        self._write(
            [*before, {**last, "state": state, "ended": time.time(), "exit_code": exit_code, "message": message}]
        )

    def refused(self, state: str, *, exit_code: int, message: str, since: float) -> None:
        """Record an attempt that ended before it began; nothing where this process has recorded its end since `since`, of its own clock."""
        if _ended.get(self.file.resolve(), -1.0) >= since:
            return
        self._write([*self.attempts(), _attempt()])
        self.end(state, exit_code=exit_code, message=message)

    def _write(self, attempts: list[dict[str, Any]]) -> None:
        self.file.parent.mkdir(exist_ok=True)
        if self.file.stem == WHOLE:  # what was recorded later, this or the status, is known without a clock
            attempts[-1] = {**attempts[-1], "status": status_digest(self.root)}
        write_json(self.file, {"job": self.file.stem, "attempts": attempts})


def status_digest(root: Path) -> str:
    """Of the status of the whole study as it is now; of nothing where there is none."""
    file = root / STATUS
    return hashlib.sha256(file.read_bytes() if file.exists() else b"").hexdigest()


def _attempt() -> dict[str, Any]:
    scheduler = {key.lower(): os.environ[key] for key in _SCHEDULER if key in os.environ}
    return {
        "state": "running", "started": time.time(), "host": socket.gethostname(), "pid": os.getpid(), "scheduler": scheduler,
    }  # fmt: skip


class JobDirectory(RunDirectory):
    """A study directory entered by one job among several."""

    def __init__(self, root: Path, works: Iterable[Work]) -> None:
        super().__init__(root)
        self.works = list(works)
        self._held: list[FileLock] = []

    def open(self, study: StudySpec, *, resume: bool, allowed: frozenset[str] = frozenset()) -> StudySpec:
        """Enter, merge this study with the directory's, and lock this job's trials.

        With `resume` an unfinished study is entered, and a directory without one becomes one.

        Raises:
            ConfigError: a run of the whole study or another job is at work here; another study; foreign files.
        """
        self._lock.timeout = ENTER_S
        merged = super().open(study, resume=resume and (self.root / STUDY).exists(), allowed=allowed)
        try:
            make_folder(self.root / JOBS)
            for work in self.works:
                lock = FileLock(self.root / JOBS / work.lock, timeout=0)
                try:
                    lock.acquire()
                except Timeout:
                    raise ConfigError(
                        f"{work.arm} seed {work.seed} in {self.root}", rule="another job is at work on it",
                        remedy="wait for it, or cancel it",
                    ) from None  # fmt: skip
                self._held.append(lock)
        except BaseException:
            self.back_out()
            raise
        # From here on other jobs enter, and rely on the study that this one wrote.
        self._before.clear()
        self.release()
        return merged

    def admit(self, now: dict[str, dict[str, Any]], allowed: frozenset[str]) -> list[dict[str, Any]]:
        """See `RunDirectory.admit`; jobs take turns at the file they share."""
        with self._lock:
            return super().admit(now, allowed)

    @property
    def signs(self) -> Path:
        """Beside this job's record: ranks of other jobs leave theirs elsewhere."""
        folder = self.root / JOBS / self.works[0].name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def status(self, state: str, *, exit_code: int = 0, message: str = "") -> None:
        """Say how this job stands; how the study stands is said by the job that gathers the report."""
        JobRecord(self.root, self.works[0].name).end(state, exit_code=exit_code, message=message)

    def close(self) -> None:
        for lock in self._held:
            lock.release()
        self._held.clear()
        super().close()


def open_alone(
    directory: RunDirectory, study: StudySpec, *, resume: bool, allowed: frozenset[str] = frozenset()
) -> StudySpec:
    """Open a directory for a run of the whole study; see `RunDirectory.open`.

    Raises:
        ConfigError: also when a job still holds one of its trials.
    """
    merged = directory.open(study, resume=resume, allowed=allowed)
    for path in sorted((directory.root / JOBS).glob("*.lock")):
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            directory.back_out()
            raise ConfigError(
                f"output directory {directory.root}", rule=f"a job is at work on {path.stem}",
                remedy="wait for it, or cancel it",
            ) from None  # fmt: skip
        lock.release()
    return merged
