"""What the watch on hangs had last been told when a rank began something that can take very long."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any


def note_long_works(folder: str) -> None:
    """Each rank appends [work, the last beat before it, its patience] to its file in `folder`."""
    from harness import conduct, resume, watchdog
    from harness.engine import Engine, engine
    from harness.evaluate import size

    file = Path(folder) / f"rank-{os.environ['RANK']}.jsonl"
    last: list[Any] = ["nothing", 0.0]
    beat_of = watchdog.Watchdog.beat

    def beat(self: watchdog.Watchdog, where: str, patience: float = 1.0) -> None:
        last[:] = [where, patience]
        beat_of(self, where, patience)

    watchdog.Watchdog.beat = beat  # type: ignore[method-assign]
    for home, work in (
        (resume, "newest"), (resume, "read"), (engine, "make_universal"), (Engine, "load_from_other_world"),
        (Engine, "_restore"), (conduct, "vouch"), (size, "measure"),
    ):  # fmt: skip
        setattr(home, work, _noting(getattr(home, work), work, last, file))


def _noting(action: Any, work: str, last: list[Any], file: Path) -> Any:
    @functools.wraps(action, updated=())
    def noted(*given: Any, **named: Any) -> Any:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([work, *last]) + "\n")
        return action(*given, **named)

    return noted


def noted(folder: Path, rank: int) -> list[tuple[str, str, float]]:
    return [tuple(json.loads(line)) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()]
