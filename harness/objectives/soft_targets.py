"""`soft_targets`: vanilla knowledge distillation (Hinton, Vinyals and Dean 2015, §2)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from harness.kernels.soft_cross_entropy.op import masked_cross_entropy, soft_cross_entropy
from harness.models.shapes import Shape
from harness.models.signals import Head, Needs, Signals
from harness.objectives import base


class Options(base.Options):
    """`vocabulary: mean` is a `paper_code` variant: it divides the soft term by the vocabulary size."""

    temperature: Annotated[float, Field(gt=0)] = 2.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    positions: Literal["masked", "tokens"] = "masked"
    vocabulary: Literal["sum", "mean"] = "sum"


class SoftTargets(base.Objective):
    """α·T²·KL(p_T ‖ p_S), summed over the vocabulary and averaged over positions, plus (1−α)·mlm."""

    name: ClassVar[str] = "soft_targets"
    Options: ClassVar[type[base.Options]] = Options
    options: Options

    def __init__(self, options: Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        self.student_needs = Needs(logits=options.positions)
        self.teacher_needs = Needs(logits=options.positions)

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        assert student.head is not None and teacher.head is not None
        options = self.options
        soft = options.alpha / (self.student_shape.vocab if options.vocabulary == "mean" else 1)
        hard = 1 - options.alpha
        kl, cross_entropy = soft_and_hard(
            student.head, teacher.head, batch,
            temperature=options.temperature, positions=options.positions, weights=(soft, hard),
        )  # fmt: skip
        return {"kl": soft * kl, "cross_entropy": hard * cross_entropy}


def soft_and_hard(
    student: Head,
    teacher: Head,
    batch: base.TrainingBatch,
    *,
    temperature: float,
    positions: str,
    weights: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T²·KL per position, cross-entropy per masked position), the first over masked positions or all tokens.

    `weights` is the ratio in which the caller adds the two, so that the fused loss forms one gradient.
    """
    if positions == "masked":
        kl, cross_entropy = soft_cross_entropy(
            student.hidden_NE,
            student.weight_VE,
            student.bias_V,
            teacher_logits_NV=teacher.logits(),
            labels_N=batch.labels_N,
            temperature=temperature,
            weights=weights,
        )
        return kl / batch.masked_count, cross_entropy / batch.masked_count
    kl, _ = soft_cross_entropy(
        student.hidden_NE,
        student.weight_VE,
        student.bias_V,
        teacher_logits_NV=teacher.logits(),
        labels_N=None,
        temperature=temperature,
    )
    rows = student.hidden_NE.index_select(0, masked_rows(batch))
    cross_entropy = masked_cross_entropy(rows, student.weight_VE, student.bias_V, batch.labels_N)
    return kl / batch.token_count, cross_entropy / batch.masked_count


def masked_rows(batch: base.TrainingBatch) -> torch.Tensor:
    """Where the masked positions lie among the rows of all real tokens."""
    if batch.attention_mask_BT is None:
        return batch.positions_N
    ranks = batch.attention_mask_BT.flatten().long().cumsum(0) - 1
    return ranks[batch.positions_N]
