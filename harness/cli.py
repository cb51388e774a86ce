"""The command line: finds the command, reads its flags, turns errors into exit codes.

No subcommand means `run`. DeepSpeed's launcher inserts --local_rank wherever it likes; it is accepted
everywhere and ignored, because the environment says the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import NoReturn

from harness.commands import discover
from harness.errors import IsoBudgetError
from harness.hardware import spin_briefly
from harness.leaving import leave_with
from harness.ranks import from_environment

DESCRIPTION = "At the same cost, which student is better: pretrained from scratch, or distilled?"
DEFAULT = "run"
# Their directory's record is the truth about how they ended.
RECORDED = ("run", "job")
# Launchers end all ranks when the first leaves; rank 0 is given so long to write down why.
LAST_WORD_S = 1.0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="isobudget", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in discover().items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(command)
        command.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def without_local_rank(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words of a person, and those that a launcher put before them, where subparsers would not see the command."""
    lifted: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument in ("--local_rank", "--local-rank"):
            lifted += [argument, next(waiting, "")]
        elif argument.startswith(("--local_rank=", "--local-rank=")):
            lifted.append(argument)
        else:
            rest.append(argument)
    return rest, lifted


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad one exits with 2, as argparse does."""
    rest, lifted = without_local_rank(arguments)
    if not rest or (rest[0] not in discover() and rest[0] not in ("-h", "--help")):
        rest = [DEFAULT, *rest]
    return build_parser().parse_args([*rest, *lifted])


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors a user can act on print as one line."""
    spin_briefly()
    given = sys.argv[1:] if arguments is None else arguments
    if any(a in ("--help", "-h") for a in given) and (not given or given[0] not in discover()):
        build_parser().print_help()
        return 0
    began = time.monotonic()
    try:
        options = parse(given)
    except SystemExit as left:
        if left.code:
            _note(None, given, exit_code=2, message="the command line could not be read", since=began)
        raise
    try:
        return discover()[options.command].execute(options, given)
    except IsoBudgetError as error:
        if from_environment().is_main:
            print(f"isobudget: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            time.sleep(LAST_WORD_S)
        _note(options, given, exit_code=error.exit_code, message=str(error), since=began)
        return error.exit_code
    except KeyboardInterrupt:
        print("isobudget: interrupted; continue with --resume", file=sys.stderr)
        return 130


def _note(options: argparse.Namespace | None, given: list[str], *, exit_code: int, message: str, since: float) -> None:
    """Leave the exit code where schedulers look for it, when a run or a job was refused; see harness.refusal."""
    words, _ = without_local_rank(given)
    command = options.command if options else next((word for word in words[:1] if word in discover()), DEFAULT)
    if command not in RECORDED or not from_environment().is_main:
        return
    from harness.refusal import given_place, note

    place = options or given_place(command, words)
    note(place, exit_code=exit_code, message=message, since=since)


def installed() -> NoReturn:
    """The installed command `isobudget`."""
    leave_with(main)
