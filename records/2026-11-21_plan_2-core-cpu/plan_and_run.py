"""A plan, the run it speaks of, and a plan again, all on the clock of their own thread: what others do on the machine
does not count. One thread, so that its clock sees everything a step does.

OMP_NUM_THREADS=1 python plan_and_run.py OUT BUDGET [STUDY]
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from harness import cli, conduct
from harness.meters.device_time import DeviceClock
from harness.plan import calibrate

# Everything that times a step: the plan's calibration and the run's device clock.
calibrate.time = SimpleNamespace(perf_counter=time.thread_time)
DeviceClock.__init__.__kwdefaults__["clock"] = time.thread_time


class NoSuite:
    """Training is what is compared here."""

    def __init__(self, *_: object) -> None: ...

    def run(self) -> None: ...


def plan(study: str, budget: str) -> dict:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        cli.main(["plan", "--study", study, "--seeds", "1", "--budget", budget, "--json"])
    return json.loads(said.getvalue())


def main() -> None:
    out, budget = Path(sys.argv[1]), sys.argv[2]
    study = sys.argv[3] if len(sys.argv) > 3 else "quickstart"
    conduct.Suite = NoSuite
    load = [os.getloadavg()[0]]
    plans = [plan(study, budget)]
    cli.main(["run", "--study", study, "--seeds", "1", "--budget", budget, "--out", str(out)])
    load.append(os.getloadavg()[0])
    plans.append(plan(study, budget))
    rows = []
    for number, arm in enumerate(plans[0]["arms"]):
        record = json.loads((out / "arms" / arm["name"] / "seed-1" / "record.json").read_text(encoding="utf-8"))
        planned = [p["arms"][number]["time"]["training_s"] for p in plans]
        rows.append({
            "arm": arm["name"], "steps": [arm["steps"], record["steps"]],
            "training_flop": [arm["training_flop"], record["algorithmic_flop"]],
            "planned_s": planned, "ran_s": record["seconds"],
            "error": [p / record["seconds"] - 1 for p in planned],
        })
    found = {"study": study, "budget": budget, "threads": torch.get_num_threads(), "load": load, "arms": rows}
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


main()
