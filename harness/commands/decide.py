"""`decide`: spend a small share of a budget on a pilot, and answer which arm should get the rest."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands import run
from harness.commands._study import arms_of, default_engine, engine_of, print_json, seeds_of
from harness.commands._sweep import plan_sweep, run_sweep
from harness.errors import ConfigError
from harness.identity import parse_kinds
from harness.ranks import from_environment

if TYPE_CHECKING:
    from harness.study import StudySpec
    from harness.sweep.expand import Sweep
    from harness.sweep.pilot import Pilot

HELP = "run a small pilot, then recommend which student to buy with the rest of the budget"
FORMAT = 1
# A study's tokenizer where it names none.
BUILTIN = "builtin"


def configure(parser: argparse.ArgumentParser) -> None:
    run.configure(parser)
    parser.add_argument("--teacher", metavar="PATH", help="the teacher, a folder or a Hub name, instead of the study's")
    parser.add_argument(
        "--students", type=int, metavar="K", help="K students share the teacher's training (default: it costs nothing)"
    )
    parser.add_argument("--pilot", default="5%", metavar="5%", help="the share of the budget that the pilot may cost")
    parser.add_argument("--rungs", type=int, default=4, metavar="4", help="how many budgets, each twice the one before")
    parser.add_argument("--plan", action="store_true", help="say what the pilot will cost, and do nothing")
    parser.add_argument("--on", metavar="8xh200", help="with --plan: on these devices instead of measuring here")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    if options.budget is None:
        raise ConfigError("no --budget", rule="a decision is about one", remedy='add --budget "256 gpu-hours"')
    if options.resume and not options.out:
        raise ConfigError(
            "--resume without --out", rule="only a named directory can be resumed", remedy="add --out DIR"
        )
    allowed = parse_kinds(options.allow)
    pilot, sweep = prepare_pilot(options)
    main = from_environment().is_main
    if not options.json and main:
        print("\n".join(pilot.lines()))
    if options.plan:
        plan_sweep(sweep, options, beside={"pilot": pilot.as_json()})
        return 0
    from harness.sweep.pilot import check_terms, keep

    options.out = options.out or str(Path("runs") / sweep.name / time.strftime("%Y%m%d-%H%M%S"))
    root = Path(options.out)
    check_terms(pilot, root)
    run_sweep(sweep, options, given, allowed=allowed, opened=lambda: keep(pilot, root), show=False)
    if main:
        show_decision(root, pilot, as_json=options.json)
    return 0


def prepare_pilot(options: argparse.Namespace) -> tuple[Pilot, Sweep]:
    """The pilot and its sweep, with teachers priced where students share them; nothing is spent.

    Raises:
        ConfigError: no study, one seed, one arm, a share outside (0, 1), or a teacher or a charged tuning whose price nobody knows.
    """
    from harness.budget import Account, Budget
    from harness.models.teacher import SHIPPED
    from harness.study.keys import assign
    from harness.study.reading import SWEEP, apply, read
    from harness.sweep.expand import expand
    from harness.sweep.pilot import Pilot, rungs_of, tree_of

    if options.students is not None and options.students < 1:
        raise ConfigError(f"--students {options.students}", rule="a teacher is shared by one or more", remedy="give 1")
    purse, share = Budget.parse(options.budget), share_of(options.pilot)
    tree = read(options.study, seeds=seeds_of(options))
    if SWEEP in tree:
        raise ConfigError(
            f"study {options.study!r} is a sweep", rule="a pilot makes its own ladder of budgets",
            remedy="name a single study",
        )  # fmt: skip
    if options.teacher is not None and (tree.get("teacher") or {}).get("path") != options.teacher:
        # What the study says of its own teacher is not true of another one, and "builtin" is its own teacher's tokenizer.
        tree["teacher"] = {}
        assign(tree, "teacher.path", options.teacher)
        if options.teacher not in SHIPPED and (tree.get("data") or {}).get("tokenizer", BUILTIN) == BUILTIN:
            assign(tree, "data.tokenizer", options.teacher)
    apply(tree, options.assignments)
    arms = arms_of(options)
    # Arms and seeds decide how much a rung costs: counted in a study that was read and checked.
    whole = expand(tree_of(tree, purse, (purse.limit / 2, purse.limit)), where=options.study, arms=arms)
    study = whole.points[-1].study({})
    for name, found in (("seeds", study.seeds), ("arms", [arm.name for arm in study.arms])):
        if len(found) < 2:
            raise ConfigError(
                f"{name} {found}",
                rule=f"a decision needs two {name} or more",
                remedy=f"add --{name}, or name them in the study",
            )
    trials = len(study.arms) * len(study.seeds)
    rungs = rungs_of(purse, share, trials=trials, rungs=options.rungs)
    teachers = _teachers(study, options) if options.students else {}
    sweep = expand(tree_of(tree, purse, rungs), where=options.study, arms=arms)
    charged = (tree.get("accounting") or {}).get("charged") or []
    tuning = _tuning(study) if Account.TUNING.value in charged else {}
    pilot = Pilot(purse, share, options.students, rungs, trials, teachers, tuning)
    for arm, left in pilot.left().items():
        if left <= pilot.rungs[-1]:
            raise ConfigError(
                f"arm {arm}", rule=f"what it owes for its teacher and its tuning leaves its student less than the "
                f"pilot's largest rung ({left:.3g} of {pilot.rest:.3g} {purse.unit})",
                remedy="share the teacher among more students, or give a larger budget",
            )  # fmt: skip
    return pilot, sweep


def share_of(text: str) -> float:
    """Read "5%" or "0.05".

    Raises:
        ConfigError: neither.
    """
    try:
        return float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise ConfigError(f"--pilot {text}", rule="a pilot is a share", remedy="for example --pilot 5%") from None


def _teachers(study: StudySpec, options: argparse.Namespace) -> dict[str, float]:
    """{arm: what its teacher's training cost in the budget's unit} for every arm that learns from one."""
    from harness.owed import known_cost
    from harness.plan.outline import sketch
    from harness.progress import reporter

    ranks = from_environment()
    tell = reporter(is_main=ranks.is_main, json=options.json)
    found: dict[str, float] = {}
    for name, arm in sketch(
        study, engine_of(options) or default_engine(), world=ranks.world, tell=tell.say
    ).arms.items():
        if arm.teacher is None:
            continue
        unit = study.limit.unit
        cost = known_cost(arm.study, arm.teacher, unit)
        if cost is None:
            raise ConfigError(
                f"teacher {arm.teacher.path}", rule=f"nobody knows what its training cost in {unit}s",
                remedy="say it in teacher.training_cost (teacher.training_flop for FLOPs), or leave out --students: "
                "its training then costs nothing",
            )  # fmt: skip
        found[name] = cost
    return found


def _tuning(study: StudySpec) -> dict[str, float]:
    """{arm: what finding its settings cost in the budget's unit}."""
    from harness.owed import charged_tuning

    return {arm.name: charged_tuning(arm.tuning_cost, study.limit.unit, arm=arm.name) for arm in study.arms}


def show_decision(root: Path, pilot: Pilot, *, as_json: bool) -> None:
    """Decide from what the pilot measured, print the answer, and keep it as decision.json; the pilot's report begins with it."""
    from harness.report.files import write_text
    from harness.sweep.decided import FILE
    from harness.sweep.gather import gather
    from harness.sweep.pilot import recommend
    from harness.sweep.publish import build

    decision, tried = recommend(gather(root), pilot)
    answer: dict[str, Any] = {
        "format": FORMAT, "pilot": pilot.as_json(), "decision": decision.as_json(),
        "taken": pilot.taken(), "validation": [each.as_json() for each in tried],
    }  # fmt: skip
    write_text(root / FILE, json.dumps(answer, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    build(root)
    if as_json:
        print_json(answer)
        return
    lines = [*decision.sentences(), *pilot.taken(), *(each.sentence() for each in tried)]
    print("\n" + lines[0] + "\n\n" + "\n".join(f"- {line}" for line in lines[1:]))
    print(f"\nanswer: {root / FILE}\nreport: {root / 'report.html'}")
