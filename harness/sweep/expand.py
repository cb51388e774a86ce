"""A sweep file becomes studies: one per point, one per teacher that is trained on the way."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.budget import Budget
from harness.errors import ConfigError
from harness.study import StudySpec, validate
from harness.study.keys import assign
from harness.study.models import CAUSAL_FAMILIES
from harness.study.reading import only_arms
from harness.study.spec import explained
from harness.sweep.spec import MARK, PointSpec, SweepSpec, TrainedTeacher

# The arm's name in a teacher's own study.
TEACHER = "teacher"
Paths = Mapping[str, str]


@dataclass(frozen=True)
class TeacherRun:
    """One training of a teacher; `folder` lies inside the sweep's directory."""

    name: str
    folder: str
    study: StudySpec

    def student(self, root: Path) -> Path:
        """Where its weights will be, in Hugging Face layout."""
        return root / self.folder / "arms" / TEACHER / f"seed-{self.study.seeds[0]}" / "student"


@dataclass(frozen=True)
class Point:
    """One study of the sweep. `teachers`: which of the sweep's teachers its "@names" stand for."""

    label: str
    folder: str
    spec: PointSpec
    tree: dict[str, Any]
    teachers: dict[str, TeacherRun]
    arms: tuple[str, ...] | None = None

    def study(self, paths: Paths) -> StudySpec:
        """The study, with every "@name" replaced by the folder of that teacher.

        Raises:
            ConfigError: as any study; a key of the point does not exist.
        """
        tree = _resolved(copy.deepcopy(self.tree), paths)
        study = validate(tree, where=f"point {self.label}")
        return only_arms(study, list(self.arms), where=self.label) if self.arms else study


@dataclass(frozen=True)
class Sweep:
    """All points in the order of the file."""

    name: str
    question: str
    spec: SweepSpec
    points: list[Point]
    tree: dict[str, Any]

    @property
    def teachers(self) -> list[TeacherRun]:
        """Every teacher that some point uses, once, in the order of need."""
        found = {run.folder: run for point in self.points for run in point.teachers.values()}
        return list(found.values())


def expand(tree: dict[str, Any], *, where: str, arms: Sequence[str] | None = None) -> Sweep:
    """Read a file that holds a sweep.

    Raises:
        ConfigError: an unknown key, a point that no study can be made of, a teacher that nobody trains.
    """
    base = {key: value for key, value in tree.items() if key != "sweep"}
    try:
        spec = SweepSpec.model_validate(tree["sweep"])
    except ValidationError as error:
        raise explained(error, where=f"sweep of {where}") from None
    points: list[Point] = []
    trunk = _Trunk(base, spec, where) if spec.trunk else None
    for point in trunk.points if trunk else spec.each():
        own = copy.deepcopy(base)
        for key, value in point.set.items():
            assign(own, key, value)
        if trunk is not None:
            trunk.share(own)
        label = point.label or ", ".join(_text(value) for value in point.set.values())
        folder = f"points/{_slug(label)}"
        used = {name: _teacher(spec, name, own, base, point, folder) for name in sorted(_marks(own))}
        points.append(Point(label, folder, point, own, used, tuple(arms) if arms else None))
    folders = [point.folder for point in points]
    twice = next((point.label for point in points if folders.count(point.folder) > 1), None)
    if twice is not None:
        raise ConfigError(f"sweep point {twice!r}", rule="two points are called so", remedy="give each its own label")
    unused = sorted({t.name for t in spec.teachers} - {name for point in points for name in point.teachers})
    if unused:
        raise ConfigError(
            f"sweep.teachers.{unused[0]}", rule="no point uses it",
            remedy=f"set teacher.path to {MARK}{unused[0]} somewhere, or leave it out",
        )  # fmt: skip
    return Sweep(str(base.get("name") or "sweep"), str(base.get("question") or ""), spec, points, tree)


