"""A language-model head and its losses a few positions at a time, with the gradient formed in the forward.

A chunk of positions gets its logits, its losses, the derivative with respect to its logits and the products that
carry it to hidden states and weight, before the next chunk starts: nothing larger than a chunk ever exists. What a
chunk's losses are and who computes them is the caller's (`ChunkLosses`). Shapes as in reference.py; c is the
number of positions in one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import differentiated
from .reference import Top, row_chunks

# Logits per chunk: as many as keep the products large, because the head's weight is read and its accumulated gradient
# read and written once per chunk. On a CPU 3 MiB in float32; at 1 MiB the passes between the products are faster and the
# whole takes up to a quarter longer.
CHUNK_LOGITS = {"cpu": 3 << 18, "cuda": 1 << 25}

# (a, b) stands for a·kl_sum + b·ce_sum, whose gradient is accumulated as one.
Mixture = tuple[float, float]


class ChunkLosses(Protocol):
    """A chunk's losses and derivatives from its logits; see `chunk_losses`, which is one."""

    def __call__(
        self, logits: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, mixtures: list[Mixture]
    ) -> tuple[Tensor, Tensor, list[Tensor]]: ...


@dataclass(frozen=True)
class Problem:
    """All that is not differentiated, and the implementation of a chunk's losses."""

    labels_N: Tensor | None
    teacher: Teacher | None
    temperature: float
    chunk: int | None
    mixtures: list[Mixture]
    losses: ChunkLosses
    half_logits: bool = False  # keep half-precision products as they are: `losses` widens them itself

    def solve(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(kl_sum, ce_sum), differentiable once."""
        # Asked before autocast is switched off: it decides what the products run in.
        dtype = product_dtype(hidden, weight)
        teacher = None if self.teacher is None else self.teacher.cast()
        with torch.autocast(hidden.device.type, enabled=False):
            result = _SoftCrossEntropy.apply(
                *differentiated(hidden, weight, bias), dtype, replace(self, teacher=teacher)
            )
        assert isinstance(result, tuple)
        return result

    def rows(self, positions: int, vocabulary: int, device: torch.device) -> list[slice]:
        """The positions, chunk by chunk."""
        if self.chunk is not None:
            return row_chunks(positions, self.chunk)
        limit = max(1, CHUNK_LOGITS["cpu" if device.type == "cpu" else "cuda"] // max(1, vocabulary))
        # Evenly: a small last chunk costs the weight's traffic of a whole one.
        chunks = max(1, -(-positions // limit))
        return row_chunks(positions, max(1, -(-positions // chunks)))


@dataclass(frozen=True)
class Teacher:
    """The teacher's logits, the head that makes them, or the largest of them; a constant."""

    logits_NV: Tensor | None
    hidden_NG: Tensor | None
    weight_VG: Tensor | None
    bias_V: Tensor | None
    top: Top | None = None

    def cast(self) -> Teacher:
        """The same teacher with its head in the type its products run in."""
        if self.hidden_NG is None or self.weight_VG is None:
            return self
        dtype = product_dtype(self.hidden_NG, self.weight_VG)
        return Teacher(None, self.hidden_NG.detach().to(dtype), self.weight_VG.detach().to(dtype), self.bias_V)

    def logits(self, rows: slice, dtype: torch.dtype | None, *, student: Tensor, temperature: float) -> Tensor:
        """(c, V) logits of these positions in `dtype` (None: as they are); the teacher's own where they are so.

        Where only the largest are known, `completed` by the student's (c, V) logits of the same positions.
        """
        if self.top is not None:
            return completed(self.top.rows(rows), student, temperature)
        if self.logits_NV is not None:
            return self.logits_NV[rows].detach().to(dtype or self.logits_NV.dtype)
        assert self.hidden_NG is not None
        assert self.weight_VG is not None
        return head_logits(self.hidden_NG[rows], self.weight_VG, self.bias_V, dtype)


def completed(top: Top, student: Tensor, temperature: float) -> Tensor:
    """(c, V) teacher logits, float32 or better: its own at the top, elsewhere the student's, shifted to the teacher's mass.

    Within the rest the two then agree, so the whole divergence is that of `top_divergence`; and taken as a constant
    they give its gradient: (q − p) at the top, q·(1 − r / q_rest) elsewhere.
    """
    logits = student.to(torch.promote_types(student.dtype, torch.float32), copy=True)
    rest = logits.div(temperature).scatter_(1, top.ids_NK, -torch.inf).logsumexp(1)
    shift = torch.where(top.rest_N == -torch.inf, 0.0, (top.rest_N.to(rest.dtype) - rest) * temperature)
    return logits.add_(shift[:, None]).scatter_(1, top.ids_NK, top.logits_NK.detach().to(logits.dtype))


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """(c, V) hidden·weightᵀ + bias in `dtype` (None: the operands'), the product itself in the operands' type."""
    dtype = dtype or weight.dtype
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


def declared_mixtures(weights: Mixture | None, *, hard: bool) -> list[Mixture]:
    """The mixtures of losses to accumulate gradients for: the declared one, or each loss by itself.

    Raises:
        ValueError: `weights` that are both zero: their gradient says nothing about any multiple.
    """
    if not hard:
        return [(1.0, 0.0)]
    if weights is None:
        return [(1.0, 0.0), (0.0, 1.0)]
    largest = max(map(abs, weights))
    if not 0 < largest < float("inf"):
        raise ValueError(
            f"weights {weights}: at least one of two finite weights must not be zero; None declares nothing"
        )
    # Callers fold 1/positions into the weights; float16 derivatives scaled by it would vanish.
    return [(weights[0] / largest, weights[1] / largest)]


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, problem: Problem
    ) -> tuple[Tensor, Tensor]:
        accumulate = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        logits_dtype = None if problem.half_logits else accumulate
        kl_sum, ce_sum = (hidden.new_zeros((), dtype=accumulate) for _ in range(2))
        head = weight.to(dtype)
        mixtures = problem.mixtures if any(ctx.needs_input_grad[:3]) else []
        gradients = [HeadGradient(hidden, weight, bias, accumulate) for _ in mixtures]
        for part in problem.rows(len(hidden), len(weight), hidden.device):
            states = hidden[part].to(dtype)
            logits = head_logits(states, head, bias, logits_dtype)
            teacher = None
            if problem.teacher is not None:
                teacher = problem.teacher.logits(part, logits_dtype, student=logits, temperature=problem.temperature)
            labels = None if problem.labels_N is None else problem.labels_N[part]
            kl, ce, slopes = problem.losses(logits, teacher, labels, problem.temperature, mixtures)
            kl_sum += kl
            ce_sum += ce
            for gradient, slope in zip(gradients, slopes, strict=True):
                gradient.add(part, slope, states, head)
        if problem.labels_N is None:
            # A constant zero: whatever weighs it must not count as a second loss in `mixture_scales`.
            ctx.mark_non_differentiable(ce_sum)
        ctx.mixtures, ctx.inputs = mixtures, (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
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
        return *results, None, None


class HeadGradient:
    """The gradient of hidden states, head weight and bias, accumulated over chunks in float32 or better."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.hidden = torch.empty_like(hidden, dtype=dtype)
        self.weight = torch.zeros_like(weight, dtype=dtype)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=dtype)

    def add(self, rows: slice, slope: Tensor, states: Tensor, head: Tensor) -> None:
        """Carry a chunk's derivative (c, V) to the states (c, H) and the head (V, H) that made its logits."""
        if self.bias is not None:
            self.bias += slope.sum(0, dtype=self.bias.dtype)
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
