"""The directory of a study: who may write it, what it holds, and what is already done.

`status.json` is the truth about how a run ended: launchers replace exit codes with their own.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from harness import kept
from harness.errors import CheckpointError, ConfigError, IsoBudgetError
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
# Who holds the lock. The system frees a dead process's lock, this file stays: then it tells of a run that was killed.
HOLDER = ".holder.json"


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; see `replace`."""
    replace(path, (json.dumps(value, indent=1) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably: a reader sees the old one or the new one, and after a power cut the new one."""
    # A process number is one machine's.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class RunDirectory:
    """One study on disk, locked while this process works on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = FileLock(root / ".lock", timeout=0)
        self.stale = ""  # after `open`: whose lock was found without a process
        self._before: dict[Path, bytes] = {}
        self._changes: list[Difference] = []

    # -- opening -----------------------------------------------------------------------------------
    def open(self, study: StudySpec, *, resume: bool, allowed: frozenset[str] = frozenset()) -> StudySpec:
        """Lock the directory and merge this study with what it already holds.

        Returns the study to run: its own arms and seeds, and those already there. Where "study" is allowed,
        what differs is taken from this study, and kept as an override.

        Raises:
            ConfigError: in use by another process, foreign files, another study, or unfinished without `resume`.
        """
        if resume and not (self.root / STUDY).exists():
            raise ConfigError(f"--resume {self.root}", rule="there is no run to resume", remedy="leave out --resume")
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
        write_json(self.root / HOLDER, {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
        file = self.root / STUDY
        if not file.exists():
            others = foreign(self.root)
            if others:
                self.close()
                raise ConfigError(
                    f"output directory {self.root} holds {others[0]}", rule="it is not a study of this harness",
                    remedy="choose an empty or new --out",
                )  # fmt: skip
            merged = study
        else:
            try:
                merged = self._merge(load_study(self.root), study, allowed)
                state = (read_json(self.root / STATUS) or {}).get("state")
                if state != "done" and not resume:
                    raise ConfigError(
                        f"output directory {self.root}", rule=f"it holds an unfinished run ({state or 'no status'})",
                        remedy="add --resume to continue it, or choose another --out",
                    )  # fmt: skip
            except IsoBudgetError:
                self.close()
                raise
        self._before = {f: f.read_bytes() for f in (file, self.root / STATUS) if file.exists() and f.exists()}
        replace(file, yaml.safe_dump(merged.model_dump(mode="json"), sort_keys=False).encode())
        return merged

    def refused(self) -> bool:
        """Leave study and status as `open` found them, for a run that was refused; False where there was none before."""
        for file, content in self._before.items():
            replace(file, content)
        return bool(self._before)

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
        before = there["overrides"] if there else []
        new = [asdict(change) for change in self._changes]
        if there and there.get("identity") is not None:
            new += permit(there["identity"], now, allowed, what=f"the run in {self.root}")
        overrides = merge_overrides(before, new)
        write_json(self.root / IDENTITY, {"identity": now, "overrides": overrides})
        return overrides

    def keep_changes(self) -> None:
        """Keep as overrides what `open` was allowed to change, for the runs of this directory that are still to come."""
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
    """Names of what lies in a directory and is there without any study; [] where there is no directory."""
    found = {place.name for place in root.iterdir()} - {".lock", HOLDER} if root.is_dir() else set()
    if JOBS in found and all(place.suffix in (".json", ".lock") for place in (root / JOBS).glob("*")):
        found.remove(JOBS)
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