class _Trunk:
    """Budgets in rising order, with one warm-up for all of them: as many FLOPs as the smallest budget's."""

    def __init__(self, base: dict[str, Any], spec: SweepSpec, where: str) -> None:
        schedule = base.get("schedule") or {}
        rule = ""
        if schedule.get("decay") != "cooldown":
            rule = f"decay {schedule.get('decay', 'linear')} has no constant part to branch from"
        elif (base.get("evaluation") or {}).get("curve_points") != 0:
            rule = "points of a curve lie at other places for every budget; they need evaluation.curve_points: 0"
        if not rule and not all(Budget.parse(str(p.set["budget"])).unit.deterministic for p in spec.each()):
            rule = "a trunk needs budgets in FLOPs or tokens, whose spending is exact"
        if rule:
            raise ConfigError(f"sweep.trunk of {where}", rule=rule, remedy="change that, or leave out trunk")
        self.points = sorted(spec.each(), key=lambda point: Budget.parse(str(point.set["budget"])).limit)
        self.smallest = Budget.parse(str(self.points[0].set["budget"])).limit
        self.warmup = float(schedule.get("warmup", 0.06))

    def share(self, tree: dict[str, Any]) -> None:
        tree["schedule"] |= {
            "warmup": self.warmup * (self.smallest / Budget.parse(str(tree["budget"])).limit), "keep_trunk": True,
        }  # fmt: skip


def _teacher(
    spec: SweepSpec, name: str, tree: dict[str, Any], base: dict[str, Any], point: PointSpec, folder: str
) -> TeacherRun:
    found = next((teacher for teacher in spec.teachers if teacher.name == name), None)
    if found is None:
        raise ConfigError(
            f"teacher {MARK}{name}", rule="no teacher of this name is trained by the sweep",
            remedy="add it to sweep.teachers, or give a folder or a Hub name",
        )  # fmt: skip
    place = f"teachers/{name}" + (f"/{folder.removeprefix('points/')}" if found.per_point else "")
    return TeacherRun(name, place, teacher_study(found, tree if found.per_point else base))


def teacher_study(teacher: TrainedTeacher, tree: dict[str, Any]) -> StudySpec:
    """The study that trains a teacher: the shared data, tokenizer, batch and recipe, from scratch, one seed."""
    own = copy.deepcopy(tree)
    shape = {key: value for key, value in (own.get("student") or {}).items() if key != "init_from_teacher"}
    for key in ("controls", "baseline", "teacher", "accounting", "arms", "question"):
        own.pop(key, None)
    own |= {"budget": teacher.budget, "student": shape | teacher.student, "seeds": [teacher.seed]}
    loss = "clm" if own["student"].get("family", "bert") in CAUSAL_FAMILIES else "mlm"
    blocks = (own.get("evaluation") or {}).get("mlm_blocks")
    own |= {
        "name": f"{own.get('name', 'sweep')}-{TEACHER}-{teacher.name}", "arms": [{"name": TEACHER, "objective": loss}],
        "evaluation": {"main": f"{loss}.loss", "curve_points": 0, "readout": None}
        | ({"mlm_blocks": blocks} if blocks else {}),
    }  # fmt: skip
    for key, value in teacher.set.items():
        assign(own, key, value)
    return validate(own, where=f"sweep.teachers.{teacher.name}")


def _marks(tree: Any) -> set[str]:
    """Names of "@teachers" in a study's tree: at teacher.path, its own or an arm's."""
    own = (tree.get("teacher") or {}).get("path")
    places = [own, *((arm.get("differs") or {}).get("teacher.path") for arm in tree.get("arms") or [])]
    return {place.removeprefix(MARK) for place in places if isinstance(place, str) and place.startswith(MARK)}


def _resolved(tree: dict[str, Any], paths: Paths) -> dict[str, Any]:
    def path(value: Any) -> Any:
        named = isinstance(value, str) and value.startswith(MARK)
        return paths[value.removeprefix(MARK)] if named else value

    if tree.get("teacher"):
        tree["teacher"]["path"] = path(tree["teacher"].get("path"))
    for arm in tree.get("arms") or []:
        if "teacher.path" in (arm.get("differs") or {}):
            arm["differs"]["teacher.path"] = path(arm["differs"]["teacher.path"])
    return tree


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {each}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")[:48] or "point"
