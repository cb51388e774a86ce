"""`distilbert`: soft targets, MLM and aligned last hidden states (Sanh et al. 2019, §2)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from harness.models.shapes import Shape
from harness.models.signals import Needs, Signals
from harness.objectives import base
from harness.objectives.soft_targets import soft_and_hard


class Options(base.Options):
    """Weights of the three terms, as the authors' training code sets them."""

    temperature: Annotated[float, Field(gt=0)] = 2.0
    soft: Annotated[float, Field(ge=0)] = 5.0
    mlm: Annotated[float, Field(ge=0)] = 2.0
    cosine: Annotated[float, Field(ge=0)] = 1.0


class DistilBert(base.Objective):
    """Soft targets over all real tokens, MLM, and 1 − cos of the last hidden states, per real token."""

    name: ClassVar[str] = "distilbert"
    vanishes_with: ClassVar[dict[str, Any] | None] = {"mlm": 0.0}
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        if options.soft + options.mlm + options.cosine <= 0:
            raise self.refuse("soft + mlm + cosine = 0", rule="the weights sum to nothing", remedy="raise one")
        if student.hidden != self.teacher_shape.hidden:
            raise self.refuse(
                f"hidden sizes {student.hidden} and {self.teacher_shape.hidden}",
                rule="the cosine term compares the states themselves",
                remedy="use equal hidden sizes, or soft_targets with hidden",
            )
        self.student_needs = Needs(logits="tokens", states=frozenset({student.layers}))
        self.teacher_needs = Needs(logits="tokens", states=frozenset({self.teacher_shape.layers}))

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        assert student.head is not None
        assert teacher.head is not None
        options = self.options
        kl, cross_entropy = soft_and_hard(
            student.head, teacher.head, batch,
            temperature=options.temperature, positions="tokens", weights=(options.soft, options.mlm),
        )  # fmt: skip
        mine = base.wide(base.token_rows(student.states[self.student_shape.layers], batch))
        theirs = base.target_rows(teacher.states[self.teacher_shape.layers], batch, like=mine)
        distance = (1 - functional.cosine_similarity(mine, theirs, dim=-1)).sum() / batch.token_count
        return {
            "kl": options.soft * kl,
            "cross_entropy": options.mlm * cross_entropy,
            "cosine": options.cosine * distance,
        }
