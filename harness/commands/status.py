"""`status`: how every run of a study stands, across all jobs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands._study import print_json
from harness.commands._sweep import is_sweep, status_sweep

if TYPE_CHECKING:
    from harness.runs import StudyStatus

HELP = "how every run of a study stands, across all jobs; exits 0 when all is done, 75 when it needs time, 1 when it needs you"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--silent-after",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="call a run silent when nothing moved for so long",
    )
    parser.add_argument(
        "--exit-code", action="store_true", help="print nothing; exit with the code that the last run recorded, or 1"
    )
    parser.add_argument(
        "--job", metavar="NAME", help="with --exit-code or --progress: of this job, as in DIR/jobs/NAME.json"
    )
    parser.add_argument(
        "--after", metavar="MARK",
        help="with --exit-code: 66 unless an end was recorded since the files had this mark (mark_of, harness/submit/turns.sh)",
    )  # fmt: skip
    parser.add_argument(
        "--progress", action="store_true", help="print one number, which every step and result that is kept raises"
    )


def execute(options: argparse.Namespace, given: list[str]) -> int:
    from harness import recorded, runs

    if options.exit_code:
        return recorded.recorded_exit_code(Path(options.directory), job=options.job, after=options.after)
    if options.progress:
        print(recorded.progress(Path(options.directory), job=options.job))
        return 0
    if is_sweep(Path(options.directory)):
        return status_sweep(Path(options.directory), silent_s=options.silent_after, as_json=options.json)
    found = runs.read(Path(options.directory), silent_s=options.silent_after)
    print_json(found.as_json()) if options.json else show(found)
    return found.verdict


def show(found: StudyStatus) -> None:
    """A table of runs, then what a person should know."""
    rows = [("run", "state", "budget", "step", "tokens/s", "left", "last step", "host", "exit codes")]
    for run in found.all_runs:
        rows.append(
            (
                f"{run.arm} · {run.seed}", run.state, f"{run.fraction:.1%}", f"{run.step:,}",
                "–" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
                _duration(run.eta_s), "–" if run.heartbeat_age_s is None else f"{_duration(run.heartbeat_age_s)} ago",
                run.host or "–", " ".join("…" if code is None else str(code) for code in run.exit_codes) or "–",
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    done = sum(run.state == "done" for run in found.runs)
    print(f"\n{found.name}: {done} of {len(found.runs)} runs done; study {found.state}")
    for run in found.all_runs:
        if run.state == "silent":
            print(
                f"{run.arm} · {run.seed}: nothing has moved for {_duration(run.heartbeat_age_s)}; see its log and its node"
            )
        elif run.state == "died":
            print(f"{run.arm} · {run.seed}: its process is gone without a word; start its job again, it continues")
        elif run.state == "failed":
            print(f"{run.arm} · {run.seed}: {run.message}")
        for text in run.unreadable:
            print(f"{run.arm} · {run.seed}: {text}")
    if found.state == "failed":
        print(f"{found.name}: {found.message}")
    for text in found.unreadable:
        print(text)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
