"""How a study stands as a whole while jobs work on it: whose word counts, and which run trains its teacher.

Its status is written by a run of the whole study or by the job that gathers the report. Where that job fails before it gathers,
its own record is all there is. Of words on several machines the later is known by their clocks: it is shown, and decides nothing.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from harness import kept
from harness.jobs import JOBS, WHOLE, Work
from harness.recorded import unless_unreadable

GRAPH = "graph"
# The stage that trains a teacher, and where in the study's directory it does.
TEACHER = "teacher"
FAILURES = ("failed", "died")


def standing(status: dict[str, Any], jobs: list[dict[str, Any]], *, dead: bool) -> dict[str, Any]:
    """The word on the whole study: state, exit code and message; {} where nobody has said anything that still holds.

    Args:
        status: the last word of status.json or a run of the whole study.
        jobs: {"job": its name, "attempts": oldest first} for every record.
        dead: the run of the whole study is said to run, and its process is gone.
    """
    word = {**status, "state": "died"} if dead else status
    said = status.get("time") or status.get("ended") or 0.0
    attempts = {job["job"]: job["attempts"] for job in jobs if job["job"] != WHOLE}
    report = (attempts.get("report") or [{}])[-1]
    if report.get("state") == "failed" or (report.get("state") == "running" and is_dead(report)):
        ended = report.get("ended") or report["started"]
        # A finished study stays finished, unless the attempt that finished it failed behind that.
        if ended > said and (status.get("state") != "done" or report["started"] <= said):
            state = "failed" if report["state"] == "failed" else "died"
            word, said = (
                {**report, "state": state, "message": report.get("message") or status.get("message", "")},
                ended,
            )
    # What failed has been taken up again.
    if word.get("state") in FAILURES and any(tries and tries[-1]["started"] > said for tries in attempts.values()):
        return {}
    return word


def teacher_of(root: Path, unreadable: list[str]) -> tuple[Path, Work] | None:
    """The directory and the work of the run that trains a study's teacher, where `submit` made one of it."""
    graph = unless_unreadable(lambda: kept.read(root / JOBS / f"{GRAPH}.json", kept.Graph), unreadable)
    for stage in graph["stages"] if graph else []:
        work = Work.read(stage["works"][0]) if stage["name"] == TEACHER and stage["works"] else None
        if work is not None:
            return root / TEACHER, work
    return None


def trains_a_teacher(root: Path) -> bool:
    """Whether this directory is that of another study's teacher, which nobody reports."""
    root = root.resolve()
    found = teacher_of(root.parent, [])
    return found is not None and found[0] == root


def is_dead(attempt: dict[str, Any]) -> bool:
    """True when the attempt ran on this machine and its process is gone; other machines cannot be asked."""
    if attempt.get("host") != socket.gethostname():
        return False
    try:
        os.kill(attempt["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
