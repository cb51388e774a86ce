"""Two runs and one directory: a race for its lock, and the lock of a run that was killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.chaos import workers
from harness.chaos.faults import PLACES, Fault, signal_at
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, launch

NUMBER = 19
FAULT = "two runs, one directory, 100 races; a stale lock"
PASSES_WHEN = "exactly one wins; the stale lock is named"

RACES, RACES_SHORT = 100, 10
WON, LOST = "won", "lost"


def race(file: str, folder: str, count: int, line: Any) -> None:
    """On each of two processes: run for every directory at the same moment, and write down how it went."""
    from harness.errors import ConfigError
    from harness.rundir import RunDirectory
    from harness.study import load

    study = load(file)
    for number in range(count):
        directory = RunDirectory(Path(folder) / f"race-{number}")
        line.wait()
        try:
            directory.open(study, resume=False)
            result = WON
        except ConfigError as error:
            result = LOST if "another run is using it (process" in str(error) else str(error)
        line.wait()
        (Path(folder) / f"race-{number}-{os.environ['RANK']}").write_text(result, encoding="utf-8")
        directory.close()


def run(seed: int, short: bool, folder: Path) -> Outcome:
    count = RACES_SHORT if short else RACES
    file = brief_study(folder)
    line = workers.context().Barrier(2)
    codes = workers.start(race, str(file), str(folder), count, line, folder=folder / "racers").wait()
    results = (
        [sorted((folder / f"race-{n}-{r}").read_text() for r in (0, 1)) for n in range(count)]
        if codes == [0, 0]
        else []
    )
    fair = sum(result == [LOST, WON] for result in results)
    others = sorted({text for result in results for text in result} - {LOST, WON})

    out = folder / "killed"
    killed = launch(file, out, faults=[Fault(signal_at, (0, 1, PLACES[0], "SIGKILL"))])
    killed.wait()
    resumed = launch(file, out, "--resume")
    codes_after = resumed.wait()
    named = f"a stale lock of process {killed.processes[0].pid} on" in resumed.outputs()
    saw = f"{fair}/{count} races won by exactly one, the other told who holds it; stale lock named: {named}"
    saw += f"; also said: {others[0]}" if others else ""
    return Outcome(fair == count and named and codes_after == [0, 0], saw)
