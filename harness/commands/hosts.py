"""`hosts`: check what a launcher is about to hand to other machines."""

from __future__ import annotations

import argparse
import os

from harness import hosts
from harness.commands._study import print_json

HELP = "check a hostfile, an environment file and arguments before a launcher passes them to other machines"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hostfile", metavar="HOSTFILE", help="one line HOST slots=N per machine")
    parser.add_argument("--env-file", metavar="FILE", help="also check this .deepspeed_env")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="what launch.py will be given there")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    machines = hosts.read_hostfile(options.hostfile)
    variables = hosts.read_environment_file(options.env_file) if options.env_file else {}
    hosts.check_environment(os.environ)
    hosts.check_arguments(options.arguments)
    if options.json:
        print_json({"hosts": machines, "ranks": sum(machines.values()), "variables": sorted(variables)})
    else:
        print("\n".join(f"{host} {slots}" for host, slots in machines.items()))
    return 0
