"""`bench`: time a step of every arm, and the engine against bare PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.commands._study import default_engine, inputs, print_json, study_flags
from harness.errors import ConfigError

HELP = "time a step of every arm, and the engine against bare PyTorch"


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps of each arm (default 20)")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    study, ds_config = inputs(options)
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

    setting = prepare(study, ds_config or default_engine(), world=ranks.world)
    table = measure(Conductor(setting, RunDirectory(Path(".")), ranks, Silent()), steps=options.steps)
    if ranks.is_main:
        print_json(table) if options.json else show(table)
    ranks.barrier()
    return 0
