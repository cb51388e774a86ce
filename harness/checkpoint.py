"""Checkpoints: written aside by all ranks, described by a manifest, published by one rename.

A checkpoint either has a manifest that matches every byte of it or does not exist for the reader. The
newest complete one is found by looking at manifests; there is no pointer file to be wrong. Nothing
complete is removed before something newer is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harness import manifest
from harness.errors import CheckpointError
from harness.ranks import Ranks

STATE = "state.json"
KEEP = 2
_NAME = re.compile(r"step-(\d{8})(?:-(\d+))?")
_ASIDE = (".writing-*", ".removing-*")

T = TypeVar("T")


class _Failed(Exception):
    """Some rank could not do its part; the text says which and why."""


class Found(NamedTuple):
    """An intact checkpoint, and why newer ones were not taken."""

    folder: Path
    state: dict[str, Any]
    passed_over: list[str]


def save(
    root: Path, *, step: int, state: dict[str, Any], ranks: Ranks, write: Callable[[Path], None], keep: int = KEEP
) -> str:
    """Publish one checkpoint; every rank calls this and writes its share through `write(folder)`.

    A process that dies at any point leaves the older checkpoints as they were, and either all of the
    new one or nothing a reader sees. Returns, on every rank, why older ones could not be removed: the new one
    is complete all the same, and the next save tries again; "" where they could.

    Args:
        root: where this run's checkpoints live.
        state: plain JSON that belongs to the checkpoint (ledger, stream position, counters).
        keep: how many checkpoints stay.

    Raises:
        CheckpointError: any rank could not write (full disk, lost mount); the older ones stay intact.
    """
    temporary = root / f".writing-{step:08d}"
    try:
        _on_main(ranks, lambda: prepare(root, temporary))
        _everywhere(ranks, lambda: write(temporary))
        _on_main(ranks, lambda: (temporary / STATE).write_text(json.dumps(state), encoding="utf-8"))
        names = _seen_by_all(ranks, temporary)
        # All files are there: ranks share the reading, which costs more than the writing did.
        parts = _everywhere(ranks, lambda: manifest.describe(temporary, names[ranks.rank :: ranks.world]))
        files = {name: facts for part in parts for name, facts in part.items()}
        _on_main(ranks, lambda: manifest.seal(temporary, files))
        _on_main(ranks, lambda: publish(temporary, root, step))
    except _Failed as failure:
        # Before the clean-up: writers seldom say that the disk is full (PyTorch says "unexpected pos 128 vs 0").
        room = ranks.share(_room(root) if ranks.is_main else "")
        if ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint of step {step} in {root.name}", rule=f"it could not be written ({failure}; {room})",
            remedy="free space or choose another --out; the previous checkpoint is intact",
        ) from None  # fmt: skip
    return ranks.on_main(lambda: _tidy(root, keep))


def prepare(root: Path, temporary: Path) -> None:
    """An empty folder to write in; what an earlier crash left half written or half removed goes."""
    for pattern in _ASIDE:
        for leftover in root.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
    manifest.make_folder(root)
    temporary.mkdir()


def publish(temporary: Path, root: Path, step: int) -> None:
    """Make the folder visible under its step, by a rename that happens or does not.

    What the checkpoint counts on beside it, the ledger's file above all, is entered on the disk first.
    """
    final = root / f"step-{step:08d}"
    again = 1
    while final.exists():  # resumed, and saved again at the same step
        again += 1
        final = root / f"step-{step:08d}-{again}"
    manifest.sync(root.parent)
    os.replace(temporary, final)
    manifest.sync(root)


def clean(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; each leaves readers' sight before its files go."""
    for old in candidates(root)[keep:]:
        aside = root / f".removing-{old.name}"
        os.replace(old, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _tidy(root: Path, keep: int) -> str:
    """`clean`, or the words why not: they are the same each time, and said once."""
    try:
        clean(root, keep)
    except OSError as error:
        return f"old checkpoints could not be removed ({error.strerror}): more of them stay than the {keep} newest"
    return ""


def set_aside(root: Path, taken: Path) -> None:
    """Take what was passed over for `taken` out of readers' sight: a bad one counts as none of the `keep` newest.

    Whatever is newer than the checkpoint that a run goes on from is no part of its life. It is renamed, not removed.
    """
    for folder in candidates(root):
        if folder == taken:
            return
        aside, again = root / f"bad-{folder.name}", 1
        while aside.exists():
            again += 1
            aside = root / f"bad-{folder.name}.{again}"
        os.replace(folder, aside)


def newest(root: Path) -> Found | None:
    """The newest checkpoint whose every byte matches its manifest, with its state; None if none was ever made.

    Newer ones that were passed over are named with their reasons: whoever resumes says so.

    Raises:
        CheckpointError: checkpoints exist and all are bad; each one's reason is named.
    """
    reasons: list[str] = []
    for folder in candidates(root):
        reason = manifest.fault(folder)
        if reason is None:
            try:
                return Found(folder, json.loads((folder / STATE).read_text(encoding="utf-8")), reasons)
            except (OSError, ValueError) as error:
                reason = f"{STATE} is unreadable ({type(error).__name__})"
        reasons.append(f"{folder.name}: {reason}")
    if reasons:
        raise CheckpointError(
            "; ".join(reasons), rule="no checkpoint is intact", remedy="restore one, or remove the run and start again"
        )
    return None


def candidates(root: Path) -> list[Path]:
    """Every folder published as a checkpoint, newest first, good or bad."""
    found = [(match, path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda f: (int(f[0][1]), int(f[0][2] or 1)), reverse=True)]


def newest_step(root: Path) -> int:
    """The step of the newest folder published as a checkpoint, good or bad; 0 where there is none."""
    return next((int(match[1]) for path in candidates(root)[:1] if (match := _NAME.fullmatch(path.name))), 0)


def _seen_by_all(ranks: Ranks, folder: Path) -> list[str]:
    """The files of all ranks; _Failed on every rank when rank 0, who seals them, does not see them all.

    Otherwise a rank on a machine with a disk of its own would write where nobody reads, and a checkpoint
    without its share would look complete.
    """
    seen = ranks.gather(manifest.files_of(folder))
    for rank, names in enumerate(seen):
        if unseen := set(names) - set(seen[0]):
            raise _Failed(f"rank 0 does not see {min(unseen)} of rank {rank}: all ranks must share this directory")
    return seen[0]


def _room(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 1e6:,.2f} MB are free there"
    except OSError as error:
        return f"the folder is gone: {error.strerror}"


def _everywhere(ranks: Ranks, action: Callable[[], T]) -> list[T]:
    """Every rank acts; all results on every rank, or _Failed on every rank when one could not.

    Any exception counts: whatever a writer raises (OSError, PyTorch's RuntimeError, safetensors' own),
    the other ranks must not wait for this one, and the older checkpoints must stay.
    """
    result, failure = None, ""
    try:
        result = action()
    except Exception as error:
        failure = f"rank {ranks.rank}: {' '.join(str(error).split())[:300] or type(error).__name__}"
    both = ranks.gather((result, failure))
    failures = [text for _, text in both if text]
    if failures:
        raise _Failed(failures[0])
    return [value for value, _ in both]


def _on_main(ranks: Ranks, action: Callable[[], Any]) -> None:
    """Rank 0 acts, the others wait and learn whether it could."""

    def act() -> None:
        if ranks.is_main:
            action()

    _everywhere(ranks, act)
