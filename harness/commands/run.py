"""`run`: train, evaluate, compare and report a study."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands._report import show_report
from harness.commands._study import allow_flag, default_engine, hang_flag, inputs, study_flags, sweep_of, typed
from harness.errors import ConfigError, IsoBudgetError, Preempted
from harness.identity import parse_kinds

if TYPE_CHECKING:
    from harness.ds_config import DsConfig
    from harness.ranks import Ranks
    from harness.rundir import RunDirectory
    from harness.setting import Setting
    from harness.study import StudySpec

HELP = "train, evaluate, compare and report a study (the default)"


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
    run_flags(parser)


def run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that trains: where to, and what to do about what is there."""
    parser.add_argument("--out", metavar="DIR", help="where results go (default runs/<study>/<time>)")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished run in --out")
    parser.add_argument(
        "--push-to-hub",
        metavar="[OWNER/]NAME",
        help="when done, put each student on the Hugging Face Hub as NAME-<arm>-seed-<n>, private",
    )
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="for schedulers: begin a run in --out, or continue the one that is there",
    )
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="NAME[=PLACE]",
        help="also write scalars for live watching: jsonl, prometheus (a textfile), tensorboard; may be repeated",
    )
    hang_flag(parser)
    allow_flag(parser)


def push(root: Path, name: str, *, tell: Callable[[str], None]) -> None:
    """Put every student on the Hub; one that does not arrive is told and kept, and the run is as good as before."""
    from harness.push import push_students

    for each in push_students(root, name):
        tell(str(each))


def execute(options: argparse.Namespace, given: list[str]) -> int:
    allowed = parse_kinds(options.allow)
    if options.push_to_hub:
        from harness.push import check_name

        check_name(options.push_to_hub)
    from harness import trackers

    trackers.check(options.track)
    if (options.resume or options.auto_resume) and not options.out:
        raise ConfigError(
            "--resume without --out", rule="only a named directory can be resumed", remedy="add --out DIR"
        )
    sweep = sweep_of(options)
    if sweep is not None:
        from harness.commands._sweep import run_sweep

        return run_sweep(sweep, options, given, allowed=allowed)
    study, ds_config = inputs(options)
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    from harness.engine import connect

    ranks = connect()
    out = ranks.share(options.out or str(Path("runs") / study.name / time.strftime("%Y%m%d-%H%M%S")))
    resuming = options.resume or (options.auto_resume and ranks.share(os.path.exists(Path(out) / "study.yaml")))
    run_study(
        study, ds_config, Path(out), options, given, ranks=ranks, allowed=allowed, resuming=resuming,
        report=lambda root: show_report(root, as_json=options.json),
    )  # fmt: skip
    return 0


@contextmanager
def entering(directory: RunDirectory, ranks: Ranks) -> Iterator[None]:
    """What is refused between opening a directory and the work in it leaves the directory as it was, and its lock free."""
    try:
        yield
    except BaseException:
        if ranks.is_main:
            directory.back_out()
        raise


def run_study(
    study: StudySpec, ds_config: DsConfig | None, out: Path, options: argparse.Namespace, given: list[str], *,
    ranks: Ranks, allowed: frozenset[str], resuming: bool, report: Callable[[Path], object],
    before: Callable[[Setting, RunDirectory], None] | None = None, hung: Callable[[str], None] = lambda found: None,
    keeps_diverged: bool = False,
) -> None:  # fmt: skip
    """One study from its checks to its report, in `out`; `before` is called when the directory is open, `report` at the end.

    With `keeps_diverged` a trial that diverges is a result of a search, not an error. `hung` is told what a hang looked like, on whichever rank records it, before the processes end.
    """
    from harness import trackers
    from harness.conduct import Conductor
    from harness.engine import check
    from harness.jobs import WHOLE, JobRecord, open_alone
    from harness.meters.requirements import require
    from harness.progress import reporter
    from harness.rundir import RunDirectory
    from harness.setting import prepare

    require(study.limit.unit, budget=study.budget, ranks=ranks, allowed=allowed)
    tell = reporter(is_main=ranks.is_main, json=options.json)
    ds_config = ds_config or default_engine()
    check(ds_config, sequences=study.batch.sequences, world=ranks.world)
    # Everything is checked before the directory is made, by every rank alike.
    setting = prepare(study, ds_config, world=ranks.world, tell=tell.say)
    directory = RunDirectory(out)
    merged = ranks.on_main(lambda: open_alone(directory, study, resume=resuming, allowed=allowed))
    record = JobRecord(directory.root, WHOLE)
    with entering(directory, ranks):
        if merged != study:
            setting = prepare(merged, ds_config, world=ranks.world, tell=tell.say)
        ranks.on_main(lambda: record.begin(world=ranks.world))
        ranks.on_main(lambda: directory.status("running"))
    if ranks.is_main and directory.stale:
        tell.say(f"{directory.stale} was found and taken over: that run did not end by itself")
    command = typed(given)
    conductor = Conductor(
        setting, directory, ranks, tell, command=command, resume=resuming, allowed=allowed,
        hang_timeout_s=options.hang_timeout, hung=hung, keeps_diverged=keeps_diverged,
    )  # fmt: skip
    follower = trackers.Follower([], tell=tell.say)

    def finish() -> None:
        directory.status("done")
        record.end("done")
        report(directory.root)
        if options.push_to_hub:
            push(directory.root, options.push_to_hub, tell=tell.say)

    try:
        if options.track and ranks.is_main:
            follower = trackers.Follower(trackers.openers(options.track, directory.root), tell=tell.say)
            conductor.follow = follower
        if before is not None:
            before(setting, directory)
        conductor.run()
        ranks.on_main(finish)
    except BaseException as error:
        if ranks.is_main:
            code = error.exit_code if isinstance(error, IsoBudgetError) else 1
            asked_to_stop = isinstance(error, Preempted | KeyboardInterrupt)
            state = "interrupted" if asked_to_stop else "failed"
            if conductor.admitted or not directory.refused():
                directory.status(state, exit_code=code, message=str(error))
            record.end(state, exit_code=code, message=str(error))
        raise
    finally:
        follower.close()
        if ranks.is_main:
            directory.close()
    ranks.barrier()
