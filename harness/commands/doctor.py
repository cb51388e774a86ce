"""`doctor`: what this machine offers, and what to do about the rest."""

from __future__ import annotations

import argparse

HELP = "what this machine offers, and what to do about the rest"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    from harness.doctor import diagnose, print_findings, to_json

    findings = diagnose()
    if options.json:
        print(to_json(findings))
    else:
        from rich.console import Console

        print_findings(findings, Console())
    return 0
