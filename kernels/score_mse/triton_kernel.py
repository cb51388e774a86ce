"""Squared differences of attention scores on the GPU: neither model's scores leave the chip.

With D = S_student − S_teacher a block's loss is ΣD², its queries' gradient D·k and its keys' Dᵀ·q: no softmax,
so blocks need nothing of one another. One program does a whole (sequence, head) of at most TILE tokens; longer
sequences take one kernel over rows (loss and queries) and one over columns (keys). Names and shapes as in
reference.py and tiles.py; w and v are the teacher's queries and keys.
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

from ..attention_kl.reference import check_heads
from ..backend import differentiated, on_device
from ..pairs import check_lengths
from ..tiles import (
    block_options,
    dense_like,
    head_constants,
    load_rows,
    real_pairs,
    same_layout,
    scaled,
    sequence_length,
    store_rows,
    tile_options,
)


@triton.jit
def score_difference(q, k, w, v, rows, cols, length, scale_s, scale_t, CAUSAL: tl.constexpr, FULL: tl.constexpr):
    """q kᵀ·scale_s − w vᵀ·scale_t, zero where the pair is not real."""
    # One accumulator for both products: a second tile of float32 scores would halve the registers.
    teacher = tl.dot(w, tl.trans(v)) * (-scale_t / scale_s)
    difference = tl.dot(q, tl.trans(k), teacher) * scale_s
    if CAUSAL or not FULL:
        difference = tl.where(real_pairs(rows, cols, length, CAUSAL), difference, 0.0)
    return difference


@triton.jit
def score_tile(
    q_s, k_s, q_t, k_t, dq, dk, loss, lengths,
    s_b, s_a, s_t, t_b, t_a, t_t, d_b, d_a, d_t, tokens, heads, scale_s, scale_t, shrink,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss and gradients, times `shrink`, of one (sequence, head) of at most BLOCK tokens. loss is (B, A)."""
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    rows = tl.arange(0, BLOCK)
    student, teacher = sequence * s_b + head * s_a, sequence * t_b + head * t_a
    q = load_rows(q_s + student, rows, s_t, length, SIZE_S, PADDED_S)
    k = load_rows(k_s + student, rows, s_t, length, SIZE_S, PADDED_S)
    w = load_rows(q_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
    v = load_rows(k_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
    difference = score_difference(q, k, w, v, rows, rows, length, scale_s, scale_t, CAUSAL, FULL)
    tl.store(loss + sequence * heads + head, tl.sum(tl.sum(difference * difference, 1), 0))
    if GRADIENT:
        slope = difference.to(q.dtype)
        out = sequence * d_b + head * d_a
        grad = tl.dot(slope, k) * shrink
        store_rows(dq + out, rows, d_t, tokens, grad, SIZE_S, PADDED_S)
        grad = tl.dot(tl.trans(slope), q) * shrink
        store_rows(dk + out, rows, d_t, tokens, grad, SIZE_S, PADDED_S)


@triton.jit
def score_rows(
    q_s, k_s, q_t, k_t, dq, loss, lengths,
    s_b, s_a, s_t, t_b, t_a, t_t, d_b, d_a, d_t, tokens, heads, scale_s, scale_t, shrink,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss and the queries' gradient of BLOCK rows, STEP keys at a time. loss is (B, A, blocks)."""
    head, block, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    student, teacher = sequence * s_b + head * s_a, sequence * t_b + head * t_a
    q = load_rows(q_s + student, rows, s_t, length, SIZE_S, PADDED_S)
    w = load_rows(q_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
    total = tl.zeros([BLOCK, PADDED_S], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    limit = tl.where(block * BLOCK < length, length, 0)
    if CAUSAL:
        limit = tl.minimum(limit, (block + 1) * BLOCK)
    for start in range(0, limit, STEP):
        cols = start + tl.arange(0, STEP)
        k = load_rows(k_s + student, cols, s_t, length, SIZE_S, PADDED_S)
        v = load_rows(k_t + teacher, cols, t_t, length, SIZE_T, PADDED_T)
        difference = score_difference(q, k, w, v, rows, cols, length, scale_s, scale_t, CAUSAL, FULL)
        squares += tl.sum(difference * difference, 1)
        if GRADIENT:
            total += tl.dot(difference.to(k.dtype), k)
    line = (sequence * heads + head) * tl.num_programs(1) + block
    tl.store(loss + line, tl.sum(squares, 0))
    if GRADIENT:
        store_rows(dq + sequence * d_b + head * d_a, rows, d_t, tokens, total * shrink, SIZE_S, PADDED_S)


@triton.jit
def score_columns(
    q_s, k_s, q_t, k_t, dk, lengths,
    s_b, s_a, s_t, t_b, t_a, t_t, d_b, d_a, d_t, tokens, scale_s, scale_t, shrink,
    SIZE_S: tl.constexpr, SIZE_T: tl.constexpr, PADDED_S: tl.constexpr, PADDED_T: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The keys' gradient of BLOCK columns, STEP queries at a time."""
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
    for start in range(first, tl.where(block * BLOCK < length, length, 0), STEP):
        rows = start + tl.arange(0, STEP)
        q = load_rows(q_s + student, rows, s_t, length, SIZE_S, PADDED_S)
        w = load_rows(q_t + teacher, rows, t_t, length, SIZE_T, PADDED_T)
        difference = score_difference(q, k, w, v, rows, cols, length, scale_s, scale_t, CAUSAL, FULL)
        total += tl.dot(tl.trans(difference.to(q.dtype)), q)
    store_rows(dk + sequence * d_b + head * d_a, cols, d_t, tokens, total * shrink, SIZE_S, PADDED_S)


def score_sse(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """The reference's `score_sse` head by head, same guarantees and errors; differentiable once. One float type."""
    check_heads(q_s, k_s, q_t, k_t)
    check_lengths(lengths_B, q_s.shape[0], q_s.shape[2], q_s.device)
    loss = _ScoreSSE.apply(*differentiated(q_s, k_s), q_t.detach(), k_t.detach(), lengths_B, causal)
    assert isinstance(loss, Tensor)
    return loss


class _ScoreSSE(torch.autograd.Function):
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
        inputs, strides = (q_s, k_s, q_t, k_t), (*q_s.stride()[:3], *q_t.stride()[:3], *dq.stride()[:3])
        # A sum over keys of differences times keys can pass float16's 65,504; its mean does not.
        scales = (size**-0.5, q_t.shape[3] ** -0.5, 1 / max(1, tokens))
        with on_device(q_s):
            if tile := tile_options(q_s, q_t, constants):
                loss = q_s.new_empty((batch, heads), dtype=torch.float32)
                score_tile[(heads, batch)](
                    *inputs, dq, dk, loss, lengths, *strides, tokens, heads, *scales, GRADIENT=wanted, **tile,
                )  # fmt: skip
            else:
                options = block_options(q_s, constants)
                grid = (heads, triton.cdiv(tokens, options["BLOCK"]), batch)
                loss = q_s.new_empty((batch, *grid[:2]), dtype=torch.float32)
                score_rows[grid](
                    *inputs, dq, loss, lengths, *strides, tokens, heads, *scales, GRADIENT=wanted, **options
                )
                if wanted:
                    score_columns[grid](*inputs, dk, lengths, *strides, tokens, *scales, **options)
        if wanted:
            ctx.save_for_backward(dq, dk)
        return loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dq, dk = ctx.saved_tensors
        factor = 2 * dq.shape[3] ** -0.5 * dq.shape[2]
        dq, dk = (scaled(x, grad, None, 1, factor) for x in (dq, dk))
        return dq, dk, None, None, None, None
