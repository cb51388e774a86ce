"""`report`: rebuild the report of a finished or interrupted run, or join several runs of one study."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.commands._report import show_joined, show_report
from harness.commands._sweep import is_sweep, show_sweep
from harness.errors import ConfigError

HELP = "rebuild the report of a finished or interrupted run"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directories", metavar="DIR", nargs="+", help="one run or sweep, or several runs of one study to be joined"
    )
    parser.add_argument("--out", metavar="DIR", help="where the report of joined runs goes (default beside the first)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    directories = [Path(directory) for directory in options.directories]
    for directory in directories:
        if not directory.is_dir():
            raise ConfigError(f"{directory}", rule="no such directory", remedy="give a directory written by run")
    if len(directories) > 1:
        # resolve(): "." has no parent's name of its own
        out = Path(options.out) if options.out else directories[0].resolve().parent / "joined"
        show_joined(directories, out, as_json=options.json)
        return 0
    if options.out:
        raise ConfigError(
            f"--out {options.out}", rule="one run's report lies in its own directory", remedy="leave --out away"
        )
    if is_sweep(directories[0]):
        show_sweep(directories[0], as_json=options.json)
    else:
        show_report(directories[0], as_json=options.json)
    return 0
