"""The command line: run, plan, report. Heavy libraries are imported only by the command that needs them.

No subcommand means `run`. DeepSpeed's launcher inserts --local_rank wherever it likes; it is accepted
everywhere and ignored, because the environment says the same.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError, IsoBudgetError, Preempted
from harness.ranks import from_environment

if TYPE_CHECKING:
    from harness.ds_config import DsConfig
    from harness.study import StudySpec

COMMANDS = ("run", "plan", "report", "bench", "doctor")
DESCRIPTION = "At the same cost, which student is better: pretrained from scratch, or distilled?"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="isobudget", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--study", default="quickstart", metavar="NAME|FILE.yaml", help="a study that ships with the harness, or a file"
    )
    shared.add_argument(
        "--ds_config", "--deepspeed_config", metavar="FILE", help="DeepSpeed JSON: ZeRO stage, precision, micro-batch"
    )
    shared.add_argument("--arms", metavar="A,B", help="only these arms")
    shared.add_argument("--seeds", metavar="1,2", help="these seeds instead of the study's")
    shared.add_argument("--budget", metavar='"3e15 flop"', help="flop, tokens or gpu-hours; cuts every arm")
    shared.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change one key of the study",
    )
    shared.add_argument("--json", action="store_true", help="print one JSON object")
    _launcher(shared)

    run = commands.add_parser("run", parents=[shared], help="train, evaluate, compare and report a study (the default)")
    run.add_argument("--out", metavar="DIR", help="where results go (default runs/<study>/<time>)")
    run.add_argument("--resume", action="store_true", help="continue an unfinished run in --out")
    commands.add_parser("plan", parents=[shared], help="what every arm will cost, before anything is spent")
    report = commands.add_parser("report", help="rebuild the report of a finished or interrupted run")
    report.add_argument("directory", metavar="DIR")
    report.add_argument("--json", action="store_true", help="print one JSON object")
    _launcher(report)
    bench = commands.add_parser(
        "bench", parents=[shared], help="time a step of every arm, and the engine against bare PyTorch"
    )
    bench.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps of each arm (default 20)")
    doctor = commands.add_parser("doctor", help="what this machine offers, and what to do about the rest")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    _launcher(doctor)
    return parser


def _launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad one exits with 2, as argparse does."""
    # Launchers put --local_rank before the subcommand, where subparsers would not see it.
    lifted: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument in ("--local_rank", "--local-rank"):
            lifted += [argument, next(waiting, "")]
        elif argument.startswith(("--local_rank=", "--local-rank=")):
            lifted.append(argument)
        else:
            rest.append(argument)
    if not rest or (rest[0] not in COMMANDS and rest[0] not in ("-h", "--help")):
        rest = ["run", *rest]
    return build_parser().parse_args([*rest, *lifted])


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors a user can act on print as one line."""
    given = sys.argv[1:] if arguments is None else arguments
    if any(a in ("--help", "-h") for a in given) and (not given or given[0] not in COMMANDS):
        build_parser().print_help()
        return 0
    options = parse(given)
    try:
        return {"run": run, "plan": plan, "report": report, "bench": bench, "doctor": doctor}[options.command](
            options, given
        )
    except IsoBudgetError as error:
        if from_environment().is_main:
            print(f"isobudget: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("isobudget: interrupted; continue with --resume", file=sys.stderr)
        return 130


# -- commands ----------------------------------------------------------------------------------------


def run(options: argparse.Namespace, given: list[str]) -> int:
    study, ds_config = _inputs(options)
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    from harness.engine import check, connect

    if options.resume and not options.out:
        raise ConfigError(
            "--resume without --out", rule="only a named directory can be resumed", remedy="add --out DIR"
        )
    ranks = connect()
    from harness.conduct import Conductor
    from harness.progress import reporter
    from harness.rundir import RunDirectory
    from harness.setting import prepare

    tell = reporter(is_main=ranks.is_main, json=options.json)
    out = ranks.share(options.out or str(Path("runs") / study.name / time.strftime("%Y%m%d-%H%M%S")))
    ds_config = ds_config or _default_engine()
    check(ds_config, sequences=study.batch.sequences, world=ranks.world)
    # Everything is checked before the directory is made, by every rank alike.
    setting = prepare(study, ds_config, world=ranks.world, tell=tell.say)
    directory = RunDirectory(Path(out))
    merged = ranks.on_main(lambda: directory.open(study, resume=options.resume))
    if merged != study:
        setting = prepare(merged, ds_config, world=ranks.world, tell=tell.say)
    if ranks.is_main:
        directory.status("running")
    command = "python launch.py " + shlex.join(a for a in given if not a.startswith("--local"))
    try:
        Conductor(setting, directory, ranks, tell, command=command, resume=options.resume).run()
        if ranks.is_main:
            directory.status("done")
            _show(directory.root, as_json=options.json)
    except BaseException as error:
        if ranks.is_main:
            code = error.exit_code if isinstance(error, IsoBudgetError) else 1
            asked_to_stop = isinstance(error, Preempted | KeyboardInterrupt)
            directory.status("interrupted" if asked_to_stop else "failed", exit_code=code, message=str(error))
        raise
    finally:
        if ranks.is_main:
            directory.close()
    ranks.barrier()
    return 0


def plan(options: argparse.Namespace, given: list[str]) -> int:
    study, ds_config = _inputs(options)
    from harness.plan import estimate, show
    from harness.progress import reporter
    from harness.setting import prepare

    tell = reporter(is_main=True, json=options.json)
    ds_config = ds_config or _default_engine()
    setting = prepare(study, ds_config, world=1, tell=tell.say)
    table = estimate(setting)
    _print_json(table) if options.json else show(table)
    return 0


def report(options: argparse.Namespace, given: list[str]) -> int:
    directory = Path(options.directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory}", rule="no such directory", remedy="give a directory written by run")
    _show(directory, as_json=options.json)
    return 0


def bench(options: argparse.Namespace, given: list[str]) -> int:
    study, ds_config = _inputs(options)
    if options.steps < 1:
        raise ConfigError(
            f"--steps {options.steps}", rule="at least one step is timed", remedy="for example --steps 20"
        )
    from harness.engine import connect

    ranks = connect()
    from harness.bench import measure, show
    from harness.conduct import Conductor
    from harness.progress import Silent
    from harness.rundir import RunDirectory
    from harness.setting import prepare

    setting = prepare(study, ds_config or _default_engine(), world=ranks.world)
    table = measure(Conductor(setting, RunDirectory(Path(".")), ranks, Silent()), steps=options.steps)
    if ranks.is_main:
        _print_json(table) if options.json else show(table)
    ranks.barrier()
    return 0


def doctor(options: argparse.Namespace, given: list[str]) -> int:
    from harness.doctor import diagnose, print_findings, to_json

    findings = diagnose()
    if options.json:
        print(to_json(findings))
    else:
        from rich.console import Console

        print_findings(findings, Console())
    return 0


# -- helpers -----------------------------------------------------------------------------------------


def _inputs(options: argparse.Namespace) -> tuple[StudySpec, DsConfig | None]:
    """The study and the ds_config, read and checked before anything heavy is imported."""
    from harness import ds_config
    from harness.study import load

    seeds = None
    if options.seeds is not None:
        try:
            seeds = [int(s) for s in options.seeds.split(",")]
        except ValueError:
            raise ConfigError(
                f"--seeds {options.seeds}", rule="seeds are whole numbers", remedy="for example --seeds 1,2,3"
            ) from None
    arms = [a.strip() for a in options.arms.split(",")] if options.arms is not None else None
    study = load(options.study, arms=arms, seeds=seeds, budget=options.budget, assignments=options.assignments)
    return study, ds_config.read(options.ds_config) if options.ds_config else None


def _default_engine() -> DsConfig:
    from harness.ds_config import default
    from harness.hardware import bf16_in_hardware

    return default(bf16=bf16_in_hardware())


def _show(directory: Path, *, as_json: bool) -> None:
    """Rebuild the report and print its verdict."""
    from harness.report import build_report, summary_lines

    table = build_report(directory)
    if as_json:
        _print_json(table)
        return
    for line in summary_lines(table):
        print(line)
    print(f"\nreport: {directory / 'report.html'}")


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1))
