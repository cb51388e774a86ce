"""Notices that a run hangs, ends it, and names the rank it waits for and where that rank stands.

Every rank writes a sign of life next to the results: how often it has moved on, where it is, and a count kept by a
thread of its own. A rank stuck for the whole time-out looks at the others. If one of them moved meanwhile, it waits
on; if none did, everyone leaves. The one that hangs is the one whose thread is silent too (stopped, dead, a lost
machine), or else the one that has moved on the fewest times, or that is not waiting inside an exchange with the others
while they are. Files and not messages, because the rank that hangs may
be the one that would have carried the messages.

Ranks that do not share the directory cannot see each other's files: then there is no watch, and the run says so.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import kept
from harness.errors import CheckpointError, IsoBudgetError, Preempted
from harness.ranks import Ranks

SIGNS = ".ranks"
# Nobody moved for this long: the run hangs. Above the slowest compilation, below a scheduler's patience.
HANG_TIMEOUT_S = 600.0
# Work that moves nobody until it ends and grows with the model (saving, reading, compiling) may take this many times as long.
LONG_WORK = 4.0
# A rank is silent when its thread has missed this many of its own intervals.
MISSED = 3
# How long the ranks that still live are given to find out for themselves before one of them leaves.
GRACE_S = 2.0
# This many calls of a hung rank are told.
STACK_CALLS = 8


@dataclass
class Sign:
    """What one rank last said of itself."""

    moved: int
    where: str
    pulse: int
    host: str
    pid: int
    waits: bool = False
    stack: str = ""


class Watchdog:
    """Watches one run on every rank; `beat` is called wherever a rank moves on.

    Args:
        root: a directory that all ranks of this run, and no others, share.
        timeout_s: how long a rank may stand still while all others do; 0 turns the watch off.
        give_up: called once, in the watching thread, with what was found; it must end the process.
    """

    def __init__(self, root: Path, ranks: Ranks, *, timeout_s: float, give_up: Callable[[str], None]) -> None:
        self.folder = root / SIGNS
        self.timeout_s = timeout_s
        self.off = "" if timeout_s > 0 else "turned off"
        self._ranks = ranks
        self._give_up = give_up
        self._host = socket.gethostname()
        self._interval_s = min(5.0, timeout_s / 10) if timeout_s > 0 else 0.0
        self._moved, self._where, self._since, self._patience = 0, "starting", time.monotonic(), 1.0
        self._pulse = 0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: dict[int, tuple[Sign, float, float]] = {}  # sign, when it last moved, when its thread last wrote
        self._stacks: Any = None

    # -- the life of a watch -------------------------------------------------------------------------
    def __enter__(self) -> Watchdog:
        if self.off:
            return self
        if self._ranks.is_main:
            self.folder.mkdir(exist_ok=True)
            for old in self.folder.iterdir():  # of a run that was killed
                old.unlink()
        self._ranks.barrier()
        with contextlib.suppress(OSError):
            self._write()
        self._ranks.barrier()
        blind = [rank for rank, sees in enumerate(self._ranks.gather(self._sees_all())) if not sees]
        if blind:
            self.off = f"rank {blind[0]} does not see the others' signs of life: the run's directory is not shared"
            return self
        self._stacks = self._stack_file(self._ranks.rank).open("w", encoding="utf-8")
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        _watching.append(self)
        self._since = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._ending.set()
        self._thread.join()
        _watching.remove(self)
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()
        for file in (self._sign_file(self._ranks.rank), self._stack_file(self._ranks.rank)):
            file.unlink(missing_ok=True)
        if self._ranks.is_main:
            with contextlib.suppress(OSError):  # others may still be leaving
                self.folder.rmdir()

    def beat(self, where: str, patience: float = 1.0) -> None:
        """This rank moved on and is now at `where`, which may take `patience` times the time-out."""
        self._moved += 1
        self._where, self._patience, self._since = where, patience, time.monotonic()

    # -- signs of life -------------------------------------------------------------------------------
    def _sign_file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _stack_file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.stack"

    def _write(self) -> None:
        self._pulse += 1
        waits, stack = _main_stack()
        sign = Sign(self._moved, self._where, self._pulse, self._host, os.getpid(), waits, stack)
        temporary = self.folder / f".rank-{self._ranks.rank}"
        temporary.write_text(json.dumps(vars(sign)), encoding="utf-8")
        os.replace(temporary, self._sign_file(self._ranks.rank))

    def _read(self, rank: int) -> Sign | None:
        told = kept.read_json(self._sign_file(rank))
        try:
            return None if told is None else kept.build(Sign, told, of=self._sign_file(rank))
        except CheckpointError:
            return None

    def _sees_all(self) -> bool:
        return all(self._sign_file(rank).exists() for rank in range(self._ranks.world))

    # -- the watching thread -------------------------------------------------------------------------
    def _watch(self) -> None:
        while not self._ending.wait(self._interval_s):
            with contextlib.suppress(OSError):  # a full disk must not end the watch
                self._write()
            now = time.monotonic()
            self._look(now)
            if now - self._since < self.timeout_s * self._patience:
                continue
            if all(now - moved >= self.timeout_s * self._patience for _, moved, _ in self._seen.values()):
                self._leave(now)
                return

    def _look(self, now: float) -> None:
        """Read every rank's sign; times are this rank's own clock's, so other machines' clocks do not matter."""
        for rank in range(self._ranks.world):
            sign = self._read(rank)
            before = self._seen.get(rank)
            if before is None:
                sign = sign or Sign(0, "starting", 0, "unknown host", 0)
                self._seen[rank] = (sign, self._since, now)
            elif sign is not None:
                last, moved, wrote = before
                moved = now if sign.moved != last.moved else moved
                self._seen[rank] = (sign, moved, now if sign.pulse != last.pulse else wrote)

    def _leave(self, now: float) -> None:
        time.sleep(GRACE_S)  # the others reach the same conclusion
        self._give_up(self._verdict(now))

    def _verdict(self, now: float) -> str:
        """Who hangs, where, and the stack of its main thread while its process still reacts."""
        signs = {rank: sign for rank, (sign, _, _) in self._seen.items()}
        silent = [rank for rank, (_, _, wrote) in self._seen.items() if now - wrote > MISSED * self._interval_s]
        fewest = min(sign.moved for sign in signs.values())
        behind = [rank for rank, sign in signs.items() if sign.moved == fewest]
        # All equally far: whoever waits for an exchange has come to it, the others have not.
        busy = [rank for rank in behind if not signs[rank].waits]
        guilty = silent or busy or behind
        said = f"nobody moved for {self.timeout_s:g} s; "
        if len(guilty) == self._ranks.world and self._ranks.world > 1:
            first = signs[guilty[0]]
            return f"{said}all {self._ranks.world} ranks are at {first.where}; stack of rank {guilty[0]}: {first.stack}"
        parts = []
        for rank in guilty:
            sign = signs[rank]
            state = "its process does not react" if rank in silent else f"stack: {sign.stack}"
            parts.append(
                f"rank {rank} (host {sign.host}, process {sign.pid}) hangs: last seen at {sign.where}, {state}"
            )
        return said + "; ".join(parts)


# Files of PyTorch and DeepSpeed in which a rank waits for others.
_EXCHANGES = ("torch/distributed/", "deepspeed/comm/")


def _main_stack() -> tuple[bool, str]:
    """Whether the main thread waits in an exchange between ranks, and its innermost calls in one line."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    calls = traceback.extract_stack(frame)[::-1][:STACK_CALLS] if frame is not None else []
    waits = bool(calls) and any(part in calls[0].filename for part in _EXCHANGES)
    return waits, " < ".join(f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls)


