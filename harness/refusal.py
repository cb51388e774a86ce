"""What a run or job leaves in its directory when it ends before it has entered it: its exit code, for schedulers.

Launchers replace the exit codes of their ranks with their own (torchrun: 1), and a scheduler that sees 1 starts a
hopeless job again and again. What was trained before, its study and its status stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import CheckpointError, Preempted
from harness.jobs import JOBS, WHOLE, JobRecord, Work
from harness.rundir import STUDY, SWEEP, foreign


def given_place(command: str, arguments: list[str]) -> argparse.Namespace:
    """Where a `run` or `job` whose other words may be wrong would have gone."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--out")
    parser.add_argument("--auto-resume", action="store_true")
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return argparse.Namespace(out=None)
    if command == "job":
        found.work = next((word for word in rest[1:] if Work.read(word)), "")
    return found


def note(options: argparse.Namespace, *, exit_code: int, message: str, since: float) -> None:
    """Add an ended attempt to the record of this run or job, unless it has recorded its end itself since `since`.

    A run is noted in a directory that a run has worked in, and in a new one with --auto-resume, which schedulers give: a
    person's slip makes no directory. Never among foreign files, and never while another run or job holds the record.
    """
    if not options.out:
        return
    root = Path(options.out)
    work = Work.read(options.work) if "work" in options else Work(WHOLE)
    # A record that cannot be read is left for whoever mends it; where nothing can be written, nothing is.
    with contextlib.suppress(OSError, Timeout, CheckpointError):
        begun = (root / STUDY).exists() or (root / SWEEP).exists()
        expected = "work" in options or options.auto_resume or (root / JOBS).is_dir()
        if work is None or not (begun or (expected and not foreign(root))):
            return
        lock = root / ".lock" if work.kind in (WHOLE, "report") else root / JOBS / work.lock
        (root / JOBS).mkdir(parents=True, exist_ok=True)
        # Whoever holds it is at work, and its record is its own.
        with FileLock(lock, timeout=0):
            state = "interrupted" if exit_code == Preempted.exit_code else "failed"
            JobRecord(root, work.name).refused(state, exit_code=exit_code, message=message, since=since)
