"""Who runs the written jobs: Slurm, or this machine, one task after another in the order of the graph."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.rundir import SUBMITTING, make_folder, read_json, write_json
from harness.submit.graph import Graph
from harness.submit.scripts import Script

Tell = Callable[[str], None]
PREEMPTED = 75


@dataclass(frozen=True)
class Standing:
    """How a directory's jobs stood when a `submit` got them to itself."""

    file: Path
    known: dict[str, dict[str, str]]
    """{stage: its job's number and its script's digest}, of the last submission."""
    queued: dict[str, str]
    """{stage: number} of those that are still in the queue."""
    behind: int
    """So many stages have had their turn, or have it: those up to the last one in the queue."""
    digests: dict[str, str]
    lock: int


@contextmanager
def alone(graph: Graph, scripts: dict[str, Script], *, slurm: bool, tell: Tell) -> Iterator[Standing]:
    """Keep every other `submit` out, and allow what jobs read to be written: nothing in the queue forbids it.

    What is refused leaves all as it was. `slurm`: the queue is to be added to, and must be seen; where it is not, and there is no
    squeue on this machine, it is said that nobody was asked.

    Raises:
        ConfigError: jobs of this study are in the queue with other scripts, or for a study or a ds_config that has changed, or behind
            a stage that has ended and has other work now, or whether any is cannot be found out; another `submit`, its sbatch, or a
            job that it runs here is at it.
    """
    folder = Path(graph.out) / "jobs"
    make_folder(folder)
    with (folder / SUBMITTING).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                str(folder), rule="another submit, or a job that it runs on its machine, is at work here", remedy="wait for it, or stop it"
            ) from None  # fmt: skip
        yield _standing(graph, scripts, folder / "submitted.json", slurm=slurm, tell=tell, lock=lock.fileno())


def _standing(
    graph: Graph, scripts: dict[str, Script], file: Path, *, slurm: bool, tell: Tell, lock: int
) -> Standing:  # fmt: skip
    known = _submitted(file)
    queue: dict[str, str] = {}
    if known and (slurm or shutil.which("squeue") is not None):
        queue = _queue(file)
    elif known:
        tell(f"no squeue here: jobs of {file} that are in a queue will read what is written now")
    paths = {name: str(script.path) for name, script in scripts.items()}
    queued = {name: queue[paths[name]] for name in known if name in paths and paths[name] in queue}
    digests = {name: hashlib.sha256(script.text.encode()).hexdigest() for name, script in scripts.items()}
    # Stages wait for each other in this order: those before the last one in the queue have had their turn, or have it.
    names = [stage.name for stage in graph.stages]
    behind = max((names.index(name) + 1 for name in queued), default=0)
    changed = [name for name in names[:behind] if known.get(name, _NONE)["script"] != digests[name]]
    if changed:
        raise ConfigError(
            f"stage {changed[0]}",
            rule=f"job {queued[changed[0]]} of it is in the queue, submitted with other flags, for another study or with another ds_config"
            if changed[0] in queued
            else f"it has new work, and job {next(iter(queued.values()))} of a later stage is still in the queue",
            remedy=f"submit the same study with the same flags, wait for those jobs, or first: scancel {' '.join(queued.values())}",
        )  # fmt: skip
    return Standing(file, known, queued, behind, digests, lock)


