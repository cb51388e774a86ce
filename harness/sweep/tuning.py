"""Fair tuning: as many trials and the same share of the budget for every arm, chosen on text that no verdict is read from.

A search over the learning rate is a sweep of the study itself at a fraction of its budget. What all trials cost is
told in the tuned study as each arm's `tuning`, which its ledger posts to TUNING. A trial that diverged is one of them: it
ranks last, and costs what every trial may spend, so that an arm whose training breaks is not the cheaper one to tune.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from harness.budget import Account, Budget
from harness.errors import ConfigError, DataError
from harness.report.source import Run
from harness.study import StudySpec
from harness.study.keys import assign
from harness.study.reading import SWEEP
from harness.sweep.answer import answer
from harness.sweep.gather import At, Found
from harness.units import Unit

KEY = "optimizer.lr"
# Neighbouring values of the default grid differ by this factor.
FACTOR = 2.0
# Every student has these, whatever its objective trains; its own loss says nothing where its head is not trained.
METRICS = ("readout.loss", "readout.accuracy")


def grid(centre: float, trials: int) -> list[float]:
    """`trials` values a factor of two apart around the study's own.

    Raises:
        ConfigError: fewer than three trials, which show no slope on both sides of a best value.
    """
    if trials < 3:
        raise ConfigError(
            f"--trials {trials}", rule="a best value has a neighbour on either side", remedy="give at least 3"
        )
    return [float(f"{centre * FACTOR ** (i - (trials - 1) // 2):.6g}") for i in range(trials)]


def as_sweep(study: StudySpec, *, fraction: float, values: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    """The tree of the search: every arm at every value, at a fraction of the budget, judged on validation text.

    Raises:
        ConfigError: a fraction outside (0, 1], or a deciding score that not every student has.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"--fraction {fraction:g}", rule="a share of the budget lies in (0, 1]", remedy="for example 0.1"
        )
    main = study.evaluation.main if study.evaluation.main in METRICS else METRICS[0]
    if study.evaluation.readout is None:
        raise ConfigError(
            "tune: this study has no read-out", rule="an arm's own loss does not measure arms that train no head",
            remedy="add evaluation.readout",
        )  # fmt: skip
    tree = study.model_dump(mode="json")
    for arm in tree["arms"]:
        arm["differs"].pop(KEY, None)
        arm["tuning"] = None
    budget = Budget(study.limit.limit * fraction, study.limit.unit) if not study.limit.unit.deterministic else None
    limit = budget.limit if budget else int(study.limit.limit * fraction)
    tree |= {
        "name": f"{study.name}-tune", "question": f"Which learning rate suits each arm of {study.name}?",
        "budget": f"{limit} {study.limit.unit.value}", "seeds": list(seeds), "controls": [],
        SWEEP: {"kind": "tune", "key": KEY, "values": list(values)},
    }  # fmt: skip
    # A trial pays its steps alone: the search would else pay for the teacher once per trial.
    paid = {Account.TUNING.value, Account.TEACHER_TRAINING.value}
    tree["accounting"]["charged"] = [account for account in tree["accounting"]["charged"] if account not in paid]
    tree["accounting"].pop("teacher_training")
    tree["evaluation"] |= {
        "main": main, "split": "validation", "curve_points": 0, "probes": None, "choices": None, "glue": None, "domains": [],
    }  # fmt: skip
    return tree


def tuned(study: StudySpec, found: Found) -> dict[str, Any]:
    """The study with every arm at its best value and with what all the trials cost.

    Raises:
        ConfigError: a trial is missing, and a best of fewer trials than others had would not be fair; or an arm has none
            with a score.
        DataError: a measured budget was spent on unlike machines.
    """
    if found.missing or len(found.at) < len(found.sweep.points):
        first = found.missing[0] if found.missing else "a point"
        raise ConfigError(
            f"tuning: {first}", rule="every arm gets as many trials", remedy="run tune again with --resume"
        )
    if found.withheld:
        raise DataError(
            "a search on unlike machines",
            rule=found.withheld,
            remedy="run all trials on the same hardware, into a new --out",
        )
    lines = answer(found).lines
    if unscored := [line.sentence for line in lines if "best" not in line.data]:
        raise ConfigError(
            f"tuning: {unscored[0]}", rule="a tuned study needs a rate for every arm",
            remedy="search other rates into a new --out: --values",
        )  # fmt: skip
    best = {line.arm: line.data["best"] for line in lines}
    tree = copy.deepcopy(study.model_dump(mode="json"))
    shared = set(best.values())
    unit = study.limit.unit
    for arm in tree["arms"]:
        trials = [
            _cost(run, each) for each in found.at for other in each.analysis.arms if other.name == arm["name"]
            for run in other.runs
        ]  # fmt: skip
        spent = {unit: sum(charged for charged, _ in trials)}
        # In device time too, in which the verdict is given as well.
        spent.setdefault(Unit.GPU_SECOND, sum(seconds for _, seconds in trials))
        arm["differs"].pop(KEY, None)
        if len(shared) > 1:
            arm["differs"][KEY] = best[arm["name"]]
        arm["tuning"] = {"cost": [f"{amount} {each.value}" for each, amount in spent.items()], "trials": len(found.at)}
    if len(shared) == 1:
        assign(tree, KEY, shared.pop())
    return tree


def _cost(run: Run, at: At) -> tuple[float, float]:
    """(charged in the budget's unit, device seconds) of a trial; of one that diverged, of its whole budget at its own pace."""
    charged, seconds = run.record["charged"], run.record["seconds"]
    if not run.diverged:
        return charged, seconds
    assert at.analysis.budget is not None
    whole = at.analysis.budget.limit
    return whole, seconds * whole / charged