_watching: list[Watchdog] = []


def beat(where: str, patience: float = 1.0) -> None:
    """This rank moved on; a no-op outside a watched run."""
    for watchdog in _watching:
        watchdog.beat(where, patience)


def watch(
    root: Path, ranks: Ranks, *, timeout_s: float | None = None, record: Callable[[str], None] = lambda found: None,
    remedy: str = "continue with --resume",
) -> Watchdog:  # fmt: skip
    """A watch that ends its run as resumable when no rank moves any more, and has what it found recorded."""
    chosen = HANG_TIMEOUT_S if timeout_s is None else timeout_s
    return Watchdog(root, ranks, timeout_s=chosen, give_up=leave(ranks, record, remedy))


def leave(ranks: Ranks, status: Callable[[str], None], remedy: str) -> Callable[[str], None]:
    """What ends a hung rank: says what was found, lets the lowest rank record it, and exits as resumable.

    The main thread waits inside a collective and cannot be asked to leave, so the process ends without it.
    """

    def give_up(found: str) -> None:
        print(f"isobudget: hang: {found}; {remedy}", file=sys.stderr, flush=True)
        if not ranks.is_main:
            time.sleep(0.5)  # rank 0 writes last, unless it is the one that hangs
        with contextlib.suppress(OSError, IsoBudgetError):
            status(found)
        os._exit(Preempted.exit_code)

    return give_up