def to_slurm(graph: Graph, scripts: dict[str, Script], standing: Standing, *, tell: Tell) -> dict[str, str]:
    """Hand every stage to sbatch with its dependencies; returns {stage: job number}, also in OUT/jobs/submitted.json.

    No stage is ever in the queue twice: after an sbatch that failed half-way, or a submission that was killed, the next goes on
    behind the last stage whose job is still there. When none is, all are handed over again; what they have done they do not repeat.

    Raises:
        ConfigError: sbatch refuses a job.
    """
    known, queued, digests = standing.known, standing.queued, standing.digests
    names = [stage.name for stage in graph.stages][: standing.behind]
    handed = {name: {**known[name], "job": queued.get(name, known[name]["job"])} for name in names}
    for name, job in handed.items():
        tell(f"{name}: job {job['job']}, {'is in the queue' if name in queued else 'has ended'}; not submitted again")
    for stage in graph.stages[standing.behind :]:
        waits = ",".join(f"{how}:{handed[name]['job']}" for name, how in stage.needs.items())
        command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
        command += [f"--dependency={waits}"] if waits else []
        # Before and after: whoever is killed in between leaves the intent, and sbatch, which goes on without us, the lock.
        write_json(standing.file, {**handed, stage.name: {"job": "", "script": digests[stage.name]}})
        result = subprocess.run(
            [*command, str(scripts[stage.name].path)],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=(standing.lock,),
        )
        # --parsable prints NUMBER, or NUMBER;CLUSTER
        number = result.stdout.strip().partition(";")[0]
        if result.returncode or not number.isdigit():
            there = ", ".join(f"{name} {job['job']}" for name, job in handed.items())
            raise ConfigError(
                f"sbatch {scripts[stage.name].path.name}", rule=(result.stderr.strip() or "it gave no job number"),
                remedy="correct the flags" + (
                    f"; already in the queue: {there}. The same command again goes on behind them; for other flags, first: "
                    f"scancel {' '.join(job['job'] for job in handed.values())}" if there else ""
                ),
            )  # fmt: skip
        handed[stage.name] = {"job": number, "script": digests[stage.name]}
        write_json(standing.file, handed)  # at once: whatever happens next, this job is known
        tell(f"{stage.name}: job {number}, {stage.tasks} task{'s' if stage.tasks > 1 else ''}")
    return {name: job["job"] for name, job in handed.items()}


_NONE = {"job": "", "script": ""}


def _submitted(file: Path) -> dict[str, dict[str, str]]:
    """{stage: its job's number and its script's digest}, of the last submission; {} where there was none."""
    if not file.exists():
        return {}
    found = read_json(file)
    if not isinstance(found, dict) or not all(
        isinstance(job, dict) and job.keys() == _NONE.keys() for job in found.values()
    ):
        raise ConfigError(
            str(file), rule="it does not say which jobs were submitted", remedy="see squeue --me, cancel this study's jobs, remove the file"
        )  # fmt: skip
    return found


def _queue(file: Path) -> dict[str, str]:
    """{script's real path: number} of every job of ours that waits or runs; of an array, the array's number.

    By path, because names may be another directory's.
    """
    if shutil.which("squeue") is None:
        raise ConfigError(
            "squeue is not on PATH", rule=f"which jobs of {file} are still there must be known before more are submitted",
            remedy="submit where it is, beside sbatch",
        )  # fmt: skip
    result = subprocess.run(
        ["squeue", "--noheader", "--me", "--format=%F %o"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise ConfigError(
            f"squeue: {result.stderr.strip()}", rule=f"which jobs of {file} are still there must be known before more are submitted",
            remedy="submit again when Slurm answers",
        )  # fmt: skip
    rows = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    return {os.path.realpath(row[1].strip()): row[0] for row in rows if len(row) == 2}


def here(graph: Graph, scripts: dict[str, Script], *, tell: Tell, lock: int | None = None) -> int:
    """Run every stage on this machine; returns the exit code of the last one, or 75 when a signal stopped it.

    A stage whose need failed is left out, as the scheduler would. Jobs hold the `lock` of `alone` too: who kills this process and
    not its jobs has not let another `submit` in.
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
                    ["bash", str(scripts[stage.name].path), str(task)], env=environment, start_new_session=True,
                    pass_fds=() if lock is None else (lock,),
                )  # fmt: skip
                running[:] = [process]
                if stopped:  # asked while it started, when `stop` did not know it yet; to hear it twice does no harm
                    process.send_signal(signal.SIGTERM)
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
