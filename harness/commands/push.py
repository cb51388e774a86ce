"""`push`: put the students of a finished run on the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.commands._study import print_json
from harness.errors import ConfigError, DataError

HELP = "put the students of a finished run on the Hugging Face Hub"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("name", metavar="[OWNER/]NAME", help="each student goes to NAME-<arm>-seed-<n>")
    parser.add_argument("--public", action="store_true", help="make the repositories public (default private)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    from harness.push import check_name, push_students
    from harness.report.model_card import write_cards

    directory, name = Path(options.directory), check_name(options.name)
    if not directory.is_dir():
        raise ConfigError(f"{directory}", rule="no such directory", remedy="give a directory written by run")
    write_cards(directory)
    pushed = list(push_students(directory, name, private=not options.public))
    if not pushed:
        raise ConfigError(f"{directory}", rule="it holds no exported student", remedy="give a finished run")
    if options.json:
        rows = [{"folder": str(p.folder), "repository": p.repository, "error": p.error} for p in pushed]
        print_json({"students": rows})
    else:
        for each in pushed:
            print(each)
    if all(each.error for each in pushed):
        raise DataError(
            f"{name}: {pushed[0].error}",
            rule="no student reached the Hub",
            remedy="log in with `hf auth login`, try again",
        )
    return 0
