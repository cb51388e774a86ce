"""Relation KL on the GPU: the scores of a sequence's relation heads never leave the chip.

One program owns a (sequence, relation head) of at most TILE tokens and forms the loss and the gradient
(G + Gᵀ)·A, G = q − p, in one pass. Longer sequences go over blocks: attention_kl's online softmax leaves two
log-sum-exps per row, and because A·Aᵀ is symmetric one more kernel forms G and Gᵀ of a block from the same two
products. README.md has the maths; names and shapes as in reference.py and tiles.py.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# Triton's decorator hides what a kernel may be called with.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention_kl.triton_kernel import attention_rows
from ..backend import differentiated, on_device
from ..pairs import check_lengths
from ..tiles import (
    LOG2E,
    block_options,
    dense_like,
    head_constants,
    load_rows,
    masked_scores,
    real_pairs,
    scaled,
    sequence_length,
    store_rows,
    student_tile,
    teacher_tile,
    tile_options,
)
from .reference import check_relations, split_heads


@triton.jit
def relation_tile(
    student, teacher, gradient, loss, lengths,
    s_b, s_r, s_t, t_b, t_r, t_t, d_b, d_r, d_t, tokens, heads, scale_s, scale_t,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of one (sequence, relation head) of at most BLOCK tokens. loss is (B, R)."""
    # Neighbouring programs take neighbouring heads: they share the cache lines of narrow heads.
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    rows = tl.arange(0, BLOCK)
    # The teacher first, down to p: its scores need not live while the student's are made.
    w = load_rows(teacher + sequence * t_b + head * t_r, rows, t_t, length, SIZE_T, PADDED_T)
    p, negentropy = teacher_tile(masked_scores(w, w, rows, rows, length, CAUSAL, FULL), scale_t)
    a = load_rows(student + sequence * s_b + head * s_r, rows, s_t, length, SIZE_S, PADDED_S)
    s = masked_scores(a, a, rows, rows, length, CAUSAL, FULL)
    kl, slope = student_tile(s, scale_s, p, negentropy)
    tl.store(loss + sequence * heads + head, tl.sum(kl, 0) / (heads * tl.maximum(length, 1)))
    if GRADIENT:
        slope = slope.to(a.dtype)
        total = tl.dot(slope, a)
        total = tl.dot(tl.trans(slope), a, total)
        store_rows(gradient + sequence * d_b + head * d_r, rows, d_t, tokens, total, SIZE_S, PADDED_S)


@triton.jit
def symmetric_slope(scores, scale, row, col, rows, cols, CAUSAL: tl.constexpr):
    """exp2(x_ij − row_i) + exp2(x_ij − col_j), x = scores·scale: a block of Q + Qᵀ where the scores are symmetric."""
    forward = tl.exp2(scores * scale - row[:, None])
    backward = tl.exp2(scores * scale - col[None, :])
    if CAUSAL:
        forward = tl.where(cols[None, :] <= rows[:, None], forward, 0.0)
        backward = tl.where(rows[:, None] <= cols[None, :], backward, 0.0)
    return forward + backward


