"""Soft targets and masked cross-entropy on the GPU: one program walks a position's logits twice, BLOCK at a time.

The first walk keeps running maxima and sums of the softmaxes (the student's without and with temperature, the
teacher's with it) and the running Σ p·(z_T − z_S); the second forms the derivative from the finished
log-sum-exps and writes it in place of the student's half-precision logits, ready for the products with head
weight and hidden states that head.py makes. No float32 logits exist in memory. README.md has the maths; shapes as
in head.py. Inside, x and y are the student's and the teacher's logits over the temperature in units of log2.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# Triton's decorator hides what a kernel may be called with.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import on_device
from ..tiles import FUSED, LOG2E, MASKED
from .head import Mixture, Problem, Teacher, declared_mixtures
from .reference import IGNORED, Top, check_head, check_teacher, check_temperature

SKIP: tl.constexpr = tl.constexpr(IGNORED)


@triton.jit
def running_sum(top, total, x):
    """The maximum and Σ exp2(x − maximum) of a row after one more block of it."""
    peak = tl.maximum(top, tl.max(x, 0))
    return peak, total * tl.exp2(top - peak) + tl.sum(tl.exp2(x - peak), 0)


@triton.jit
def soft_rows(
    logits, teacher, labels, kl_out, ce_out, second,
    z_stride, t_stride, vocabulary, hard_scale, soft_scale, kl_factor, kl_a, ce_a, kl_b, ce_b,
    BLOCK: tl.constexpr, SOFT: tl.constexpr, HARD: tl.constexpr, WARM: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    """One position's KL and cross-entropy, and its derivative of SLOPES mixtures: in place, then in `second`.

    hard_scale is log2 e, soft_scale log2 e over the temperature; kl_factor is temperature² · ln 2; kl_a … ce_b
    weigh the derivatives. SOFT says there is a teacher, HARD that there are labels, WARM that the temperature is
    not 1. A label outside the vocabulary other than IGNORED makes the position's cross-entropy and slopes NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * z_stride
    second += row * z_stride
    teacher += row * t_stride
    label, counted = -1, 0.0
    if HARD:
        label = tl.load(labels + row)
    hard_top = tl.full([], MASKED, tl.float32)
    soft_top = tl.full([], MASKED, tl.float32)
    warm_top = tl.full([], MASKED, tl.float32)
    hard_sum = tl.full([], 0.0, tl.float32)
    soft_sum = tl.full([], 0.0, tl.float32)
    warm_sum = tl.full([], 0.0, tl.float32)
    gap = tl.full([], 0.0, tl.float32)  # Σ_j exp2(y_j − soft_top)·(y_j − x_j)
    picked = tl.full([], 0.0, tl.float32)
    for start in range(0, vocabulary, BLOCK):
        index = start + tl.arange(0, BLOCK)
        real = index < vocabulary
        z = tl.load(logits + index, mask=real, other=0.0).to(tl.float32)
        if HARD:
            picked += tl.sum(tl.where(index == label, z * hard_scale, 0.0), 0)
        hard_top, hard_sum = running_sum(hard_top, hard_sum, tl.where(real, z * hard_scale, MASKED))
        if SOFT:
            x = tl.where(real, z * soft_scale, MASKED)
            if WARM:
                warm_top, warm_sum = running_sum(warm_top, warm_sum, x)
            y = tl.load(teacher + index, mask=real, other=0.0).to(tl.float32)
            y = tl.where(real, y * soft_scale, MASKED)
            peak = tl.maximum(soft_top, tl.max(y, 0))
            kept = tl.exp2(soft_top - peak)
            p = tl.exp2(y - peak)
            soft_sum = soft_sum * kept + tl.sum(p, 0)
            gap = gap * kept + tl.sum(p * (y - x), 0)
            soft_top = peak
    hard_lse = hard_top + tl.log2(hard_sum)
    if HARD:
        # A label that is no entry must not pass for one that is far off. Nobody can raise here: NaN stops the update.
        counted = tl.where((label >= 0) & (label < vocabulary), 1.0, tl.where(label == SKIP, 0.0, float("nan")))
        tl.store(ce_out + row, counted * (hard_lse - picked) / hard_scale)
    warm_lse = hard_lse
    soft_lse = hard_lse
    if SOFT:
        if WARM:
            warm_lse = warm_top + tl.log2(warm_sum)
        soft_lse = soft_top + tl.log2(soft_sum)
        tl.store(kl_out + row, kl_factor * (gap / soft_sum - soft_lse + warm_lse))
    if SLOPES > 0:
        for start in range(0, vocabulary, BLOCK):
            index = start + tl.arange(0, BLOCK)
            real = index < vocabulary
            z = tl.load(logits + index, mask=real, other=0.0).to(tl.float32)
            soft = tl.zeros([BLOCK], tl.float32)
            hard = tl.zeros([BLOCK], tl.float32)
            if SOFT:
                y = tl.load(teacher + index, mask=real, other=0.0).to(tl.float32)
                soft = tl.exp2(z * soft_scale - warm_lse) - tl.exp2(y * soft_scale - soft_lse)
            if HARD:
                hard = tl.exp2(z * hard_scale - hard_lse) - tl.where(index == label, 1.0, 0.0)
            # Every thread stores where it loaded: in place is safe.
            slope = kl_a * soft + ce_a * counted * hard
            tl.store(logits + index, slope.to(logits.dtype.element_ty), mask=real)
            if SLOPES > 1:
                slope = kl_b * soft + ce_b * counted * hard
                tl.store(second + index, slope.to(second.dtype.element_ty), mask=real)


