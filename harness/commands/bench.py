"""`bench`: what a step of every arm takes, how it scales, and how other tools do the same step."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.commands._study import default_engine, inputs, print_json, study_flags
from harness.errors import ConfigError

HELP = "time a step of every arm and its parts, against other tools and over ranks"


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps of each arm (default 20)")
    parser.add_argument("--csv", metavar="FILE", help="write one line per arm")
    parser.add_argument("--figure", metavar="FILE.svg", help="draw where a step's time goes")
    parser.add_argument(
        "--peers", nargs="?", const="", metavar="DIR",
        help="run Hugging Face's Trainer, plain and compiled loops, TextBrewer and torchdistill on the same weights and "
        "batches; DIR holds those installed with pip install --target",
    )  # fmt: skip
    parser.add_argument(
        "--kernels", nargs="?", const="", metavar="PART", help="time the kernels whose problem's name contains PART"
    )
    parser.add_argument(
        "--ablation", action="store_true", help="the same step without each technique, and with each option"
    )
    parser.add_argument("--scaling", metavar="1,2,4", help="weak and strong scaling over these numbers of ranks")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    study, ds_config = inputs(options)
    if options.steps < 1:
        raise ConfigError(
            f"--steps {options.steps}", rule="at least one step is timed", remedy="for example --steps 20"
        )
    if options.scaling is not None:
        return _scaling(options, study.batch.sequences)
    from harness.engine import connect, device_of

    ranks = connect()
    if options.kernels is not None:
        from harness.bench.kernels import measure_kernels, show_kernels

        table = measure_kernels(device_of(ranks), only=options.kernels, rounds=options.steps)
        if ranks.is_main:
            print_json(table) if options.json else show_kernels(table)
        return 0
    from harness.bench.steps import measure
    from harness.bench.table import show
    from harness.conduct import Conductor
    from harness.progress import Silent
    from harness.rundir import RunDirectory
    from harness.setting import prepare

    setting = prepare(study, ds_config or default_engine(), world=ranks.world)
    conductor = Conductor(setting, RunDirectory(Path(".")), ranks, Silent())
    if options.peers is not None:
        if ranks.world > 1:
            raise ConfigError(f"--peers on {ranks.world} ranks", rule="peers run in one process", remedy="use one rank")
        if study.causal:
            raise ConfigError(
                f"--peers of {study.name}", rule="the peers' recipes are for masked language models",
                remedy="leave --peers out, or name a masked study",
            )  # fmt: skip
        from harness.bench.match import contend, show_match

        if options.peers:
            _add_path(options.peers)
        table = contend(conductor, steps=options.steps)
        print_json(table) if options.json else show_match(table)
        return 0
    if options.ablation:
        from harness.bench.ablation import ablate, show_ablation

        table = ablate(conductor, steps=options.steps)
        if ranks.is_main:
            print_json(table) if options.json else show_ablation(table)
        return 0
    table = measure(conductor, steps=options.steps)
    if ranks.is_main:
        _write(table, options)
        print_json(table) if options.json else show(table)
    ranks.barrier()
    return 0


def _scaling(options: argparse.Namespace, sequences: int) -> int:
    from harness.bench.scaling import scale, show_scaling

    try:
        sizes = [int(n) for n in options.scaling.split(",")]
    except ValueError:
        raise ConfigError(
            f"--scaling {options.scaling}", rule="sizes are whole numbers", remedy="for example --scaling 1,2"
        ) from None
    passed = ["--study", options.study]
    for flag, value in (("--ds_config", options.ds_config), ("--arms", options.arms), ("--budget", options.budget)):
        passed += [flag, value] if value else []
    for assignment in options.assignments:
        passed += ["--set", assignment]
    table = scale(sizes, sequences=sequences, steps=options.steps, arguments=passed)
    print_json(table) if options.json else show_scaling(table)
    return 0


def _add_path(folder: str) -> None:
    """Last on the path and after transformers was imported: what lies there must not replace what we use."""
    import transformers  # noqa: F401

    if not Path(folder).is_dir():
        raise ConfigError(
            f"--peers {folder}",
            rule="no such directory",
            remedy=f"pip install --no-deps --target {folder} textbrewer …",
        )
    sys.path.append(folder)


def _write(table: dict[str, Any], options: argparse.Namespace) -> None:
    if options.csv:
        from harness.bench.table import write_csv

        write_csv(table, Path(options.csv))
    if options.figure:
        from harness.bench.figure import draw

        draw(table, Path(options.figure))
