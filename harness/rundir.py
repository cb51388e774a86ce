"""The directory of a study: who may write it, what it holds, and what is already done.

`status.json` is the truth about how a run ended: launchers replace exit codes with their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from harness import kept
from harness.errors import CheckpointError, ConfigError, refused_by_system
from harness.identity import Difference, differences, merge_overrides, permit
from harness.kept import read_json
from harness.manifest import make_folder, sync
from harness.study import StudySpec, read_yaml, validate

STUDY = "study.yaml"
STATUS = "status.json"
SWEEP = "sweep.yaml"  # instead of a study's: the directory of a sweep
IDENTITY = "identity.json"
# Records and locks of every attempt and job; may be there before there is a study (see harness.refusal).
JOBS = "jobs"
# In a trial, which has not begun while it is written: how far its teacher's cache is; see kept.CacheShards.
CACHE_SHARDS = "teacher-cache.json"
# In a trial: weights at the points of its curve until they are read, STEP.safetensors and STEP.json.
SNAPSHOTS = "snapshots"
# Beside a subject: its scores, item by item; and what a row of a trial's metrics has that was read from a snapshot.
EVALUATIONS, CURVE_SCORE = "evaluations.json", "readout_loss"
# In JOBS: held by a `submit` while it hands jobs over, and by the sbatch it started.
SUBMITTING = ".submitting"
# Who holds the lock. The system frees a dead process's lock, this file stays: then it tells of a run that was killed.
HOLDER = ".holder.json"
# The temporary files of `replace`: .NAME.HOST.PROCESS
_LEFT = re.compile(r"\.(study\.yaml|sweep\.yaml|[\w.-]+\.json)\.[^/]+\.[0-9]+")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; see `replace`."""
    replace(path, (json.dumps(value, indent=1) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably: a reader sees the old one or the new one, and after a power cut the new one.

    Raises:
        CheckpointError: the system does not let it, as on a full disk; the old file is as it was.
    """
    # A process number is one machine's.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise refused_by_system(error, path) from None


def write_file(path: Path, content: bytes) -> None:
    """As `replace`, and makes the file's folder where it is missing.

    Raises:
        CheckpointError: as `replace`.
    """
    try:
        make_folder(path.parent)
    except OSError as error:
        raise refused_by_system(error, path.parent) from None
    replace(path, content)


class RunDirectory:
    """One study on disk, locked while this process works on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = FileLock(root / ".lock", timeout=0)
        self.stale = ""  # after `open`: whose lock was found without a process
        self._before: dict[Path, bytes | None] = {}
        self._changes: list[Difference] = []

    # -- opening -----------------------------------------------------------------------------------
    def open(self, study: StudySpec, *, resume: bool, allowed: frozenset[str] = frozenset()) -> StudySpec:
        """Lock the directory and merge this study with what it already holds.

        Returns the study to run: its own arms and seeds, and those already there. Where "study" is allowed,
        what differs is taken from this study, and kept as an override before the directory's study changes.

        Raises:
            ConfigError: in use by another process, foreign files, another study, or unfinished without `resume`.
            CheckpointError: a file cannot be read, or not be written.
        """
        if resume and not os.path.exists(self.root / STUDY):
            raise ConfigError(f"--resume {self.root}", rule="there is no run to resume", remedy="leave out --resume")
        self.lock()
        try:
            return self._enter(study, resume=resume, allowed=allowed)
        except BaseException:
            self.back_out()
            raise

    def lock(self) -> None:
        """Keep others out until `close`; makes the directory where it is missing.

        Raises:
            ConfigError: in use by another process, or not writable.
        """
        try:
            make_folder(self.root)
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"output directory {self.root}",
                rule=f"another run is using it ({holder(self.root, wait_s=1.0)})",
                remedy="wait for it, or choose another --out",
            ) from None
        except OSError as error:
            raise ConfigError(
                f"output directory {self.root}", rule=f"not writable ({error.strerror})", remedy="choose another --out"
            ) from None
        self.stale = f"a stale lock of {holder(self.root)}" if (self.root / HOLDER).exists() else ""
        try:
            write_json(self.root / HOLDER, {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
        except CheckpointError:
            self.release()
            raise

    def merged(self, study: StudySpec, allowed: frozenset[str] = frozenset()) -> StudySpec:
        """The study that `open` would return; nothing is written.

        Raises:
            ConfigError: foreign files, or another study.
        """
        if (self.root / STUDY).exists():
            return self._merge(load_study(self.root), study, allowed)
        others = foreign(self.root)
        if others:
            raise ConfigError(
                f"output directory {self.root} holds {others[0]}", rule="it is not a study of this harness",
                remedy="choose an empty or new --out",
            )  # fmt: skip
        return study

    def _enter(self, study: StudySpec, *, resume: bool, allowed: frozenset[str]) -> StudySpec:
        file = self.root / STUDY
        merged = self.merged(study, allowed)
        if file.exists():
            state = (read_json(self.root / STATUS) or {}).get("state")
            unfinished = [state or "no status"] if state != "done" else self._begun()
            if unfinished and not resume:
                raise ConfigError(
                    f"output directory {self.root}", rule=f"it holds an unfinished run ({unfinished[0]})",
                    remedy="add --resume to continue it, or choose another --out",
                )  # fmt: skip
            places = (file, self.root / STATUS, self.root / IDENTITY)
            self._before = {place: place.read_bytes() if place.exists() else None for place in places}
            # First: a run killed between the two may say that it changed what it did not, never the other way round.
            self._keep_changes()
        replace(file, yaml.safe_dump(merged.model_dump(mode="json"), sort_keys=False).encode())
        return merged

    def _begun(self) -> list[str]:
        """Trials and controls that were begun and not finished; in a finished study jobs leave them, which say nothing of the whole.

        Raises:
            CheckpointError: a record cannot be read.
        """
        folders = [place for trials in ("arms/*/seed-*", "controls/*/*/seed-*") for place in self.root.glob(trials)]
        begun = [each for each in folders if (each / "ledger.jsonl").exists() or (each / "checkpoints").exists()]
        return sorted(
            each.relative_to(self.root).as_posix()
            for each in begun
            if not kept.finished(kept.read(each / "record.json", kept.TrialRecord))
        )

    def refused(self) -> bool:
        """Leave the study, its status and overrides as `open` found them, for a run that was refused; False for a new one."""
        for file, content in self._before.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                replace(file, content)
        return bool(self._before)

    def back_out(self) -> None:
        """Leave the directory as `open` found it, and let others in."""
        try:
            self.refused()
        finally:
            self.close()

    def _merge(self, old: StudySpec, new: StudySpec, allowed: frozenset[str]) -> StudySpec:
        known = {arm.name: arm for arm in old.arms}
        changed = {
            f"arm {arm.name}": (known[arm.name], arm) for arm in new.arms if known.get(arm.name, arm) != arm
        }  # fmt: skip
        self._changes = differences({"study": old.science()}, {"study": new.science()}) + [
            Difference("study", name, was.model_dump(mode="json"), now.model_dump(mode="json"))
            for name, (was, now) in changed.items()
        ]
        if self._changes and "study" not in allowed:
            first = self._changes[0]
            raise ConfigError(
                f"{first.key} differs from the run in {self.root} (it was {first.was}, is {first.now})",
                rule="a run directory holds one study, and an arm keeps its definition",
                remedy="choose another --out, undo the change, or accept it with --allow study: the report will say so",
            )
        arms = {**known, **{arm.name: arm for arm in new.arms}}
        return new.model_copy(
            update={
                "arms": list(arms.values()),
                "seeds": old.seeds + [seed for seed in new.seeds if seed not in old.seeds],
                "baseline": new.baseline or old.baseline,
            }
        )

    def admit(self, now: dict[str, dict[str, Any]], allowed: frozenset[str]) -> list[dict[str, Any]]:
        """Compare who runs with who made what is already here; returns every override so far, and keeps them.

        Raises:
            CheckpointError: data, code, hardware or the number of ranks differ and are not allowed to; or who made
                it cannot be read.
        """
        there = kept.read(self.root / IDENTITY, kept.Identity)
        overrides = there["overrides"] if there else []
        if there and there.get("identity") is not None:
            new = permit(there["identity"], now, allowed, what=f"the run in {self.root}")
            overrides = merge_overrides(overrides, new)
        write_json(self.root / IDENTITY, {"identity": now, "overrides": overrides})
        return overrides

    def _keep_changes(self) -> None:
        """Keep as overrides what `open` was allowed to change, for every run of this directory that is still to come."""
        if self._changes:
            there = kept.read(self.root / IDENTITY, kept.Identity) or {"overrides": []}
            changes = merge_overrides(there["overrides"], [asdict(change) for change in self._changes])
            write_json(self.root / IDENTITY, there | {"overrides": changes})

    def close(self) -> None:
        self.release()

    def release(self) -> None:
        """Let others in; what this process keeps for itself is its own business."""
        if self._lock.is_locked:
            (self.root / HOLDER).unlink(missing_ok=True)
        self._lock.release()

    # -- contents ----------------------------------------------------------------------------------
    @property
    def signs(self) -> Path:
        """Where the ranks of this run leave their signs of life."""
        return self.root

    def trial(self, arm: str, seed: int) -> Path:
        return self.root / "arms" / arm / f"seed-{seed}"

    def record(self, arm: str, seed: int) -> dict[str, Any] | None:
        """What is known of a finished trial; None before its end.

        Raises:
            CheckpointError: there is a record and it cannot be read: it may be all that is left of the trial.
        """
        return kept.read(self.trial(arm, seed) / "record.json", kept.TrialRecord)

    def status(self, state: str, *, exit_code: int = 0, message: str = "") -> None:
        """Say how the run stands: running, done, interrupted or failed."""
        write_json(
            self.root / STATUS, {"state": state, "exit_code": exit_code, "message": message, "time": time.time()}
        )


def foreign(root: Path) -> list[str]:
    """Names of what lies in a directory and is not ours without any study; [] where there is no directory.

    Ours are locks, records, and what a process killed in `replace` left of the first files it wrote.
    """
    found = {place.name for place in root.iterdir()} - {".lock", HOLDER} if root.is_dir() else set()
    found = {name for name in found if not _LEFT.fullmatch(name)}
    jobs = [place.name for place in (root / JOBS).glob("*")] if JOBS in found else []
    if all(name.endswith((".json", ".lock", SUBMITTING)) or _LEFT.fullmatch(name) for name in jobs):
        found.discard(JOBS)
    return sorted(found)


def holder(root: Path, *, wait_s: float = 0.0) -> str:
    """Who holds, or held, a directory's lock, as far as it was written down.

    `wait_s`: how long one that has just got the lock is given to write its name.
    """
    end = time.monotonic() + wait_s
    while not (root / HOLDER).exists() and time.monotonic() < end:
        time.sleep(0.02)
    try:
        known = kept.read(root / HOLDER, kept.Holder)
    except CheckpointError:
        known = None
    if known is None:
        return "unknown"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(known["since"]))
    return f"process {known['pid']} on {known['host']}, since {since}"


def load_study(root: Path) -> StudySpec:
    """The study a directory holds; ConfigError when it holds none, or one that cannot be read."""
    file = root / STUDY
    if not file.is_file():
        raise ConfigError(f"{root}", rule="it holds no study", remedy="give a directory written by run")
    return validate(read_yaml(file), where=str(file))
