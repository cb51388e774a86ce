"""`plan`: what every arm and the whole study will cost, before anything is spent."""

from __future__ import annotations

import argparse

from harness.commands._study import engine_for, inputs, print_json, study_flags, sweep_of
from harness.commands._sweep import plan_sweep
from harness.errors import ConfigError

HELP = "what every arm will cost, before anything is spent"


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
    parser.add_argument(
        "--on", metavar="8xh200", help="plan for these devices instead of measuring here; 64xh200 means nodes of eight"
    )
    parser.add_argument(
        "--utilisation", metavar="S[,T]", help="shares of the peak that a student's step and a teacher's forward reach"
    )
    parser.add_argument("--price", type=_number, metavar="2.5", help="money for one device held for one hour")
    parser.add_argument("--currency", default="", metavar="EUR", help="printed behind amounts of money")
    parser.add_argument("--watts", type=_number, metavar="700", help="what one device draws while it computes")
    parser.add_argument("--grid", type=_number, metavar="300", help="grams of CO2 equivalent per kWh of the grid")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    import gc

    # A plan is over in seconds: looking for garbage among the libraries' thousands of classes took 1 to 2 of them.
    gc.disable()
    try:
        return _plan(options)
    finally:
        gc.enable()


def _plan(options: argparse.Namespace) -> int:
    from harness.plan.bill import Terms
    from harness.plan.machines import parse_on

    sweep = sweep_of(options)
    study = None if sweep else inputs(options)[0]
    terms = Terms(options.price, options.currency, options.watts, options.grid)
    machine = parse_on(options.on) if options.on else None
    if options.utilisation and machine is None:
        raise ConfigError(
            f"--utilisation {options.utilisation}", rule="here the speed is measured, not assumed",
            remedy="add --on, for example --on 8xh200",
        )  # fmt: skip
    from harness.plan.speed import Utilisation

    utilisation = Utilisation.parse(options.utilisation) if options.utilisation else None
    if sweep is not None:
        plan_sweep(sweep, options, utilisation=utilisation, terms=terms)
        return 0
    assert study is not None
    from harness.plan.estimate import estimate
    from harness.plan.outline import sketch
    from harness.plan.show import show
    from harness.progress import reporter

    tell = reporter(is_main=True, json=options.json)
    found = sketch(study, engine_for(options, machine), world=machine.devices if machine else 1, tell=tell.say)
    table = estimate(found, machine=machine, utilisation=utilisation, terms=terms)
    print_json(table) if options.json else show(table)
    return 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
