"""What the attention-like Triton kernels share: tiles of heads, masked scores, launch sizes, the backward's scaling.

Scores are in units of log2, so that exp2 and log2 are single instructions. Gradients are kept without their
normaliser, which float16 could not hold, until the backward knows the incoming gradient.

Shapes: B sequences, A heads, T padded length, d a head's size, PADDED the power of two (at least 16, tl.dot's
smallest tile) that holds it.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# Triton's decorator hides what a kernel may be called with.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import on_device, one_tile, roomy

LOG2E = 1.4426950408889634
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Far below any score yet finite: masked minus masked is 0, and exp2 of it is exactly 0.
MASKED: tl.constexpr = tl.constexpr(-1e30)

# Score · scale − maximum is one instruction only if the compiler may fuse it: triton 3.10 will not unless told to.
FUSED: dict[str, Any] = {"enable_fp_fusion": True}


@triton.jit
def load_rows(base, rows, stride, limit, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """(rows, PADDED) numbers of a head; zero, and not read, beyond its SIZE numbers and in rows from `limit` on."""
    cols = tl.arange(0, PADDED)
    real = (rows[:, None] < limit) & (cols[None, :] < SIZE)
    return tl.load(base + rows[:, None] * stride + cols[None, :], mask=real, other=0.0)


@triton.jit
def store_rows(base, rows, stride, limit, values, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """Write (rows, PADDED) numbers of a head, in rows below `limit`."""
    cols = tl.arange(0, PADDED)
    real = (rows[:, None] < limit) & (cols[None, :] < SIZE)
    tl.store(base + rows[:, None] * stride + cols[None, :], values.to(base.dtype.element_ty), mask=real)


@triton.jit
def sequence_length(lengths, sequence, tokens, HAS_LENGTHS: tl.constexpr):
    """The sequence's number of real tokens."""
    length = tokens
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(lengths + sequence).to(tl.int32), tokens)
    return length


@triton.jit
def real_pairs(rows, cols, length, CAUSAL: tl.constexpr):
    """(rows, cols): whether query and key are both real and, under CAUSAL, the key not in the query's future."""
    real = (rows < length)[:, None] & (cols < length)[None, :]
    if CAUSAL:
        real = real & (cols[None, :] <= rows[:, None])
    return real


@triton.jit
def masked_scores(q, k, rows, cols, length, CAUSAL: tl.constexpr, FULL: tl.constexpr):
    """q kᵀ, MASKED where a key is a pad or, under CAUSAL, in the future; FULL says that there is no pad at all."""
    scores = tl.dot(q, tl.trans(k))
    if CAUSAL:
        scores = tl.where((cols < length)[None, :] & (cols[None, :] <= rows[:, None]), scores, MASKED)
    elif not FULL:
        scores = tl.where((cols < length)[None, :], scores, MASKED)
    return scores


@triton.jit
def teacher_tile(u, scale):
    """(p, Σ_j p·log2 p per row) = softmax of whole rows of scores u·scale, scale in log2 units."""
    u = u * scale - (tl.max(u, 1) * scale)[:, None]
    p = tl.exp2(u)
    total = tl.sum(p, 1)
    p *= (1.0 / total)[:, None]
    return p, tl.sum(p * u, 1) - tl.log2(total)


@triton.jit
def student_tile(s, scale, p, negentropy):
    """(KL of every row in nats, q − p) from whole rows of scores s·scale.

    Both are exactly zero in rows of pads without a mask: pads are loaded as zeros, so q and p are equally uniform.
    """
    s = s * scale - (tl.max(s, 1) * scale)[:, None]
    cross = tl.sum(p * s, 1)
    q = tl.exp2(s)
    total = tl.sum(q, 1)
    return (negentropy - cross + tl.log2(total)) * LN2, q * (1.0 / total)[:, None] - p


