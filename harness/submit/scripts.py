"""Plain sbatch files of a graph's stages, readable and runnable without this program's help."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import harness
from harness.errors import ConfigError
from harness.hosts import check_name
from harness.rundir import replace, write_json
from harness.submit.graph import Graph, Machines, Stage

# M, M:S, H:M:S, D-H, D-H:M or D-H:M:S. Slurm itself takes 00:99:99 for 1:41:00 and says nothing.
_TIME = re.compile(r"[0-9]{1,6}(-([01]?[0-9]|2[0-3]))?(:[0-5]?[0-9]){0,2}", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_@+=:,./-]+", re.ASCII)
_OPTION = re.compile(r"--[a-z][a-z0-9-]*(=[A-Za-z0-9_@%+=:,./*&|()\[\]-]*)?", re.ASCII)
# What the graph, its arrays and its requeueing depend on: nobody else's to say.
OWNED = (
    "array", "wrap", "dependency", "signal", "requeue", "no-requeue", "output", "error", "open-mode", "nodes", "ntasks",
    "ntasks-per-node", "gpus-per-node", "job-name", "chdir", "parsable", "test-only", "time", "time-min",
)  # fmt: skip
# How long before the time limit Slurm warns: a save of a large model to a busy file system fits in.
WARNING_S = 120
# Below this a job would be warned before its run has begun, turn after turn.
SHORTEST_S = 3 * WARNING_S


@dataclass(frozen=True)
class Queue:
    """Where the jobs wait: Slurm's words, checked because they become lines of a script."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    options: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for partition in self.partition.split(",") if self.partition is not None else []:
            check_name(partition, what="--partition")
        if self.account is not None:
            check_name(self.account, what="--account")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ConfigError(
                f"--time {self.time!r}",
                rule="it is M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; behind another field, minutes and seconds end at 59 and hours at 23",
                remedy="for example 12:00:00",
            )
        if self.time is not None and 0 < _seconds(self.time) < SHORTEST_S:  # 0 is Slurm's word for no limit
            raise ConfigError(
                f"--time {self.time!r}", rule=f"jobs are warned {WARNING_S} s before it ends, and take minutes to begin",
                remedy=f"give {SHORTEST_S // 60} minutes or more",
            )  # fmt: skip
        for option in self.options:
            if not _OPTION.fullmatch(option):
                raise ConfigError(
                    f"--sbatch {option!r}", rule="it is one of sbatch's long options without spaces",
                    remedy="for example --sbatch=--constraint=h100",
                )  # fmt: skip
            name = option.removeprefix("--").partition("=")[0]
            # sbatch takes the beginning of a name for the name; --gpus is one of its own.
            if name != "gpus" and any(owned.startswith(name) for owned in OWNED):
                raise ConfigError(
                    f"--sbatch {option!r}", rule=f"the jobs depend on what submit itself says of {name}",
                    remedy="use submit's own flags (--nodes, --gpus-per-node, --time), or leave it out",
                )  # fmt: skip


