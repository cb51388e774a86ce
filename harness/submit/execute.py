"""Who runs the written jobs: Slurm, or this machine, one task after another in the order of the graph."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.submit.graph import Graph

Tell = Callable[[str], None]
PREEMPTED = 75


def to_slurm(graph: Graph, scripts: dict[str, Path], *, tell: Tell) -> dict[str, str]:
    """Hand every stage to sbatch with its dependencies; returns {stage: job number}, also in OUT/jobs/submitted.json.

    Raises:
        ConfigError: sbatch refuses a job; those already submitted are named, and wait.
    """
    numbers: dict[str, str] = {}
    for stage in graph.stages:
        waits = ",".join(f"{how}:{numbers[name]}" for name, how in stage.needs.items())
        command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
        command += [f"--dependency={waits}"] if waits else []
        result = subprocess.run([*command, str(scripts[stage.name])], capture_output=True, text=True, check=False)
        # --parsable prints NUMBER, or NUMBER;CLUSTER
        number = result.stdout.strip().partition(";")[0]
        if result.returncode or not number.isdigit():
            raise ConfigError(
                f"sbatch {scripts[stage.name].name}", rule=(result.stderr.strip() or "it gave no job number"),
                remedy=f"correct the flags; already submitted: {', '.join(f'{k} {v}' for k, v in numbers.items()) or 'nothing'}",
            )  # fmt: skip
        numbers[stage.name] = number
        tell(f"{stage.name}: job {number}, {stage.tasks} task{'s' if stage.tasks > 1 else ''}")
    (Path(graph.out) / "jobs" / "submitted.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return numbers


def here(graph: Graph, scripts: dict[str, Path], *, tell: Tell) -> int:
    """Run every stage on this machine; returns the exit code of the last one, or 75 when a signal stopped it.

    A stage whose need failed is left out, as the scheduler would.
    """
    if shutil.which("bash") is None:
        raise ConfigError("submit --local", rule="the jobs are bash scripts, and there is no bash", remedy="install it")
    # No word of an allocation that this shell may be in: the scripts would look for srun.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    codes: dict[str, int] = {}
    running: list[subprocess.Popen[bytes]] = []
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        for process in running:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        for stage in graph.stages:
            bad = [name for name, how in stage.needs.items() if how == "afterok" and codes.get(name, 1) != 0]
            if bad:
                tell(f"{stage.name}: left out, because {bad[0]} did not succeed")
                codes[stage.name] = 1
                continue
            worst = 0
            for task in range(stage.tasks):
                tell(f"{stage.name}: task {task + 1} of {stage.tasks}")
                if stopped:
                    return PREEMPTED
                # A session of its own: a Ctrl-C reaches the jobs once, through us.
                process = subprocess.Popen(
                    ["bash", str(scripts[stage.name]), str(task)], env=environment, start_new_session=True
                )
                running[:] = [process]
                code = process.wait()
                running.clear()
                if stopped:
                    return PREEMPTED
                worst = max(worst, code if code >= 0 else 1)
            codes[stage.name] = worst
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return codes[graph.stages[-1].name]
