"""`submit`: a study as packed jobs of a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands._study import (
    allow_flag,
    hang_flag,
    inputs,
    print_json,
    study_flags,
    taught_by,
    teacher_flag,
    typed,
)
from harness.identity import parse_kinds

if TYPE_CHECKING:
    from harness.study import StudySpec
    from harness.submit.graph import Graph

HELP = "write a study's jobs (teacher, cache, arms, evaluation, report), and hand them to Slurm where it is installed"


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="the study's directory on a shared file system (default runs/<study>/jobs)"
    )
    parser.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="GPUs, and ranks, that train one run")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="GPUs of one node (default 8)")
    parser.add_argument("--cpu", action="store_true", help="no GPUs: the two numbers above count processes")
    parser.add_argument("--nodes", type=int, metavar="N", help="use at most so many nodes at once")
    parser.add_argument("--partition", metavar="NAME[,NAME]", help="Slurm's partition, or several to choose from")
    parser.add_argument("--account", metavar="NAME", help="Slurm's account")
    parser.add_argument(
        "--time", metavar="[D-]HH:MM:SS", help="time limit of each job; what is unfinished then is requeued"
    )
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="one more option, as --sbatch=--constraint=h100"
    )
    teacher_flag(parser, help="first train the teacher by this study of one arm")
    hang_flag(parser)
    allow_flag(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="write the jobs and what they read, submit nothing")
    how.add_argument("--local", action="store_true", help="run the jobs here, one after another")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    allowed = parse_kinds(options.allow)
    study, ds_config = inputs(options)
    import shutil

    from harness.ds_config import default
    from harness.jobs import JobDirectory
    from harness.meters.requirements import refuse_mixed_currencies
    from harness.rundir import STUDY, write_json
    from harness.submit import execute as execution
    from harness.submit.graph import Machines, build
    from harness.submit.scripts import Queue, check_path, scripts_of, write

    refuse_mixed_currencies(study.limit.unit, budget=study.budget, allowed=allowed)
    machines = Machines(options.gpus_per_run, options.gpus_per_node, gpus=not options.cpu, nodes=options.nodes)
    queue = Queue(options.partition, options.account, options.time, options.sbatch)
    out = check_path(Path(options.out or f"runs/{study.name}/jobs"), what="--out")
    teacher = None
    if options.teacher_study:
        teacher = teacher_study(options.teacher_study, out)
        study = taught_by(study, path=student_of(teacher[0], teacher[2]))
    directory = JobDirectory(Path(out), [])  # jobs of an earlier submission may be entering
    merged = directory.merged(study, allowed)
    # A batch that does not divide is refused here, not by the first job; without a ds_config it divides alike in either precision.
    for trained in (merged, *(teacher[:1] if teacher is not None else ())):
        for each in (trained, *map(trained.for_arm, trained.arms)):
            (ds_config or default(bf16=False)).micro_batch(sequences=each.batch.sequences, world=machines.gpus_per_run)
    engine = f"{out}/jobs/ds_config.json"
    graph = build(
        merged, machines, out=out, study_file=f"{out}/{STUDY}", ds_config=engine if ds_config is not None else None,
        engine_tree=ds_config and ds_config.tree, teacher=teacher, allow=",".join(sorted(allowed)) or None, hang_timeout_s=options.hang_timeout,
    )  # fmt: skip
    scripts = scripts_of(graph, machines, queue)

    def put() -> None:
        # Jobs read study and engine from their directory: what is edited after submission changes nothing.
        directory.open(study, resume=True, allowed=allowed)
        directory.close()
        if teacher is not None:
            write_study(teacher[0], Path(teacher[1]))
        if ds_config is not None:
            write_json(Path(engine), ds_config.tree)
        write(graph, scripts, command=typed(given))

    def tell(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    slurm = not (options.local or options.dry_run) and shutil.which("sbatch") is not None
    with execution.alone(graph, scripts, slurm=slurm, tell=tell) as standing:
        put()
        print_json(graph.as_json()) if options.json else show(graph)
        if options.local:
            return execution.here(graph, scripts, tell=tell, lock=standing.lock)
        if slurm:
            execution.to_slurm(graph, scripts, standing, tell=tell)
            tell(f"follow it: python launch.py status {out}")
        elif not options.dry_run:
            tell("no sbatch here: nothing was submitted; run with --local, or submit the files on a login node")
    return 0


def show(graph: Graph) -> None:
    """A line per stage, why others were left out, and where the jobs are."""
    for stage in graph.stages:
        waits = ", ".join(f"{name} {how}" for name, how in stage.needs.items()) or "nothing"
        print(
            f"{stage.name}: {len(stage.works)} × {stage.ranks} {'GPU' if stage.gpus else 'process'}, {stage.slots} at once per task, "
            f"{stage.tasks} task{'s' if stage.tasks > 1 else ''}; waits for {waits}"
        )
    for name, reason in graph.left_out.items():
        print(f"{name}: left out, {reason}")
    print(f"jobs: {graph.out}/jobs")


def teacher_study(name: str, out: str) -> tuple[StudySpec, str, str]:
    """The study that trains the teacher, the file the jobs will read it from, and its directory."""
    from harness.study import load

    return load(name), f"{out}/jobs/teacher.yaml", f"{out}/teacher"


def student_of(spec: StudySpec, folder: str) -> str:
    """Where the teacher's study exports what it has trained."""
    return f"{folder}/arms/{spec.arms[0].name}/seed-{spec.seeds[0]}/student"


def write_study(study: StudySpec, file: Path) -> None:
    import yaml

    from harness.rundir import replace

    replace(file, yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False).encode())