def _seconds(time: str) -> int:
    """Of a time in one of Slurm's forms; see `_TIME`."""
    days, dash, rest = time.rpartition("-")
    fields = [int(field) for field in rest.split(":")]
    if dash:  # D-H, D-H:M, D-H:M:S
        hours, minutes, seconds = [*fields, 0, 0][:3]
    else:  # M, M:S, H:M:S
        hours, minutes, seconds = fields if len(fields) == 3 else [0, *fields, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def check_path(path: Path, *, what: str) -> str:
    """The real path, when it can stand in a script and in Slurm's file patterns.

    One directory has one spelling, links followed: its jobs are known in the queue by the paths of their scripts.

    Raises:
        ConfigError: it holds a space, a quote, a percent sign or another character that means something there.
    """
    text = os.path.realpath(path)
    if not _PATH.fullmatch(text):
        raise ConfigError(
            f"{what} {text!r}", rule="job scripts take paths of letters, digits and _ @ + = : , . / -",
            remedy="choose a path without other characters",
        )  # fmt: skip
    return text


def entry() -> list[str]:
    """The words that start this program on another machine that shares this file system."""
    script = Path(harness.__file__).resolve().parent.parent / "launch.py"
    return [sys.executable, str(script)] if script.is_file() else [sys.executable, "-m", "harness"]


@dataclass(frozen=True)
class Script:
    """One stage's file: where it goes, and what it says."""

    path: Path
    text: str


def scripts_of(graph: Graph, machines: Machines, queue: Queue) -> dict[str, Script]:
    """{stage: its script in OUT/jobs}; nothing is written."""
    folder = Path(graph.out) / "jobs"
    return {
        stage.name: Script(folder / f"{stage.name}.sbatch", render(graph, stage, machines, queue))
        for stage in graph.stages
    }


def write(graph: Graph, scripts: dict[str, Script], *, command: str = "") -> None:
    """Write the scripts, and graph.json with the command that asked for them.

    Whole files take the place of the old ones: a bash that is at work in one reads on in what it began.
    """
    folder = Path(graph.out) / "jobs"
    # With the logs: Slurm opens a job's output before its script could make the folder, and fails the job.
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for script in scripts.values():
        replace(script.path, script.text.encode())
        script.path.chmod(0o755)
    write_json(folder / "graph.json", {**graph.as_json(), "command": command})


def render(graph: Graph, stage: Stage, machines: Machines, queue: Queue) -> str:
    """One stage's script."""
    logs = f"{graph.out}/jobs/logs"
    gpus = machines.gpus_per_node if stage.gpus else 0
    array = f"0-{stage.tasks - 1}" + (f"%{machines.tasks_at_once}" if machines.tasks_at_once else "")
    options = [
        f"--job-name={graph.study}-{stage.name}",
        *([f"--array={array}"] if stage.tasks > 1 else []),
        f"--nodes={stage.nodes}",
        # Whole nodes, packed by this script: the scheduler need not know how small a run is.
        *(["--exclusive"] if stage.name != "cache" else []),
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        *([f"--partition={queue.partition}"] if queue.partition else []),
        *([f"--account={queue.account}"] if queue.account else []),
        *([f"--time={queue.time}"] if queue.time else []),
        f"--signal=B:USR1@{WARNING_S}",
        "--requeue",
        "--open-mode=append",
        f"--output={logs}/{stage.name}-%{'A_%a' if stage.tasks > 1 else 'j'}.log",
        *queue.options,
    ]
    works = " \\\n  ".join(shlex.quote(work) for work in stage.works)
    names = " \\\n  ".join(shlex.quote(name) for name in stage.names)
    waits = ", ".join(f"{name} ({how})" for name, how in stage.needs.items()) or "nothing"
    head = [
        "#!/usr/bin/env bash",
        f"# Stage {stage.name} of study {graph.study} ({graph.digest}); waits for {waits}. Written by `submit`.",
        "# Each task continues what it left and does nothing twice: submit it again whenever you like.",
        f"# Without Slurm: bash {stage.name}.sbatch TASK, with TASK from 0 to {stage.tasks - 1}.",
        *(f"#SBATCH {option}" for option in options),
        "set -euo pipefail",
        "",
        f"entry=({shlex.join(entry())})",
        "python=${entry[0]}",
        f"verb={shlex.quote(stage.verb)}",
        f"flags=({shlex.join(stage.flags)})",
        f"directory={shlex.quote(os.getcwd())}",
        f"out={shlex.quote(stage.out)}",
        f"logs={shlex.quote(logs)}",
        f"nodes={stage.nodes} ranks={stage.ranks} slots={stage.slots} gpus_per_node={gpus}",
        f"works=({works})",
        f"names=({names})",
        "",
    ]
    parts = [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("turns.sh", "task.sh")]
    return "\n".join([*head, *parts])
