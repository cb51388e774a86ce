"""What every command about a study shares: its flags, and reading what they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.ds_config import DsConfig
    from harness.study import StudySpec


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


def inputs(options: argparse.Namespace) -> tuple[StudySpec, DsConfig | None]:
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


def default_engine() -> DsConfig:
    from harness.ds_config import default
    from harness.hardware import bf16_in_hardware

    return default(bf16=bf16_in_hardware())


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1))
