"""`report`: rebuild the report of a finished or interrupted run."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.commands._report import show_report
from harness.errors import ConfigError

HELP = "rebuild the report of a finished or interrupted run"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    directory = Path(options.directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory}", rule="no such directory", remedy="give a directory written by run")
    show_report(directory, as_json=options.json)
    return 0
