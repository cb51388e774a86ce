"""Ranks for faults: processes forked from a server that imported PyTorch and DeepSpeed once.

A real launch takes ten seconds before its first step; a forked rank takes a tenth of one. What is forked has never
joined ranks nor run a backward pass, so no thread and no lock is inherited.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness.ranks import free_port

# Longer than any action of a row; a rank still there after it is a failure, not a wait.
PATIENCE_S = 300.0


@dataclass
class Launch:
    """Ranks that were started together."""

    processes: list[BaseProcess]
    logs: list[Path]

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send one rank a signal; a rank that has already ended is left alone."""
        pid = self.processes[rank].pid
        if pid is not None and self.processes[rank].is_alive():
            os.kill(pid, number)

    def wait(self, *, timeout_s: float = PATIENCE_S) -> list[int | None]:
        """Exit codes by rank, negative for signals; None for a rank that had to be killed after the time-out."""
        end = time.monotonic() + timeout_s
        codes: list[int | None] = []
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            codes.append(process.exitcode)
        for process, code in zip(self.processes, codes, strict=True):
            if code is None:
                process.kill()
                process.join()
        return codes

    def wait_for(self, rank: int, *, timeout_s: float = PATIENCE_S) -> int | None:
        """One rank's exit code, or None when it is still there after the time-out."""
        self.processes[rank].join(timeout_s)
        return self.processes[rank].exitcode

    def close(self) -> None:
        """Kill whatever is left, stopped processes too."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def output(self, rank: int) -> str:
        """What the rank printed, both streams."""
        return self.logs[rank].read_text(encoding="utf-8", errors="replace") if self.logs[rank].exists() else ""

    def outputs(self) -> str:
        return "\n".join(self.output(rank) for rank in range(len(self.logs)))


def context() -> ForkServerContext:
    """How ranks are made; also makes what they share, such as barriers."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["harness.chaos.preload"])
    return made


def start(
    action: Callable[..., int | None],
    *arguments: Any,
    folder: Path,
    ranks: int = 2,
    environment: dict[str, str] | None = None,
) -> Launch:
    """Run a module-level function on every rank; what it returns is the rank's exit code.

    Args:
        folder: where each rank's output goes, as rank-N.log (appended).
        environment: added to the ranks' environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1", **(environment or {})}
    shared |= {k: os.environ[k] for k in ("ISOBUDGET_CACHE", "HF_HUB_OFFLINE") if k in os.environ and k not in shared}
    logs = [folder / f"rank-{rank}.log" for rank in range(ranks)]
    processes: list[BaseProcess] = []
    for rank, log in enumerate(logs):
        mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context().Process(target=_rank, args=(action, arguments, mine, log), name=f"rank-{rank}")
        process.start()
        processes.append(process)
    return Launch(processes, logs)


def _rank(
    action: Callable[..., int | None], arguments: tuple[Any, ...], environment: dict[str, str], log: Path
) -> None:
    """The life of one rank: its environment, its output, its action, its exit code."""
    os.environ.update(environment)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # DeepSpeed's buckets are gigabytes of torch.empty: filling them takes ten seconds a step and decides nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    code = action(*arguments)
    sys.stdout.flush()
    sys.exit(code or 0)
