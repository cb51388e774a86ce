"""What run, plan, report and status do with a sweep: the same for each of its studies, then one answer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands._report import write_report
from harness.commands._study import default_engine, engine_of, print_json
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.study import StudySpec
    from harness.sweep.conduct import Before
    from harness.sweep.expand import Sweep


# As harness.sweep writes it; asked before anything heavy is imported.
FILE = "sweep.yaml"


def is_sweep(root: Path) -> bool:
    """True for the directory of a sweep."""
    return (root / FILE).is_file()


def run_sweep(
    sweep: Sweep, options: argparse.Namespace, given: list[str], *, allowed: frozenset[str],
    opened: Callable[[], None] = lambda: None, show: bool = True,
) -> int:  # fmt: skip
    """Check everything, train the teachers, run the points, and report; `opened` is called in the new directory."""
    if options.push_to_hub:
        raise ConfigError(
            "--push-to-hub",
            rule="a sweep has many students of one name",
            remedy="push a point: push DIR/points/<point>",
        )
    ds_config = engine_of(options)
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    from harness.commands.run import run_study
    from harness.engine import connect
    from harness.progress import reporter
    from harness.rundir import STUDY
    from harness.setting import prepare
    from harness.sweep import SweepConductor, check

    ranks = connect()
    tell = reporter(is_main=ranks.is_main, json=options.json)
    root = Path(ranks.share(options.out or str(Path("runs") / sweep.name / time.strftime("%Y%m%d-%H%M%S"))))
    if options.resume and not is_sweep(root):
        raise ConfigError(f"--resume {root}", rule="there is no sweep to resume", remedy="leave out --resume")
    engine = ds_config or default_engine()
    check(sweep, lambda study: prepare(study, engine, world=ranks.world, tell=tell.say))

    def run_one(study: StudySpec, out: Path, before: Before) -> None:
        begun = ranks.share((out / STUDY).exists())
        resuming = (options.resume or options.auto_resume) and begun
        run_study(
            study, ds_config, out, options, given, ranks=ranks, allowed=allowed, resuming=resuming, report=write_report,
            before=before,
        )  # fmt: skip

    SweepConductor(sweep, root, ranks, run_one, tell.say, opened).run()
    if ranks.is_main and show:
        show_sweep(root, as_json=options.json)
    ranks.barrier()
    return 0


def show_sweep(root: Path, *, as_json: bool) -> None:
    """Rebuild the sweep's report and print its answer."""
    from harness.sweep.publish import build, summary_lines

    table = build(root)
    if as_json:
        print_json(table)
        return
    for line in summary_lines(table):
        print(line)
    print(f"\nreport: {root / 'report.html'}")


def status_sweep(root: Path, *, silent_s: float, as_json: bool) -> int:
    """How every run of every study of a sweep stands; 0 when all is done, 1 when something needs a person, else 75."""
    from harness.commands.status import show
    from harness.rundir import STUDY, read_json
    from harness.runs import read
    from harness.sweep import load

    sweep = load(root)
    places = [(f"teacher {run.name}", run.folder) for run in sweep.teachers]
    places += [(point.label, point.folder) for point in sweep.points]
    found = {
        label: read(root / folder, silent_s=silent_s) for label, folder in places if (root / folder / STUDY).is_file()
    }
    state = str((read_json(root / "status.json") or {}).get("state") or "waiting")
    if as_json:
        print_json({"name": sweep.name, "state": state, "studies": {k: v.as_json() for k, v in found.items()}})
    else:
        for label, folder in places:
            print(f"{label}  ({folder})")
            show(found[label]) if label in found else print("waiting")
            print()
        done = sum(each.verdict == 0 for each in found.values())
        print(f"{sweep.name}: {done} of {len(places)} studies done; sweep {state}")
    verdicts = [each.verdict for each in found.values()]
    if 1 in verdicts:
        return 1
    return 0 if state == "done" and len(found) == len(places) and not any(verdicts) else 75


def plan_sweep(sweep: Sweep, price: Callable[[StudySpec], dict[str, Any]]) -> dict[str, Any]:
    """The plans of every teacher and point, and their sum; `price` makes the plan of one study."""
    from harness.sweep import check

    labels = [f"teacher {run.name}" for run in sweep.teachers] + [point.label for point in sweep.points]
    plans = dict(zip(labels, check(sweep, price, complete=False), strict=True))
    totals = [plan["total"] for plan in plans.values()]
    summed = {
        key: sum(total[key] for total in totals)
        for key in totals[0]
        if all(isinstance(total.get(key), int | float) and not isinstance(total.get(key), bool) for total in totals)
    }
    return {"sweep": sweep.name, "kind": sweep.spec.kind, "plans": plans, "total": summed}


def plan_of(sweep: Sweep, options: argparse.Namespace) -> int:
    """Print what a sweep will cost here, measured as `plan` measures it."""
    from harness.plan.estimate import estimate
    from harness.plan.outline import sketch
    from harness.progress import reporter

    engine = engine_of(options) or default_engine()
    tell = reporter(is_main=True, json=options.json)
    table = plan_sweep(sweep, lambda study: estimate(sketch(study, engine, world=1, tell=tell.say), machine=None))
    print_json(table) if options.json else show_plan(table)
    return 0


def show_plan(table: dict[str, Any]) -> None:
    """One line per study of the sweep, then their sum."""
    from harness.plan.show import grid
    from harness.units import Unit, format_amount

    rows = []
    for label, plan in table["plans"].items():
        unit = Unit(plan["budget"]["unit"])
        steps = [arm["steps"] for arm in plan["arms"]]
        rows.append(
            [
                label, format_amount(plan["budget"]["limit"], unit), str(len(plan["arms"]) * len(plan["seeds"])),
                f"{min(steps):,}" if min(steps) == max(steps) else f"{min(steps):,} to {max(steps):,}",
                _duration(plan["total"].get("wall_s")),
            ]
        )  # fmt: skip
    total = _duration(table["total"].get("wall_s"))
    print(
        grid(
            f"{table['sweep']}: every study of the sweep",
            ["study", "budget", "trials", "steps", "wall time"],
            rows,
            100,
        )
    )
    print(f"\nthe whole sweep: {total}; arms that several points share are counted at each of them")
    said: dict[str, list[str]] = {}
    for label, plan in table["plans"].items():
        for note in plan["notes"]:
            said.setdefault(note, []).append(label)
    for note, labels in said.items():
        where = "" if len(labels) == len(table["plans"]) else f" ({', '.join(labels)})"
        print(f"- {note}{where}")


def _duration(seconds: float | None) -> str:
    from harness.units import Unit, format_amount

    return "unknown" if seconds is None else format_amount(seconds, Unit.SECOND)
