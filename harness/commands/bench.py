"""`bench`: what a step of every arm takes, how it scales, and how other tools do the same step."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands._study import default_engine, inputs, print_json, study_flags
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.ds_config import DsConfig
    from harness.ranks import Ranks
    from harness.study import StudySpec

HELP = "time a step of every arm and its parts, against other tools and over ranks"
FIGURES = (".svg", ".png", ".pdf")
# What is written or compared only of a step of every arm, the measurement without a mode.
OF_STEPS = ("csv", "figure", "against")


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps of each arm (default 20)")
    parser.add_argument(
        "--data", choices=("study", "random"), default="study",
        help="random: tokens of the study's vocabulary and length, and random weights for a teacher that is not on this "
        "machine; nothing is fetched or prepared",
    )  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="write one line per arm")
    parser.add_argument("--figure", metavar="FILE.svg", help="draw where a step's time goes")
    parser.add_argument(
        "--against", metavar="FILE.json", help="efficiency over what `bench --json` printed on fewer ranks or nodes"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--peers", nargs="?", const="", metavar="DIR",
        help="run Hugging Face's Trainer, plain and compiled loops, TextBrewer and torchdistill on the same weights and "
        "batches; DIR holds those installed with pip install --target",
    )  # fmt: skip
    modes.add_argument(
        "--kernels", nargs="?", const="", metavar="PART", help="time the kernels whose problem's name contains PART"
    )
    modes.add_argument(
        "--ablation", action="store_true", help="the same step without each technique, and with each option"
    )
    modes.add_argument("--scaling", metavar="1,2,4", help="weak and strong scaling over these numbers of ranks")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    study, ds_config = inputs(options)
    against = _checked(options)
    if options.scaling is not None:
        return _scaling(options, study.batch.sequences)
    from harness.engine import connect, device_of

    ranks = connect()
    if options.kernels is not None:
        from harness.bench.kernels import measure_kernels, show_kernels

        table = measure_kernels(device_of(ranks), only=options.kernels, rounds=options.steps)
        return _print(table, show_kernels, options, ranks)
    if options.peers is not None:
        _check_peers(study, ranks)
    conductor, told = _conductor(study, ds_config or default_engine(), ranks, random=options.data == "random")
    if options.peers is not None:
        from harness.bench.match import contend, show_match

        if options.peers:
            _add_path(options.peers)
        return _print(told | contend(conductor, steps=options.steps), show_match, options, ranks)
    if options.ablation:
        from harness.bench.ablation import ablate, show_ablation

        return _print(told | ablate(conductor, steps=options.steps), show_ablation, options, ranks)
    from harness.bench.scaling import compared
    from harness.bench.steps import measure
    from harness.bench.table import show

    table = told | measure(conductor, steps=options.steps)
    if against is not None:
        table["against"] = compared(table, against)
    if ranks.is_main:
        _write(table, options)
    return _print(table, show, options, ranks)


def _checked(options: argparse.Namespace) -> dict[str, Any] | None:
    """What --against names. Whatever cannot be read, written or combined is refused before anything is measured."""
    if options.steps < 1:
        raise ConfigError(
            f"--steps {options.steps}", rule="at least one step is timed", remedy="for example --steps 20"
        )
    mode = next(
        (m for m in ("peers", "kernels", "ablation", "scaling") if getattr(options, m) not in (None, False)), None
    )
    for flag in OF_STEPS:
        if getattr(options, flag) and mode:
            raise ConfigError(
                f"--{flag} with --{mode}", rule=f"--{flag} is of a step of every arm",
                remedy=f"leave one of them out; --{mode} has --json",
            )  # fmt: skip
    for flag in ("csv", "figure"):
        path = Path(getattr(options, flag) or "file")
        if not path.absolute().parent.is_dir() or path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
            raise ConfigError(
                f"--{flag} {path}", rule="no file can be written there", remedy="name a file in a folder of yours"
            )
    if options.figure and Path(options.figure).suffix not in FIGURES:
        raise ConfigError(
            f"--figure {options.figure}", rule="its suffix chooses the format", remedy=f"one of {', '.join(FIGURES)}"
        )
    if not options.against:
        return None
    try:
        text = Path(options.against).read_text(encoding="utf-8")
        found = json.loads(text[text.index("{") :])
        _ = found["world_size"], [row["name"] for row in found["arms"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--against {options.against}", rule=f"not what bench --json prints ({type(error).__name__}: {error})",
            remedy="write it with `bench --json > FILE.json` on fewer ranks",
        ) from None  # fmt: skip
    return found


def _conductor(study: StudySpec, engine: DsConfig, ranks: Ranks, *, random: bool) -> tuple[Conductor, dict[str, str]]:
    """The study on these ranks, and what the figures are of where that is not the study's own data."""
    from harness.bench import random_tokens
    from harness.conduct import Conductor
    from harness.progress import Silent
    from harness.rundir import RunDirectory
    from harness.setting import prepare

    if random:
        setting = random_tokens.prepare(study, engine, world=ranks.world)
        told = {"data": setting.told}
    else:
        setting, told = prepare(study, engine, world=ranks.world), {}
    return Conductor(setting, RunDirectory(Path(".")), ranks, Silent()), told


def _check_peers(study: StudySpec, ranks: Ranks) -> None:
    if ranks.world > 1:
        raise ConfigError(f"--peers on {ranks.world} ranks", rule="peers run in one process", remedy="use one rank")
    if study.causal:
        raise ConfigError(
            f"--peers of {study.name}", rule="the peers' recipes are for masked language models",
            remedy="leave --peers out, or name a masked study",
        )  # fmt: skip


def _scaling(options: argparse.Namespace, sequences: int) -> int:
    from harness.bench.scaling import scale, show_scaling

    try:
        sizes = [int(n) for n in options.scaling.split(",")]
    except ValueError:
        raise ConfigError(
            f"--scaling {options.scaling}", rule="sizes are whole numbers", remedy="for example --scaling 1,2"
        ) from None
    passed = ["--study", options.study, "--data", options.data]
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


def _print(table: dict[str, Any], show: Any, options: argparse.Namespace, ranks: Ranks) -> int:
    """Rank 0 prints; the others wait for it."""
    if ranks.is_main and options.json:
        print_json(table)
    elif ranks.is_main:
        show(table)
        if "data" in table:
            print(table["data"])
    ranks.barrier()
    return 0
