"""soft_cross_entropy as objectives call it: one signature, the implementation chosen by where the tensors are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backend import Backend, Choice, choose, ran
from . import eager, reference
from .head import product_dtype
from .reference import Top


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
    weights: tuple[float, float] | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """reference.soft_cross_entropy's (kl_sum, ce_sum) by the backend that `chosen` names.

    Pass `weights` (a, b) when only multiples of a·kl_sum + b·ce_sum will be differentiated: the gradient's
    products are then made once and not twice (eager, triton); a broken promise gives NaN gradients. The
    reference needs no such promise and ignores it. `chunk` positions have logits at a time (None: the
    backend's own choice).
    """
    choice = ran("soft_cross_entropy", chosen(hidden_NH, weight_VH, backend=backend))
    teacher: dict[str, Any] = {
        "teacher_logits_NV": teacher_logits_NV,
        "teacher_hidden_NG": teacher_hidden_NG,
        "teacher_weight_VG": teacher_weight_VG,
        "teacher_bias_V": teacher_bias_V,
        "teacher_top": teacher_top,
    }
    common = {"labels_N": labels_N, "temperature": temperature, "chunk": chunk}
    if choice.backend == "reference":
        return reference.soft_cross_entropy(hidden_NH, weight_VH, bias_V, **teacher, **common)
    if choice.backend == "eager":
        return eager.soft_cross_entropy(hidden_NH, weight_VH, bias_V, **teacher, **common, weights=weights)
    from . import triton_kernel  # imports triton, which a CPU machine need not have

    return triton_kernel.soft_cross_entropy(hidden_NH, weight_VH, bias_V, **teacher, **common, weights=weights)


def masked_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    *,
    chunk: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """reference.masked_cross_entropy's sum by the backend that `chosen` names."""
    choice = ran("masked_cross_entropy", chosen(hidden_NH, weight_VH, backend=backend))
    if choice.backend == "triton":
        from . import triton_kernel  # imports triton, which a CPU machine need not have

        return triton_kernel.masked_cross_entropy(hidden_NH, weight_VH, bias_V, labels_N, chunk=chunk)
    module = eager if choice.backend == "eager" else reference
    return module.masked_cross_entropy(hidden_NH, weight_VH, bias_V, labels_N, chunk=chunk)


def chosen(hidden_NH: Tensor, weight_VH: Tensor, *, backend: Backend = "auto") -> Choice:
    """What the losses run for tensors of these types and device, and why; see `backend.choose`."""
    # The logits' type decides, and under autocast that is not the hidden states'.
    logits = hidden_NH.new_empty(0, dtype=product_dtype(hidden_NH, weight_VH))
    return choose(backend, logits)
