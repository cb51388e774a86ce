"""Attention-score transfer with the gradient formed in the forward: the difference of scores is one buffer.

With D = S_student − S_teacher the loss is ⟨D, D⟩, dq = 2·D·k/√d and dk = 2·Dᵀ·q/√d. Averaging scores over A
heads equals one head of A·d numbers scaled by 1/(A√d), so averaged scores cost a single product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention_kl.eager import fold_heads, sequence_chunks
from ..attention_kl.reference import check_heads
from ..backend import differentiated
from ..pairs import check_lengths, real_tokens


def score_sse(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    lengths_B: Tensor | None = None,
    head_average: bool = False,
    causal: bool = False,
) -> Tensor:
    """The reference's `score_sse`, same guarantees and errors; differentiable once."""
    check_heads(q_s, k_s, q_t, k_t, equal_heads=not head_average)
    check_lengths(lengths_B, q_s.shape[0], q_s.shape[2], q_s.device)
    scales = [x.shape[-1] ** -0.5 / (x.shape[1] if head_average else 1) for x in (q_s, q_t)]
    if head_average:
        q_s, k_s, q_t, k_t = (join_heads(x) for x in (q_s, k_s, q_t, k_t))
    with torch.autocast(q_s.device.type, enabled=False):
        loss = _ScoreSSE.apply(*differentiated(q_s, k_s), q_t.detach(), k_t.detach(), lengths_B, causal, *scales)
    assert isinstance(loss, Tensor)
    return loss


def join_heads(x: Tensor) -> Tensor:
    """(B, A, T, d) → (B, 1, T, A·d)."""
    return x.transpose(1, 2).flatten(2)[:, None]


class _ScoreSSE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_s: Tensor,
        k_s: Tensor,
        q_t: Tensor,
        k_t: Tensor,
        lengths_B: Tensor | None,
        causal: bool,
        student_scale: float,
        teacher_scale: float,
    ) -> Tensor:
        batch, heads, tokens, _ = q_s.shape
        dtype = torch.promote_types(q_s.dtype, torch.float32)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dq, dk = (torch.empty(q_s.shape, dtype=dtype, device=q_s.device) if wanted else None for _ in range(2))
        chunks = sequence_chunks(batch, heads * tokens * tokens, q_s.device)
        buffer = torch.empty(
            ((chunks[0].stop if chunks else 0) * heads, tokens, tokens), dtype=dtype, device=q_s.device
        )
        loss = q_s.new_zeros((), dtype=dtype)
        for part in chunks:
            real = None if lengths_B is None else real_tokens(lengths_B[part], tokens)
            queries, keys, teacher_queries, teacher_keys = (
                fold_heads(x[part], real, dtype) for x in (q_s, k_s, q_t, k_t)
            )
            difference = buffer[: len(queries)]
            torch.baddbmm(difference, queries, keys.mT, beta=0, alpha=student_scale, out=difference)
            difference.baddbmm_(teacher_queries, teacher_keys.mT, alpha=-teacher_scale)
            if causal:
                difference.tril_()
            loss += torch.dot(difference.view(-1), difference.view(-1))
            if dq is not None and dk is not None:
                # Pads need no mask: their zero rows make the difference zero in their row and column.
                torch.bmm(difference, keys, out=dq[part].flatten(0, 1))
                torch.bmm(difference.mT, queries, out=dk[part].flatten(0, 1))
                dq[part].mul_(2 * student_scale)
                dk[part].mul_(2 * student_scale)
        if dq is not None and dk is not None:
            ctx.save_for_backward(dq, dk)
        ctx.dtypes = q_s.dtype, k_s.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        dq, dk = ((g * grad).to(t) for g, t in zip(saved, ctx.dtypes, strict=True))
        return dq, dk, None, None, None, None, None, None