@triton.jit
def scale_gradient(
    source, target, grad, lengths, tokens, count, factor, BLOCK: tl.constexpr, HAS_LENGTHS: tl.constexpr
):
    """target = source · grad · factor / length, sequence by sequence of `count` numbers."""
    sequence = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    length = sequence_length(lengths, sequence, tokens, HAS_LENGTHS)
    scale = tl.load(grad).to(tl.float32) * factor / tl.maximum(length, 1)
    numbers = tl.load(source + sequence * count + index, mask=index < count, other=0.0).to(tl.float32)
    tl.store(target + sequence * count + index, (numbers * scale).to(target.dtype.element_ty), mask=index < count)


def scaled(source: Tensor, grad: Tensor, lengths_B: Tensor | None, tokens: int, factor: float) -> Tensor:
    """source · grad · factor / length (`tokens` without lengths), in source's layout, whose sequences are dense.

    In the place of `source`, the kept gradient, unless the graph is kept for another backward: a second copy of the
    gradients of all relations would double what the loss needs at its peak.
    """
    again = torch._C._autograd._get_current_graph_task_keep_graph()
    target, count = torch.empty_like(source) if again else source, source[:1].numel()
    lengths = source if lengths_B is None else lengths_B
    grid = (triton.cdiv(count, 4096), len(source))
    with on_device(source):
        scale_gradient[grid](
            source, target, grad, lengths, tokens, count, factor,
            BLOCK=4096, HAS_LENGTHS=lengths_B is not None, num_warps=8, **FUSED,
        )  # fmt: skip
    return target


def dense_like(x: Tensor) -> Tensor:
    """An empty tensor of x's shape and, where its sequences are dense, of its layout; contiguous otherwise."""
    out = torch.empty_like(x)
    return out if out.stride(0) == x[:1].numel() else torch.empty_like(x, memory_format=torch.contiguous_format)


def same_layout(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """q and k with equal strides and adjacent numbers within a head, copied only where they are not so already."""
    if q.stride() == k.stride() and q.stride(-1) == 1:
        return q, k
    return q.contiguous(), k.contiguous()


def head_constants(student: Tensor, teacher: Tensor, lengths_B: Tensor | None, *, causal: bool) -> dict[str, Any]:
    """The compile-time arguments every kernel of a (…, d) student and a (…, e) teacher takes."""
    sizes = student.shape[-1], teacher.shape[-1]
    padded = [max(16, triton.next_power_of_2(size)) for size in sizes]
    return {
        "SIZE_S": sizes[0],
        "SIZE_T": sizes[1],
        "PADDED_S": padded[0],
        "PADDED_T": padded[1],
        "CAUSAL": causal,
        "HAS_LENGTHS": lengths_B is not None,
    }


def tile_options(student: Tensor, teacher: Tensor, constants: dict[str, Any]) -> dict[str, Any] | None:
    """Launch options of a one-tile kernel for these (…, T, d) heads; None when they go over blocks.

    Warps grow with the tile so that a thread holds at most 64 numbers of each of its two score tiles.
    """
    if not one_tile(student, teacher):
        return None
    tokens = student.shape[-2]
    block = max(16, triton.next_power_of_2(tokens))
    full = tokens == block and not constants["HAS_LENGTHS"]
    return {"BLOCK": block, "FULL": full, "num_warps": {16: 1, 32: 1, 64: 4, 128: 8}[block], **FUSED, **constants}


def block_options(student: Tensor, constants: dict[str, Any]) -> dict[str, Any]:
    """Launch options of a kernel over blocks: wide heads get smaller blocks, so that operands fit shared memory."""
    width, tokens = max(constants["PADDED_S"], constants["PADDED_T"]), student.shape[-2]
    if width <= 64:
        sizes = {"BLOCK": 128, "STEP": 64, "num_warps": 8}
    else:
        step = (64 if width <= 128 else 32) // (1 if roomy(student) else 2)
        sizes = {"BLOCK": 64, "STEP": step, "num_warps": 4}
    full = tokens % sizes["BLOCK"] == 0 and not constants["HAS_LENGTHS"]
    return {**sizes, "FULL": full, **FUSED, **constants}
