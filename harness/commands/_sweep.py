"""What run, plan, report and status do with a sweep: the same for each of its studies, then one answer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands._report import write_report
from harness.commands._study import default_engine, engine_for, engine_of, print_json
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.plan.bill import Terms
    from harness.plan.speed import Utilisation
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

    # A search survives a trial that diverges; a teacher that diverges leaves nothing to search with.
    searching = sweep.spec.kind == "tune"
    teachers = {root / run.folder for run in sweep.teachers}

    def run_one(study: StudySpec, out: Path, before: Before) -> None:
        begun = ranks.share((out / STUDY).exists())
        resuming = (options.resume or options.auto_resume) and begun
        run_study(
            study, ds_config, out, options, given, ranks=ranks, allowed=allowed, resuming=resuming, report=write_report,
            before=before, hung=conductor.hung, keeps_diverged=searching and out not in teachers,
        )  # fmt: skip

    conductor = SweepConductor(sweep, root, ranks, run_one, tell.say, opened, allowed)
    conductor.run()
    if show:
        ranks.on_main(lambda: show_sweep(root, as_json=options.json))
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
    from harness.recorded import last_word
    from harness.rundir import STUDY
    from harness.runs import TROUBLE, StudyStatus, read
    from harness.sweep import load

    sweep = load(root)
    places = [(f"teacher {run.name}", run.folder) for run in sweep.teachers]
    places += [(point.label, point.folder) for point in sweep.points]
    found: dict[str, StudyStatus] = {}
    unreadable: dict[str, str] = {}
    for label, folder in places:
        try:
            if (root / folder / STUDY).is_file():
                found[label] = read(root / folder, silent_s=silent_s)
        except ConfigError as error:  # what the others say is shown all the same
            unreadable[label] = str(error)
    broken: list[str] = []
    word = last_word(root, broken)
    state = word.get("state") or ("unreadable" if broken else "waiting")
    if as_json:
        studies = {label: each.as_json() for label, each in found.items()}
        print_json({"name": sweep.name, "state": state, "studies": studies, "unreadable": unreadable})
    else:
        for label, folder in places:
            print(f"{label}  ({folder})")
            show(found[label]) if label in found else print(unreadable.get(label, "waiting"))
            print()
        done = sum(each.verdict == 0 for each in found.values())
        print(f"{sweep.name}: {done} of {len(places)} studies done; sweep {state}")
        if state in TROUBLE:
            print(word.get("message") or "; ".join(broken))
    verdicts = [each.verdict for each in found.values()]
    if 1 in verdicts or unreadable or state in TROUBLE:
        return 1
    return 0 if state == "done" and len(found) == len(places) and not any(verdicts) else 75


def plan_sweep(
    sweep: Sweep, options: argparse.Namespace, *, utilisation: Utilisation | None = None, terms: Terms | None = None,
    beside: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Print what a sweep will cost: on the devices that --on names, else as measured here; `beside` joins it in --json."""
    from harness.plan.estimate import estimate
    from harness.plan.machines import parse_on
    from harness.plan.outline import Sketch, sketch
    from harness.plan.total import Made
    from harness.progress import reporter
    from harness.sweep.price import priced

    machine = parse_on(options.on) if options.on else None
    engine = engine_for(options, machine)
    tell = reporter(is_main=True, json=options.json)

    def look(study: StudySpec) -> Sketch:
        return sketch(study, engine, world=machine.devices if machine else 1, tell=tell.say)

    def price(found: Sketch, made: Made) -> dict[str, Any]:
        return estimate(found, machine=machine, utilisation=utilisation, terms=terms, made=made)

    table = priced(sweep, look, price)
    print_json({**(beside or {}), **table}) if options.json else show_plan(table)


def show_plan(table: dict[str, Any]) -> None:
    """One line per study of the sweep, then their sum."""
    from harness.plan.show import grid
    from harness.units import Unit, format_amount

    rows = []
    for label, plan in table["plans"].items():
        unit = Unit(plan["budget"]["unit"])
        steps = [arm["steps"] for arm in plan["arms"]]
        trials, made = plan["total"]["trials"], plan["total"]["trials_made"]
        rows.append(
            [
                label, format_amount(plan["budget"]["limit"], unit), f"{trials} of {trials + made}" if made else str(trials),
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
    trained = format_amount(table["total"]["training_flop"], Unit.FLOP)
    said_once = (
        "; a trial that several points share is trained, and counted, once" if table["total"]["trials_made"] else ""
    )
    print(f"\nthe whole sweep: {total}, {table['total']['trials']} trials, {trained} of training{said_once}")
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
