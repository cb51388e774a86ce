"""A system that refuses rank 0 one write; module-level, so that a forked rank finds it by name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from harness.chaos.faults import here


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _refused(*_: Any, **__: Any) -> Any:
    raise full()


def ledger_sync(save: int) -> None:
    """The flush of the ledger in the save with this number, from 1."""
    from harness.budget import Ledger

    sync_of, calls = Ledger.sync, [0]

    def sync(self: Ledger) -> None:
        calls[0] += 1
        if calls[0] == save:
            raise full()
        sync_of(self)

    if here(0):
        Ledger.sync = sync  # type: ignore[method-assign]


def ledger_line(posting: int) -> None:
    """The line with this number."""
    from harness.budget import Ledger

    write_of = Ledger._write

    def write(self: Ledger, row: str) -> None:
        if self.postings == posting:
            from harness.errors import refused_by_system

            raise refused_by_system(full(), self._path)
        write_of(self, row)

    if here(0):
        Ledger._write = write  # type: ignore[method-assign]


def _before_the_loop(what: str) -> None:
    from harness import train

    run_of = train.Trial.run

    def run(self: train.Trial) -> Any:
        place: Path = self.directory / what
        if what == "snapshots":
            place.touch()
        else:
            place.mkdir()
        return run_of(self)

    if here(0):
        train.Trial.run = run  # type: ignore[method-assign]


def metrics_row() -> None:
    """Where rows of metrics should go is a folder."""
    _before_the_loop("metrics.jsonl")


def snapshot() -> None:
    """Where the snapshots' folder should be is a file."""
    _before_the_loop("snapshots")


def snapshot_weights() -> None:
    """safetensors' own error: it does not speak of OSError."""
    from safetensors import SafetensorError

    from harness import curve

    def save_file(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    if here(0):
        curve.save_file = save_file


def export() -> None:
    from harness import conduct

    if here(0):
        conduct.export = _refused


def answers() -> None:
    """While evaluating, where each rank works alone."""
    from harness.evaluate import agreement

    if here(0):
        agreement.keep = _refused


def publication() -> None:
    from harness.evaluate.suite import Suite

    if here(0):
        Suite.publish = _refused  # type: ignore[method-assign]


def report() -> None:
    import importlib

    # By name: commands lie above what a fault may know.
    run: Any = importlib.import_module("harness.commands.run")
    if here(0):
        run.show_report = _refused
