"""`minilm`: attention distributions and value relations of the last layer (Wang et al. 2020, §3)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from harness.kernels.attention_kl.op import attention_kl
from harness.kernels.relation_kl.op import relation_kl
from harness.models.attention import QKV, share_heads
from harness.models.shapes import Shape
from harness.models.signals import Needs, Signals
from harness.objectives import base


def concatenate_heads(tensor_BATd: torch.Tensor) -> torch.Tensor:
    """(B, A, T, d) → (B, T, A·d); a view where the heads came from one projection."""
    return tensor_BATd.transpose(1, 2).flatten(2)


def per_head(qkv: QKV) -> QKV:
    """Q, K, V as every query head attends with them: shared keys and values are repeated."""
    query, key, value = qkv
    heads = query.shape[1]
    return query, share_heads(key, heads), share_heads(value, heads)


class MiniLm(base.Objective):
    """KL of attention distributions plus KL of softmax(VVᵀ/√d), each over heads · real length.

    Of causal models both are over each token's past.
    """

    name: ClassVar[str] = "minilm"
    vanishes_with: ClassVar[dict[str, Any] | None] = {}

    def __init__(self, options: base.Options, student: Shape, teacher: Shape | None) -> None:
        super().__init__(options, student, teacher)
        if student.heads != self.teacher_shape.heads:
            raise self.refuse(
                f"{student.heads} student heads and {self.teacher_shape.heads} teacher heads",
                rule="attention is transferred head by head",
                remedy="use equal head counts, or minilmv2",
            )
        self.student_needs = Needs(qkv=frozenset({student.layers}))
        self.teacher_needs = Needs(qkv=frozenset({self.teacher_shape.layers}))

    def forward(self, student: Signals, teacher: Signals, batch: base.TrainingBatch) -> dict[str, torch.Tensor]:
        q_s, k_s, v_s = per_head(student.qkv[self.student_shape.layers])
        q_t, k_t, v_t = per_head(teacher.qkv[self.teacher_shape.layers])
        lengths = base.lengths_of(batch)
        attention = attention_kl(q_s, k_s, q_t, k_t, lengths_B=lengths, causal=self.causal)
        values = relation_kl(
            concatenate_heads(v_s), concatenate_heads(v_t), heads=self.student_shape.heads, lengths_B=lengths,
            causal=self.causal,
        )  # fmt: skip
        return {"attention": attention / batch.sequence_count, "values": values / batch.sequence_count}

    def flops(self, size: base.StepSize) -> int:
        pair_products = 2 * size.tokens * size.length
        return 2 * pair_products * (3 * self.student_shape.hidden + self.teacher_shape.hidden)
