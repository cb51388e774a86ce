"""What a sweep may ask: which quantity its points lie along, and what that axis is called. One entry per kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.rundir import read_json
from harness.study import StudySpec
from harness.study.accounting import Amortised
from harness.sweep.expand import Point, Sweep, TeacherRun
from harness.units import Unit


@dataclass(frozen=True)
class Kind:
    """`axis` names the quantity, `unit` its unit or nothing; `position` finds a point's place, None where unknown yet.

    `write` says a place in words where a number with its unit does not. `foreseen` tells from a teacher's study where a
    point will lie, nearly enough to tell two points apart, where only the trained teacher says it exactly.
    """

    axis: str
    unit: str
    log: bool
    position: Callable[[Sweep, Point, Path], float | None]
    write: Callable[[float], str] | None = None
    foreseen: Callable[[TeacherRun], float] | None = None


def place(sweep: Sweep, point: Point, root: Path) -> float | None:
    """Where a point lies: as the file says, else as its study or its teacher's record tells."""
    return float(point.spec.at) if point.spec.at is not None else KINDS[sweep.spec.kind].position(sweep, point, root)


def check_places(sweep: Sweep) -> None:
    """Refuse, before anything is spent, a sweep whose points no answer could be read from.

    Raises:
        ConfigError: two points at one place, budgets in unlike units, a kind whose quantity the points do not set, one arm.
    """
    from harness.budget import Budget

    kind = KINDS[sweep.spec.kind]
    found: dict[float, str] = {}
    for point in sweep.points:
        where = place(sweep, point, NOWHERE)
        if where is None:
            assert kind.foreseen is not None
            where = kind.foreseen(next(iter(point.teachers.values())))
        if not math.isfinite(where) or where < 0 or (kind.log and where == 0):
            raise ConfigError(
                f"point {point.label}", rule=f"{where:g} is no place on the axis: {kind.axis}", remedy="correct it"
            )
        if where in found:
            raise ConfigError(
                f"points {found[where]} and {point.label}", rule=f"both lie at {where:g}; a {sweep.spec.kind} sweep goes along the {kind.axis}",
                remedy="vary that, choose another kind, or give each point its place: at",
            )  # fmt: skip
        found[where] = point.label
    if kind.unit == BUDGET:
        told = [run.study.budget for run in sweep.teachers] if sweep.spec.kind == "teacher_budget" else []
        units = {
            Budget.parse(str(each)).unit.value for each in told or [point.tree["budget"] for point in sweep.points]
        }
        if len(units) > 1:
            raise ConfigError(
                f"budgets in {' and '.join(sorted(units))}",
                rule="points lie along one unit",
                remedy="give all in the same",
            )
    arms = {arm.name for point in sweep.points for arm in _study(point).arms}
    if sweep.spec.kind != "tune" and len(arms) < 2:
        raise ConfigError(f"arms {sorted(arms)}", rule="a sweep compares arms", remedy="add another, or drop --arms")


def _study(point: Point) -> StudySpec:
    """The point's study; its teachers need not exist for its arms to be counted."""
    return point.study(dict.fromkeys(point.teachers, "builtin"))


def unit_of(sweep: Sweep) -> str:
    """The unit of the axis; a budget's is the budget's own."""
    known = KINDS[sweep.spec.kind].unit
    if known != BUDGET:
        return known
    from harness.budget import Budget

    told = sweep.points[0].tree.get("budget")
    if sweep.spec.kind == "teacher_budget":
        told = sweep.teachers[0].study.budget if sweep.teachers else told
    return Budget.parse(str(told)).unit.value


def _budget(sweep: Sweep, point: Point, root: Path) -> float | None:
    from harness.budget import Budget

    return float(Budget.parse(str(point.tree["budget"])).limit)


def _share(sweep: Sweep, point: Point, root: Path) -> float | None:
    """What part of its teacher's training a student pays."""
    from harness.study.accounting import AccountingSpec, completed

    block = completed(point.tree.get("accounting"), _unit(point))
    policy = AccountingSpec.model_validate(block).teacher_training
    if isinstance(policy, Amortised):
        return 1 / policy.amortised_over
    if isinstance(policy, str):
        return 1.0 if policy == "full" else 0.0
    raise ConfigError(
        f"point {point.label}: teacher_training.range", rule="a range is no share of the teacher's cost",
        remedy="use free, full or {amortised_over: k}",
    )  # fmt: skip


def _as_share(share: float) -> str:
    return "0" if share == 0 else "all" if share == 1 else f"1/{1 / share:.3g}"


def _unit(point: Point) -> Unit:
    from harness.budget import Budget

    return Budget.parse(str(point.tree["budget"])).unit


def _unique_tokens(sweep: Sweep, point: Point, root: Path) -> float | None:
    limit = (point.tree.get("data") or {}).get("limit_tokens")
    if limit is None:
        raise ConfigError(
            f"point {point.label}", rule="it does not say how many unique tokens there are",
            remedy="set data.limit_tokens, or give the point its place: at",
        )  # fmt: skip
    return float(limit)


def _teacher_record(fact: str) -> Callable[[Sweep, Point, Path], float | None]:
    """A figure from the record of the one trained teacher that a point uses; None until it has been trained."""

    def position(sweep: Sweep, point: Point, root: Path) -> float | None:
        if len(point.teachers) != 1:
            raise ConfigError(
                f"point {point.label}", rule=f"it uses {len(point.teachers)} teachers of the sweep, its place is one's",
                remedy="use one @teacher at every point, or give the point its place: at",
            )  # fmt: skip
        run = next(iter(point.teachers.values()))
        record = read_json(run.student(root).parent / "record.json") or {}
        value = record.get(fact)
        return None if value is None else float(value)

    return position


def _parameters(run: TeacherRun) -> float:
    from harness.sweep.stand_in import parameters

    return float(parameters(run))


def _key(sweep: Sweep, point: Point, root: Path) -> float | None:
    value = next(iter(point.spec.set.values()))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"point {point.label}", rule="its value is no number", remedy="give the point its place: at")
    return float(value)


# A folder that holds no record: what teachers will tell is not known there.
NOWHERE = Path("/nonexistent")
BUDGET = "budget"
KINDS: dict[str, Kind] = {
    "crossover": Kind("budget per arm", BUDGET, True, _budget),
    "amortise": Kind("share of the teacher's training that a student pays", "", False, _share, _as_share),
    "repetition": Kind("unique tokens", Unit.TOKEN.value, True, _unique_tokens),
    "teacher_size": Kind(
        "size of the teacher", "parameters", True, _teacher_record("parameters"), foreseen=_parameters
    ),
    "teacher_budget": Kind(
        "training of the teacher", BUDGET, True, _teacher_record("charged"), foreseen=lambda run: run.study.limit.limit
    ),
    "tune": Kind("learning rate", "", True, _key),
}
