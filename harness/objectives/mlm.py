"""`mlm`: masked language modelling from scratch — the arm that needs no teacher."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from harness.kernels.soft_cross_entropy.op import masked_cross_entropy
from harness.models.signals import Needs, Signals, TrainingBatch
from harness.objectives.base import Objective, head_at


class Mlm(Objective):
    """Cross-entropy at the masked positions, where alone the head runs (Devlin et al. 2019, §3.1)."""

    name: ClassVar[str] = "mlm"
    needs_teacher: ClassVar[bool] = False
    reads: ClassVar[Literal["either", "masked", "causal"]] = "masked"
    student_needs = Needs(logits="masked")

    def forward(self, student: Signals, teacher: Signals, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        assert student.head is not None
        head = head_at(student.head, "masked", batch)
        loss = masked_cross_entropy(head.hidden_NE, head.weight_VE, head.bias_V, batch.labels_N)
        return {"cross_entropy": loss / batch.masked_count}
