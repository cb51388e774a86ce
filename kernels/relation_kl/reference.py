"""Relation transfer (MiniLMv2; MiniLM's value relation), written as its definition: plain PyTorch, any float type.

Shapes: B sequences, T padded length, H and G the student's and the teacher's concatenated head sizes,
R relation heads of d = H/R and e = G/R numbers each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_kl.reference import log_attention
from ..pairs import check_lengths, row_weights


def relation_kl(
    student_BTH: Tensor,
    teacher_BTG: Tensor,
    *,
    heads: int,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Σ_b Σ_r Σ_{real t} KL(softmax(A_T A_Tᵀ/√d_T) ‖ softmax(A_S A_Sᵀ/√d_S))_t / (heads · length_b), a scalar.

    A_S and A_T are the student's and the teacher's queries (or keys, or values), their attention heads
    concatenated and re-split into `heads` relation heads: neither attention head counts nor hidden sizes need
    be equal. Summed over sequences; callers divide by their number. Pads are excluded as queries and as keys.
    The teacher is a constant: it gets no gradient. Half inputs are computed and summed in float32, float64
    stays float64.

    Source: Wang et al. 2021, MiniLMv2, section 3; Wang et al. 2020, MiniLM, section 3.2.

    Raises:
        ValueError: shapes that do not fit together, `heads` that does not divide both sizes, impossible lengths.
    """
    check_relations(student_BTH, teacher_BTG, heads)
    batch, tokens, _ = student_BTH.shape
    check_lengths(lengths_B, batch, tokens, student_BTH.device)
    student, teacher = split_heads(student_BTH, heads), split_heads(teacher_BTG.detach(), heads)
    # An outer autocast would round the scores to half precision; a loss of differences does not survive that.
    with torch.autocast(student_BTH.device.type, enabled=False):
        log_q = log_attention(student, student, lengths_B, causal=causal)
        log_p = log_attention(teacher, teacher, lengths_B, causal=causal).to(log_q.dtype)
        kl_BRT = (log_p.exp() * (log_p - log_q)).sum(-1)
        return (kl_BRT.sum(1) * row_weights(lengths_B, batch, tokens, heads, like=kl_BRT)).sum()


def split_heads(x_BTH: Tensor, heads: int) -> Tensor:
    """(B, T, heads·d) → (B, heads, T, d), a view; positions are never mixed."""
    return x_BTH.unflatten(-1, (heads, -1)).transpose(1, 2)


def check_relations(student_BTH: Tensor, teacher_BTG: Tensor, heads: int) -> None:
    """Refuse a student and a teacher of different batches, and relation heads that do not divide both sizes."""
    if student_BTH.dim() != 3 or teacher_BTG.dim() != 3 or student_BTH.shape[:2] != teacher_BTG.shape[:2]:
        raise ValueError(
            f"student {tuple(student_BTH.shape)} and teacher {tuple(teacher_BTG.shape)}: "
            "both must be (batch, tokens, size) of one batch"
        )
    for name, size in (("student", student_BTH.shape[2]), ("teacher", teacher_BTG.shape[2])):
        if heads < 1 or size % heads:
            raise ValueError(
                f"{heads} relation heads: they must divide the {name}'s size {size}; "
                f"choose a common divisor of {student_BTH.shape[2]} and {teacher_BTG.shape[2]}"
            )
