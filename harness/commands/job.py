"""`job`: one piece of a study, in a directory that other jobs work in at the same time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands._report import show_report
from harness.commands._study import allow_flag, default_engine, hang_flag, inputs, study_flags, typed
from harness.commands.run import entering
from harness.errors import ConfigError, IsoBudgetError, Preempted
from harness.identity import parse_kinds

if TYPE_CHECKING:
    from harness.rundir import RunDirectory
    from harness.study import StudySpec

HELP = "do one piece of a study in a directory that other jobs share: train a trial, evaluate it, or gather the report"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("work", metavar="WORK", help="ARM:SEED, control:ARM:SEED, evaluation:ARM:SEED, or report")
    study_flags(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the study's directory, the same for all jobs")
    hang_flag(parser)
    allow_flag(parser)


def execute(options: argparse.Namespace, given: list[str]) -> int:
    """Begin the work or continue it; a second call after its end changes nothing."""
    allowed = parse_kinds(options.allow)
    study, ds_config = inputs(options)
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    from harness.engine import check, connect
    from harness.jobs import JobDirectory, JobRecord, Work, open_alone
    from harness.meters.requirements import require
    from harness.rundir import RunDirectory

    work = Work.parse(options.work, study)
    ranks = connect()
    from harness.progress import reporter
    from harness.setting import prepare
    from harness.stopping import StopFlag
    from harness.watchdog import watch

    tell = reporter(is_main=ranks.is_main, json=options.json)
    # An array submitted again finds most of its work done: that is said before data and teacher are looked for.
    out = RunDirectory(Path(options.out))
    trained = work.kind in ("train", "evaluation") and ranks.on_main(
        lambda: (out.record(work.arm, work.seed) or {}).get("state") == "done"
    )
    if work.kind == "evaluation" and not trained:
        raise ConfigError(
            f"evaluation of {work.arm} seed {work.seed}", rule="it has not been trained to its end",
            remedy=f"see why: python launch.py status {options.out}; then run its job again",
        )  # fmt: skip
    if work.kind == "train" and trained:
        tell.say(f"{work.arm} · seed {work.seed}: done already")
        return 0
    if work.kind in ("train", "control"):
        require(study.limit.unit, budget=study.budget, ranks=ranks, allowed=allowed)
    ds_config = ds_config or default_engine()
    check(ds_config, sequences=study.batch.sequences, world=ranks.world)
    setting = prepare(study, ds_config, world=ranks.world, tell=tell.say)
    whole = work.kind == "report"
    directory = RunDirectory(Path(options.out)) if whole else JobDirectory(Path(options.out), [work])
    merged = ranks.on_main(
        lambda: (
            open_alone(directory, study, resume=True, allowed=allowed)
            if whole
            else directory.open(study, resume=True, allowed=allowed)
        )
    )
    record = JobRecord(directory.root, work.name)
    with entering(directory, ranks):
        if merged != study:
            setting = prepare(merged, ds_config, world=ranks.world, tell=tell.say)
        ranks.on_main(lambda: record.begin(world=ranks.world))
    command = typed(given)
    try:
        if work.kind in ("train", "control"):
            from harness.conduct import Conductor

            trial = (work.arm, work.seed)
            conductor = Conductor(
                setting, directory, ranks, tell, command=command, resume=True, allowed=allowed,
                hang_timeout_s=options.hang_timeout,
            )  # fmt: skip
            conductor.run([trial] if work.kind == "train" else [], [trial] if work.kind == "control" else [])
        else:
            from harness.evaluate.suite import Suite

            def hangs(found: str) -> None:
                record.end("interrupted", exit_code=Preempted.exit_code, message=f"hang: {found}")

            patience = watch(
                directory.signs, ranks, timeout_s=options.hang_timeout, record=hangs, remedy="run the job again"
            )
            with StopFlag(ranks) as stop, patience:
                suite = Suite(setting, directory, ranks, tell, stop)
                suite.run(None if whole else (work.arm, work.seed))
        code = ranks.on_main(lambda: gather(directory, merged, as_json=options.json)) if whole else 0
        if ranks.is_main:
            record.end("done" if code == 0 else "failed", exit_code=code)
    except BaseException as error:
        if ranks.is_main:
            code = error.exit_code if isinstance(error, IsoBudgetError) else 1
            stopped = isinstance(error, Preempted | KeyboardInterrupt)
            record.end("interrupted" if stopped else "failed", exit_code=code, message=str(error))
        raise
    finally:
        if ranks.is_main:
            directory.close()
    ranks.barrier()
    return code


def gather(directory: RunDirectory, study: StudySpec, *, as_json: bool) -> int:
    """Write the report, and say in status.json how the study as a whole ended; returns its exit code.

    An unfinished trial or control does not keep the others from being reported; its own exit code becomes the study's.
    """
    from harness import controls
    from harness.jobs import JobRecord, Work

    trials = [Work("train", arm.name, seed) for arm in study.arms for seed in study.seeds]
    missing = [w for w in trials if (directory.record(w.arm, w.seed) or {}).get("state") != "done"]
    wanted = controls.wanted(study, directory.root)
    missing += [Work("control", c.of, c.seed) for c in wanted if not controls.finished(c, directory.root)]
    ended = [
        attempts[-1].get("exit_code") or 1
        for w in missing
        if (attempts := JobRecord(directory.root, w.name).attempts())
    ]
    # Not 75: that would ask the scheduler for this very job again, and it is not this job that was preempted.
    code = max((c for c in ended if c not in (0, Preempted.exit_code)), default=1) if missing else 0
    if missing:
        names = ", ".join(f"{'control of ' if w.kind == 'control' else ''}{w.arm} seed {w.seed}" for w in missing)
        runs = len(trials) + len(wanted)
        directory.status("failed", exit_code=code, message=f"{len(missing)} of {runs} runs unfinished: {names}")
    else:
        directory.status("done")
    show_report(directory.root, as_json=as_json)
    return code
