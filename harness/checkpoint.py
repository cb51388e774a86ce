"""Checkpoints: written aside, fsynced, described by a manifest, published by one rename.

A checkpoint either has a manifest that matches every byte of it or does not exist for the reader. The
newest complete one is found by looking at manifests, never by following a pointer file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import CheckpointError
from harness.ranks import Ranks

MANIFEST = "manifest.json"
_PREFIX = "step-"


def save(
    root: Path, *, step: int, state: dict[str, Any], ranks: Ranks, write: Callable[[Path], None], keep: int = 2
) -> None:
    """Publish one checkpoint; every rank calls this and writes its share through `write(folder)`.

    Args:
        root: where this run's checkpoints live.
        state: plain JSON that belongs to the checkpoint (ledger, stream position, counters).
        keep: how many complete checkpoints stay.

    Raises:
        CheckpointError: any rank could not write (full disk, lost mount); the older ones stay intact.
    """
    final, temporary = root / f"{_PREFIX}{step:08d}", root / f".writing-{step:08d}"
    failure = ""
    if ranks.is_main:
        try:
            for leftover in root.glob(".writing-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            failure = str(error)
    failure = ranks.share(failure)
    if not failure:
        try:
            write(temporary)
        except (OSError, RuntimeError) as error:
            failure = f"rank {ranks.rank}: {error}"
        failures = [text for text in ranks.gather(failure) if text]
        failure = failures[0] if failures else ""
    if ranks.is_main and not failure:
        try:
            (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
            _seal(temporary)
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            _sync(root)
            for old in _candidates(root)[keep:]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            failure = str(error)
    failure = ranks.share(failure)
    if failure:
        if ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint of step {step} in {root.name}", rule=f"it could not be written ({failure})",
            remedy="free space or choose another --out; the previous checkpoint is intact",
        )  # fmt: skip


def newest(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose every byte matches its manifest, with its state; None if none was ever made.

    Raises:
        CheckpointError: checkpoints exist and all are bad; each one's reason is named.
    """
    reasons: list[str] = []
    for folder in _candidates(root):
        reason = _fault(folder)
        if reason is None:
            return folder, json.loads((folder / "state.json").read_text(encoding="utf-8"))
        reasons.append(f"{folder.name}: {reason}")
    if reasons:
        raise CheckpointError(
            "; ".join(reasons), rule="no checkpoint is intact", remedy="restore one, or remove the run and start again"
        )
    return None


def _candidates(root: Path) -> list[Path]:
    return sorted(root.glob(f"{_PREFIX}*"), reverse=True) if root.is_dir() else []


def _seal(folder: Path) -> None:
    """Write the manifest last: name, size and hash of every other file, all flushed to disk."""
    files: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        _sync(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    body = json.dumps({"files": files}, sort_keys=True)
    seal = hashlib.sha256(body.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({"files": files, "seal": seal}, sort_keys=True), encoding="utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)


def _fault(folder: Path) -> str | None:
    """Why a checkpoint must not be loaded, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if hashlib.sha256(json.dumps({"files": files}, sort_keys=True).encode()).hexdigest() != manifest["seal"]:
            return "its manifest was altered"
        for name, facts in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != facts["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
            if _hash(path) != facts["sha256"]:
                return f"{name} was altered"
        extra = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - set(files) - {MANIFEST}
        return f"{min(extra)} is not in its manifest" if extra else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"no readable manifest ({type(error).__name__})"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
