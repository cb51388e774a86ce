"""The sweep block of a study file: one key at several values, and teachers trained on the way.

A file with `sweep` describes a family of studies. Everything else in it is the study that all points share.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.study import ModelSpec
from harness.study.spec import NAME, Spec

# "@name" in place of a teacher's path means the teacher of that name which the sweep trains.
MARK = "@"

Kind = Literal["crossover", "amortise", "repetition", "teacher_size", "teacher_budget", "tune"]


class TrainedTeacher(Spec):
    """A teacher that the sweep trains before the points that use it, by the same loop and on the same data.

    `student` changes the shared student's shape into the teacher's; `set` changes any other key of its recipe.
    `per_point` trains one for every point, on that point's data.
    """

    name: Annotated[str, Field(pattern=NAME)]
    budget: str
    student: dict[str, Any]
    set: dict[str, Any] = Field(default_factory=dict)
    per_point: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1

    @model_validator(mode="after")
    def _shape(self) -> TrainedTeacher:
        unknown = sorted(set(self.student) - set(ModelSpec.model_fields))
        if unknown:
            raise ValueError(f"student.{unknown[0]} is no key of a model")
        return self


class PointSpec(Spec):
    """One study of the sweep: the keys it sets, and where it lies on the axis if its keys do not tell."""

    set: Annotated[dict[str, Any], Field(min_length=1)]
    label: str | None = None
    at: float | None = None


class SweepSpec(Spec):
    """`key` at `values`, or `points` that set several keys at once; `teachers` are trained first.

    `kind` says what is asked of the points: see `harness.sweep.kinds`. `trunk` lets every budget of a ladder branch
    off one run at a constant rate, where the arms' objectives and `schedule.decay: cooldown` allow it.
    """

    kind: Kind
    key: str | None = None
    values: list[Any] = Field(default_factory=list)
    points: list[PointSpec] = Field(default_factory=list)
    teachers: list[TrainedTeacher] = Field(default_factory=list)
    trunk: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> SweepSpec:
        if (self.key is None) != (not self.values):
            raise ValueError("key and values belong together: which key, and the values it takes")
        if bool(self.values) == bool(self.points):
            raise ValueError("give either key and values, or points")
        if len(self.values or self.points) < 2:
            raise ValueError("a sweep has at least two points")
        if self.trunk and self.key != "budget":
            raise ValueError("trunk: only budgets can share a trunk; use key: budget")
        names = [teacher.name for teacher in self.teachers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"teacher {twice[0]!r} is listed twice")
        return self

    def each(self) -> list[PointSpec]:
        """The points, however they were written."""
        return self.points or [PointSpec(set={str(self.key): value}) for value in self.values]
