"""A pilot: a small ladder of budgets bought with a share of a purse, and what it recommends for the rest of it.

The rungs double; every arm runs every seed on every rung, and all of it together costs the share at most. Pilots pay
for no teacher and no search of settings: both are sunk while one looks. They count when the rest is spent: of k
students each pays a k-th of its own teacher's training, an arm whose tuning is charged pays that once, and its student
gets what is then left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.budget import Account, Budget
from harness.compare import higher_is_better
from harness.errors import ConfigError, DataError
from harness.ladder.decision import Decision, decide
from harness.ladder.rungs import scores_of
from harness.ladder.scaling import Validation, validated
from harness.rundir import read_json, write_json
from harness.sweep.answer import words_of
from harness.sweep.gather import Found
from harness.units import format_amount

FILE = "pilot.json"
RUNGS = 4
# The lowest of so many is a thousandth of the highest.
MOST_RUNGS = 11
# What a pilot does not pay.
SUNK = (Account.TEACHER_TRAINING.value, Account.TUNING.value)
# Three figures say where a rung lies; more would only make names longer.
_FIGURES = 3


@dataclass(frozen=True)
class Pilot:
    """`purse` is what there is in all, `share` of it is for the pilot; budgets and costs in the purse's unit.

    teachers: {arm: what its teacher's training cost}, empty where teachers are free; students: how many share that.
    tuning: {arm: what finding its settings cost}, empty where the study does not charge it.
    """

    purse: Budget
    share: float
    students: int | None
    rungs: tuple[float, ...]
    trials: int
    teachers: dict[str, float]
    tuning: dict[str, float] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """All trials of all rungs."""
        return self.trials * sum(self.rungs)

    @property
    def rest(self) -> float:
        """What the pilot leaves of the purse, for one student of the recommended arm."""
        return self.purse.limit - self.cost

    def left(self) -> dict[str, float]:
        """{arm: what is left for its student once its part of its teacher and its tuning are paid}, of arms that pay any."""
        return {
            arm: self.rest - self._teacher(arm) - self.tuning.get(arm, 0.0)
            for arm in dict.fromkeys((*self.teachers, *self.tuning))
        }

    def _teacher(self, arm: str) -> float:
        return self.teachers.get(arm, 0.0) / (self.students or math.inf)

    def taken(self) -> list[str]:
        """What every arm pays out of the rest before its student's first step."""
        told: list[str] = []
        for arm in self.left():
            if arm in self.teachers:
                paid = format_amount(self._teacher(arm), self.purse.unit)
                told.append(
                    f"{arm}: {paid} of what the pilot leaves for its teacher, {self.students} students sharing it"
                )
            if arm in self.tuning:
                told.append(
                    f"{arm}: {format_amount(self.tuning[arm], self.purse.unit)} of what the pilot leaves for its tuning, paid once"
                )
        return told

    def as_json(self) -> dict[str, Any]:
        return {
            "purse": self.purse.limit, "unit": self.purse.unit.value, "share": self.share, "students": self.students,
            "rungs": list(self.rungs), "trials": self.trials, "teachers": self.teachers, "tuning": self.tuning,
            "cost": self.cost, "rest": self.rest, "left": self.left(),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """What the pilot will buy, for a terminal."""
        unit = self.purse.unit
        amounts = ", ".join(format_amount(rung, unit) for rung in self.rungs)
        return [
            f"pilot: {self.trials} trials at each of {amounts}; {format_amount(self.cost, unit)} in all, "
            f"{self.cost / self.purse.limit:.1%} of {self.purse}",
            f"left for the student that is recommended: {format_amount(self.rest, unit)}",
            *self.taken(),
        ]


def rungs_of(purse: Budget, share: float, *, trials: int, rungs: int = RUNGS) -> tuple[float, ...]:
    """Doubling budgets, each for this many trials, that together cost at most the share.

    Raises:
        ConfigError: a share outside (0, 1), fewer than two rungs, or so many that the lowest buys nothing.
    """
    if not 0 < share < 1:
        raise ConfigError(
            f"--pilot {share:g}", rule="a pilot takes part of the budget", remedy="for example --pilot 5%"
        )
    if rungs < 2:
        raise ConfigError(f"--rungs {rungs}", rule="a curve needs two rungs or more", remedy=f"for example {RUNGS}")
    if rungs > MOST_RUNGS:
        raise ConfigError(
            f"--rungs {rungs}", rule=f"rungs double: the lowest of more than {MOST_RUNGS} buys next to nothing",
            remedy=f"for example {RUNGS}",
        )  # fmt: skip
    each = purse.limit * share / trials
    found = tuple(_down(each * 2**i / (2**rungs - 1), whole=purse.unit.deterministic) for i in range(rungs))
    if found[0] <= 0:
        raise ConfigError(
            f"--rungs {rungs} of {share:.3g} of {purse}", rule=f"nothing is left for the lowest, {trials} trials each",
            remedy="give fewer rungs or a larger share",
        )  # fmt: skip
    return found


def tree_of(tree: Mapping[str, Any], purse: Budget, rungs: Sequence[float]) -> dict[str, Any]:
    """The sweep that runs a study at these rungs, teachers and tuning free."""
    own = copy.deepcopy(dict(tree))
    own |= {
        "name": f"{own.get('name', 'study')}-pilot",
        "question": f"Which arm of {own.get('name', 'study')} should get what a pilot leaves of {purse}?",
    }
    own.pop("controls", None)
    accounting = {k: v for k, v in (own.get("accounting") or {}).items() if k != "teacher_training"}
    if "charged" in accounting:
        accounting["charged"] = [a for a in accounting["charged"] if a not in SUNK]
    if accounting:
        own["accounting"] = accounting
    else:
        own.pop("accounting", None)
    readout = (own.get("evaluation") or {}).get("readout")
    if isinstance(readout, dict):
        readout["on_curve"] = False  # the ladder itself compares arms at equal device time
    unit = purse.unit
    own["sweep"] = {
        "kind": "crossover",
        "points": [
            {"set": {"budget": f"{rung:.0f} {unit.value}" if unit.deterministic else f"{rung:g} {unit.value}"}, "label": format_amount(rung, unit)}
            for rung in rungs
        ],
    }  # fmt: skip
    return own


def check_terms(pilot: Pilot, root: Path) -> None:
    """A directory keeps the terms it began with.

    Raises:
        ConfigError: it holds a pilot of other terms.
    """
    there = read_json(root / FILE)
    if there is not None and there != pilot.as_json():
        changed = [key for key, value in pilot.as_json().items() if there.get(key) != value]
        raise ConfigError(
            f"output directory {root}", rule=f"its pilot has other terms ({', '.join(changed)})",
            remedy="give the terms it began with, or another --out",
        )  # fmt: skip


def keep(pilot: Pilot, root: Path) -> None:
    """Write the pilot's terms beside its sweep."""
    write_json(root / FILE, pilot.as_json())


def recommend(found: Found, pilot: Pilot) -> tuple[Decision, list[Validation]]:
    """The decision for the rest of the purse, and every arm's curve tried on the largest rung.

    Raises:
        DataError: a rung without a finished trial, fewer than two seeds, arms that the deciding score does not
            measure alike, or a measured budget spent on unlike machines.
    """
    if len(found.at) < len(pilot.rungs):
        raise DataError(
            f"a pilot of {len(found.at)} of {len(pilot.rungs)} rungs", rule="; ".join(found.missing[:3]),
            remedy="run it again with --resume",
        )  # fmt: skip
    if found.withheld:
        raise DataError(
            "a pilot on unlike machines", rule=found.withheld,
            remedy="cannot tell yet: run all arms and rungs on the same hardware, into a new --out",
        )  # fmt: skip
    arms = [arm.name for arm in found.arms]
    if flagged := [arm for arm in arms if arm in found.meaningless]:
        raise DataError(
            f"{found.metric} of {flagged[0]}", rule=found.meaningless[flagged[0]],
            remedy="decide by a score that measures all arms: set evaluation.main to readout.loss",
        )  # fmt: skip
    scores, _ = scores_of(found.ladder, arms)
    words = words_of(found)
    answer = decide(
        found.x, scores, budget=pilot.rest, higher_is_better=higher_is_better(found.metric), left=pilot.left(),
        words=words,
    )  # fmt: skip
    tried = [validated(found.x, scores[arm], arm=arm, words=words) for arm in arms] if len(found.x) > 2 else []
    return answer, tried


def _down(amount: float, *, whole: bool) -> float:
    """Rounded down to three figures, and to whole units where they are counted."""
    step = 10.0 ** (math.floor(math.log10(amount)) - _FIGURES + 1)
    rounded = math.floor(amount / step * (1 + 1e-12)) * step
    return float(math.floor(rounded)) if whole else rounded
