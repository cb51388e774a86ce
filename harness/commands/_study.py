"""What every command about a study shares: its flags, and reading what they name."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.hosts import conceal
from harness.identity import KINDS

if TYPE_CHECKING:
    from harness.ds_config import DsConfig
    from harness.plan.machines import Machine
    from harness.study import StudySpec
    from harness.sweep.expand import Sweep


def study_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--study", default="quickstart", metavar="NAME|FILE.yaml", help="a study that ships with the harness, or a file"
    )
    parser.add_argument(
        "--ds_config", "--deepspeed_config", metavar="FILE", help="DeepSpeed JSON: ZeRO stage, precision, micro-batch"
    )
    parser.add_argument("--arms", metavar="A,B", help="only these arms")
    parser.add_argument("--seeds", metavar="1,2", help="these seeds instead of the study's")
    parser.add_argument(
        "--budget",
        metavar='"3e15 flop"',
        help="flop, tokens, gpu-hours, allocated-gpu-hours, kWh or min; cuts every arm",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change one key of the study",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def hang_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hang-timeout", type=float, metavar="SECONDS",
        help="leave, resumable, when no rank has moved for this long (default 600; 0 never)",
    )  # fmt: skip


def allow_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow",
        metavar="KIND,KIND",
        help=f"go on although this differs from what --out holds: {', '.join(KINDS)}; the report says so",
    )


def typed(given: list[str]) -> str:
    """The command of a person as it is kept: without what a launcher put among its words, and without secrets."""
    launchers = ("--local_rank", "--local-rank")
    words = [
        word
        for before, word in zip(["", *given], given, strict=False)
        if before not in launchers and not word.startswith(launchers)
    ]
    return shlex.join(["python", "launch.py", *map(conceal, words)])


def teacher_flag(parser: argparse.ArgumentParser, *, help: str) -> None:
    parser.add_argument("--teacher-study", metavar="NAME|FILE.yaml", help=help)


def taught_by(study: StudySpec, **facts: str | None) -> StudySpec:
    """The study, with these facts of its teacher; ConfigError where it has none."""
    if study.teacher is None:
        raise ConfigError(
            "--teacher-study", rule=f"study {study.name} has no teacher", remedy="add a teacher block, or leave out the flag"
        )  # fmt: skip
    return study.model_copy(update={"teacher": study.teacher.model_copy(update=facts)})


def inputs(options: argparse.Namespace) -> tuple[StudySpec, DsConfig | None]:
    """The study and the ds_config, read and checked before anything heavy is imported."""
    from harness.study import load

    study = load(
        options.study, arms=arms_of(options), seeds=seeds_of(options), budget=options.budget,
        assignments=options.assignments,
    )  # fmt: skip
    return study, engine_of(options)


def sweep_of(options: argparse.Namespace) -> Sweep | None:
    """The sweep that --study names, with the command line's changes; None where it names a single study."""
    from harness.study.reading import SWEEP, read
    from harness.sweep.expand import expand

    tree = read(options.study, seeds=seeds_of(options), assignments=options.assignments)
    if SWEEP not in tree:
        return None
    if options.budget is not None:
        if any("budget" in point.spec.set for point in expand(tree, where=options.study).points):
            raise ConfigError(
                f"--budget {options.budget}", rule="this sweep sets the budget of every point itself",
                remedy="change sweep.values, for example --set 'sweep.values=[1 Tflop, 2 Tflop]'",
            )  # fmt: skip
        tree["budget"] = options.budget
    return expand(tree, where=options.study, arms=arms_of(options))


def engine_of(options: argparse.Namespace) -> DsConfig | None:
    """The ds_config that was given, read and checked."""
    from harness import ds_config

    return ds_config.read(options.ds_config) if options.ds_config else None


def engine_for(options: argparse.Namespace, machine: Machine | None) -> DsConfig:
    """The ds_config that was given, or the one a run would take on that machine; None is this one."""
    from harness.ds_config import default

    return engine_of(options) or (default_engine() if machine is None else default(bf16=machine.preset.bf16))


def arms_of(options: argparse.Namespace) -> list[str] | None:
    """What --arms names."""
    return [a.strip() for a in options.arms.split(",")] if options.arms is not None else None


def seeds_of(options: argparse.Namespace) -> list[int] | None:
    """What --seeds names."""
    if options.seeds is None:
        return None
    try:
        return [int(s) for s in options.seeds.split(",")]
    except ValueError:
        raise ConfigError(
            f"--seeds {options.seeds}", rule="seeds are whole numbers", remedy="for example --seeds 1,2,3"
        ) from None


def default_engine() -> DsConfig:
    from harness.ds_config import default
    from harness.hardware import bf16_in_hardware

    return default(bf16=bf16_in_hardware())


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1))
