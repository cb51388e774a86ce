"""A stand-in for Slurm: `sbatch` keeps what it is given, `run` executes it on this machine as one node would.

It knows what `submit` relies on: job numbers, dependencies, arrays, exit codes, requeueing. Ranks are started by torchrun,
as the scripts do outside Slurm. Real Slurm, where it is installed, is tested in tests/distributed/test_slurm.py.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

REQUEUE = 75
TURNS = 3


@dataclass
class Job:
    """One submitted script; `codes` are its tasks' last exit codes, empty while it waits or when it never ran."""

    number: int
    script: Path
    needs: dict[int, str]
    tasks: int
    codes: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.script.stem


class StandIn:
    """A scheduler whose queue is a folder; `environment` lets `submit` find its sbatch."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._log = folder / "submitted"
        self._log.touch()
        (folder / "bin").mkdir()
        sbatch = folder / "bin" / "sbatch"
        sbatch.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{self._log}"\nwc -l < "{self._log}" | tr -d " "\n')
        sbatch.chmod(0o755)
        theirs = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
        self.environment |= {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def jobs(self) -> list[Job]:
        """What was submitted, in that order, as the scripts and the words of sbatch say it."""
        found = []
        for number, line in enumerate(self._log.read_text().splitlines(), start=1):
            *options, script = line.split()
            waits = next((o.partition("=")[2] for o in options if o.startswith("--dependency=")), "")
            needs = {int(n): how for how, _, n in (part.partition(":") for part in waits.split(",") if part)}
            array = re.search(r"^#SBATCH --array=0-(\d+)", Path(script).read_text(), re.MULTILINE)
            found.append(Job(number, Path(script), needs, int(array[1]) + 1 if array else 1))
        return found

    def run(self, *, timeout_s: float) -> list[Job]:
        """Run every job whose needs are met, the last submitted first, until none is left that ever could.

        An `afterok` job whose need failed never runs, as under --kill-on-invalid-dep.
        """
        jobs = {job.number: job for job in self.jobs()}
        while ready := [job for job in jobs.values() if not job.codes and self._may_run(job, jobs)]:
            job = ready[-1]
            job.codes = [self._task(job, task, timeout_s) for task in range(job.tasks)]
        return list(jobs.values())

    def _may_run(self, job: Job, jobs: dict[int, Job]) -> bool:
        ended = all(jobs[number].codes for number in job.needs)
        return ended and not any(how == "afterok" and any(jobs[number].codes) for number, how in job.needs.items())

    def _task(self, job: Job, task: int, timeout_s: float) -> int:
        environment = {**self.environment, "SLURM_ARRAY_TASK_ID": str(task)}
        code = REQUEUE
        for _ in range(TURNS):
            with job.script.with_suffix(f".{task}.out").open("ab") as log:
                words = ["bash", str(job.script)]
                code = subprocess.run(words, env=environment, stdout=log, stderr=log, timeout=timeout_s).returncode
            if code != REQUEUE:
                break
        return code
