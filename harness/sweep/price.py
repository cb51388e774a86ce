"""What a whole sweep will cost: every study's plan, with what several of them share counted once, as it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.plan.total import Made
from harness.sweep.conduct import check, reference_keys, trial_key
from harness.sweep.expand import Sweep
from harness.sweep.tuning import KEY

if TYPE_CHECKING:
    from harness.plan.outline import Sketch
    from harness.study import StudySpec

Table = dict[str, Any]


def priced(sweep: Sweep, sketch: Callable[[StudySpec], Sketch], estimate: Callable[[Sketch, Made], Table]) -> Table:
    """The plans of every teacher and point, and their sum: what running the sweep will cost.

    A trial, or a reference, that an earlier point makes is left out of a later point's total; under `trunk` a trial
    begins where the trial of the next smaller budget left the trunk. Rows of arms stay those of whole trials.

    Raises:
        whatever a plan of one of its studies raises.
    """
    prices = _Prices(sweep, sketch, estimate)
    labels = [f"teacher {run.name}" for run in sweep.teachers] + [point.label for point in sweep.points]
    plans = dict(zip(labels, check(sweep, prices.of, complete=False), strict=True))
    totals = [plan["total"] for plan in plans.values()]
    summed = {
        key: sum(total[key] for total in totals)
        for key in totals[0]
        if all(isinstance(total.get(key), int | float) and not isinstance(total.get(key), bool) for total in totals)
    }
    return {"sweep": sweep.name, "kind": sweep.spec.kind, "plans": plans, "total": summed}


class _Prices:
    """Asked for teachers first, then for points in their order, and remembers what they make."""

    def __init__(
        self, sweep: Sweep, sketch: Callable[[StudySpec], Sketch], estimate: Callable[[Sketch, Made], Table]
    ) -> None:
        self._sketch, self._estimate = sketch, estimate
        self._trunk = sweep.spec.trunk
        self._teachers_left = len(sweep.teachers)
        self._trials: set[str] = set()
        self._references: set[str] = set()
        # {arm: steps of the trunk that the last budget kept}
        self._steps: dict[str, int] = {}
        self._sketches: dict[str, Sketch] = {}
        self._tables: dict[str, Table] = {}

    def of(self, study: StudySpec) -> Table:
        """The plan of one study; studies that differ in nothing but their learning rate are measured once."""
        alike = _but_for_the_rate(study)
        found = self._sketches.get(alike) or self._sketches.setdefault(alike, self._sketch(study))
        if self._teachers_left:
            self._teachers_left -= 1
            return self._estimate(found, Made())
        made = self._made(study, found)
        key = json.dumps(
            [alike, sorted((a, sorted(s)) for a, s in made.seeds.items()), made.steps, sorted(made.references)]
        )
        table = self._tables.get(key) or self._tables.setdefault(key, self._estimate(found, made))
        if self._trunk:
            self._steps = {row["name"]: row["trunk_steps"] for row in table["arms"]}
        return table

    def _made(self, study: StudySpec, found: Sketch) -> Made:
        """What earlier points make for this one; notes what this one makes."""
        trials = {
            (arm.name, seed): f"{trial_key(found.arms[arm.name], seed)} {study.for_arm(arm).optimizer.lr}"
            for arm in study.arms
            for seed in study.seeds
        }
        copied: dict[str, set[int]] = {}
        for (arm, seed), key in trials.items():
            if key in self._trials:
                copied.setdefault(arm, set()).add(seed)
        self._trials |= set(trials.values())
        # Without a corpus its fingerprint says nothing: then the data block stands for it.
        data = "" if found.complete else study.data.model_dump_json()
        references = {name: key + data for name, key in reference_keys(found.setting).items()}
        judged = frozenset(name for name, key in references.items() if key in self._references)
        self._references |= set(references.values())
        return Made({arm: frozenset(seeds) for arm, seeds in copied.items()}, self._steps, judged)


def _but_for_the_rate(study: StudySpec) -> str:
    """Everything that a study's price may depend on."""
    tree = study.model_dump(mode="json")
    tree["optimizer"].pop(KEY.split(".")[1])
    for arm in tree["arms"]:
        arm["differs"].pop(KEY, None)
    return json.dumps(tree, sort_keys=True)
