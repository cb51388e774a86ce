"""`hidden`: mean squared error of chosen hidden states through a learned projection (Romero et al. 2015)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from harness.models.shapes import Shape
from harness.models.signals import Needs, Signals
from harness.objectives import base


class Options(base.Options):
    """`layers` maps student states to teacher states; every k-th by default. Equal widths need no projection."""

    layers: dict[int, int] | None = None
    project: bool = True


class Hidden(base.Objective):
    """Σ over mapped states of MSE(W·h_S, h_T), a mean over real tokens and the teacher's hidden size."""

    name: ClassVar[str] = "hidden"
    vanishes_with: ClassVar[dict[str, Any] | None] = {}
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        theirs = self.teacher_shape
        if options.layers is not None and not options.layers:
            raise self.refuse("layers = {}", rule="no state is compared", remedy="map at least one, or leave it out")
        if not options.project and student.hidden != theirs.hidden:
            raise self.refuse(
                f"hidden sizes {student.hidden} and {theirs.hidden}", rule="project: false compares states themselves",
                remedy="use equal hidden sizes, or project: true",
            )  # fmt: skip
        if options.layers is None:
            stride = base.evenly_spaced(self)
            self.state_map = {i: i * stride for i in range(1, student.layers + 1)}
        else:
            self.state_map = dict(options.layers)
        self.student_needs = Needs(states=frozenset(self.state_map))
        self.teacher_needs = Needs(states=frozenset(self.state_map.values()))
        self.projections = nn.ModuleDict()
        if options.project:
            for number in self.state_map:
                self.projections[str(number)] = nn.Linear(student.hidden, theirs.hidden)

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        terms: dict[str, torch.Tensor] = {}
        for mine, theirs in self.state_map.items():
            rows = base.token_rows(student.states[mine], batch)
            projected = base.wide(self.projections[str(mine)](rows) if self.options.project else rows)
            target = base.target_rows(teacher.states[theirs], batch, like=projected)
            count = batch.token_count * self.teacher_shape.hidden
            terms[f"state_{mine}"] = (projected - target).square().sum() / count
        return terms

    def flops(self, size: base.StepSize) -> int:
        one = 3 * 2 * size.tokens * self.student_shape.hidden * self.teacher_shape.hidden
        return one * len(self.projections)
