"""`soft_targets`: vanilla knowledge distillation (Hinton, Vinyals and Dean 2015, §2)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from harness.kernels.soft_cross_entropy.op import soft_cross_entropy
from harness.models.shapes import Shape
from harness.models.signals import Head, Needs, Positions, Signals, TopLogits
from harness.objectives import base

IGNORED = -100  # a label that takes a position out of the cross-entropy


class Options(base.Options):
    """`positions: masked` are those a batch predicts: masked tokens, or every next token of a causal model.

    `vocabulary: mean` is a `paper_code` variant: it divides the soft term by the vocabulary size.
    """

    temperature: Annotated[float, Field(gt=0)] = 2.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    positions: Literal["masked", "tokens"] = "masked"
    vocabulary: Literal["sum", "mean"] = "sum"


class SoftTargets(base.Objective):
    """α·T²·KL(p_T ‖ p_S), summed over the vocabulary and averaged over positions, plus (1−α)·mlm (causal: clm)."""

    name: ClassVar[str] = "soft_targets"
    paper_code: ClassVar[dict[str, Any]] = {"vocabulary": "mean"}
    vanishes_with: ClassVar[dict[str, Any] | None] = {"alpha": 1.0}
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        self.temperature = options.temperature
        self.student_needs = Needs(logits=options.positions)
        self.teacher_needs = Needs(logits=options.positions)

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        assert student.head is not None
        theirs = teacher.head or teacher.top
        assert theirs is not None
        options = self.options
        soft = options.alpha / (self.student_shape.vocab if options.vocabulary == "mean" else 1)
        hard = 1 - options.alpha
        kl, cross_entropy = soft_and_hard(
            student.head, theirs, batch,
            temperature=options.temperature, positions=options.positions, weights=(soft, hard),
        )  # fmt: skip
        return {"kl": soft * kl, "cross_entropy": hard * cross_entropy}


def soft_and_hard(
    student: Head,
    teacher: Head | TopLogits,
    batch: base.TrainingBatch,
    *,
    temperature: float,
    positions: Positions,
    weights: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T²·KL per position, cross-entropy per masked position), the first over masked positions or all tokens.

    `weights` is the ratio in which the caller adds the two, so that the fused loss forms one gradient and
    multiplies the head once for both.
    """
    student = base.head_at(student, positions, batch)
    theirs: dict[str, Any]
    if isinstance(teacher, TopLogits):
        theirs = {"teacher_top": base.top_at(teacher, positions, batch).at(temperature)}
    else:
        teacher = base.head_at(teacher, positions, batch)
        theirs = {
            "teacher_hidden_NG": teacher.hidden_NE, "teacher_weight_VG": teacher.weight_VE, "teacher_bias_V": teacher.bias_V,
        }  # fmt: skip
    labels, count = batch.labels_N, batch.masked_count
    if positions == "tokens":
        count = batch.token_count
        labels = torch.full((len(student.hidden_NE),), IGNORED, dtype=torch.int64, device=batch.labels_N.device)
        labels[base.masked_rows(batch)] = batch.labels_N
    kl, cross_entropy = soft_cross_entropy(
        student.hidden_NE,
        student.weight_VE,
        student.bias_V,
        **theirs,
        labels_N=labels,
        temperature=temperature,
        weights=(weights[0] / count, weights[1] / batch.masked_count),
    )
    return kl / count, cross_entropy / batch.masked_count
