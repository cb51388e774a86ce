"""`chaos`: makes the faults of the fault table on purpose and says what was seen."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "break runs on purpose and check every promise about interruption"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws ranks, steps and bytes (default 0)")
    parser.add_argument("--rows", metavar="1,2,8", help="only these rows of the table")
    parser.add_argument("--short", action="store_true", help="each fault fewer times, as in the test suite")
    parser.add_argument("--keep", metavar="DIR", help="keep what the rows write here (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    import json
    import os
    import tempfile

    from harness.chaos.table import FAILED, HEADER, chosen, play_all
    from harness.errors import ConfigError
    from harness.hardware import has_cuda

    wanted = chosen(options.rows)
    if not has_cuda():
        # A row may import what imports DeepSpeed, which would say on our output that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    results = []
    with tempfile.TemporaryDirectory(prefix="isobudget-chaos-") as temporary:
        folder = Path(options.keep or temporary)
        if options.keep and folder.exists():
            raise ConfigError(f"--keep {folder}", rule="it exists", remedy="name a new folder")
        if not options.json:
            print(HEADER, flush=True)
        for result in play_all(wanted, seed=options.seed, short=options.short, folder=folder):
            results.append(result)
            if not options.json:
                print(result.as_line(), flush=True)
    if options.json:
        form = "short" if options.short else "full"
        print(json.dumps({"seed": options.seed, "form": form, "rows": [r.as_json() for r in results]}, indent=1))
    return int(any(result.verdict == FAILED for result in results))
