"""Soft targets and masked cross-entropy with the gradient formed in the forward, a few positions at a time.

The reference keeps six (N, V) tensors for its backward. Here a chunk of positions gets its logits, its two
losses, the derivative with respect to its logits and the products that carry it to hidden states and weight,
before the next chunk starts: nothing of size (N, V) ever exists. Shapes as in reference.py; c is the number of
positions in one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import IGNORED, check_head, check_teacher, check_temperature, row_chunks

# Logits per chunk. On a CPU 1 MiB in float32: the passes of two softmaxes find their operands in the cache. On a GPU
# as many as keep the products large; the weight's accumulated gradient is read and written once per chunk.
CHUNK_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 25}

# (a, b) stands for a·kl_sum + b·ce_sum, whose gradient is accumulated as one.
Mixture = tuple[float, float]


def soft_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None = None,
    *,
    teacher_logits_NV: Tensor | None = None,
    teacher_hidden_NG: Tensor | None = None,
    teacher_weight_VG: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    labels_N: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    weights: Mixture | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference's `soft_cross_entropy`, same guarantees and errors; differentiable once.

    `weights` (a, b) promises that only multiples of a·kl_sum + b·ce_sum will be differentiated, which halves the
    products of the gradient; a broken promise gives NaN gradients, never wrong ones. Products run in
    `product_dtype`; softmaxes, sums and accumulated gradients are in float32 or better.
    """
    check_head(hidden_NH, weight_VH, bias_V, labels_N, who="student")
    check_teacher(hidden_NH, weight_VH, teacher_logits_NV, teacher_hidden_NG, teacher_weight_VG, teacher_bias_V)
    check_temperature(temperature)
    if labels_N is None:
        mixtures = [(1.0, 0.0)]
    else:
        mixtures = [(1.0, 0.0), (0.0, 1.0)] if weights is None else [weights]
    teacher = Teacher(teacher_logits_NV, teacher_hidden_NG, teacher_weight_VG, teacher_bias_V)
    return _apply(hidden_NH, weight_VH, bias_V, teacher, labels_N, temperature, chunk, mixtures)


def masked_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, labels_N: Tensor, *, chunk: int | None = None
) -> Tensor:
    """The reference's `masked_cross_entropy`, same guarantees and errors; differentiable once."""
    check_head(hidden_NH, weight_VH, bias_V, labels_N, who="student")
    return _apply(hidden_NH, weight_VH, bias_V, None, labels_N, 1.0, chunk, [(0.0, 1.0)])[1]


