"""`tune`: search every arm's learning rate alike, at a fraction of the budget, and write the tuned study."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from harness.commands._study import inputs, study_flags
from harness.commands.run import run_flags
from harness.errors import ConfigError

HELP = (
    "search every arm's learning rate with as many trials and the same share of the budget, and write the tuned study"
)


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
    run_flags(parser)
    parser.add_argument("--trials", type=int, default=5, help="values per arm, a factor of two apart (default 5)")
    parser.add_argument("--values", metavar="1e-3,2e-3", help="these learning rates instead")
    parser.add_argument(
        "--fraction", type=float, default=0.1, help="share of the study's budget that one trial gets (default 0.1)"
    )
    parser.add_argument("--plan", action="store_true", help="say what the search will cost, and do nothing")
    parser.add_argument("--on", metavar="8xh200", help="with --plan: on these devices instead of measuring here")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    import yaml

    from harness.commands._sweep import plan_sweep, run_sweep
    from harness.identity import parse_kinds
    from harness.sweep.expand import expand
    from harness.sweep.gather import gather
    from harness.sweep.tuning import as_sweep, grid, tuned

    study, _ = inputs(options)
    seeds = study.seeds if options.seeds else study.seeds[:1]
    values = _values(options.values) if options.values else grid(study.optimizer.lr, options.trials)
    sweep = expand(
        as_sweep(study, fraction=options.fraction, values=values, seeds=seeds), where=f"tune {options.study}"
    )
    if options.plan:
        plan_sweep(sweep, options)
        return 0
    if not options.out:
        options.out = str(Path("runs") / sweep.name / time.strftime("%Y%m%d-%H%M%S"))
    code = run_sweep(sweep, options, given, allowed=parse_kinds(options.allow))
    from harness.ranks import from_environment

    if from_environment().is_main:
        root = Path(options.out)
        file = root / "tuned.yaml"
        file.write_text(yaml.safe_dump(tuned(study, gather(root)), sort_keys=False), encoding="utf-8")
        if not options.json:
            print(f"tuned study: {file}")
    return code


def _values(text: str) -> list[float]:
    try:
        values = sorted({float(value) for value in text.split(",")})
    except ValueError:
        raise ConfigError(
            f"--values {text}", rule="learning rates are numbers", remedy="for example --values 1e-3,2e-3,4e-3"
        ) from None
    if len(values) < 3 or values[0] <= 0:
        raise ConfigError(
            f"--values {text}",
            rule="at least three different positive rates",
            remedy="for example --values 1e-3,2e-3,4e-3",
        )
    return values
