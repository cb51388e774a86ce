"""Many short runs of the command line in one process, each with what it said and the code it left with."""

from __future__ import annotations

import contextlib
import io
import json
import os
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.chaos import workers
from harness.chaos.trial_runs import enter


@dataclass
class Attempt:
    """One command line, and the variables it needs; afterwards what came of it."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    code: int | None = None
    said: str = ""

    @property
    def crashed(self) -> bool:
        """It ended in a traceback: an error that nobody foresaw."""
        return "Traceback" in self.said


class Accepted(Exception):
    """A run that should have been refused was about to train."""


def _refuse_to_train() -> None:
    from harness import conduct

    def accepted(self: Any, *_: Any) -> None:
        raise Accepted(f"accepted: {self.setting.study.name} was about to be trained")

    conduct.Conductor.train = accepted  # type: ignore[method-assign]


def _attempt(rows: list[Attempt], report: str) -> None:
    """On the forked rank: play each attempt and write down its end."""
    _refuse_to_train()
    with Path(report).open("w", encoding="utf-8") as file:
        for row in rows:
            os.environ.update(row.environment)
            said = io.StringIO()
            code: int | None = None
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    enter(row.arguments)
                except SystemExit as left:
                    code = left.code if isinstance(left.code, int) else int(left.code is not None)
                except Exception:
                    traceback.print_exc()
            file.write(json.dumps([code, said.getvalue()]) + "\n")
            file.flush()


def play(rows: list[Attempt], *, folder: Path) -> list[Attempt]:
    """Play all in one forked process; a row that was not reached keeps `code` None. None of them may train."""
    report = folder / "attempts.jsonl"
    started = workers.start(_attempt, rows, str(report), folder=folder / "attempts-logs", ranks=1)
    started.wait(timeout_s=120.0 + 20.0 * len(rows))
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    for row, line in zip(rows, lines, strict=False):
        row.code, row.said = json.loads(line)
    return rows