@triton.jit
def relation_gradient(
    student, teacher, lse_s, lse_t, gradient, lengths,
    s_b, s_r, s_t, t_b, t_r, t_t, d_b, d_r, d_t, tokens, heads, scale_s, scale_t,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK rows: Σ over tokens, STEP at a time, of (G + Gᵀ)·A. lse is (B, R, T)."""
    head, block, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    student += sequence * s_b + head * s_r
    teacher += sequence * t_b + head * t_r
    a = load_rows(student, rows, s_t, length, SIZE_S, PADDED_S)
    w = load_rows(teacher, rows, t_t, length, SIZE_T, PADDED_T)
    line = (sequence * heads + head) * tokens
    row_s = tl.load(lse_s + line + rows, mask=rows < length, other=0.0)
    row_t = tl.load(lse_t + line + rows, mask=rows < length, other=0.0)
    total = tl.zeros([BLOCK, PADDED_S], tl.float32)
    for start in range(0, tl.where(block * BLOCK < length, length, 0), STEP):
        cols = start + tl.arange(0, STEP)
        b = load_rows(student, cols, s_t, length, SIZE_S, PADDED_S)
        v = load_rows(teacher, cols, t_t, length, SIZE_T, PADDED_T)
        col_s = tl.load(lse_s + line + cols, mask=cols < length, other=0.0)
        col_t = tl.load(lse_t + line + cols, mask=cols < length, other=0.0)
        slope = symmetric_slope(tl.dot(a, tl.trans(b)), scale_s, row_s, col_s, rows, cols, CAUSAL)
        slope -= symmetric_slope(tl.dot(w, tl.trans(v)), scale_t, row_t, col_t, rows, cols, CAUSAL)
        if not FULL:
            # Not CAUSAL here: the transposed half looks the other way, and symmetric_slope masks both.
            slope = tl.where(real_pairs(rows, cols, length, False), slope, 0.0)
        total += tl.dot(slope.to(b.dtype), b)
    store_rows(gradient + sequence * d_b + head * d_r, rows, d_t, tokens, total, SIZE_S, PADDED_S)


def relation_kl(
    student_BTH: Tensor,
    teacher_BTG: Tensor,
    *,
    heads: int,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """The reference's `relation_kl`, same guarantees and errors; differentiable once. One float type for both."""
    check_relations(student_BTH, teacher_BTG, heads)
    check_lengths(lengths_B, student_BTH.shape[0], student_BTH.shape[1], student_BTH.device)
    loss = _RelationKL.apply(*differentiated(student_BTH), teacher_BTG.detach(), heads, lengths_B, causal)
    assert isinstance(loss, Tensor)
    return loss


class _RelationKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_BTH: Tensor, teacher_BTG: Tensor, heads: int, lengths_B: Tensor | None, causal: bool
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        student_BTH, teacher_BTG = (x if x.stride(-1) == 1 else x.contiguous() for x in (student_BTH, teacher_BTG))
        gradient = dense_like(student_BTH) if wanted else student_BTH
        student, teacher, out = (split_heads(x, heads) for x in (student_BTH, teacher_BTG, gradient))
        batch, _, tokens, size = student.shape
        lengths = student_BTH if lengths_B is None else lengths_B
        constants = head_constants(student, teacher, lengths_B, causal=causal)
        strides = (*student.stride()[:3], *teacher.stride()[:3])
        sizes = (tokens, heads, LOG2E * size**-0.5, LOG2E * teacher.shape[3] ** -0.5)
        with on_device(student):
            if tile := tile_options(student, teacher, constants):
                loss = student.new_empty((batch, heads), dtype=torch.float32)
                relation_tile[(heads, batch)](
                    student, teacher, out, loss, lengths, *strides, *out.stride()[:3], *sizes, GRADIENT=wanted, **tile,
                )  # fmt: skip
            else:
                options = block_options(student, constants)
                grid = (heads, triton.cdiv(tokens, options["BLOCK"]), batch)
                loss = student.new_empty((batch, *grid[:2]), dtype=torch.float32)
                lse = student.new_empty((2, batch, heads, tokens), dtype=torch.float32)
                inputs = (student, student, teacher, teacher)
                attention_rows[grid](*inputs, *lse, loss, lengths, *strides, *sizes, **options)
                if wanted:
                    relation_gradient[grid](
                        student, teacher, *lse, out, lengths, *strides, *out.stride()[:3], *sizes, **options
                    )
        ctx.heads = heads
        if wanted:
            ctx.save_for_backward(gradient, *(() if lengths_B is None else (lengths_B,)))
        return loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, *lengths = ctx.saved_tensors
        factor = (gradient.shape[2] / ctx.heads) ** -0.5 / ctx.heads
        lengths_B = lengths[0] if lengths else None
        return scaled(gradient, grad, lengths_B, gradient.shape[1], factor), None, None, None, None
