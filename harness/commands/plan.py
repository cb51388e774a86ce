"""`plan`: what every arm will cost, before anything is spent."""

from __future__ import annotations

import argparse

from harness.commands._study import default_engine, inputs, print_json, study_flags

HELP = "what every arm will cost, before anything is spent"
configure = study_flags


def execute(options: argparse.Namespace, given: list[str]) -> int:
    study, ds_config = inputs(options)
    from harness.plan import estimate, show
    from harness.progress import reporter
    from harness.setting import prepare

    tell = reporter(is_main=True, json=options.json)
    ds_config = ds_config or default_engine()
    setting = prepare(study, ds_config, world=1, tell=tell.say)
    table = estimate(setting)
    print_json(table) if options.json else show(table)
    return 0