@dataclass(frozen=True)
class Teacher:
    """The teacher's logits, or the head that makes them; a constant."""

    logits_NV: Tensor | None
    hidden_NG: Tensor | None
    weight_VG: Tensor | None
    bias_V: Tensor | None

    def logits(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """(c, V) logits of these positions in `dtype`, the caller's to overwrite."""
        if self.logits_NV is not None:
            return self.logits_NV[rows].to(dtype, copy=True)
        assert self.hidden_NG is not None and self.weight_VG is not None
        return head_logits(self.hidden_NG[rows], self.weight_VG, self.bias_V, dtype)


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(c, V) hidden·weightᵀ + bias in `dtype`, the product itself in the operands' type."""
    if hidden.dtype == weight.dtype == dtype:
        return hidden @ weight.T if bias is None else torch.addmm(bias.to(dtype), hidden, weight.T)
    logits = (hidden @ weight.T).to(dtype)
    return logits if bias is None else logits.add_(bias)


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the head's products run in: autocast's type where it is on, else the promoted type of the operands.

    Half precision on a CPU without half-precision instructions becomes float32: emulated there, a bfloat16
    product takes three to sixty times as long (measured on an AVX2 machine), and it is less accurate.
    """
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device)
    if device != "cpu" or dtype not in (torch.float16, torch.bfloat16):
        return dtype
    supported = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    native = torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, supported)()
    return dtype if native else torch.float32


def chunk_losses(
    logits: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, mixtures: list[Mixture]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(kl_sum, ce_sum, one (c, V) derivative with respect to the logits per mixture); overwrites both logits."""
    zero = logits.new_zeros(())
    kl_sum, ce_sum, hard, lse, counted = zero, zero, None, zero, zero
    if labels is not None:
        hard, lse = _softmax(logits)
        counted = (labels != IGNORED).to(logits.dtype)
        picked = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        ce_sum = torch.dot(lse - picked, counted)
    soft = p = hard
    if teacher is not None:
        if temperature != 1:
            logits.div_(temperature)
            teacher.div_(temperature)
        # Without a temperature the student's two softmaxes are one.
        soft, lse = _softmax(logits) if hard is None or temperature != 1 else (hard, lse)
        p, teacher_lse = _softmax(teacher)
        kl_sum = temperature**2 * (torch.linalg.vecdot(p, teacher.sub_(logits)) - teacher_lse + lse).sum()
    slopes = []
    for kl_weight, ce_weight in mixtures:
        if kl_weight and soft is not None and p is not None:
            # d(T²·KL)/dz = T·(q − p): the temperature's own chain rule takes one of the two factors.
            slope = torch.sub(soft, p).mul_(kl_weight * temperature)
        else:
            slope = torch.zeros_like(logits)
        if ce_weight and hard is not None and labels is not None:
            slope.addcmul_(hard, counted[:, None], value=ce_weight)
            slope.scatter_add_(1, labels.clamp(min=0)[:, None], (counted * -ce_weight)[:, None])
        slopes.append(slope)
    return kl_sum, ce_sum, slopes


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    # The largest probability is exp(max − log-sum-exp) ≥ 1/V: the normaliser without a second exponential.
    q = logits.softmax(-1)
    return q, logits.amax(-1) - q.amax(-1).log()


def _apply(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: Teacher | None,
    labels: Tensor | None,
    temperature: float,
    chunk: int | None,
    mixtures: list[Mixture],
) -> tuple[Tensor, Tensor]:
    dtype = product_dtype(hidden, weight)
    if teacher is not None and teacher.hidden_NG is not None and teacher.weight_VG is not None:
        half = product_dtype(teacher.hidden_NG, teacher.weight_VG)
        teacher = Teacher(None, teacher.hidden_NG.to(half), teacher.weight_VG.to(half), teacher.bias_V)
    limit = CHUNK_LOGITS["cpu" if hidden.device.type == "cpu" else "cuda"]
    rows = row_chunks(len(hidden), chunk or max(1, limit // max(1, len(weight))))
    with torch.autocast(hidden.device.type, enabled=False):
        result = _SoftCrossEntropy.apply(hidden, weight, bias, labels, teacher, temperature, rows, mixtures, dtype)
    assert isinstance(result, tuple)
    return result


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor | None,
        teacher: Teacher | None,
        temperature: float,
        rows: list[slice],
        mixtures: list[Mixture],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        accumulate = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        kl_sum, ce_sum = (hidden.new_zeros((), dtype=accumulate) for _ in range(2))
        head = weight.to(dtype)
        wanted = mixtures if any(ctx.needs_input_grad[:3]) else []
        gradients = [HeadGradient(hidden, weight, bias, accumulate) for _ in wanted]
        for part in rows:
            states = hidden[part].to(dtype)
            logits = head_logits(states, head, bias, accumulate)
            targets = None if teacher is None else teacher.logits(part, accumulate)
            kl, ce, slopes = chunk_losses(
                logits, targets, None if labels is None else labels[part], temperature, wanted
            )
            kl_sum += kl
            ce_sum += ce
            for gradient, slope in zip(gradients, slopes, strict=True):
                gradient.add(part, slope, states, head)
        ctx.mixtures, ctx.inputs = wanted, (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(*(tensor for gradient in gradients for tensor in gradient.tensors()))
        return kl_sum, ce_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scales = mixture_scales(ctx.mixtures, *grads)
        saved = ctx.saved_tensors
        size = len(saved) // len(scales)
        results = []
        for index, dtype in enumerate(ctx.inputs):
            if dtype is None:
                results.append(None)
                continue
            total = saved[index] * scales[0]
            for number, scale in enumerate(scales[1:], start=1):
                total += saved[number * size + index] * scale
            results.append(total.to(dtype))
        return *results, None, None, None, None, None, None


class HeadGradient:
    """The gradient of hidden states, head weight and bias, accumulated over chunks in float32 or better."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.hidden = torch.empty_like(hidden, dtype=dtype)
        self.weight = torch.zeros_like(weight, dtype=dtype)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=dtype)

    def add(self, rows: slice, slope: Tensor, states: Tensor, head: Tensor) -> None:
        """Carry a chunk's derivative (c, V) to the states (c, H) and the head (V, H) that made its logits."""
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = slope.to(head.dtype)
        self.hidden[rows] = slope @ head
        if self.weight.dtype == head.dtype:
            self.weight.addmm_(slope.T, states)
        else:
            self.weight += slope.T @ states

    def tensors(self) -> list[Tensor]:
        """What the backward scales."""
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]


def mixture_scales(mixtures: list[Mixture], kl_grad: Tensor, ce_grad: Tensor) -> list[Tensor]:
    """How much of each mixture's gradient is asked for; NaN where one mixture cannot express what is asked."""
    if len(mixtures) == 2:
        return [kl_grad, ce_grad]
    ((kl_weight, ce_weight),) = mixtures
    scale = (kl_grad * kl_weight + ce_grad * ce_weight) / (kl_weight**2 + ce_weight**2)
    error = (kl_grad - scale * kl_weight).abs() + (ce_grad - scale * ce_weight).abs()
    # One per cent forgives half-precision loss arithmetic. No exception: reading the value would stall a GPU's host.
    return [torch.where(error <= 0.01 * scale.abs() * (abs(kl_weight) + abs(ce_weight)), scale, torch.nan)]
