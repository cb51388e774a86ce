"""`distilbert`: soft targets, MLM and aligned last hidden states (Sanh et al. 2019, §2)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional

from harness.kernels.soft_cross_entropy.op import masked_cross_entropy
from harness.models.shapes import Shape
from harness.models.signals import Head, Needs, Signals, TopLogits
from harness.objectives import base
from harness.objectives.soft_targets import soft_and_hard


class Options(base.Options):
    """Weights of the three terms, as the authors' training code sets them; `mlm` weighs a causal model's `clm`."""

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
        if options.soft + options.cosine <= 0:
            raise self.refuse("soft + cosine = 0", rule="nothing is asked of the teacher", remedy="use mlm")
        if options.cosine and student.hidden != self.teacher_shape.hidden:
            raise self.refuse(
                f"hidden sizes {student.hidden} and {self.teacher_shape.hidden}",
                rule="the cosine term compares the states themselves",
                remedy="use equal hidden sizes, cosine: 0, or soft_targets with hidden",
            )
        self.temperature = options.temperature if options.soft else None
        last = [frozenset({shape.layers} if options.cosine else {}) for shape in (student, self.teacher_shape)]
        self.student_needs = Needs(
            logits="tokens" if options.soft else "masked" if options.mlm else "none", states=last[0]
        )
        self.teacher_needs = Needs(logits="tokens" if options.soft else "none", states=last[1])

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        terms = self.of_logits(student.head, teacher.head or teacher.top, batch)
        if self.options.cosine:
            mine = base.wide(base.token_rows(student.states[self.student_shape.layers], batch))
            theirs = base.target_rows(teacher.states[self.teacher_shape.layers], batch, like=mine)
            distance = (1 - functional.cosine_similarity(mine, theirs, dim=-1)).sum() / batch.token_count
            terms["cosine"] = self.options.cosine * distance
        return terms

    def of_logits(
        self, student: Head | None, teacher: Head | TopLogits | None, batch: base.TrainingBatch
    ) -> dict[str, torch.Tensor]:
        """The terms of the two heads, those without weight left out."""
        soft, hard, temperature = self.options.soft, self.options.mlm, self.options.temperature
        if student is None:
            return {}
        if not soft or teacher is None:
            head = base.head_at(student, "masked", batch)
            loss = masked_cross_entropy(head.hidden_NE, head.weight_VE, head.bias_V, batch.labels_N)
            return {"cross_entropy": hard * loss / batch.masked_count}
        kl, cross_entropy = soft_and_hard(
            student, teacher, batch, temperature=temperature, positions="tokens", weights=(soft, hard)
        )
        return {"kl": soft * kl, "cross_entropy": hard * cross_entropy}
