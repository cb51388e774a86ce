"""Faults inside a save: a process that dies at a stage, a slow writer, a full disk; module-level, for forked ranks."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from harness.chaos.faults import here

STAGES = ("shard", "manifest", "rename", "pointer", "clean-up")
SHARD_BYTES = 64 * 1024
# What stays free on the full disk: enough for a few lines, too little for any shard.
LEFT_BYTES = 16 * 1024


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_share(folder: Path, rank: int, step: int) -> None:
    """What a rank writes in a save without an engine."""
    (folder / "engine").mkdir(exist_ok=True)
    (folder / "engine" / f"shard-{rank}.bin").write_bytes(bytes([rank, step % 256]) * (SHARD_BYTES // 2))


def saves(root: str, steps: list[int], stage: str, victim: int, pause_s: float) -> int:
    """Every rank saves at `steps`; in the last save one of them dies at `stage` and, where asked, another is slow.

    All stages but the shard are rank 0's. Returns the exit code of what a surviving rank meets.
    """
    from harness import checkpoint
    from harness.engine import connect
    from harness.errors import IsoBudgetError

    ranks = connect(timeout_s=20.0, control_s=20.0)
    for step in steps:
        last = step == steps[-1] and stage != ""
        if last and stage != "shard":
            die_at(stage, Path(root))

        def write(folder: Path, step: int = step, last: bool = last) -> None:
            if last and stage == "shard" and ranks.rank == victim:
                (folder / "engine").mkdir(exist_ok=True)
                (folder / "engine" / f"shard-{ranks.rank}.bin").write_bytes(b"half")
                die()
            if last and pause_s:
                time.sleep(pause_s)
            write_share(folder, ranks.rank, step)

        try:
            checkpoint.save(Path(root), step=step, state={"step": step}, ranks=ranks, write=write)
        except IsoBudgetError as error:
            print(error, flush=True)
            return error.exit_code
        except RuntimeError as error:  # gloo: the other rank is gone
            print(error, flush=True)
            return 1
    return 0


def die_at(stage: str, root: Path) -> None:
    """Rank 0 dies in the middle of a stage of its next save."""
    from harness import checkpoint, manifest

    def half_a_manifest(folder: Path, files: dict[str, Any]) -> None:
        (folder / manifest.MANIFEST).write_text('{"files": {"state.json"', encoding="utf-8")
        die()

    if stage == "manifest":
        checkpoint.manifest.seal = half_a_manifest
    if stage == "rename":
        checkpoint.publish = lambda *_: die()
    if stage == "pointer":
        # The rename is done: this is where a pointer would be written, and where the folder is flushed.
        flush = manifest.sync
        checkpoint.manifest.sync = lambda path: die() if path == root else flush(path)
    if stage == "clean-up":

        def remove_half(folder: Path, **_: Any) -> None:
            next(p for p in sorted(Path(folder).rglob("*")) if p.is_file()).unlink()
            die()

        checkpoint.clean.__globals__["shutil"] = type("shutil", (), {"rmtree": staticmethod(remove_half)})


def fill_disk_before_save(rank: int, number: int, filler: str) -> None:
    """Before the save with this number (from 1) one rank fills the disk; without `filler` its files may not grow."""
    if not here(rank):
        return
    from harness import checkpoint

    save_of, seen = checkpoint.save, [0]

    def save(root: Path, **rest: Any) -> None:
        seen[0] += 1
        if seen[0] == number and filler:
            with Path(filler).open("wb") as file:
                free = shutil.disk_usage(root).free
                file.write(bytes(max(0, free - LEFT_BYTES)))
                os.fsync(file.fileno())
        if seen[0] == number and not filler:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT_BYTES, resource.RLIM_INFINITY))
        save_of(root, **rest)

    checkpoint.save = save


def other_code(value: str) -> None:
    """The program's files are others."""
    from harness import environment

    environment.source_hash = lambda: value


def other_hardware(name: str) -> None:
    """The machine is another one."""
    from harness import hardware

    describe_of = hardware.describe
    hardware.describe = lambda: {**describe_of(), "cpu": name, "gpus": []}
