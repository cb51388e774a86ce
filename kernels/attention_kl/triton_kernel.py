"""KL between two attention distributions on the GPU: scores never leave the chip.

One program owns a (sequence, head) of at most TILE tokens: it makes both score tiles, both softmaxes, the loss
and the gradients of queries and keys in one pass. Longer sequences go over blocks: an online softmax of both
sides leaves two log-sum-exps per row, then one kernel forms the queries' gradient and one the keys'. README.md
has the maths; names and shapes as in reference.py and tiles.py; w and v are the teacher's queries and keys.
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

from ..backend import differentiated, on_device
from ..pairs import check_lengths
from ..tiles import (
    LN2,
    LOG2E,
    MASKED,
    block_options,
    dense_like,
    head_constants,
    load_rows,
    masked_scores,
    real_pairs,
    same_layout,
    scaled,
    sequence_length,
    store_rows,
    student_tile,
    teacher_tile,
    tile_options,
)
from .reference import check_heads


@triton.jit
def attention_tile(
    q_s, k_s, q_t, k_t, dq, dk, loss, lengths,
    s_b, s_a, s_t, t_b, t_a, t_t, d_b, d_a, d_t, tokens, heads, scale_s, scale_t,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss and gradients of one (sequence, head) of at most BLOCK tokens. loss is (B, A)."""
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    rows = tl.arange(0, BLOCK)
    # The teacher first, down to p: its scores need not live while the student's are made.
    teacher = sequence * t_b + head * t_a
    w = load_rows(q_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
    v = load_rows(k_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
    p, negentropy = teacher_tile(masked_scores(w, v, rows, rows, length, CAUSAL, FULL), scale_t)
    student = sequence * s_b + head * s_a
    q = load_rows(q_s + student, rows, s_t, length, SIZE_S, PADDED_S)
    k = load_rows(k_s + student, rows, s_t, length, SIZE_S, PADDED_S)
    s = masked_scores(q, k, rows, rows, length, CAUSAL, FULL)
    kl, slope = student_tile(s, scale_s, p, negentropy)
    tl.store(loss + sequence * heads + head, tl.sum(kl, 0) / (heads * tl.maximum(length, 1)))
    if GRADIENT:
        slope = slope.to(q.dtype)
        out = sequence * d_b + head * d_a
        grad = tl.dot(slope, k)
        store_rows(dq + out, rows, d_t, tokens, grad, SIZE_S, PADDED_S)
        grad = tl.dot(tl.trans(slope), q)
        store_rows(dk + out, rows, d_t, tokens, grad, SIZE_S, PADDED_S)


@triton.jit
def attention_rows(
    q_s, k_s, q_t, k_t, lse_s, lse_t, loss, lengths,
    s_b, s_a, s_t, t_b, t_a, t_t, tokens, heads, scale_s, scale_t,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Loss and both log-sum-exps of BLOCK rows, STEP keys at a time. lse is (B, A, T), loss (B, A, blocks)."""
    head, block, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    student, teacher = sequence * s_b + head * s_a, sequence * t_b + head * t_a
    q = load_rows(q_s + student, rows, s_t, length, SIZE_S, PADDED_S)
    w = load_rows(q_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
    top_s = tl.full([BLOCK], MASKED, tl.float32)
    top_t = tl.full([BLOCK], MASKED, tl.float32)
    sum_s = tl.zeros([BLOCK], tl.float32)
    sum_t = tl.zeros([BLOCK], tl.float32)
    gap = tl.zeros([BLOCK], tl.float32)  # Σ_j exp2(u_j − top_t)·(u_j − s_j)
    # Blocks of pads alone have nothing to add; their log-sum-exps are never read.
    limit = tl.where(block * BLOCK < length, length, 0)
    if CAUSAL:
        limit = tl.minimum(limit, (block + 1) * BLOCK)
    for start in range(0, limit, STEP):
        cols = start + tl.arange(0, STEP)
        k = load_rows(k_s + student, cols, s_t, length, SIZE_S, PADDED_S)
        s = masked_scores(q, k, rows, cols, length, CAUSAL, FULL) * scale_s
        v = load_rows(k_t + teacher, cols, t_t, length, SIZE_T, PADDED_T)
        u = masked_scores(w, v, rows, cols, length, CAUSAL, FULL) * scale_t
        top = tl.maximum(top_s, tl.max(s, 1))
        sum_s = sum_s * tl.exp2(top_s - top) + tl.sum(tl.exp2(s - top[:, None]), 1)
        top_s = top
        top = tl.maximum(top_t, tl.max(u, 1))
        kept = tl.exp2(top_t - top)
        p = tl.exp2(u - top[:, None])
        sum_t = sum_t * kept + tl.sum(p, 1)
        gap = gap * kept + tl.sum(p * (u - s), 1)
        top_t = top
    real = rows < length
    sum_s = tl.where(real, sum_s, 1.0)
    sum_t = tl.where(real, sum_t, 1.0)
    row_s = top_s + tl.log2(sum_s)
    row_t = top_t + tl.log2(sum_t)
    kl = tl.where(real, (gap / sum_t - row_t + row_s) * LN2, 0.0)
    row = sequence * heads + head
    tl.store(loss + row * tl.num_programs(1) + block, tl.sum(kl, 0) / (heads * tl.maximum(length, 1)))
    tl.store(lse_s + row * tokens + rows, row_s, mask=real)
    tl.store(lse_t + row * tokens + rows, row_t, mask=real)


@triton.jit
def block_slope(
    q, k, w, v, row_s, row_t, rows, cols, length, scale_s, scale_t, CAUSAL: tl.constexpr, FULL: tl.constexpr
):
    """q − p of a block from its rows' log-sum-exps; zero where the pair is not real."""
    # Scaled and shifted in one multiply-add; what overflows beyond the mask is dropped with it.
    slope = tl.exp2(tl.dot(q, tl.trans(k)) * scale_s - row_s[:, None])
    slope -= tl.exp2(tl.dot(w, tl.trans(v)) * scale_t - row_t[:, None])
    if CAUSAL or not FULL:
        slope = tl.where(real_pairs(rows, cols, length, CAUSAL), slope, 0.0)
    return slope


@triton.jit
def attention_queries(
    q_s, k_s, q_t, k_t, lse_s, lse_t, dq, lengths,
    s_b, s_a, s_t, t_b, t_a, t_t, d_b, d_a, d_t, tokens, heads, scale_s, scale_t,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The queries' gradient of BLOCK rows: Σ over keys, STEP at a time, of (q − p)·k."""
    head, block, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    student, teacher = sequence * s_b + head * s_a, sequence * t_b + head * t_a
    q = load_rows(q_s + student, rows, s_t, length, SIZE_S, PADDED_S)
    w = load_rows(q_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
    row = (sequence * heads + head) * tokens + rows
    row_s = tl.load(lse_s + row, mask=rows < length, other=0.0)
    row_t = tl.load(lse_t + row, mask=rows < length, other=0.0)
    total = tl.zeros([BLOCK, PADDED_S], tl.float32)
    limit = tl.where(block * BLOCK < length, length, 0)
    if CAUSAL:
        limit = tl.minimum(limit, (block + 1) * BLOCK)
    for start in range(0, limit, STEP):
        cols = start + tl.arange(0, STEP)
        k = load_rows(k_s + student, cols, s_t, length, SIZE_S, PADDED_S)
        v = load_rows(k_t + teacher, cols, t_t, length, SIZE_T, PADDED_T)
        slope = block_slope(q, k, w, v, row_s, row_t, rows, cols, length, scale_s, scale_t, CAUSAL, FULL)
        total += tl.dot(slope.to(k.dtype), k)
    store_rows(dq + sequence * d_b + head * d_a, rows, d_t, tokens, total, SIZE_S, PADDED_S)


@triton.jit
def attention_keys(
    q_s, k_s, q_t, k_t, lse_s, lse_t, dk, lengths,
    s_b, s_a, s_t, t_b, t_a, t_t, d_b, d_a, d_t, tokens, heads, scale_s, scale_t,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The keys' gradient of BLOCK columns: Σ over queries, STEP at a time, of (q − p)ᵀ·q."""
    head, block, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    cols = block * BLOCK + tl.arange(0, BLOCK)
    student, teacher = sequence * s_b + head * s_a, sequence * t_b + head * t_a
    k = load_rows(k_s + student, cols, s_t, length, SIZE_S, PADDED_S)
    v = load_rows(k_t + teacher, cols, t_t, length, SIZE_T, PADDED_T)
    total = tl.zeros([BLOCK, PADDED_S], tl.float32)
    # Under CAUSAL, queries before the block's first key see none of it. STEP divides BLOCK.
    first = 0
    if CAUSAL:
        first = block * BLOCK
    limit = tl.where(block * BLOCK < length, length, 0)
    for start in range(first, limit, STEP):
        rows = start + tl.arange(0, STEP)
        q = load_rows(q_s + student, rows, s_t, length, SIZE_S, PADDED_S)
        w = load_rows(q_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
        row = (sequence * heads + head) * tokens + rows
        row_s = tl.load(lse_s + row, mask=rows < length, other=0.0)
        row_t = tl.load(lse_t + row, mask=rows < length, other=0.0)
        slope = block_slope(q, k, w, v, row_s, row_t, rows, cols, length, scale_s, scale_t, CAUSAL, FULL)
        total += tl.dot(tl.trans(slope.to(q.dtype)), q)
    store_rows(dk + sequence * d_b + head * d_a, cols, d_t, tokens, total, SIZE_S, PADDED_S)


def attention_kl(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """The reference's `attention_kl`, same guarantees and errors; differentiable once. One float type for all four."""
    check_heads(q_s, k_s, q_t, k_t)
    check_lengths(lengths_B, q_s.shape[0], q_s.shape[2], q_s.device)
    loss = _AttentionKL.apply(*differentiated(q_s, k_s), q_t.detach(), k_t.detach(), lengths_B, causal)
    assert isinstance(loss, Tensor)
    return loss


class _AttentionKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, lengths_B: Tensor | None, causal: bool
    ) -> Tensor:
        batch, heads, tokens, size = q_s.shape
        q_s, k_s, q_t, k_t = *same_layout(q_s, k_s), *same_layout(q_t, k_t)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dq, dk = (dense_like(q_s) if wanted else q_s for _ in range(2))
        lengths = q_s if lengths_B is None else lengths_B
        constants = head_constants(q_s, q_t, lengths_B, causal=causal)
        inputs, strides = (q_s, k_s, q_t, k_t), (*q_s.stride()[:3], *q_t.stride()[:3])
        sizes = (tokens, heads, LOG2E * size**-0.5, LOG2E * q_t.shape[3] ** -0.5)
        with on_device(q_s):
            if tile := tile_options(q_s, q_t, constants):
                loss = q_s.new_empty((batch, heads), dtype=torch.float32)
                attention_tile[(heads, batch)](
                    *inputs, dq, dk, loss, lengths, *strides, *dq.stride()[:3], *sizes, GRADIENT=wanted, **tile,
                )  # fmt: skip
            else:
                options = block_options(q_s, constants)
                grid = (heads, triton.cdiv(tokens, options["BLOCK"]), batch)
                loss = q_s.new_empty((batch, *grid[:2]), dtype=torch.float32)
                lse = q_s.new_empty((2, batch, heads, tokens), dtype=torch.float32)
                attention_rows[grid](*inputs, *lse, loss, lengths, *strides, *sizes, **options)
                for kernel, out in ((attention_queries, dq), (attention_keys, dk)) if wanted else ():
                    kernel[grid](*inputs, *lse, out, lengths, *strides, *out.stride()[:3], *sizes, **options)
        if wanted:
            ctx.save_for_backward(dq, dk, *(() if lengths_B is None else (lengths_B,)))
        return loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dq, dk, *lengths = ctx.saved_tensors
        _, heads, tokens, size = dq.shape
        factor = size**-0.5 / heads
        lengths_B = lengths[0] if lengths else None
        dq, dk = (scaled(x, grad, lengths_B, tokens, factor) for x in (dq, dk))
        return dq, dk, None, None, None, None
