"""`pkd`: patient distillation of normalised sequence states (Sun et al. 2019, §3.2)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional

from harness.models.shapes import Shape
from harness.models.signals import Needs, Signals
from harness.objectives import base


class Options(base.Options):
    """`skip` learns from every k-th teacher layer, `last` from the teacher's last ones."""

    layers: Literal["skip", "last"] = "skip"


class Pkd(base.Objective):
    """Σ over student layers but the last of ‖h_S/‖h_S‖ − h_T/‖h_T‖‖² at [CLS], mean over sequences.

    A causal model's [CLS] has seen nothing: there the state is that of the last real token, which has seen all.
    The patient term alone: the paper adds soft targets and the task loss, which a study composes as terms.
    """

    name: ClassVar[str] = "pkd"
    vanishes_with: ClassVar[dict[str, Any] | None] = {}
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        theirs = self.teacher_shape
        if student.hidden != theirs.hidden:
            raise self.refuse(
                f"hidden sizes {student.hidden} and {theirs.hidden}", rule="[CLS] states are compared themselves",
                remedy="use equal hidden sizes, or the objective hidden",
            )  # fmt: skip
        if student.layers < 2 or student.layers > theirs.layers:
            raise self.refuse(
                f"{student.layers} student layers for {theirs.layers} of the teacher",
                rule="the student needs at least 2 layers and no more than the teacher",
                remedy="choose other depths",
            )
        inner = range(1, student.layers)
        if options.layers == "skip":
            stride = base.evenly_spaced(self)
            self.state_map = {i: i * stride for i in inner}
        else:
            self.state_map = {i: theirs.layers - student.layers + i for i in inner}
        self.student_needs = Needs(states=frozenset(self.state_map))
        self.teacher_needs = Needs(states=frozenset(self.state_map.values()))

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        errors = []
        for mine, theirs in self.state_map.items():
            a = functional.normalize(base.wide(self.summary(student.states[mine], batch)), dim=-1)
            b = functional.normalize(base.wide(self.summary(teacher.states[theirs], batch).detach()), dim=-1).to(
                a.dtype
            )
            errors.append((a - b).square().sum())
        return {"patience": torch.stack(errors).sum() / batch.sequence_count}

    def summary(self, states_BTH: torch.Tensor, batch: base.TrainingBatch) -> torch.Tensor:
        """The state (B, H) that stands for a sequence."""
        return base.last_rows(states_BTH, batch) if self.causal else states_BTH[:, 0]