def chunk_losses(
    logits: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, mixtures: list[Mixture]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """head.ChunkLosses in one launch; overwrites `logits` with the first mixture's derivative."""
    count, vocabulary = logits.shape
    if teacher is not None and teacher.stride(-1) != 1:
        teacher = teacher.contiguous()
    kl, ce = logits.new_zeros((2, count), dtype=torch.float32)
    slopes = [logits if number == 0 else torch.empty_like(logits) for number in range(len(mixtures))]
    (kl_a, ce_a), (kl_b, ce_b) = [*mixtures, (0.0, 0.0), (0.0, 0.0)][:2]
    targets = logits if teacher is None else teacher
    with on_device(logits):
        soft_rows[(count,)](
            logits, targets, logits if labels is None else labels, kl, ce, slopes[-1] if slopes else logits,
            logits.stride(0), targets.stride(0), vocabulary,
            LOG2E, LOG2E / temperature, temperature**2 / LOG2E,
            # d(T²·KL)/dz = T·(q − p): the temperature's own chain rule takes one of the two factors.
            kl_a * temperature, ce_a, kl_b * temperature, ce_b,
            BLOCK=4096, SOFT=teacher is not None, HARD=labels is not None, WARM=temperature != 1,
            SLOPES=len(mixtures), num_warps=8, **FUSED,
        )  # fmt: skip
    return kl.sum(), ce.sum(), slopes


def soft_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None = None,
    *,
    teacher_logits_NV: Tensor | None = None,
    teacher_hidden_NG: Tensor | None = None,
    teacher_weight_VG: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    teacher_top: Top | None = None,
    labels_N: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    weights: Mixture | None = None,
) -> tuple[Tensor, Tensor]:
    """eager.soft_cross_entropy, same guarantees and errors; logits are rounded to the products' type once."""
    check_head(hidden_NH, weight_VH, bias_V, labels_N, who="student")
    check_teacher(
        hidden_NH, weight_VH, teacher_logits_NV, teacher_hidden_NG, teacher_weight_VG, teacher_bias_V, teacher_top
    )
    check_temperature(temperature)
    teacher = Teacher(teacher_logits_NV, teacher_hidden_NG, teacher_weight_VG, teacher_bias_V, teacher_top)
    mixtures = declared_mixtures(weights, hard=labels_N is not None)
    problem = Problem(labels_N, teacher, temperature, chunk, mixtures, chunk_losses, half_logits=True)
    return problem.solve(hidden_NH, weight_VH, bias_V)


def masked_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, labels_N: Tensor, *, chunk: int | None = None
) -> Tensor:
    """eager.masked_cross_entropy, same guarantees and errors; logits are rounded to the products' type once."""
    check_head(hidden_NH, weight_VH, bias_V, labels_N, who="student")
    problem = Problem(labels_N, None, 1.0, chunk, [(0.0, 1.0)], chunk_losses, half_logits=True)
    return problem.solve(hidden_NH, weight_VH, bias_V)[1]
