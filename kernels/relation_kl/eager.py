"""Relation transfer with the gradient formed in the forward: no autograd graph, a small workspace.

With G = q − p the derivative with respect to the scaled scores, a relation head's gradient is (G + Gᵀ)·A/√d;
everything else is attention_kl/eager.py's arithmetic with one tensor as queries and keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention_kl.eager import ScoreWorkspace, fold_heads
from ..backend import differentiated
from ..pairs import check_lengths, real_pairs, real_tokens, row_weights
from .reference import check_relations, split_heads


def relation_kl(
    student_BTH: Tensor,
    teacher_BTG: Tensor,
    *,
    heads: int,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """The reference's `relation_kl`, same guarantees and errors; differentiable once."""
    check_relations(student_BTH, teacher_BTG, heads)
    check_lengths(lengths_B, student_BTH.shape[0], student_BTH.shape[1], student_BTH.device)
    with torch.autocast(student_BTH.device.type, enabled=False):
        loss = _RelationKL.apply(*differentiated(student_BTH), teacher_BTG.detach(), heads, lengths_B, causal)
    assert isinstance(loss, Tensor)
    return loss


class _RelationKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_BTH: Tensor, teacher_BTG: Tensor, heads: int, lengths_B: Tensor | None, causal: bool
    ) -> Tensor:
        batch, tokens, hidden = student_BTH.shape
        dtype = torch.promote_types(student_BTH.dtype, torch.float32)
        weights_BT = row_weights(lengths_B, batch, tokens, heads, like=student_BTH.new_empty((), dtype=dtype))
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(student_BTH, dtype=dtype) if wanted else None
        workspace = ScoreWorkspace(batch, heads, tokens, dtype, student_BTH.device)
        loss = student_BTH.new_zeros((), dtype=dtype)
        for part in workspace.chunks:
            lengths = None if lengths_B is None else lengths_B[part]
            real = real_tokens(lengths, tokens)
            student, teacher = (
                fold_heads(split_heads(x[part], heads), real, dtype) for x in (student_BTH, teacher_BTG)
            )
            for scores, x in ((workspace.student(len(student)), student), (workspace.teacher(len(student)), teacher)):
                torch.baddbmm(scores, x, x.mT, beta=0, alpha=x.shape[-1] ** -0.5, out=scores)
            workspace.mask(len(student), heads, real_pairs(lengths, tokens, causal=causal, device=student_BTH.device))
            kl_cT = workspace.kl(len(student))
            loss += (kl_cT.view(-1, heads, tokens).sum(1) * weights_BT[part]).sum()
            if gradient is not None:
                slope = workspace.slope(len(student))
                # Rows of pads add nothing to real tokens (their A is zero) and are zeroed by their weight.
                products = torch.bmm(slope, student).baddbmm_(slope.mT, student).view(-1, heads, *student.shape[1:])
                weight = (weights_BT[part] * (hidden / heads) ** -0.5)[:, None, :, None]
                torch.mul(products, weight, out=split_heads(gradient[part], heads))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.dtype = student_BTH.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(ctx.dtype), None, None, None, None
